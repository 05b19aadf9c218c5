"""Captions: over how many images, which models are not drawn and why, and what was drawn alone."""

from __future__ import annotations

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_feng2025 import make_study
from norm_tables import make_norms, write_summary

from alignment_security.analysis.feng2025 import (
    count_range,
    models_text,
    norm_tables,
    rho_text,
    tables_with,
)
from alignment_security.analysis.results import load_results
from alignment_security.plots.clean_robust import front_text
from alignment_security.plots.examples import (
    fooled_pictures,
    human_alignment_examples,
    model_facts,
)
from alignment_security.plots.feng2025 import human_alignment, perturbation_tolerance, tradeoff
from alignment_security.plots.feng2025_pictures import overlays
from alignment_security.plots.feng2025_tables import paper_drawings
from alignment_security.plots.norm_distributions import norm_distributions
from alignment_security.plots.norms import accuracy_vs_norm
from alignment_security.plots.slide import slide
from alignment_security.plots.training import about_curves
from alignment_security.records.ceiling import MAP_BLUR
from alignment_security.records.record import read_record
from alignment_security.records.run import Run
from alignment_security.records.summary import merge_records, summary_table

NETS = {
    "resnet50.a1_in1k": (None, None, 0.4, 0.2),
    "vgg16.tv_in1k": (None, None, 0.2, 0.5),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def caption_of(function, results) -> str:
    return next(iter(function(results)))[3]


def change_record(results, model: str, change, **settings) -> None:
    """Change the rows and settings of a finished record as if it had been made so."""
    (path,) = results.glob(f"records/*/L2-crossing/{model}.csv")
    run = json.loads(path.with_suffix(".json").read_text())
    rows = read_record(path)
    run["settings"]["run"] |= settings
    path.unlink()
    path.with_suffix(".json").unlink()
    names = run["image_set"], "L2-crossing", model, "minimum_norm"
    with Run(results, *names, run["settings"]) as new:
        new.append(change(rows).dropna(axis=1, how="all").to_dict("records"))
        new.finish(list(rows["image_id"]), None)


def without_maps(count: int):
    """A change that takes the alignments of the last images."""

    def change(rows):
        names = sorted(rows["image_id"])[-count:]
        lost = rows["image_id"].isin(names)
        return rows.assign(human_alignment=rows["human_alignment"].mask(lost))

    return change


def all_wrong(rows):
    """A change after which no image is classified correctly."""
    wrong = rows.assign(clean_correct=0, clean_pred=1 - rows["label"], success=np.nan)
    return wrong.assign(**dict.fromkeys(["adv_pred", "l2", "linf", "human_alignment"], np.nan))


# ---- over how many images ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def partly_mapped(tmp_path_factory):
    """Two nets, 8 images, of which 5 have a map; of the second net's 3 alone."""
    folder = tmp_path_factory.mktemp("partly")
    make_study(folder, NETS, images=8)
    change_record(folder, "resnet50.a1_in1k", without_maps(3))
    change_record(folder, "vgg16.tv_in1k", without_maps(5))
    merge_records(folder)
    return folder


@pytest.mark.parametrize("function", [tradeoff, human_alignment, paper_drawings])
def test_a_figure_of_alignment_says_over_how_many_images(partly_mapped, function):
    _, _, table, caption = next(iter(function(load_results(partly_mapped))))
    assert "uman alignment over 3 to 5 images." in caption
    norms = "Perturbation Tolerance over 8 images"
    assert (norms in caption) == (function is not human_alignment)  # which draws none
    assert "over 3" not in caption_of(perturbation_tolerance, load_results(partly_mapped))
    if "n_alignment" in table:
        assert dict(zip(table["model"], table["n_alignment"])) == {
            "resnet50.a1_in1k": 5,
            "vgg16.tv_in1k": 3,
        }


@pytest.mark.parametrize("function", [overlays, human_alignment_examples])
def test_a_mean_beside_pictures_is_not_over_all_images(partly_mapped, function):
    caption = caption_of(function, load_results(partly_mapped))
    assert "that were fooled (8 images). r beside a model" in caption
    assert "with a human map (3 to 5 images)." in caption and "all correctly" not in caption


def test_a_models_facts_have_a_number_for_each_mean(partly_mapped, tmp_path):
    facts = {run["model"]: model_facts(run) for run in load_results(partly_mapped).runs}
    assert re.search(r"PT 0\.\d+ ± [\d.]+ \(n = 8\)\nr 0\.\d\d \(n = 3\)$", facts["vgg16.tv_in1k"])
    make_study(tmp_path, NETS, images=2, examples=())
    run = load_results(tmp_path).runs[0]
    assert re.search(r"PT 0\.\d+ ± [\d.]+, r -?0\.\d\d \(n = 2\)$", model_facts(run))


def test_the_printed_summary_has_the_number_where_it_is_another_one(partly_mapped, tmp_path):
    assert re.search(r" n_alignment .*\n.* 5 ", summary_table(merge_records(partly_mapped)))
    make_study(tmp_path, NETS, images=2, examples=())
    assert " n_alignment" not in summary_table(merge_records(tmp_path))


@pytest.mark.parametrize(
    "counts, text",
    [([7], "7 images"), ([1], "1 image"), ([5, 0, 7], "5 to 7 images"), ([0], "none")],
)
def test_counts_in_words(counts, text):
    assert count_range(pd.Series(counts)) == text


# ---- which models are not drawn ------------------------------------------------------------------


def test_a_model_without_a_correct_image_is_named(tmp_path):
    make_study(tmp_path, NETS | {"resnet18.tv_in1k": (None, None, 0.3, 0.3)}, images=4)
    change_record(tmp_path, "resnet18.tv_in1k", all_wrong)
    merge_records(tmp_path)
    for function in (tradeoff, human_alignment, perturbation_tolerance, paper_drawings):
        _, _, table, caption = next(iter(function(load_results(tmp_path))))
        assert "resnet18.tv_in1k" not in set(table["model"])
        assert "No image is classified correctly, not drawn: resnet18.tv_in1k." in caption


def test_a_model_without_a_norm_or_a_value_is_named(tmp_path):
    common = {"l2_mean": 1.0, "l2_sem": 0.1, "human_alignment": 0.3}
    write_summary(
        tmp_path,
        [
            {"model": "both", **common},
            {"model": "no_map", **common, "human_alignment": None},
            {"model": "survived", **common, "l2_mean": None},
        ],
    )
    results = load_results(tmp_path)
    caption = caption_of(tradeoff, results)
    assert "No norm was found, not drawn: survived." in caption
    assert "Not drawn, without human alignment: no_map." in caption
    assert "no_map" not in caption_of(perturbation_tolerance, results)  # it is drawn there
    (table,) = tables_with(norm_tables(results), ["pt", "alignment", "accuracy"])
    assert table.note.endswith("Not drawn, without human alignment: no_map.")


def test_a_record_that_is_not_comparable_is_no_missing_models_panel(tmp_path):
    """Its panel of other figures is not one of `tradeoff`."""
    make_norms(tmp_path, "long", [0.1, 0.2, 0.3], list_sha256="a")
    make_norms(tmp_path, "also", [0.1, 0.2, 0.3], list_sha256="a")
    make_norms(tmp_path, "short", [0.1], list_sha256="b")
    merge_records(tmp_path, log=lambda text: None)
    caption = caption_of(perturbation_tolerance, load_results(tmp_path))
    assert "Missing (other settings only): short." in caption and "No model" not in caption


def test_models_that_pictures_leave_out_are_missing(tmp_path):
    """One of a column; one without an example; one whose norms have no distribution."""
    make_study(tmp_path, NETS, images=2)
    make_study(tmp_path, {"resnet18.tv_in1k": (None, None, 0.3, 0.3)}, images=2, examples=())
    reason = "Missing (no room, or no example kept; see --models)"
    for function, names in (
        (overlays, "resnet18.tv_in1k"),
        (fooled_pictures, "resnet18.tv_in1k, vgg16.tv_in1k"),
    ):
        caption = caption_of(function, load_results(tmp_path))
        assert f"{reason}: {names}." in caption and "No model" not in caption
    change_record(tmp_path, "resnet18.tv_in1k", all_wrong)
    caption = caption_of(norm_distributions, load_results(tmp_path))
    assert "Missing (no image is classified correctly): resnet18.tv_in1k." in caption
    caption = caption_of(accuracy_vs_norm, load_results(tmp_path))
    assert "No model is missing." in caption  # on the axis


def test_a_record_that_grows_after_merge_is_missing_and_no_error(tmp_path):
    """The summary still has its row, and its run file no number of images."""
    make_study(tmp_path, NETS, images=3)
    merge_records(tmp_path)
    (path,) = tmp_path.glob("records/*/L2-crossing/vgg16.tv_in1k.json")
    run = json.loads(path.read_text()) | {"status": "running"}
    del run["images"], run["record_sha256"]
    path.write_text(json.dumps(run))
    caption = caption_of(tradeoff, load_results(tmp_path))
    assert "1 model(s), n = 3," in caption and "Missing (running): vgg16.tv_in1k." in caption


# ---- maps whose ceiling it is not ----------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, own",
    [
        ({"human_map": "folder maps, sha256 0"}, True),
        ({"human_map": "hand-drawn, sha256 0"}, True),
        ({"human_map": "ClickMe", "human_map_blur": MAP_BLUR}, False),
        ({"human_map": "folder maps, sha256 0", "human_map_blur": MAP_BLUR}, False),
    ],
)
def test_axis_and_caption_say_whose_ceiling_it_is(tmp_path, settings, own):
    make_study(tmp_path, NETS, images=3)
    for model in NETS:
        change_record(tmp_path, model, lambda rows: rows, **settings)
    merge_records(tmp_path)
    results = load_results(tmp_path)
    _, figure, _, caption = next(iter(tradeoff(results)))
    label = "human alignment (% of 0.65753)" if own else "human alignment (% of ceiling)"
    assert figure.axes[0].get_ylabel() == label
    said = f"The human ceiling of these maps ({settings['human_map']}) is not known"
    assert (said in caption) == own
    for function in (overlays, human_alignment_examples):
        assert (said in caption_of(function, results)) == own


# ---- nothing else --------------------------------------------------------------------------------

PARTS = {
    "hollow": "hollow",
    "dashed": "dashed",
    "band": "band: people",
    "front": "black line",
    "series": "coloured lines",
    "others": "robust and harmonized nets in a panel",
    "correlation": "ρ",
    "bars": "bars: standard errors",
}


def parts_of(caption: str) -> set[str]:
    first = caption.partition("\n")[0].lower()
    return {name for name, text in PARTS.items() if text in first}


def test_a_caption_has_what_was_drawn(tmp_path):
    one = [{"model": "a", "l2_mean": 1.0, "l2_sem": 0.1, "human_alignment": 0.3}]
    results = load_results(write_summary(tmp_path / "one", one))
    assert parts_of(caption_of(tradeoff, results)) == set()
    assert parts_of(caption_of(perturbation_tolerance, results)) == {"bars"}
    many = [
        {
            "model": f"m{i}",
            "l2_mean": 1 + i / 10,
            "human_alignment": (9 - i) / 10,
            "clean_acc": 0.5 + i**2 / 99,
        }
        for i in range(7)
    ]
    results = load_results(write_summary(tmp_path / "many", many))
    assert parts_of(caption_of(tradeoff, results)) == {"front", "correlation"}
    assert parts_of(caption_of(human_alignment, results)) == {"dashed", "correlation"}
    assert "coloured lines" not in caption_of(slide, results)
    robust = [
        {"model": f"resnet50_l2_eps{eps}", "group": "robust", "l2_mean": 3 + eps}
        | {"human_alignment": 0.1, "human_alignment_sem": 0.01}
        for eps in (1, 3)
    ]
    results = load_results(write_summary(tmp_path / "robust", [*many, *robust]))
    found = parts_of(caption_of(tradeoff, results))
    assert found == {"front", "correlation", "series", "others", "bars"}
    assert "coloured lines" in caption_of(slide, results)


def test_a_correlation_of_nothing_has_no_sign():
    found = {"rho": -0.001, "low": -0.3, "high": 0.3, "n": 9}
    assert rho_text(found) == "ρ = 0.00 [-0.30, 0.30], n = 9 models"
    assert models_text(1) == "n = 1 model"


@pytest.mark.parametrize("column", ["harmonizer", "val_alignment"])
def test_a_caption_of_learning_curves_has_their_panels(column):
    text = {"harmonizer": "harmonizer's loss", "val_alignment": "Human alignment"}[column]
    assert text in about_curves(pd.DataFrame({"loss": [1.0, 0.5], column: [np.nan, 0.1]}))
    assert text not in about_curves(pd.DataFrame({"loss": [1.0], column: [np.nan]}))
    assert text not in about_curves(pd.DataFrame({"loss": [1.0]}))


@pytest.mark.parametrize(
    "fronts, robust, is_drawn",
    [([True, False], 0.1, False), ([True, True], 0.1, True), ([True, True], 0.2, False)],
)
def test_a_front_of_one_point_is_no_line(fronts, robust, is_drawn):
    """Of each eps: two panels with a point each have none, nor has one of two alike."""
    models = {"clean": [0.8, 1 - robust], "robust": [0.2, robust], "front": fronts}
    two_eps = pd.concat([pd.DataFrame({"eps": eps, **models}) for eps in (0.1, 0.2)])
    assert ("Line" in front_text(two_eps)) == is_drawn
