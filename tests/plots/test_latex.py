r"""LaTeX tables: what LaTeX itself says of their width, where pdflatex is installed."""

import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from leaderboards import write_study
from norm_tables import write_summary

import plotting
from alignment_security.plots.latex import ROWS, latex

needs_latex = pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
DOCUMENT = r"\documentclass{article}\usepackage{booktabs}\begin{document}%s\end{document}"


def overfull(folder, text: str) -> list[str]:
    """What pdflatex reports as wider than the page; fails if the text does not compile."""
    (folder / "a.tex").write_text(DOCUMENT % text, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return re.findall(r"Overfull \\hbox.*", done.stdout)


@needs_latex
def test_every_table_fits_the_page(tmp_path):
    """Of both studies, with the longest names that timm has."""
    write_study(tmp_path / "hoak")
    names = [
        "convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_384",
        "vit_huge_patch14_clip_336.laion2b_ft_in12k_in1k",
        "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k",
    ] + [f"net_{i}" for i in range(60)]
    rows = [
        {"model": name, "l2_mean": 1.2345678, "l2_sem": 0.1, "human_alignment": 0.01 * i, "n": 20}
        for i, name in enumerate(names)
    ]
    write_summary(tmp_path / "feng", rows)
    for folder, plots in (
        ("hoak", ["regression_table", "benchmark_table"]),
        ("feng", ["text_statistics", "tables_1_2"]),
    ):
        options = ["--published", str(DATA), "--figures_dir", str(tmp_path / "figures")]
        plotting.main(["--results_dir", str(tmp_path / folder), *options, "--plots", *plots])
    plt.close("all")
    tables = sorted((tmp_path / "figures").glob("*.tex"))
    assert len(tables) >= 6
    for path in tables:
        assert overfull(tmp_path, path.read_text()) == [], path.name


@needs_latex
def test_any_text_is_read_as_it_is(tmp_path):
    """Every letter that LaTeX has a meaning for, and no page too narrow."""
    table = pd.DataFrame(
        {
            "50% & more": ["a_b#c$d^e~f\\g{h}", "ε ≤ 1".replace("≤", "<"), "5.0 ± 0.1"],
            "x|y": [0.123456, np.nan, -1e-9],
            "prose": ["a sentence of some length that no cell holds in one line " * 3] * 3,
        }
    )
    assert overfull(tmp_path, latex(table)) == []


def test_prose_and_provenance_stay_in_the_csv():
    table = pd.DataFrame(
        {
            "source": ["of the paper", "ours"],
            "statistic": "Spearman",
            "claimed": "0.81",
            "rule": "?",
        }
    )
    text = latex(table, "text_statistics")
    assert "?" not in text and text.count("Spearman") == 2
    assert text.index("of the paper") < text.index("Spearman") < text.index("ours")
    assert "of the paper" not in latex(table)  # it names runs, as the caption does


def test_a_long_table_comes_in_parts_and_a_wide_one_in_sets_of_columns():
    table = pd.DataFrame({f"column {i}": np.arange(2 * ROWS) for i in range(3)})
    assert latex(table).count(r"\toprule") == 2
    wide = pd.DataFrame({f"c{i}": ["abcdefghijklmnop"] for i in range(12)})
    text = latex(wide)
    assert text.count(r"\toprule") == 4 and text.count("c0 ") == 4  # the first and three each
    assert all(f"c{i}" in text for i in range(12))


def test_a_column_without_values_is_left_out():
    """As `claimed` is where a study's own numbers are compared with nothing."""
    table = pd.DataFrame({"statistic": ["rho"], "claimed": [np.nan], "recomputed": [0.5]})
    header = latex(table).partition("\\midrule")[0]
    assert "recomputed" in header and "claimed" not in header
