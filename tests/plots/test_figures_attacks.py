"""The figure of what became of the images under attack: counts, ranks, what is not drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from alignment_security.analysis.results import load_results
from alignment_security.plots.attacks import MAX_BARS, broken_by
from alignment_security.plots.style import STYLE

EPS = [1 / 255, 2 / 255]


def rows(robust: int, square: int, images: int = 10) -> list[dict]:
    """One misclassified image, so many robust and broken by Square, the others by APGD."""
    found = []
    for i in range(images):
        kind = "clean" if i == 0 else "" if i <= robust else "apgd-ce"
        if robust < i <= robust + square:
            kind = "square"
        row = {
            "image_id": f"{i}",
            "label": 1,
            "clean_pred": int(i > 0),
            "clean_correct": int(i > 0),
        }
        verdict = {
            "robust": int(kind == ""),
            "broken_by": kind or None,
            "adv_pred": int(kind == ""),
        }
        found += [row | verdict | {"eps": eps, "from_eps": eps} for eps in EPS]
    return found


@pytest.fixture
def record(tiny_record):
    def call(model: str, *counts: int) -> None:
        tiny_record(
            rows(*counts), eps=EPS, model=model, kind="ball", threat="Linf", attack="AutoAttack"
        )

    return call


def drawn(folder):
    with plt.rc_context(STYLE):
        return list(broken_by(load_results(folder)))


def test_counts_and_ranks(tmp_path, record):
    record("weak", 1, 0)
    record("strong", 6, 2)
    ((name, figure, table, caption),) = drawn(tmp_path)
    strong = table[(table["model"] == "strong") & (table["eps"] == EPS[1])].iloc[0]
    columns = ["robust", "apgd-ce", "square", "misclassified", "n"]
    assert strong[columns].tolist() == [6, 1, 2, 1, 10] and strong["low"] < 0.6 < strong["high"]
    assert name == "broken_by_sample_Linf" and "AutoAttack" in figure.get_suptitle()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["strong", "weak"]
    widths = [patch.get_width() for patch in figure.axes[0].patches]
    assert np.isclose(sum(widths), 200) and np.isclose(widths[:2], [60, 10]).all()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["robust", "apgd-ce", "square", "misclassified"]
    assert "only" not in caption.splitlines()[0].replace("only on what is left", "")
    plt.close(figure)


def test_many_models_are_the_most_robust_ones(tmp_path, record):
    for k in range(MAX_BARS + 3):
        record(f"net{k:02d}", 1 + (k < MAX_BARS), 0)
    ((_, figure, table, caption),) = drawn(tmp_path)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == MAX_BARS and f"net{MAX_BARS:02d}" not in labels
    assert table["model"].nunique() == MAX_BARS + 3 and "The 3 least robust models" in caption
    plt.close(figure)
