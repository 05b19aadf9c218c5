"""Hoak 2025's figures of leaderboards with made-up accuracies: lines, captions, readability."""

from __future__ import annotations

import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from leaderboards import (
    BENCHMARKS,
    MADE_UP,
    RADII,
    full_scores,
    random_scores,
    write_scores,
    write_study,
)
from matplotlib.collections import PathCollection
from readable import overlapping, unreadable, visible
from scipy import stats
from sklearn.metrics import pairwise_distances

import plotting
from alignment_security.analysis.hoak2025_tsne import comparable_scores, score_distances
from alignment_security.analysis.results import Results, load_results
from alignment_security.plots import (
    hoak2025,
    hoak2025_heat_maps,
    hoak2025_survivors,
    hoak2025_tables,
)
from alignment_security.plots.hoak2025 import short_benchmark, tsne_plot
from alignment_security.plots.hoak2025_heat_maps import halves
from alignment_security.plots.hoak2025_survivors import survivors_forest
from alignment_security.plots.style import STYLE, drawn_radii

FIGURES = (
    hoak2025_heat_maps.FIGURES
    | hoak2025.FIGURES
    | hoak2025_survivors.FIGURES
    | hoak2025_tables.FIGURES
)
PICTURES = [name for name in FIGURES if not name.endswith("_table")]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """Sixty models whose accuracies are made up, with planted correlations."""
    folder = tmp_path_factory.mktemp("results")
    write_study(folder, random_scores(60).assign(Empty2020=np.nan, Constant2020=0.5))
    return load_results(folder)


@pytest.fixture(scope="module")
def drawings(results):
    """{figure: its drawings}, in the style in which they are written."""
    plt.switch_backend("Agg")
    with plt.rc_context(STYLE):
        found = {name: list(function(results)) for name, (function, _) in FIGURES.items()}
        for figure in [each[1] for parts in found.values() for each in parts if each[1]]:
            figure.draw_without_rendering()
    yield found
    plt.close("all")


def draw(results, figures, *options) -> int:
    return plotting.main(["--results_dir", str(results), "--figures_dir", str(figures), *options])


# ---- every picture -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_says_that_its_accuracies_are_made_up(drawings, name):
    assert drawings[name]
    for _, figure, table, caption in drawings[name]:
        shown = " ".join(text.get_text().replace("\n", " ") for text in visible(figure))
        assert MADE_UP in shown and MADE_UP in caption
        assert (
            "n = 1000" in shown
            and "60 models" in caption
            and "Brain-Score of 2025-05-07" in caption
        )
        assert "Benchmarks without any score: Empty2020." in caption and len(table)


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_readable_on_a_two_column_page(drawings, name):
    for _, figure, _, _ in drawings[name]:
        assert list(unreadable(figure)) == []


def test_six_radii_have_room(tmp_path):
    write_study(tmp_path, random_scores(40), radii=[k / 255 for k in (0.25, 0.5, 1, 2, 4, 8)])
    with plt.rc_context(STYLE):
        for name in (
            "avg_alignment_vs_robust",
            "survivors_forest",
            "leave_one_family_out",
            "variance_explained",
        ):
            figure = next(FIGURES[name][0](load_results(tmp_path)))[1]
            assert list(unreadable(figure)) == []
            plt.close(figure)


def test_overlaps_are_found():
    figure = plt.figure()
    for place, word in ((0.5, "one"), (0.5, "two"), (0.1, "far")):
        figure.text(place, place, word)
    figure.draw_without_rendering()
    assert overlapping(figure) == [("one", "two")]
    plt.close(figure)


# ---- correlations --------------------------------------------------------------------------------


def cells(figure) -> dict[str, list[float]]:
    """Benchmark -> the values that are coloured in its row of a heat map."""
    found: dict[str, list[float]] = {}
    for ax in figure.axes:
        if labels := [label.get_text() for label in ax.get_yticklabels() if label.get_text()]:
            values = np.ma.filled(ax.collections[0].get_array().astype(float), np.nan)
            found |= dict(zip(labels, values.reshape(len(labels), -1).tolist()))
    return found


def test_the_heat_map_is_its_table(drawings):
    ((name, figure, table, caption),) = drawings["robust_only_correlation"]
    shown, exact = (
        cells(figure),
        table.pivot(index="benchmark", columns="accuracy", values="rho")[["clean", *RADII]],
    )
    assert name == "robust_only_correlation" and len(shown) == len(BENCHMARKS) + 2
    runs = table[["image_set", "threat", "attack"]].drop_duplicates()
    assert runs.to_numpy().tolist() == [["imagenet-val", "Linf", MADE_UP]]
    for benchmark, values in exact.iterrows():
        np.testing.assert_array_equal(shown[short_benchmark(benchmark)], values)
    assert np.isnan(shown["Empty2020"]).all() and np.isnan(shown["Constant2020"]).all()
    marks = sum(
        len(ax.collections[1].get_offsets()) for ax in figure.axes if len(ax.collections) == 2
    )
    assert marks == (table["family_q"] <= 0.05).sum() > 0 and f"{marks} are marked" in caption
    assert f"all {4 * len(BENCHMARKS)} cells" in caption


def test_averages_are_bold_and_rows_keep_the_leaderboards_order(drawings):
    figure = drawings["robust_only_correlation"][0][1]
    labels = [label for ax in figure.axes for label in ax.get_yticklabels() if label.get_text()]
    assert [label.get_text() for label in labels][:5] == [
        "average vision",
        "neural vision",
        "V1",
        "A1999-peak sf",
        "B2013-texture sparseness",
    ]
    bold = [label.get_text() for label in labels if label.get_fontweight() == "bold"]
    assert bold == [
        "average vision",
        "neural vision",
        "V1",
        "behavior vision",
        "engineering vision",
    ]


def test_the_partial_map_has_no_column_for_clean_accuracy(drawings):
    ((_, figure, table, _),) = drawings["partial_correlation"]
    assert set(table["accuracy"]) == set(RADII)
    assert (
        cells(figure)["ImageNet-top1"]
        == table.set_index("benchmark").loc["ImageNet-top1", "partial_rho"].tolist()
    )


@pytest.mark.parametrize(
    "groups, cut", [("aaaaaa", 3), ("abbb", 1), ("aaaabbbccccccccc", 7), ("a", 1)]
)
def test_halves_break_rows_between_groups(groups, cut):
    assert halves(list(groups)) == cut


# ---- alignment -----------------------------------------------------------------------------------


def test_alignment_figures_and_their_regressions(drawings):
    found = drawings["avg_alignment_vs_robust"]
    kinds = ["avg", "neural", "behavioral", "engineering"]
    assert [name for name, *_ in found] == [f"{kind}_alignment_vs_robust" for kind in kinds]
    _, figure, table, caption = found[1]
    for i, eps in enumerate(RADII):
        part = table[table["eps"] == eps]
        line = stats.linregress(part["score"], part["accuracy"])
        x, y = figure.axes[0].get_lines()[i].get_data()
        np.testing.assert_allclose(y, 100 * (line.intercept + line.slope * x))
        assert (
            f"n = 60, slope {line.slope:.3g}, R2 = {line.rvalue**2:.3f}, p = {line.pvalue:.3g}"
            in caption
        )
        assert f"R² = {line.rvalue**2:.3f}" in " ".join(text.get_text() for text in visible(figure))


def test_tsne_never_fills_scores_in():
    """Distances by hand: over the scores of both, scaled up to all four; Euclid's if complete."""
    table = pd.DataFrame(
        [[0, 0, 0, 0], [1, 2, np.nan, np.nan], [3, 0, 0, 4], [np.nan, np.nan, 7, 1.0]]
    )
    found = score_distances(table)
    assert found[0, 1] == pytest.approx(np.sqrt(4 / 2 * (1 + 4))) and found[0, 2] == pytest.approx(
        5
    )
    assert found[1, 3] == found.max()  # no score in common
    whole = np.random.default_rng(0).normal(size=(9, 4))
    np.testing.assert_allclose(
        score_distances(pd.DataFrame(whole)), pairwise_distances(whole), atol=1e-7
    )


def test_tsne_leaves_out_what_is_hardly_known():
    scores = random_scores(40).assign(Rare=np.nan, Constant=1.0)
    scores.loc[scores.index[:10], "Rare"] = 1.0
    scores.iloc[0, 3:] = np.nan
    known = comparable_scores(scores)
    assert (
        not {"Rare", "Constant", "average_vision", "V1"} & set(known)
        and scores.index[0] not in known.index
    )
    assert len(known) == 39 and known.std().to_numpy() == pytest.approx(1, abs=0.05)


def test_tsne_puts_alike_models_together(tmp_path):
    """Two groups of models far apart in every benchmark are two clouds."""
    scores = random_scores(40)
    scores[scores.index < "h"] += 6
    write_study(tmp_path, scores)
    ((_, figure, table, caption),) = tsne_plot(load_results(tmp_path))
    places, first = table[["x", "y"]].to_numpy(), (table["model"] < "h").to_numpy()
    apart = np.linalg.norm(places[first].mean(axis=0) - places[~first].mean(axis=0))
    assert apart > 2 * max(places[first].std(axis=0).max(), places[~first].std(axis=0).max())
    colors = [ax.collections[0].get_array() for ax in figure.axes[1:4]]
    np.testing.assert_allclose(colors[2], 100 * table["accuracy at ε = 1/255"])
    assert "not filled in" in caption
    plt.close(figure)


# ---- survivors -----------------------------------------------------------------------------------


def test_the_forest_holds_the_planted_benchmarks_in_order(drawings):
    ((_, figure, table, caption),) = drawings["survivors_forest"]
    assert table.drop_duplicates("row")["benchmark"].tolist() == [
        "Marques2020_B2013-texture_sparseness",
        "Against2020-top1",
    ]
    assert "2 of 7 benchmarks survive" in caption
    dots = [each for each in figure.axes[2].collections if isinstance(each, PathCollection)][
        -1
    ].get_offsets()
    np.testing.assert_allclose(dots[:, 0], table.loc[table["accuracy"] == RADII[2], "rho"])


def test_where_none_survives_the_strongest_are_shown_hollow(tmp_path):
    scores = random_scores(40)
    rows = write_study(tmp_path, scores)
    rows["robust_acc"] = np.random.default_rng(8).random(len(rows))
    rows.to_csv(tmp_path / "evaluation_results.csv", index=False)
    ((_, figure, table, caption),) = survivors_forest(load_results(tmp_path))
    assert "0 of 7 benchmarks survive" in caption and "shown: the 7 strongest" in caption
    assert not table["survives"].any() and table["row"].nunique() == 7
    plt.close(figure)


def test_each_family_is_left_out_in_turn(drawings, results):
    ((_, _, table, _),) = drawings["leave_one_family_out"]
    scores, accuracy = random_scores(60), pd.read_csv(results.folder / "evaluation_results.csv")
    accuracy = accuracy[accuracy["eps"] == accuracy["eps"].max()].set_index("model")["robust_acc"]
    rest = ~scores.index.str.startswith("vgg")
    found = table[
        (table["left_out"] == "vgg")
        & (table["accuracy"] == RADII[2])
        & (table["benchmark"] == "Against2020-top1")
    ]
    assert found["rho_without"].item() == pytest.approx(
        stats.spearmanr(scores["Against2020-top1"][rest], accuracy[rest]).statistic
    )
    assert table["left_out"].nunique() == 10 and set(table["models_left"]) == {54}


def test_variance_explained(drawings):
    """Two planted benchmarks: all together explain much, averages that are noise nothing."""
    ((_, _, table, caption),) = drawings["variance_explained"]
    last = table[table["eps"] == RADII[2]].set_index("predictor")
    assert (
        last.loc["all 8 benchmarks", ["in_sample", "unseen_models", "unseen_families"]].min() > 0.5
    )
    assert last.loc["average alignment", ["unseen_models", "unseen_families"]].max() < 0.1
    assert (last["in_sample"] > last["unseen_models"]).all() and set(table["n"]) == {60}


# ---- tables --------------------------------------------------------------------------------------


def test_tables(drawings):
    ((_, figure, table, _),) = drawings["regression_table"]
    assert (
        figure is None
        and len(table) == 4 * 3
        and table["alignment"].unique().tolist()[0] == "average"
    )
    assert (table["R2, unseen models"] < table["R2"]).all()
    ((_, figure, table, caption),) = drawings["benchmark_table"]
    assert figure is None and len(table) == 7
    assert table["benchmark"].iloc[[0, -1]].tolist() == [
        "B2013-texture sparseness",
        "Against2020-top1",
    ]
    assert table["survives"].tolist() == ["yes", *["no"] * 5, "yes"]


# ---- the command ---------------------------------------------------------------------------------


def test_no_results_yet_names_the_commands(tmp_path, capsys):
    assert draw(tmp_path, tmp_path / "figures", "--plots", *FIGURES) == 2
    error = capsys.readouterr().err
    assert error.count("nothing to draw for") == 1 and all(name in error for name in FIGURES)
    assert (
        "evaluate_robustness.py" in error
        and "utilities.py merge" in error
        and "setup_scores" in error
    )


def test_one_model_says_how_many_are_needed(tmp_path, capsys):
    write_study(tmp_path).query("model == 'vit_001'").to_csv(
        tmp_path / "evaluation_results.csv", index=False
    )
    assert draw(tmp_path, tmp_path / "figures", "--plots", "tsne_plot") == 2
    assert f"{MADE_UP}: 1 model(s)" in capsys.readouterr().err


def test_accuracies_in_percent_are_one_line(tmp_path, capsys):
    rows = write_study(tmp_path)
    rows.assign(robust_acc=100 * rows["robust_acc"]).to_csv(
        tmp_path / "evaluation_results.csv", index=False
    )
    assert draw(tmp_path, tmp_path / "figures", "--plots", "benchmark_table") == 2
    assert capsys.readouterr().err.startswith(
        f"error: {tmp_path / 'evaluation_results.csv'}, line 2, column robust_acc"
    )


def test_a_radius_at_which_no_model_is_robust_spoils_no_figure(tmp_path):
    """At 1/255 every accuracy is 0: figures rank by 0.5/255 and say that nothing can be fitted."""
    rows = write_study(tmp_path, random_scores(40))
    rows["robust_acc"] = rows["robust_acc"].where(rows["eps"] < RADII[2], 0.0)
    rows.to_csv(tmp_path / "evaluation_results.csv", index=False)
    assert draw(tmp_path, tmp_path / "figures", "--plots", *FIGURES) == 0
    assert (
        "strongest benchmarks"
        in (text := (tmp_path / "figures" / "benchmark_table.txt").read_text())
        and "0.5/255" in text
    )
    assert pd.read_csv(tmp_path / "figures" / "survivors_forest.csv")["row"].max() >= 1
    last = pd.read_csv(tmp_path / "figures" / "variance_explained.csv").query(f"eps > {RADII[1]}")
    assert last[["in_sample", "unseen_models", "unseen_families"]].isna().all(axis=None)


def test_drawn_radii_thin_out_many():
    assert drawn_radii([*range(1, 12)]) == [1, 3, 5, 7, 9, 11]


def test_two_protocols_are_two_files(tmp_path):
    rows = write_study(tmp_path, random_scores(40))
    half = rows["model"] < "h"
    pd.concat([rows[half], rows[~half].assign(protocol="other")]).to_csv(
        tmp_path / "evaluation_results.csv", index=False
    )
    assert draw(tmp_path, tmp_path / "figures", "--plots", "tsne_plot") == 0
    found = {path.stem: pd.read_csv(path) for path in (tmp_path / "figures").glob("*.csv")}
    assert set(found) == {
        "tsne_plot_imagenet-val_Linf_autoattack_1",
        "tsne_plot_imagenet-val_Linf_other_2",
    }
    assert sum(map(len, found.values())) == 40 and not set.intersection(
        *(set(table["model"]) for table in found.values())
    )


def test_too_few_scores_for_a_map_leave_the_other_figures(tmp_path):
    write_study(tmp_path, random_scores(40))
    scores = random_scores(40)
    scores.loc[:, scores.columns[3:]] = np.nan
    write_scores(tmp_path, scores)
    assert (
        draw(
            tmp_path,
            tmp_path / "figures",
            "--plots",
            "tsne_plot",
            "avg_alignment_vs_robust",
            "variance_explained",
        )
        == 0
    )
    assert {path.stem for path in (tmp_path / "figures").glob("*.pdf")} == {
        "avg_alignment_vs_robust",
        "neural_alignment_vs_robust",
        "variance_explained",
    }
    table = pd.read_csv(tmp_path / "figures" / "variance_explained.csv")
    assert set(table["predictor"]) == {"average alignment", "neural alignment", "clean accuracy"}


@pytest.mark.slow
def test_a_paper_in_a_minute(tmp_path, leaderboard):
    """351 models x 130 benchmarks x 3 eps: every figure in at most 60 s of one processor.

    Two cores have 120.
    """
    write_study(tmp_path, full_scores(leaderboard, 351))
    begun = time.process_time()
    assert draw(tmp_path, tmp_path / "figures", "--plots", *FIGURES) == 0
    assert time.process_time() - begun < 60
    assert len(list((tmp_path / "figures").glob("*.pdf"))) == len(PICTURES) + 3
