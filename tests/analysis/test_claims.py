"""The ledger of claims: its verdicts, and the page that shows it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from leaderboards import full_scores, made_up, planted, random_scores, write_scores

import plotting
from alignment_security.analysis.brainscore_leaderboard import LEFT_OUT
from alignment_security.analysis.claims import (
    COLUMNS,
    IS_NOT,
    IS_REPRODUCED,
    UNCHECKED,
    claims_table,
)
from alignment_security.analysis.hoak2025_accuracies import HOAK2025_COLUMNS, HOAK2025_TABLE
from alignment_security.analysis.results import load_results
from alignment_security.plots.hoak2025_survivors import survivors_forest

DATA = ROOT / "tests" / "data"
PAGE = ROOT / "docs" / "claims.md"
VERDICTS = (IS_REPRODUCED, IS_NOT, UNCHECKED)
TEXTURE = "benchmarks of texture or shape predict robust accuracy"
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


def write_papers_table(folder, scores: pd.DataFrame) -> None:
    """Made-up accuracies in the form of the paper's table, correlated as `planted` says."""
    clean, robust = planted(scores)
    rows = made_up(clean, robust)
    names = {column: name for name, column in HOAK2025_COLUMNS.items()}
    rows.rename(columns=names)[list(HOAK2025_COLUMNS)].to_csv(folder / HOAK2025_TABLE, index=False)


def test_benchmarks_of_texture_or_shape_are_counted_as_the_forest_counts_them(tmp_path):
    """One is planted to survive; a benchmark that the paper leaves out counts nowhere."""
    scores = random_scores(60).assign(**{"Lab.Shape-bias": 0.5, LEFT_OUT: np.nan})
    scores.iloc[:12, -1] = np.arange(12)
    write_scores(tmp_path, scores)
    write_papers_table(tmp_path, scores)
    results = load_results(tmp_path, published=DATA)
    ledger = claims_table(results).set_index("claim")
    row = ledger.loc[TEXTURE]
    assert row["ours"] == "1 of 1 survive, of the others 1 of 6"  # Shape-bias is constant
    assert row["verdict"] == UNCHECKED and "no number" in row["why"]
    ((_, _, _, caption),) = survivors_forest(results)
    assert "2 of 7 benchmarks survive" in caption and f"without {LEFT_OUT}" in caption
    assert ledger.loc[BENCHMARKS, "ours"] == "8"  # and the constant one


@pytest.mark.parametrize(
    ("models", "published", "says"),
    [(0, False, "no published leaderboard"), (6, True, "too few models"), (30, True, "")],
)
def test_what_hoak2025s_table_lacks_is_said(tmp_path, leaderboard, models, published, says):
    """Scores are those of the published leaderboard where setup_scores made none."""
    scores = full_scores(leaderboard, 200).dropna(subset="behavior_vision")[: models or 30]
    write_papers_table(tmp_path, scores)
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "feng2025").symlink_to(DATA / "feng2025")
    if published:
        (tmp_path / "public" / "brainscore").symlink_to(leaderboard.parent)
    ledger = claims_table(load_results(tmp_path, published=tmp_path / "public"))
    rows = ledger[ledger["paper"].eq("Hoak 2025") & ledger["claim"].ne(BENCHMARKS)]
    assert rows["ours"].ne("").all() if not says else rows["why"].str.contains(says).all()
    assert not rows["why"].str.contains("not public").any()


def test_without_public_numbers_there_is_no_ledger(tmp_path, capsys):
    assert claims_table(load_results("no_such_results")).empty
    options = ["--results_dir", str(tmp_path), "--published", "", "--plots", "claims"]
    assert plotting.main(options) == 2
    error = capsys.readouterr().err
    assert "--published DIR" in error and "evaluate_robustness.py" not in error
