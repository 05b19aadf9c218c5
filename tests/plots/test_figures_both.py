"""Figures of minimal norms, and those that join Hoak 2025 and Feng 2025.

Their curves, ranks and joins can be counted by hand.
"""

import json
import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from norm_tables import make_norms, without_l1, write_published, write_summary

import plotting
from alignment_security.analysis.feng2025 import (
    correlation,
    norm_tables,
    rho_text,
    tables_of_every_norm,
)
from alignment_security.analysis.feng2025_statistics import text_statistics_table
from alignment_security.analysis.norm_table import L1_IN_L2, PUBLISHED
from alignment_security.analysis.norms import POINTS
from alignment_security.analysis.results import load_results, read_summary
from alignment_security.analysis.statistics import linear_regression
from alignment_security.plots.both_studies import brainscore_vs_tolerance, robust_vs_tolerance
from alignment_security.plots.hoak2025 import fit_numbers
from alignment_security.plots.norm_distributions import norm_distributions
from alignment_security.plots.norms import accuracy_vs_norm, rank_change
from alignment_security.plots.report_leaderboard import Leaderboard, leaderboard_columns
from alignment_security.plots.report_pictures import tradeoff_pictures
from alignment_security.plots.slide import slide
from alignment_security.records.run import Run
from alignment_security.records.summary import merge_records


def draw(results, *plots):
    return plotting.main(
        [
            "--published",
            "",
            "--results_dir",
            str(results),
            "--figures_dir",
            str(results / "figures"),
            "--plots",
            *plots,
        ]
    )


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


# ---- curves from norms ---------------------------------------------------------------------------


def test_a_curve_is_the_share_of_images_whose_norm_exceeds_eps(tmp_path):
    make_norms(tmp_path, "resnet18", [0.1, 0.3, None, np.inf, 0.3])
    ((_, figure, table, caption),) = accuracy_vs_norm(load_results(tmp_path))
    assert (
        table["eps"].tolist() == [0, 0.1, 0.3]
        and table["correct"].tolist() == [4, 3, 1]
        and set(table["n"]) == {5}
    )
    # Wilson for 4 of 5 at z = 1.959964, by hand
    np.testing.assert_allclose(
        table.loc[0, ["low", "high"]].astype(float), [0.375534, 0.963777], atol=1e-5
    )
    line = figure.axes[0].get_lines()[0]
    assert line.get_drawstyle() == "steps-post" and line.get_ydata().tolist() == [80, 60, 20]
    assert "n = 5" in caption and "upper bound" in caption


def test_linf_norms_are_read_from_their_own_column_and_protocols_are_panels(tmp_path):
    make_norms(tmp_path, "resnet18", [2 / 255, 4 / 255], threat="Linf-fmn")
    make_norms(tmp_path, "resnet18", [0.5, 1.0])
    make_norms(tmp_path, "vgg11", [0.5, 1.0], finish=False)
    make_norms(tmp_path, "vgg11", [10.0, 20.0], threat="L1-fmn")
    ((_, figure, table, caption),) = accuracy_vs_norm(load_results(tmp_path))
    assert table.groupby("threat")["eps"].max().to_dict() == {
        "L1-fmn": 20.0,
        "L2-crossing": 1.0,
        "Linf-fmn": 4 / 255,
    }
    assert table.groupby("threat")["panel"].nunique().eq(1).all() and table["panel"].nunique() == 3
    assert "Missing (running): vgg11." in caption
    assert figure.axes[2].get_xlabel().endswith("(1/255)") and "4" in [
        t.get_text() for t in figure.axes[2].get_xticklabels()
    ]


def test_an_l1_record_without_l1_norms_is_in_no_panel_of_them(tmp_path):
    for model in ("old", "new"):
        make_norms(tmp_path, model, [10.0, 20.0], threat="L1-fmn")
    without_l1(tmp_path / "records" / "mine" / "L1-fmn" / "old.csv")
    for draw_norms in (accuracy_vs_norm, norm_distributions):
        ((_, _, table, caption),) = draw_norms(load_results(tmp_path))
        assert set(table["model"]) == {"new"}
        assert re.search(r"Missing \([^)]*no L1 norm in its record\): old\.", caption)


def test_tables_and_the_page_say_of_which_norm_a_mean_is(tmp_path):
    """By hand; a table with a record of L1 that has no L1 norm is in L2."""
    rows = [
        {"model": "new", "threat": "L1-fmn", "l1_mean": 12.0, "l2_mean": 0.5},
        {"model": "old", "threat": "L1-fmn", "l2_mean": 0.25},
        {"model": "new", "threat": "Linf-fmn", "linf_mean": 2 / 255, "l2_mean": 0.75},
    ]
    results = load_results(write_summary(tmp_path, rows))
    linf, l1 = tables_of_every_norm(results)
    assert (linf.norm, linf.rows["pt"].tolist()) == ("Linf", [2 / 255])
    assert (l1.norm, l1.rows["pt"].tolist()) == (L1_IN_L2, [0.5, 0.25])
    columns = {column.heading.text: column for column in leaderboard_columns(read_summary(results))}
    means = {text: list(column.rows[column.name]) for text, column in columns.items()}
    linf_means = means.pop("Linf-fmn Linf norm (1/255)")
    assert means == {"L1-fmn L1 norm": [12.0], "L1-fmn L2 norm": [0.25]} and len(linf_means) == 1
    l1, *_ = tables_of_every_norm(load_results(tmp_path, ["new"], threats=["L1-fmn"]))
    assert (l1.norm, l1.rows["pt"].tolist()) == ("L1", [12.0])


def test_panels_of_one_norm_and_image_set_have_one_axis(tmp_path):
    """But for norms that are not minimal, beside which the others would be a line at the edge."""
    for threat, norms in (
        ("L2-crossing", [0.2, 0.5]),
        ("L2-ddn", [0.4, 0.9]),
        ("Linf-fmn", [0.01, 0.02]),
    ):
        make_norms(tmp_path, "resnet18", norms, threat=threat)
    make_norms(tmp_path, "resnet18", [1.0, 3.0], threat="L2-feng2025", protocol="feng2025")
    make_norms(tmp_path, "resnet18", [0.1, 0.2], image_set="other")
    ((_, figure, _, _),) = accuracy_vs_norm(load_results(tmp_path))
    ends = {
        ax.get_title(loc="left").partition(" (")[0]: ax.get_xlim()[1] / 1.04
        for ax in figure.axes
        if ax.get_title(loc="left")
    }
    assert ends == pytest.approx(
        {
            "mine, L2-crossing": 0.9,
            "mine, L2-ddn": 0.9,
            "mine, L2-feng2025": 3.0,
            "mine, Linf-fmn": 0.02,
            "other, L2-crossing": 0.2,
        }
    )


def test_a_model_without_a_right_answer_is_drawn_and_said(tmp_path):
    make_norms(tmp_path, "resnet18", [None, None])
    ((_, figure, _, _),) = accuracy_vs_norm(load_results(tmp_path))
    (line,) = figure.axes[0].get_lines()
    assert line.get_marker() == "o" and not line.get_clip_on()
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "no image is classified correctly"
    ]
    plt.close(figure)


def test_many_norms_become_quantiles(tmp_path):
    make_norms(tmp_path, "resnet18", list(np.linspace(0.001, 1, 500)))
    ((_, _, table, _),) = accuracy_vs_norm(load_results(tmp_path))
    assert len(table) == POINTS and table["eps"].iloc[[0, -1]].tolist() == [0, 1]
    np.testing.assert_allclose(
        table["correct"], [round(500 - 500 * eps) for eps in table["eps"]], atol=1
    )


def test_runs_of_other_slices_and_heads_have_panels_of_their_own(tmp_path):
    """Four models: two alike, one on a slice of two images, one on the animate head."""
    for model, norms, settings in (
        ("a", [0.1, 0.3, 0.2], {}),
        ("b", [0.2, 0.4, 0.1], {}),
        ("c", [0.1, 0.3], {"slice": [0, 2]}),
        ("d", [0.5, 0.6, 0.7], {"head": "animate"}),
    ):
        make_norms(tmp_path, model, norms, **settings)
    ((_, figure, table, _),) = accuracy_vs_norm(load_results(tmp_path))
    assert sorted(table.groupby("panel")["model"].unique().map(list)) == [["a", "b"], ["c"], ["d"]]
    assert table.groupby("model")["n"].first().to_dict() == {"a": 3, "b": 3, "c": 2, "d": 3}
    titles = [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes]
    counts = [title.split("(")[1][:5] for title in titles if title]
    assert sorted(counts) == ["n = 2", "n = 3", "n = 3"]
    assert any("head animate" in title for title in titles)
    assert any("slice [0, 2]" in title for title in titles)


def test_a_title_names_what_differs_once(tmp_path):
    """Maps bring their ceiling, an attack its steps; those are named, and these are not."""
    own = {"human_map": "folder maps", "human_ceiling": 0.65753, "attack": "crossing 30 steps"}
    make_norms(tmp_path, "a", [0.1, 0.3], attack="crossing 50 steps", steps=50, head_gradient="x")
    make_norms(tmp_path, "b", [0.1, 0.3], **own, steps=30, head_gradient="x")
    ((_, figure, _, _),) = accuracy_vs_norm(load_results(tmp_path))
    titles = [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes[:2]]
    assert sorted(title.partition(") ")[2] for title in titles) == [
        "crossing 30 steps, human_map folder maps",
        "crossing 50 steps",
    ]
    plt.close(figure)


def test_boxes_are_numbered_as_they_are_drawn(tmp_path):
    make_norms(tmp_path, "a", [None, None], slice=[0, 2])  # no norm, so no figure
    make_norms(tmp_path, "b", [0.1, 0.3])
    ((name, figure, _, _),) = norm_distributions(load_results(tmp_path))
    assert name == "norm_distributions_mine_L2-crossing"
    plt.close(figure)


# ---- ranks ---------------------------------------------------------------------------------------


def test_ranks_under_two_protocols_and_over_the_images_of_a_model(tmp_path):
    norms = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    for i, model in enumerate(["a", "b", "c"]):
        make_norms(tmp_path, model, list(norms + i))
        make_norms(
            tmp_path,
            model,
            list(norms[::-1] + 10 - i if i < 2 else norms + 20),
            threat="L2-feng2025",
        )
    merge_records(tmp_path)
    ((_, figure, table, caption),) = rank_change(load_results(tmp_path))
    table = table.set_index("model")
    assert table["rank_feng2025"].to_dict() == {"a": 2, "b": 3, "c": 1}
    assert table["rank_other"].to_dict() == {"a": 3, "b": 2, "c": 1}
    assert table["rho_images"].round(9).to_dict() == {"a": -1, "b": -1, "c": 1}
    assert (
        "c (1.00)" in [text.get_text() for text in figure.axes[0].texts]
        and "L2-feng2025" in caption
    )


def test_ranks_of_two_budgets_have_titles_of_their_own(tmp_path):
    for model in ("a", "b"):
        make_norms(tmp_path, model, [0.1, 0.2], attack="crossing 9 steps")
        more = {"attack": "crossing 90 steps"}
        make_norms(tmp_path, model, [0.1, 0.2], beside=more, **more)
        make_norms(tmp_path, model, [1.0, 2.0], threat="L2-feng2025")
    merge_records(tmp_path)
    ((_, figure, _, _),) = rank_change(load_results(tmp_path))
    titles = [ax.get_title(loc="left").splitlines()[:2] for ax in figure.axes]
    start = "from mine, L2-feng2025"
    assert titles == [[start, f"to mine, L2-crossing, crossing {n} steps"] for n in (9, 90)]


@pytest.mark.parametrize("other", [{"head": "animate"}, {"list_sha256": "of others"}])
def test_ranks_of_other_heads_or_images_are_no_pair(tmp_path, other):
    for model in ("a", "b"):
        make_norms(tmp_path, model, [0.1, 0.2])
        make_norms(tmp_path, model, [1.0, 2.0], threat="L2-feng2025", **other)
    merge_records(tmp_path)
    assert draw(tmp_path, "rank_change") == 2


def test_ranks_need_two_models_under_both_protocols(tmp_path, capsys):
    make_norms(tmp_path, "a", [0.1, 0.2])
    make_norms(tmp_path, "a", [1.0, 2.0], threat="L2-feng2025", image_set="other")
    merge_records(tmp_path)
    assert draw(tmp_path, "rank_change") == 2
    error = capsys.readouterr().err
    assert "two models with norms under feng2025" in error and "--protocol feng2025" in error


# ---- Brain-Score ---------------------------------------------------------------------------------


def write_scores(folder, models, **benchmarks):
    (folder / "benchmark_scores").mkdir(parents=True)
    path = folder / "benchmark_scores" / "benchmark_scores_registry_merged.csv"
    pd.DataFrame(
        {
            "og_model_name": models,
            "model_registry_name": models,
            "timm_name": "",
            "model_name": models,
            "layers": "",
            **benchmarks,
        }
    ).to_csv(path, index=False)
    path.with_suffix(".json").write_text(json.dumps({"date": "2025-05-07"}))


def test_brainscore_vs_tolerance_of_the_models_that_join_and_no_others(tmp_path):
    models = [f"m{i}" for i in range(6)]
    write_summary(
        tmp_path,
        [
            {"model": model, "l2_mean": i + 1, "human_alignment": -i / 20}
            for i, model in enumerate(models)
        ]
        + [{"model": "elsewhere", "l2_mean": 9.0}],
    )
    write_scores(
        tmp_path,
        [*models, "nobody"],
        V1=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        **{
            "Lab.up": [1, 2, 3, 5, 4, 6, 0],
            "Lab.few": [1, 2, 3, 4, None, None, 5],
            "Lab.same": 0.5,
            "Lab.empty": None,
        },
    )
    ((name, figure, table, caption),) = brainscore_vs_tolerance(load_results(tmp_path))
    cells = table.set_index(["benchmark", "measure"])
    assert cells.loc[("Lab.up", "pt"), "rho"] == pytest.approx(
        1 - 6 * 2 / (6 * 35)
    )  # two neighbours changed places
    assert cells.loc[("Lab.up", "alignment"), "rho"] == pytest.approx(-(1 - 6 * 2 / (6 * 35)))
    assert cells.loc[("V1", "pt"), "rho"] == pytest.approx(1) and np.isnan(
        cells.loc[("V1", "pt"), "q"]
    )  # an average
    assert cells.loc[("Lab.few", "pt"), "n"] == 4 and np.isnan(cells.loc[("Lab.few", "pt"), "rho"])
    assert cells.loc[("Lab.empty", "pt"), "n"] == 0 and np.isnan(
        cells.loc[("Lab.same", "pt"), "rho"]
    )
    assert (
        "(6 models)" in figure.axes[0].get_title(loc="left")
        and "2025-05-07" in caption
        and name.endswith("mine_L2-crossing")
    )
    assert "Only 6 models have both" in caption


def test_scores_against_norms_of_two_heads_are_two_figures(tmp_path):
    models = [f"m{i}" for i in range(6)]
    heads = {"crossing 9 steps": "none", "crossing 9 steps, head animate": "animate"}
    rows = [
        {"model": model, "l2_mean": i + 1, "attack": attack, "head": head}
        for attack, head in heads.items()
        for i, model in enumerate(models)
    ]
    write_scores(write_summary(tmp_path, rows), models, **{"Lab.up": range(6)})
    drawings = list(brainscore_vs_tolerance(load_results(tmp_path)))
    assert len({name for name, *_ in drawings}) == 2
    assert ["head animate" in caption for *_, caption in drawings] == [False, True]


@pytest.mark.parametrize(("models", "filled"), [(5, 0), (9, 0), (12, 2)])
def test_fewer_than_ten_models_fill_no_dot(tmp_path, models, filled):
    """A benchmark that agrees perfectly with both measures, and one that does not."""
    names = [f"{kind}{i}" for i, kind in zip(range(models), 3 * ["vgg", "vit", "swin", "dla"])]
    measures = [{"l2_mean": 1.0 + i, "human_alignment": i / 20} for i in range(models)]
    write_summary(tmp_path, [{"model": n} | row for n, row in zip(names, measures)])
    noise = np.random.default_rng(0).normal(size=models)
    write_scores(tmp_path, names, **{"Lab.up": range(models), "Lab.noise": noise})
    ((_, figure, table, _),) = brainscore_vs_tolerance(load_results(tmp_path))
    dots = [line for ax in figure.axes for line in ax.lines if line.get_marker() == "o"]
    assert sum(line.get_markerfacecolor() != "white" for line in dots) == filled
    tested = table.loc[table["benchmark"].notna(), "family_q"].notna()
    assert tested.all() if filled else not tested.any()
    exact = 2 / 120 if models == 5 else 0.001
    assert table.loc[table["benchmark"] == "Lab.up", "p"].max() <= exact
    assert table.loc[table["benchmark"] == "Lab.up", "p"].min() > 0


def test_copies_of_five_models_fill_no_dot(tmp_path):
    """Four near copies of each of five models: q is tiny, q over families is not."""
    names = [f"{kind}{i}" for kind in ("vgg", "vit", "swin", "dla", "resnet") for i in range(4)]
    level = np.repeat([10, 0, 20, 40, 30], 4) + np.tile(range(4), 5)
    measures = [{"l2_mean": 1.0 + v, "human_alignment": v / 50} for v in level]
    write_summary(tmp_path, [{"model": n} | row for n, row in zip(names, measures)])
    scores = np.repeat([0, 10, 20, 30, 40], 4) + np.tile([1, 3, 0, 2], 5)
    write_scores(tmp_path, names, **{"Lab.copies": scores})
    ((_, figure, table, _),) = brainscore_vs_tolerance(load_results(tmp_path))
    assert table["q"].max() < 0.001 and table["family_q"].min() > 0.05
    dots = [line for ax in figure.axes for line in ax.lines if line.get_marker() == "o"]
    assert {line.get_markerfacecolor() for line in dots} == {"white"}


def test_brainscore_vs_tolerance_joins_the_published_models_of_the_same_weights(
    tmp_path, leaderboard
):
    """11: densenet-201, focalnet_tiny_lrf_in1k, and nine names of `net:tag`.

    No plugin says what the six deits are, though timm has one set of weights of each.
    """
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    (tmp_path / "brainscore").mkdir()
    shutil.copy(leaderboard, tmp_path / "brainscore")
    results = load_results("no_such_results", None, tmp_path)
    ((_, figure, table, caption),) = brainscore_vs_tolerance(results)
    assert table["models"].dropna().unique().tolist() == [11]
    assert "(11 models)" in figure.axes[0].get_title(loc="left")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "average vision" and not any("_" in label for label in labels)
    joined = table[table["benchmark"].isna()].set_index("model_registry_name")
    assert len(joined) == 11 and not any("deit_" in name for name in joined.index)
    key = "convnext_large:fb_in22k_ft_in1k"
    assert joined.loc[key, "model"] == key.replace(":", ".")
    assert set(joined["match"]) == {"timm name"} and "undated" in caption


@pytest.mark.parametrize(
    ("scores", "says"),
    [(False, "no published leaderboard"), (True, "crossing 9 steps: 1), 5 are needed")],
)
def test_too_few_models_with_scores_say_how_many(tmp_path, capsys, scores, says):
    write_summary(tmp_path, [{"model": "a", "l2_mean": 1.0}])
    if scores:
        write_scores(tmp_path, ["a"], V1=[0.1])
    assert draw(tmp_path, "brainscore_vs_tolerance") == 2
    error = capsys.readouterr().err
    assert says in error and "setup_scores()" in error


# ---- robust accuracy, slide ----------------------------------------------------------------------


def test_robust_vs_tolerance_pairs_the_same_images_and_the_published_norms(tmp_path):
    ball = {
        "threat": "Linf",
        "protocol": "autoattack",
        "attack": "small",
        "robust": 10,
        "robust_acc": 0.5,
    }
    rows = [
        {"model": "vgg11.tv_in1k", "l2_mean": 0.1},
        {"model": "vgg11.tv_in1k", "l2_mean": 0.2, "image_set": "yours"},
        {"model": "vgg11.tv_in1k", "eps": 1 / 255} | ball,
        {"model": "vgg11.tv_in1k", "eps": 2 / 255} | ball,
        {"model": "resnet50", "eps": 1 / 255} | ball,
    ]
    results = load_results(
        write_summary(tmp_path, rows), None, write_published(tmp_path / "published")
    )
    ((_, figure, table, caption),) = robust_vs_tolerance(results)
    assert (
        sorted(zip(table["source"], table["model"], table["pt"]))
        == [(PUBLISHED, "vgg11.tv_in1k", 1.0)] * 2
        + [("mine, L2-crossing, crossing 9 steps", "vgg11.tv_in1k", 0.1)] * 2
    )
    np.testing.assert_allclose(
        table.loc[0, ["low", "high"]].astype(float), [0.299298, 0.700702], atol=1e-5
    )  # Wilson, 10 of 20
    assert (
        figure.axes[0].get_title(loc="left").endswith("n = 1 model")
        and "Too few models for a correlation" in caption
    )


def test_radii_are_named_in_the_unit_of_their_own_norm(tmp_path):
    """0.0157 is no multiple of 1/255: eps of L2, which make those of Linf no floats."""
    radii = {"Linf": [1 / 255, 0.5], "L2-autoattack": [0.0157, 0.5]}
    ball = {"protocol": "autoattack", "attack": "small", "robust": 10, "robust_acc": 0.5}
    rows = [
        {"model": "a", "threat": threat, "eps": eps} | ball
        for threat, found in radii.items()
        for eps in found
    ]
    write_summary(tmp_path, [{"model": "a", "l2_mean": 0.1}, *rows])
    ((_, figure, _, _),) = robust_vs_tolerance(load_results(tmp_path))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["ε = 1/255", "ε = 0.0157", "ε = 0.5 or 127.5/255"]


def test_robust_vs_tolerance_tells_panels_apart_and_names_what_it_leaves_out(tmp_path):
    """Two budgets of one protocol, of two heads; a model without norms; norms of other images."""
    make_norms(tmp_path, "both", [0.1, 0.3], attack="crossing 9 steps")
    other = {"attack": "crossing 4 steps", "head": "animate"}
    make_norms(tmp_path, "both", [0.2, 0.4], beside=other, **other)
    make_norms(tmp_path, "both", [0.2], threat="L2-fmn", list_sha256="other")
    for model in ("both", "bare"):
        settings = {"model": {}, "run": {"attack": "small", "eps": [0.1]}}
        with Run(tmp_path, "mine", "Linf", model, "ball", settings) as run:
            rows = {"label": 0, "clean_pred": 0, "clean_correct": 1, "eps": 0.1, "robust": 1}
            run.append([{"image_id": f"{i}.jpg"} | rows for i in range(2)])
            run.finish(["0.jpg", "1.jpg"], [0.1])
    merge_records(tmp_path, log=print)
    ((_, figure, _, caption),) = robust_vs_tolerance(load_results(tmp_path))
    labels = {" ".join(ax.get_xlabel().split("\n")[1:]) for ax in figure.axes if ax.get_xlabel()}
    norms = ["mine, L2-crossing, crossing 4 steps, head animate"]
    norms += ["mine, L2-crossing, crossing 9 steps"]
    assert labels == set(norms)
    assert f"small against {norms[0]}: accuracies of head none, norms of head animate." in caption
    assert f"against {norms[1]}:" not in caption
    for name in norms:
        assert f"Missing (no norm in {name}): bare." in caption
    assert "no model has both of the same images: mine, L2-fmn, L2-fmn 9 steps." in caption


def test_a_slide_needs_a_handful_of_models(tmp_path, capsys):
    write_summary(tmp_path, [{"model": "a", "l2_mean": 1.0, "human_alignment": 0.1}])
    assert draw(tmp_path, "slide") == 2
    assert "alignment and accuracy of 5 models are needed" in capsys.readouterr().err


def test_an_undefined_correlation_or_interval_is_never_nan_in_a_text(tmp_path):
    """Equal norms; and one that differs from the others, which a third of the resamples lack."""
    rows = [
        {"model": f"m{i}", "l2_mean": 1.0, "human_alignment": float(i == 0), "clean_acc": 0.1 * i}
        for i in range(6)
    ]
    results = load_results(write_summary(tmp_path, rows))
    ((_, figure, _, _),) = slide(results)
    title = figure.axes[0].get_title(loc="left")
    assert title.endswith("tolerance undefined, alignment -0.65")
    (measure,) = text_statistics_table(results)["measure"]
    (picture,) = tradeoff_pictures(results, Leaderboard(), Leaderboard())
    (table,) = norm_tables(results)
    assert rho_text(correlation(table.rows, "accuracy", "alignment")) == "ρ = -0.65, n = 6 models"
    texts = [title, measure, picture["note"], *text_statistics_table(results)["rule"]]
    texts.append(fit_numbers(linear_regression(np.arange(6.0), np.ones(6))))
    assert not any("nan" in text for text in texts) and texts[-1] == "all equal, no fit"


def test_the_slide_shows_all_models():
    ((_, figure, table, _),) = slide(load_results("no_such_results", None, DATA))
    assert len(table) == 360 and "tolerance +0.81, alignment -0.74" in figure.axes[0].get_title(
        loc="left"
    )
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "standard (309), coloured by accuracy",
        "adversarially trained (42)",
        "harmonized with human maps (9)",
        "Pareto front of standard models",
    ]
    assert min(text.get_fontsize() for text in figure.findobj(plt.Text) if text.get_text()) >= 6
