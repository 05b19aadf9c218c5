"""The ledger of claims: its verdicts, and the page that shows it."""

from __future__ import annotations

import pandas as pd
import pytest
from conftest import ROOT
from leaderboards import random_scores, write_scores

import plotting
from alignment_security.analysis.claims import (
    COLUMNS,
    IS_NOT,
    IS_REPRODUCED,
    UNCHECKED,
    claims_table,
)
from alignment_security.analysis.hoak2025_accuracies import HOAK2025_TABLE
from alignment_security.analysis.results import load_results

DATA = ROOT / "tests" / "data"
PAGE = ROOT / "docs" / "claims.md"
VERDICTS = (IS_REPRODUCED, IS_NOT, UNCHECKED)
BENCHMARKS = "Brain-Score benchmarks"  # counted in a leaderboard, which is not in the repository


@pytest.fixture(scope="module")
def ledger() -> pd.DataFrame:
    return claims_table(load_results("no_such_results", published=DATA))


def test_every_row_has_a_verdict_and_a_reason(ledger):
    assert list(ledger) == list(COLUMNS)
    assert set(ledger["paper"]) == {"Feng 2025", "Hoak 2025"}
    filled = ledger.drop(columns=["ours", "why"])
    assert (filled != "").all(axis=None) and not ledger["claim"].duplicated().any()
    reproduced = ledger["verdict"] == IS_REPRODUCED
    assert (ledger.loc[~reproduced, "why"] != "").all()
    assert (ledger.loc[reproduced, "claimed"] == ledger.loc[reproduced, "ours"]).all()
    differs = ledger[ledger["verdict"] == IS_NOT]
    assert (differs["claimed"] != differs["ours"]).all() and (differs["ours"] != "").all()


def test_the_page_shows_the_ledger(ledger):
    """docs/claims.md has each row as it is made, and no other."""
    page = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    for row in ledger[ledger["claim"] != BENCHMARKS].to_dict("records"):
        cells = [row[name] for name in COLUMNS[1:-1]]
        assert f"| {' | '.join(cells)} |" in page
        assert f"`python {row['command']}`" in PAGE.read_text()
    verdicts = [line for line in page if any(f"| {one} |" in line for one in VERDICTS)]
    assert len(verdicts) == len(ledger)


def test_the_benchmarks_are_counted_in_the_leaderboard(leaderboard, tmp_path):
    """105 in that of 2025-05-07, and in a made-up one of its shape."""
    (tmp_path / "feng2025").symlink_to(DATA / "feng2025")
    (tmp_path / "brainscore").symlink_to(leaderboard.parent)
    ledger = claims_table(load_results("none", published=tmp_path)).set_index("claim")
    assert ledger.loc[BENCHMARKS, ["ours", "verdict"]].tolist() == ["105", IS_REPRODUCED]


def test_hoak2025s_own_table_is_recomputed(tmp_path):
    """With it, models are counted and behavioral alignment explains what a regression says."""
    scores = random_scores(20)
    write_scores(tmp_path, scores)
    accuracy = scores["behavior_vision"].rank(pct=True)  # explained in full, up to ranks
    pd.DataFrame(
        {
            "Model Name": scores.index,
            "Threat Model": "Linf",
            "Epsilon": 1 / 255,
            "Top-1 Accuracy": accuracy.to_numpy(),
            "Top-1 Subset Clean Accuracy": 0.9,
        }
    ).to_csv(tmp_path / HOAK2025_TABLE, index=False)
    ledger = claims_table(load_results(tmp_path, published=DATA)).set_index("claim")
    assert ledger.loc["models", ["ours", "verdict"]].tolist() == ["20", IS_NOT]
    explained = ledger.loc["variance of robust accuracy explained by behavioral alignment"]
    assert int(explained["ours"].rstrip("%")) > 80 and explained["verdict"] == IS_NOT


def test_without_public_numbers_there_is_no_ledger(tmp_path, capsys):
    assert claims_table(load_results("no_such_results")).empty
    options = ["--results_dir", str(tmp_path), "--published", "", "--plots", "claims"]
    assert plotting.main(options) == 2
    error = capsys.readouterr().err
    assert "--published DIR" in error and "evaluate_robustness.py" not in error
