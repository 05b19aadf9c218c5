"""Figures, tables and statistics of Feng 2025: against its claims and against hand counts."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from norm_tables import write_published, write_summary

import plotting
from alignment_security.analysis.feng2025 import norm_tables, quadratic_fit
from alignment_security.analysis.feng2025_harmonized import paired_test
from alignment_security.analysis.feng2025_published import PUBLISHED_ERRORS
from alignment_security.analysis.feng2025_statistics import welch_text
from alignment_security.analysis.norm_table import PUBLISHED
from alignment_security.analysis.results import load_results
from alignment_security.plots.feng2025 import (
    human_alignment,
    perturbation_tolerance,
    tradeoff,
)
from alignment_security.plots.feng2025_harmonized import figure_6_7, p_text
from alignment_security.plots.feng2025_tables import paper_drawings, text_statistics
from alignment_security.plots.style import STYLE
from alignment_security.records.metrics import pareto_front


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def published():
    return load_results("no_such_results", None, DATA)


@pytest.fixture
def made_up(tmp_path):
    """Eight models of ours, and a published folder of four.

    Alignment falls with tolerance except for one of ours.
    """
    norms, alignments = [1, 2, 3, 4, 5, 6, 7, 8], [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.9]
    write_summary(
        tmp_path,
        [
            {
                "model": f"m{i}",
                "l2_mean": norm,
                "l2_sem": 0.1,
                "human_alignment": value,
                "clean_acc": norm / 10,
            }
            for i, (norm, value) in enumerate(zip(norms, alignments))
        ],
    )
    return load_results(tmp_path, None, write_published(tmp_path / "published"))


def statistics_of(results) -> pd.DataFrame:
    ((_, figure, table, caption),) = text_statistics(results)
    assert figure is None
    table.attrs["caption"] = caption
    return table


# ---- the paper's claims --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statistic", "measure", "claim", "value", "df", "n"),
    [
        ("SSL vs Other", "Perturbation Tolerance", "T(65) = 7.85", 7.845, 65.44, "54, 255"),
        ("SSL vs Other", "human alignment", "T(98) = -7.49", -7.489, 98.11, "54, 255"),
        ("robust vs Other", "Perturbation Tolerance", "T(41) = 6.41", 6.412, 41.40, "42, 309"),
        ("robust vs Other", "human alignment", "T(106) = 20.85", 20.851, 106.64, "42, 309"),
        (
            "Spearman with multi-label accuracy",
            "Perturbation Tolerance",
            "0.81",
            0.807,
            None,
            "309",
        ),
        ("Spearman with multi-label accuracy", "human alignment", "-0.74", -0.739, None, "309"),
        ("most accurate model", "human alignment", "-0.03", -0.0343, None, "1"),
        ("least accurate model", "human alignment", "0.22", 0.2171, None, "1"),
        ("Table 2, rows equal", "both", "33", 33, None, "33"),
        ("models per group (CNN, ViT, Hybrid, SSL)", "count", "125, 78, 52, 54", None, None, "309"),
    ],
)
def test_a_claim_comes_out_of_the_published_numbers(
    published, statistic, measure, claim, value, df, n
):
    table = statistics_of(published)
    (row,) = table[(table["statistic"] == statistic) & (table["measure"] == measure)].to_dict(
        "records"
    )
    assert (
        row["claimed"] == row["recomputed"] == claim
        and row["reproduces"] == "yes"
        and row["n"] == n
    )
    assert value is None or row["value"] == pytest.approx(value, abs=5e-4)
    assert np.isnan(row["df"]) if df is None else row["df"] == pytest.approx(df, abs=5e-3)


@pytest.mark.parametrize(
    ("statistic", "measure", "claimed", "recomputed"),
    [
        ("ViT vs CNN", "Perturbation Tolerance", "T(163) = 9.11", "T(168) = 11.61"),
        ("ViT vs CNN", "human alignment", "T(153) = -12.5", "T(136) = -15.51"),
        ("robust vs Other", "accuracy", "T(45) = -8", "T(45) = -9.18"),
        (
            "most accurate standard model above robust ones (%)",
            "accuracy",
            "11.24 to 46.62",
            "11.48 to 44.87",
        ),
    ],
)
def test_a_claim_that_differs_is_said(published, statistic, measure, claimed, recomputed):
    row = statistics_of(published).set_index(["statistic", "measure"]).loc[(statistic, measure)]
    assert row["claimed"] == claimed and row["recomputed"] == recomputed
    assert row["reproduces"] == "no"


def test_the_table_says_what_does_not_reproduce(published):
    table = statistics_of(published).set_index(["statistic", "measure"])
    big_data = table.loc["Big Data vs Other"]
    assert big_data["claimed"].tolist() == ["T(32) = 5.65", "T(40) = -2.54, p = 0.015"]
    assert big_data["reproduces"].tolist() == ["not public"] * 2
    assert (
        table.loc["harmonized vs baseline (Figures 6 and 7)", "reproduces"].tolist()
        == ["not public"] * 2
    )
    caption = statistics_of(published).attrs["caption"]
    assert (
        "Does not reproduce from public numbers: robust vs Other, ViT vs CNN, harmonized vs "
        "baseline (Figures 6 and 7), Big Data vs Other, most accurate standard model above robust "
        "ones (%)." in caption
    )
    measured = table.loc["Spearman with multi-label accuracy, measured accuracies only", "value"]
    np.testing.assert_allclose(measured, [0.818, -0.734], atol=5e-4)


def test_table_2_row_for_row_and_table_1_as_printed(published):
    drawn = {name: table for name, _, table, _ in paper_drawings(published)}
    robust = drawn["table_2_robust"]
    assert len(robust) == 33 and robust["equal"].eq("yes").all()
    assert (robust["Perturbation Tolerance"] == robust["Perturbation Tolerance, public file"]).all()
    assert (robust["human alignment (%)"] == robust["human alignment (%), public file"]).all()
    assert robust.iloc[-1, :3].tolist() == ["wide_resnet50_2", "Linf", "8.0"]
    assert drawn["table_1_harmonized"].iloc[0].tolist() == [
        "resnetv2_50",
        "2.9369 ± 0.0785",
        "36.62 ± 1.44",
    ]


def test_harmonized_nets_against_the_public_models_of_their_architecture(published):
    ((_, figure, table, caption),) = figure_6_7(published)
    assert table.groupby("net")["model"].count().to_dict() == {
        "resnet18": 5,
        "resnet34": 2,
        "resnet50": 4,
        "resnet101": 1,
        "resnet152": 1,
        "vit_tiny_patch16_224": 1,
        "resnetv2_50": 0,
        "convnext_tiny": 0,
        "mobilenetv3_small_050": 0,
    }
    test = paired_test(table, "alignment")
    assert (
        test["n"] == 6 and test["p"] == 2 / 2**6
    )  # all six differences are positive: the smallest p that six allow
    assert (
        "nor are there public numbers for mobilenetv3_small_050, convnext_tiny, resnetv2_50."
        in caption
    )


def test_every_figure_of_the_paper_shows_every_model(published, tmp_path):
    ((_, figure, table, _),) = perturbation_tolerance(published)
    assert len(table) == 351 and "n = 309" in figure.axes[0].get_title(loc="left")
    ((_, figure, table, caption),) = tradeoff(published)
    assert len(figure.axes) == 2 and len(table) == 360 and "21 are estimated" in caption
    front = table[table["front"]].sort_values("pt")
    assert (np.diff(front["alignment"]) < 0).all() and set(front["group"]) <= {
        "CNN",
        "ViT",
        "Hybrid",
        "SSL",
    }


# ---- made-up numbers -----------------------------------------------------------------------------


def test_a_source_is_a_panel_and_the_rank_correlation_is_that_of_a_hand_count(made_up):
    ((_, figure, table, caption),) = tradeoff(made_up)
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert [title.split("\n")[0] for title in titles] == [
        PUBLISHED,
        f"{PUBLISHED}, all models",
        "mine, L2-crossing",
    ]
    # ranks 1..8 against 7 6 5 4 3 2 1 8: squared differences 36 + 16 + 4 + 0 + 4 + 16 + 36 + 0 =
    # 112, rho = 1 - 6 * 112 / 504
    assert "ρ = -0.33 [" in titles[2] and "n = 8" in titles[2]
    assert table.groupby("panel").size().to_dict() == {1: 7, 2: 8}
    assert table.loc[(table["panel"] == 2) & table["front"], "model"].tolist() == ["m7"]
    assert "n = 20" in caption


def test_a_model_alone_is_drawn_without_a_fit_or_a_correlation(tmp_path):
    write_summary(
        tmp_path, [{"model": "resnet18", "l2_mean": 1.0, "l2_sem": 0.1, "human_alignment": 0.3}]
    )
    results = load_results(tmp_path)
    for function in (perturbation_tolerance, human_alignment, tradeoff):
        ((_, figure, table, _),) = function(results)
        assert len(table) == 1 and figure.axes[0].get_title(loc="left").endswith("\nn = 1 model")
        assert "resnet18" in [text.get_text() for text in figure.axes[0].texts]
    assert list(text_statistics(results)) == []


def test_a_source_without_human_maps_is_left_out_where_they_are_drawn(tmp_path):
    write_summary(tmp_path, [{"model": "a", "l2_mean": 1.0}])
    results = load_results(tmp_path)
    assert list(tradeoff(results)) == list(human_alignment(results)) == []
    assert len(list(perturbation_tolerance(results))) == 1


def test_robust_table_tells_a_row_that_differs_from_one_that_is_rounded(made_up):
    drawn = {name: table for name, _, table, _ in paper_drawings(made_up)}
    assert drawn["table_2_robust"]["equal"].tolist() == [
        "yes",
        "yes",
    ]  # printed 6.0000, in the file 6.00004
    path = made_up.published / "feng2025" / "seed_tables_1_2.csv"
    path.write_text(path.read_text().replace("6.00004", "6.0002"))
    results = load_results(made_up.folder, None, made_up.published)
    drawn = {name: table for name, _, table, _ in paper_drawings(results)}
    assert drawn["table_2_robust"]["equal"].tolist() == ["yes", "no"]
    assert (
        drawn["table_mine_L2-crossing"]["Perturbation Tolerance"].tolist()[0] == "8.0000 ± 0.1000"
    )


def test_welch_text_truncates_degrees_of_freedom():
    assert welch_text(7.845, 65.99) == "T(65) = 7.84"


def test_pareto_front_by_hand():
    points = np.array([[1, 9], [2, 8], [2, 7], [3, 3], [3, 3], [0, 9]])
    assert pareto_front(points).tolist() == [True, True, False, True, True, False]
    with pytest.raises(ValueError, match="nan"):
        pareto_front(np.array([[1, np.nan]]))


def test_tables_are_latex_csv_and_caption_and_without_numbers_the_option_is_named(
    made_up, tmp_path, capsys
):
    options = ["--figures_dir", str(tmp_path / "figures"), "--plots", "tables_1_2", "harmonized"]
    assert (
        plotting.main(
            ["--results_dir", str(made_up.folder), "--published", str(made_up.published), *options]
        )
        == 0
    )
    latex = (tmp_path / "figures" / "table_2_robust.tex").read_text()
    assert r"\toprule" in latex and "5.0000 ± 0.1000" in latex and r"human alignment (\%)" in latex
    capsys.readouterr()
    empty = tmp_path / "none"
    empty.mkdir()
    assert plotting.main(["--published", "", "--results_dir", str(empty), *options]) == 2
    error = capsys.readouterr().err
    assert "--published DIR" in error and "python utilities.py merge" in error


def test_letters_are_large_enough_and_names_do_not_lie_on_each_other(tmp_path):
    names = [
        "resnet18.tv_in1k",
        "resnet50.tv_in1k",
        "vgg11.tv_in1k",
        "vgg13.tv_in1k",
        "a_name_too_long_for_a_panel_of_a_column.x",
    ]
    write_summary(
        tmp_path,
        [
            {
                "model": name,
                "l2_mean": 1 + i / 50,
                "l2_sem": 0.01,
                "human_alignment": 0.3 + i % 2 / 100,
                "human_alignment_sem": 0.01,
                "clean_acc": 0.7 + i / 500,
            }
            for i, name in enumerate(names)
        ],
    )
    results = load_results(tmp_path)
    with plt.rc_context(STYLE):
        for function in (perturbation_tolerance, human_alignment, tradeoff):
            ((_, figure, _, _),) = function(results)
            assert (
                min(text.get_fontsize() for text in figure.findobj(plt.Text) if text.get_text())
                >= 6
            )
            figure.canvas.draw()
            labels = [text for text in figure.axes[0].texts if text.get_text()]
            assert len(labels) == 5 and "a_name_too_long_for_a_pane" in [
                text.get_text() for text in labels
            ]
            boxes = [text.get_window_extent().shrunk(0.9, 0.7) for text in labels]
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# ---- what captions say of errors and fits --------------------------------------------------------


def test_every_published_error_is_a_deviation_over_the_root_of_240():
    """The published code rounds a deviation to four decimals: error x sqrt(240) has four, always.

    With another n, most products have more.
    """
    table = pd.read_csv(next((DATA / "feng2025").glob("adversarial_alignment*.csv")))
    errors = table[["pt_sem", "aa_sem"]].to_numpy().ravel()
    assert len(errors) == 702

    def with_four_decimals(n: int) -> int:
        deviations = errors * np.sqrt(n)
        return int((np.abs(deviations - deviations.round(4)) < 2e-7).sum())

    assert with_four_decimals(240) == 702
    # (960 is 4 x 240: its products are twice those)
    assert max(with_four_decimals(n) for n in (239, 241, 480, 1000)) < 50
    assert "SD / √240" in PUBLISHED_ERRORS and "960" in PUBLISHED_ERRORS


def test_captions_say_what_the_published_bars_are(published):
    captions = [
        caption
        for function in (perturbation_tolerance, human_alignment, tradeoff, figure_6_7)
        for _, _, _, caption in function(published)
    ]
    captions += [caption for _, _, _, caption in paper_drawings(published)]
    assert len(captions) >= 6 and all(PUBLISHED_ERRORS in caption for caption in captions)
    plt.close("all")


def test_the_fit_is_that_of_the_normal_equations_and_the_caption_has_it(published):
    """Second degree in accuracy over the 309 standard models; R² is a squared correlation."""
    (source,) = [table for table in norm_tables(published) if table.name == PUBLISHED]
    ((_, _, _, caption),) = perturbation_tolerance(published)
    rows = source.standard.dropna(subset=["accuracy", "pt"])
    a, y = rows["accuracy"].to_numpy(), rows["pt"].to_numpy()
    design = np.vander(a - a.mean(), 3)
    fitted = design @ np.linalg.solve(design.T @ design, design.T @ y)
    fit = quadratic_fit(rows, "pt")
    np.testing.assert_allclose(np.polyval(fit["coefficients"], a), fitted, rtol=1e-8)
    assert fit["r2"] == pytest.approx(np.corrcoef(fitted, y)[0, 1] ** 2, rel=1e-9)
    square, slope, constant = fit["coefficients"]
    assert f"{constant:.4g} {slope:+.4g} a {square:+.4g} a²" in caption
    assert f"R² = {fit['r2']:.3f}, n = 309 models." in caption
    plt.close("all")


def test_a_fit_in_a_caption_is_in_the_unit_of_its_axis(tmp_path):
    """Linf in 255ths and alignment in percent; by hand, pt = a² / 255 and alignment = a²."""
    rows = [
        {"model": f"m{a}", "threat": "Linf-fmn", "clean_acc": a / 100, "l2_mean": 1.0}
        | {"linf_mean": a**2 / 1e4 / 255, "human_alignment": a**2 / 1e4}
        for a in range(10, 70, 10)
    ]
    results = load_results(write_summary(tmp_path, rows))
    for draw, label, square in (
        (perturbation_tolerance, "Perturbation Tolerance (L∞, 1/255)", 0.0001),
        (human_alignment, "human alignment (% of ceiling)", 0.01),
    ):
        ((_, figure, _, caption),) = draw(results)
        assert figure.axes[0].get_ylabel() == label
        (text,) = re.findall(rf"{re.escape(label)} = .* (\S+) a², a", caption)
        assert float(text) == pytest.approx(square)
    plt.close("all")


def test_p_against_several_standard_models_has_one_equals_sign():
    assert p_text(pd.Series([0.44, 1, 1e-5])) == "p = 0.44, 1, < 0.001"
    assert p_text(pd.Series([1e-5, np.nan, 0.02])) == "p < 0.001, 0.02"
    assert p_text(pd.Series([np.nan])) == ""
