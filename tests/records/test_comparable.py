"""Which records share a table: one decision for merge, audit, figures and the page."""

from __future__ import annotations

import html

import pytest

import plotting
from alignment_security.analysis.results import load_results, stale_records
from alignment_security.records.audit import audit
from alignment_security.records.summary import merge_records

NORMS = [
    {"image_id": name, "label": 1, "clean_pred": 1, "clean_correct": 1, "success": 1, "l2": l2}
    for name, l2 in (("a", 1.0), ("b", 2.0), ("c", 6.0))
]


def test_merge_audit_figures_and_page_leave_out_the_same_for_the_same_reason(
    tiny_record, tmp_path, capsys
):
    """The odd one has other maps and other steps: the maps are the reason, everywhere."""
    tiny_record(NORMS, model="a", human_map="none", steps=20, attack="FMN 20 steps")
    for model, steps in (("b", 30), ("c", 40)):
        attack = f"FMN {steps} steps"
        tiny_record(NORMS, model=model, human_map="x", steps=steps, attack=attack, walks=steps)
    said: list[str] = []
    assert list(merge_records(tmp_path, log=said.append)["model"]) == ["b", "c"]
    (reason,) = (text.removeprefix("left out: ") for text in said)
    assert "a.json: not comparable with b.json" in reason
    assert "(human_map: 'x' -> 'none')" in reason
    assert "the most runs that are alike stay, here 2 against 1" in reason and "--strict" in reason
    assert [line for line in audit(tmp_path) if "comparable" in line] == [reason]
    figures = tmp_path / "figures"
    plotting.main(
        ["--results_dir", str(tmp_path), "--figures_dir", str(figures)]
        + ["--plots", "accuracy_vs_eps", "--report"]
    )
    said_by_plotting = capsys.readouterr().err
    assert reason in said_by_plotting and "is older than" not in said_by_plotting
    assert html.escape(reason) in (figures / "report.html").read_text()


@pytest.mark.parametrize(
    ("maps", "says"),
    [
        ("xy", "of equally many runs that are alike, here 1, those of the first name stay"),
        ("xyyxx", "the most runs that are alike stay, here 3 against 2"),
        ("xyzyy", "the most runs that are alike stay, here 3 against 1"),
    ],
)
def test_the_rule_by_which_runs_stay_is_said(tiny_record, tmp_path, maps, says):
    for model, human_map in zip("abcde", maps):
        tiny_record(NORMS, model=model, human_map=human_map)
    said: list[str] = []
    merge_records(tmp_path, log=said.append)
    assert len(said) == min(len(maps) - maps.count(human) for human in set(maps))
    assert all(says in reason for reason in said)


def test_budgets_of_a_folder_share_a_table_and_are_no_finding(tiny_record, tmp_path):
    for model, steps in (("a", 3), ("b", 4)):
        tiny_record(NORMS, model=model, steps=steps, attack=f"FMN {steps} steps")
    assert list(merge_records(tmp_path, log=print)["model"]) == ["a", "b"]
    assert not [line for line in audit(tmp_path) if "comparable" in line]


def test_a_damaged_record_that_merge_leaves_out_makes_no_summary_stale(tiny_record, tmp_path):
    for model in "ab":
        run = tiny_record(NORMS, model=model)
    run.csv.write_text(run.csv.read_text().replace("6.0", "5.0"))
    merge_records(tmp_path, log=print)
    assert not stale_records(load_results(tmp_path))
