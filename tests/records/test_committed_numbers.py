"""Numbers of the front page against the committed records, which `trace` leads to."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from conftest import DATA, ROOT, run_utilities

import plotting
from alignment_security.common.eps import format_eps
from alignment_security.records.audit import audit
from alignment_security.records.summary import SUMMARY_NAME, summarise

SAMPLE = ROOT / "results" / "sample"


def printed_rows() -> list[list[str]]:
    """Cells of the rows of `make demo` in README.md, in words between two or more spaces."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if "threat" in line and "clean_acc" in line)
    return [line.split() for line in lines[head + 1 : lines.index("```", head)]]


def test_the_rows_of_the_front_page_are_those_of_the_committed_records():
    summary, rows = summarise(SAMPLE), printed_rows()
    assert len(rows) == 2
    for threat, model, *cells in rows:
        found = summary[(summary["threat"] == threat) & (summary["model"] == model)]
        shown = []
        for row in found.to_dict("records"):
            eps = [format_eps(row["eps"])] if row["eps"] > 0 else []
            values = [f"{100 * row['clean_acc']:.1f}", "%"]
            if pd.notna(row["robust_acc"]):
                values += [f"{100 * row['robust_acc']:.1f}", "%"]
            if pd.notna(row["l2_mean"]):
                values += [f"{row['l2_mean']:.3f}", f"{row['human_alignment']:.3f}"]
            shown.append(eps + values + row["attack"].split())
        assert cells in shown


@pytest.mark.parametrize("name", [SUMMARY_NAME])
def test_trace_leads_every_committed_number_to_its_run(name, capsys):
    request = ["trace", str(SAMPLE / name), "--results_dir", str(SAMPLE)]
    run_utilities(*request)
    lines = len((SAMPLE / name).read_text().splitlines())
    out = capsys.readouterr().out
    assert out.count("record    ") == summarise(SAMPLE).groupby(["model", "threat"]).ngroups
    assert f"line(s) {lines}" in out


def test_no_figure_of_the_committed_records_and_the_published_numbers_is_a_finding(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(plotting, "rendered", lambda figure: {"pdf": b""})  # the audit reads tables
    options = ["--results_dir", str(SAMPLE), "--published", str(DATA)]
    plotting.main([*options, "--figures_dir", str(tmp_path)])
    plt.close("all")
    assert len(list(tmp_path.glob("*.csv"))) > 8 and audit(SAMPLE, tmp_path) == []
