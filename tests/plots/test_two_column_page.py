"""Figures of our own records in a two-column page: letters, widths, labels, colours, measured."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from readable import unreadable

import plotting
from alignment_security.analysis.results import Results, load_results
from alignment_security.plots.corruptions import draw_severity_lines
from alignment_security.plots.norms import draw_curves
from alignment_security.plots.style import (
    MAX_BANDS,
    MAX_NAMED,
    STYLE,
    legend_handles,
    model_styles,
    titles_into_caption,
)
from alignment_security.records.run import Run
from alignment_security.records.summary import merge_records

IMAGES = [f"{i}.jpg" for i in range(12)]
EPS = [0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255]
CORRUPTIONS = ["contrast", "elastic_transform", "fog", "gaussian_noise", "jpeg_compression"]
STUDIES = {
    "a family": ["resnet18.a1_in1k", "resnet34.a1_in1k", "resnet50.a1_in1k"],
    "long names": [
        "Engstrom2019Robustness",
        "Salman2020Do_R50",
        "beit_base_patch16_224.in22k_ft_in22k_in1k",
        "resnet50.a1_in1k",
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "vit_large_patch14_clip_224.openai_ft_in12k_in1k",
        "vgg16.tv_in1k",
    ],
}
OWN = [
    "accuracy_vs_eps",
    "accuracy_vs_norm",
    "accuracy_vs_severity",
    "broken_by",
    "clean_vs_robust",
    "corners",
    "corruption_errors",
    "cost",
    "human_alignment",
    "norm_distributions",
    "perturbation_tolerance",
    "robust_vs_tolerance",
    "tradeoff",
]


def write_study(folder, models: list[str]) -> Results:
    """Records of made-up verdicts, norms and accuracies under corruptions."""
    random = np.random.default_rng(0)
    for model in models:
        right = [
            {
                "image_id": name,
                "label": 0,
                "clean_pred": int(is_wrong),
                "clean_correct": 1 - is_wrong,
            }
            for name, is_wrong in zip(IMAGES, (random.random(len(IMAGES)) < 0.2).astype(int))
        ]
        threats: dict[tuple[str, str], dict] = {
            ("Linf", "ball"): {"protocol": "autoattack", "attack": "AutoAttack standard"},
            ("L2-crossing", "minimum_norm"): {
                "protocol": "crossing",
                "attack": "crossing 50 steps",
            },
        }
        for kind in CORRUPTIONS:
            for severity in (1, 3):
                corruption = {"type": kind, "severity": severity}
                threats[f"corruptions-{kind}-{severity}", "clean"] = {"corruption": corruption}
        for (threat, kind), settings in threats.items():
            facts = {"model": {"name": model}, "run": settings | {"list_sha256": "l"}}
            with Run(folder, "imagenet-val", threat, model, kind, facts) as run:
                run.append([row | more for row in right for more in measured(kind, row, random)])
                run.finish(IMAGES, EPS if kind == "ball" else None, seconds=random.uniform(9, 900))
    merge_records(folder)
    return load_results(folder)


def measured(kind: str, row: dict, random: np.random.Generator) -> list[dict]:
    """What an attack finds of an image, a dict per row of the record."""
    passes = {"forwards": int(random.integers(1, 4000)), "backwards": int(random.integers(1, 999))}
    if kind == "clean":
        return [{}]
    if kind == "minimum_norm":
        found = {"success": 1, "adv_pred": 1, "l2": random.lognormal(-1, 1)}
        found |= {"human_alignment_raw": 0.1, "human_alignment": random.normal(0.3, 0.1)}
        return [passes | (found if row["clean_correct"] else {})]
    norm = random.lognormal(-6, 1) * row["clean_correct"]
    by = random.choice(["apgd-ce", "apgd-t", "fab-t", "square"]) if norm else "clean"
    verdicts = [{"eps": eps, "from_eps": eps, "robust": int(norm > eps)} for eps in EPS]
    return [
        passes | verdict | {"broken_by": None if verdict["robust"] else by, "adv_pred": 1}
        for verdict in verdicts
    ]


@pytest.fixture(scope="module", params=STUDIES)
def study(request, tmp_path_factory) -> Results:
    return write_study(tmp_path_factory.mktemp("study"), STUDIES[request.param])


@pytest.mark.parametrize("name", OWN)
def test_a_figure_is_readable_on_a_two_column_page(study, name):
    """Also without its titles, as a paper with captions has it."""
    with plt.rc_context(STYLE):
        drawings = list(plotting.FIGURES[name][0](study))
        assert drawings
        for _, figure, _, _ in drawings:
            assert list(unreadable(figure)) == []
            titles_into_caption(figure)
            assert list(unreadable(figure)) == []
            plt.close(figure)


def test_what_is_unreadable_is_found():
    figure = plt.figure(figsize=(4, 10))
    figure.text(0.5, 0.5, "small", fontsize=5)
    figure.text(0.9, 0.2, "cut at the edge")
    figure.text(0.1, 0.8, "one")
    figure.text(0.1, 0.8, "two")
    assert [sentence.split(":")[0] for sentence in unreadable(figure)] == [
        "4.00 inches wide, neither of a column nor of a page",
        "10.00 inches high",
        "5 points",
        "overlap",
        "cut",
    ]
    plt.close(figure)


@pytest.mark.parametrize("count", [3, 6, 7, MAX_NAMED])
def test_models_of_one_family_differ_and_none_is_pale(count):
    """Also those of no known family, as networks of RobustBench are."""
    for name in ("resnet{}.a1", "Author{}Robust"):
        models = {name.format(k) for k in range(count)}
        styles = model_styles(models)
        looks = {(one["color"], one.get("marker"), one.get("linestyle")) for one in styles.values()}
        assert len(looks) == min(count, 8)
        for handle in legend_handles(styles):
            red, green, blue = to_rgb(handle.get_color())
            assert max(red, green, blue) - min(red, green, blue) > 0.1 or red < 0.5


@pytest.mark.parametrize("count", [MAX_BANDS, MAX_BANDS + 1])
def test_bands_are_drawn_where_lines_are_few(count):
    models = [f"resnet{k}.a1" for k in range(count)]
    rows = [
        {"model": model, "severity": x, "eps": x, "correct": 5}
        | {"accuracy": 0.5, "low": 0.4, "high": 0.6}
        for model in models
        for x in (1, 2)
    ]
    figure, (left, right) = plt.subplots(1, 2)
    draw_severity_lines(left, pd.DataFrame(rows), model_styles(set(models)))
    draw_curves(right, pd.DataFrame(rows), model_styles(set(models)), "L2", 4.0)
    for ax in (left, right):
        assert len(ax.lines) == count and len(ax.collections) == (
            count if count == MAX_BANDS else 0
        )
    plt.close(figure)
