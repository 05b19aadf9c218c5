"""Feng 2025's figures from records of one's own, made in the shape of the study's."""

from __future__ import annotations

import json
import re
from shutil import copyfile, copytree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_feng2025 import MADE_NETS, SIDE, blob, made_delta, made_photograph, make_study
from scipy.stats import wilcoxon

import plotting
from alignment_security.analysis.feng2025 import norm_tables, tables_of_every_norm
from alignment_security.analysis.feng2025_pictures import corner_models, remedy_models
from alignment_security.analysis.results import load_results
from alignment_security.plots.examples import (
    adversarial_examples,
    fooled_pictures,
    human_alignment_examples,
)
from alignment_security.plots.feng2025 import draw_panel, tradeoff
from alignment_security.plots.feng2025_harmonized import figure_6_7
from alignment_security.plots.feng2025_pictures import corners, overlays, tradeoff_photograph
from alignment_security.plots.picture_grid import overlay
from alignment_security.records.record import read_record, record_stem
from alignment_security.records.summary import merge_records

HARMONIZED = {"resnet50_harmonized", "vgg16_harmonized"}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Records of L2, Linf and L1 norms of nets of every group."""
    folder = tmp_path_factory.mktemp("study")
    for threat in ("L2-crossing", "Linf-crossing", "L1-fmn"):
        make_study(folder, threat=threat)
    merge_records(folder)
    return folder


def test_groups_are_of_the_record_and_no_harmonized_net_is_a_standard_one(study):
    (table,) = norm_tables(load_results(study))
    groups = table.rows.set_index("model")["group"]
    assert set(groups[groups == "harmonized"].index) == HARMONIZED
    assert groups["resnet50_l2_eps3"] == "robust"
    standard = {name for name, (group, *_) in MADE_NETS.items() if group is None}
    assert set(table.standard["model"]) == standard


def test_figure_1_picks_the_models_in_three_corners(study):
    (table,) = norm_tables(load_results(study))
    picked = corner_models(table.rows)
    assert picked["model"].tolist() == [
        "vit_small_patch16_224.augreg_in1k",  # no model is low in both: the nearest by ranks
        "vit_large_patch14_dinov2.lvd142m",
        "resnet50_harmonized",
    ]
    assert corner_models(table.rows.iloc[:2]).empty
    name, figure, drawn, caption = next(corners(load_results(study)))
    assert name == "corners_big12_L2-crossing" and drawn["letter"].tolist() == ["a", "b", "c"]
    pictures = [ax for child in figure.subfigs for ax in child.axes if ax.images]
    assert len(pictures) == 4 and set(drawn["image_id"]) == {"val-00000"}
    results = load_results(study, images=["val-00002"])
    assert set(next(corners(results))[2]["image_id"]) == {"val-00002"}


def test_figure_4_has_one_photograph_of_a_net_of_each_kind(study):
    results = load_results(study)
    models = remedy_models(results, norm_tables(results)[0])
    assert dict(zip(models["stands_for"], models["model"])) == {
        "standard": "resnet50.a1_in1k",
        "adversarially trained": "resnet50_l2_eps3",
        "harmonized": "resnet50_harmonized",
    }
    names = [name for name, *_ in tradeoff_photograph(results)]
    assert names[0] == "tradeoff_photograph_big12_L2-crossing"


def test_figures_6_and_7_test_each_net_against_its_own_baseline(study):
    drawings = {name: table for name, _, table, _ in figure_6_7(load_results(study))}
    table = drawings["harmonized_big12_L2-crossing"].set_index("net")
    assert table["model"].to_dict() == {
        "resnet50_harmonized": "resnet50.a1_in1k",
        "vgg16_harmonized": "vgg16.tv_in1k",
    }
    folder = study / "records" / "big12" / "L2-crossing"
    for net, row in table.iterrows():
        both = [read_record(folder / f"{name}.csv") for name in (net, row["model"])]
        for measure, column in {"pt": "l2", "alignment": "human_alignment"}.items():
            first, second = (rows.set_index("image_id")[column] for rows in both)
            difference = first - second[first.index]
            assert row[f"difference_{measure}"] == pytest.approx(difference.mean())
            assert row[f"p_{measure}"] == pytest.approx(wilcoxon(difference).pvalue)
            assert row[f"n_{measure}"] == 24
    linf = drawings["harmonized_big12_Linf-crossing"].set_index("net")
    ratio = linf["difference_pt"] / table["difference_pt"]
    assert ratio.to_numpy() == pytest.approx(1 / 40)  # as made


def test_figures_8_and_9_overlay_six_nets_of_every_group(study):
    ((_, figure, table, caption), *_) = overlays(load_results(study, threats=["L2-crossing"]))
    models = table["model"].unique().tolist()
    assert len(models) == 6 and HARMONIZED | {"resnet50_l2_eps3"} < set(models)
    assert models[-2:] == sorted(HARMONIZED) and table["image_id"].nunique() == 4
    assert sum(bool(ax.images) for ax in figure.axes) == 4 * 7
    assert (
        "Missing (no room, or no example kept; see --models): " in caption
        and figure.get_figwidth() == 7
    )
    linf = next(overlays(load_results(study, ["vgg16.tv_in1k"], threats=["Linf-crossing"])))
    l2 = next(overlays(load_results(study, ["vgg16.tv_in1k"], threats=["L2-crossing"])))
    tolerance = [re.search(r"PT\D*(?:1/255\) )?([\d.]+) ±", one[1].texts[1].get_text())
                 for one in (linf, l2)]  # fmt: skip
    ratio = float(tolerance[0][1]) / float(tolerance[1][1])
    assert ratio == pytest.approx(255 / 40, rel=0.02)  # as made, in 255ths
    every = load_results(study, list(MADE_NETS), threats=["L2-crossing"], images=["val-00003"])
    parts = list(overlays(every))
    assert [name for name, *_ in parts] == [f"overlays_big12_L2-crossing_{i}" for i in (1, 2)]
    shown = [model for _, _, table, _ in parts for model in table["model"]]
    assert shown == list(MADE_NETS)  # all, in the order asked for
    assert {image for _, _, table, _ in parts for image in table["image_id"]} == {"val-00003"}


def test_an_overlay_is_grey_where_a_map_is_zero_and_bright_at_its_top():
    photograph, people = made_photograph(0), blob(0)
    people[:10] = 0
    laid = overlay(photograph, people)
    assert laid.shape == (SIDE, SIDE, 3) and laid.dtype == np.uint8
    grey = photograph[:10].mean(axis=2, keepdims=True).round()
    assert (np.abs(laid[:10].astype(int) - grey) <= 1).all()
    top = np.unravel_index(people.argmax(), people.shape)
    assert laid[top][0] > 200 > laid[top][2]  # yellow
    assert overlay(photograph, np.zeros((SIDE, SIDE))).std(axis=2).max() == 0
    delta = made_delta(people, 0.9, 1.0, 0)
    assert np.linalg.norm(delta) == pytest.approx(1, rel=1e-5)


def test_linf_and_l1_norms_have_panels_of_their_own(study):
    tables = tables_of_every_norm(load_results(study))
    assert [table.norm for table in tables] == ["L2", "Linf", "L1"]
    l2, linf, l1 = (table.rows.set_index("model") for table in tables)
    assert (linf["pt"] * 40).to_numpy() == pytest.approx(l2["pt"].to_numpy())  # as made
    assert linf["pt_sem"].gt(0).all() and l1["pt"].to_numpy() == pytest.approx(30 * l2["pt"])
    ((_, figure, table, _),) = tradeoff(load_results(study))
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels[::2] == [
        "Perturbation Tolerance (L₂)",
        "Perturbation Tolerance (L∞, 1/255)",
        "Perturbation Tolerance (L₁)",
    ]
    point = figure.axes[3].lines  # all models of Linf, in 255ths
    drawn = np.concatenate([np.ravel(line.get_xdata()) for line in point])
    for value in 255 * linf["pt"]:
        assert np.isclose(drawn, value).any()
    assert set(table["pt"]) == {*l2["pt"], *linf["pt"], *l1["pt"]}  # the table is in pixel units


@pytest.mark.parametrize("accuracy", [100.0, 0.0, 90.0])
def test_no_tick_is_an_accuracy_that_there_is_not(study, accuracy):
    """The margin beyond 0 and 100 % has none; the axis keeps it, so that points are whole."""
    table = next(table for table in tables_of_every_norm(load_results(study)))
    rows = table.rows.assign(accuracy=accuracy, estimated=False)
    figure, ax = plt.subplots()
    draw_panel(ax, table._replace(rows=rows), rows, "accuracy", "pt", "title")
    low, high = ax.get_xlim()
    assert low < accuracy < high and len(ax.get_xticks()) > 1
    assert max(0, low) <= min(ax.get_xticks()) < max(ax.get_xticks()) <= min(100, high)


def test_records_without_examples_leave_the_plane_alone(tmp_path):
    make_study(tmp_path, examples=())
    merge_records(tmp_path)
    results = load_results(tmp_path)
    ((_, figure, table, caption),) = corners(results)
    assert len(figure.axes) == 1 and len(table) == 3
    ((*_, beside_figure_4),) = tradeoff_photograph(results)
    assert not any("photograph" in text for text in (caption, beside_figure_4))
    assert not list(overlays(results))


def test_records_beside_each_other_have_figures_of_their_own(tmp_path):
    """No figure of examples is written over that of the other record."""
    net, beside = "resnet50.a1_in1k", {"seed": 1}
    make_study(tmp_path, {net: MADE_NETS[net]})
    records, examples = (tmp_path / kind / "big12/L2-crossing" for kind in ("records", "examples"))
    other = record_stem(net, beside)
    copyfile(records / f"{net}.csv", records / f"{other}.csv")
    copytree(examples / net, examples / other)
    run = json.loads((records / f"{net}.json").read_text()) | {"beside": beside}
    run["settings"]["run"] |= beside
    (records / f"{other}.json").write_text(json.dumps(run))
    for draw in (adversarial_examples, fooled_pictures, human_alignment_examples, overlays):
        names = [name for name, *_ in draw(load_results(tmp_path))]
        assert len(names) == len(set(names)) == 2


def test_every_figure_is_written_from_own_records_beside_the_published_numbers(study, tmp_path):
    names = ["corners", "overlays", "tradeoff_photograph", "harmonized", "tradeoff"]
    names += ["perturbation_tolerance", "human_alignment", "human_alignment_examples"]
    options = ["--results_dir", str(study), "--figures_dir", str(tmp_path)]
    options += ["--threat", "L2-crossing", "--images", "val-00001", "--plots", *names]
    assert plotting.main(options) == 0
    for name in names:
        assert list(tmp_path.glob(f"{name}*.png")), name
    run = json.loads(next(study.glob("records/big12/L2-crossing/*.json")).read_text())
    assert run["settings"]["run"]["human_map"] == "ClickMe"
