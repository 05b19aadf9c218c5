"""Figures of accuracies, severities, norms, cost and fooled pictures: numbers counted by hand."""

from __future__ import annotations

import shutil
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from norm_tables import make_norms, write_summary

from alignment_security.analysis.results import load_results
from alignment_security.plots.attacks import broken_by
from alignment_security.plots.clean_robust import clean_vs_robust
from alignment_security.plots.corruptions import accuracy_vs_severity
from alignment_security.plots.cost import cost
from alignment_security.plots.examples import fooled_pictures
from alignment_security.plots.norm_distributions import norm_distributions
from alignment_security.plots.records import accuracy_vs_eps
from alignment_security.plots.style import STYLE
from alignment_security.records.run import Run
from alignment_security.records.summary import merge_records

WILSON = {1: (0.045587, 0.699358), 2: (0.150039, 0.849961), 3: (0.300642, 0.954413)}  # of 4


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def write_run(folder, threat, model, kind, rows, image_set="mine", **settings):
    """A finished record of rows of 0.jpg, 1.jpg, ... whose label is 0."""
    common = {"label": 0, "clean_pred": 0, "clean_correct": 1}
    settings = {"model": {}, "run": settings}
    session = {"device": "cpu"}
    with Run(folder, image_set, threat, model, kind, settings, session) as run:
        run.append([{"image_id": f"{i}.jpg"} | common | row for i, row in enumerate(rows)])
        run.finish([f"{i}.jpg" for i in range(len(rows))], settings["run"].get("eps"), seconds=2.0)


def test_clean_and_robust_accuracy_have_a_panel_per_eps_and_a_front(tmp_path):
    accuracies = {"a": (0.75, 0.25, 0.25), "b": (0.5, 0.5, 0.0), "c": (0.25, 0.25, 0.0)}
    common = {"threat": "Linf", "n": 4, "protocol": "autoattack", "attack": "standard"}
    rows = [
        common | {"model": model, "clean_acc": clean, "robust_acc": robust, "eps": eps}
        for model, (clean, *at_eps) in accuracies.items()
        for eps, robust in zip((1 / 255, 2 / 255), at_eps)
    ]
    others = {"partial": 1, "model": "unfinished"}, {"eps": 0.0, "protocol": "at 0"}
    write_summary(tmp_path, [*rows, *(rows[0] | other for other in others)])
    ((name, figure, table, caption),) = clean_vs_robust(load_results(tmp_path))
    assert name == "clean_vs_robust_mine_Linf" and "over the same 4 images" in caption
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["ε = 1/255", "ε = 2/255"]
    found = table.set_index(["eps", "model"])
    assert found["front"].tolist() == [True, True, False, True, False, False]
    for accuracy in ("clean", "robust"):
        for _, row in table[table[accuracy] > 0].iterrows():
            interval = row[f"{accuracy}_low"], row[f"{accuracy}_high"]
            assert interval == pytest.approx(WILSON[round(4 * row[accuracy])], abs=1e-6)


def test_other_images_are_another_figure_of_accuracies(tmp_path):
    common = {"threat": "Linf", "robust_acc": 0.25, "eps": 1 / 255}
    rows = [{"model": model, "list_sha256": model} | common for model in ("a", "b")]
    write_summary(tmp_path, rows)
    assert [name for name, *_ in clean_vs_robust(load_results(tmp_path))] == [
        "clean_vs_robust_mine_Linf_1",
        "clean_vs_robust_mine_Linf_2",
    ]


def test_captions_name_missing_models_and_the_eps_that_a_model_lacks(tmp_path):
    """Of a record each, and where the summary is alone."""
    levels = {"both": [1 / 255, 2 / 255], "one": [1 / 255], "late": [1 / 255, 2 / 255]}
    for model, eps in levels.items():
        rows = [{"eps": level, "robust": 1} for level in eps]
        if model == "late":
            merge_records(tmp_path, log=print)
        settings = {"model": {}, "run": {"attack": "standard", "eps": eps}}
        with Run(tmp_path, "mine", "Linf", model, "ball", settings) as run:
            common = {"image_id": "0.jpg", "label": 0, "clean_pred": 0, "clean_correct": 1}
            run.append([common | row for row in rows])
            run.finish(["0.jpg"], eps)
    write_run(tmp_path, "clean", "other", "clean", [{}])
    lacking = "Not evaluated at ε = 2/255 (one)."
    results = load_results(tmp_path)
    for function, missing in ((accuracy_vs_eps, ""), (broken_by, ""), (clean_vs_robust, "late")):
        ((_, _, _, caption),) = function(results)
        assert lacking in caption and "Missing (not evaluated): other." in caption
        assert ("Missing (no robust accuracy in the summary): late." in caption) == bool(missing)
    shutil.rmtree(tmp_path / "records")
    ((_, _, _, caption),) = clean_vs_robust(load_results(tmp_path))
    assert lacking in caption and "n = 1" in caption


def test_severities_are_drawn_of_types_with_several(tmp_path):
    for kind, severity, correct in (("fog", 1, 3), ("fog", 5, 2), ("snow", 3, 1)):
        rows = [{"clean_correct": int(i < correct)} for i in range(4)]
        corruption = {"type": kind, "severity": severity}
        threat = f"corruptions-{kind}-{severity}"
        write_run(tmp_path, threat, "net", "clean", rows, corruption=corruption)
    ((name, figure, table, _),) = accuracy_vs_severity(load_results(tmp_path))
    assert name == "accuracy_vs_severity_mine" and len(figure.axes) == 1
    assert table[["type", "severity", "accuracy"]].values.tolist() == [
        ["fog", 1, 0.75],
        ["fog", 5, 0.5],
    ]
    np.testing.assert_allclose(table[["low", "high"]], [WILSON[3], WILSON[2]], atol=1e-6)


def test_norms_are_boxes_of_the_images_classified_correctly(tmp_path):
    """The median is the summary's, between the tenth and the eleventh of 1 to 20.

    A norm that was not found is larger than any.
    """
    make_norms(tmp_path, "all", [None, *np.arange(1.0, 21), None])
    make_norms(tmp_path, "hard", [*np.arange(1.0, 18), np.inf, np.inf, np.inf])
    make_norms(tmp_path, "wrong", [None, None])
    ((name, figure, table, _),) = norm_distributions(load_results(tmp_path))
    assert name == "norm_distributions_mine_L2-crossing"
    found = table.set_index("model")
    quantiles = found.loc["all", ["p5", "p25", "median", "p75", "p95"]].astype(float)
    np.testing.assert_allclose(quantiles, [1.95, 5.75, 10.5, 15.25, 19.05])
    assert found.loc["hard", ["p75", "n", "without_norm"]].tolist() == [15.25, 20, 3]
    assert np.isnan(found.loc["hard", "p95"]) and "wrong" not in found.index
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(table["model"])


def test_cost_is_of_an_image_over_all_eps(tmp_path):
    eps = [1 / 255, 2 / 255]
    settings = {"attack": "standard", "eps": eps}
    for model, passes in (("cheap", 4), ("dear", 10)):
        verdicts = {"robust": 1, "adv_pred": 0}
        with Run(
            tmp_path,
            "mine",
            "Linf",
            model,
            "ball",
            {"model": {}, "run": settings},
            {"device": "gpu"},
        ) as run:
            for image in ("a.jpg", "b.jpg"):
                facts = {"image_id": image, "label": 0, "clean_pred": 0, "clean_correct": 1}
                for level, forwards in zip(eps, (passes, 2)):
                    counts = {"forwards": forwards, "backwards": forwards - 1, "from_eps": level}
                    run.append([facts | verdicts | counts | {"eps": level}])
            run.finish(["a.jpg", "b.jpg"], eps)
    ((name, _, table, caption),) = cost(load_results(tmp_path))
    assert name == "cost_mine_Linf" and "the device gpu" in caption
    found = table.set_index("model")
    assert found.loc["dear", ["forwards", "backwards"]].tolist() == [12, 10]
    assert found.loc["cheap", ["forwards", "backwards"]].tolist() == [6, 4]


def test_a_fooled_picture_is_photograph_plus_perturbation():
    """Of each committed example the third picture less the first is the perturbation, in levels."""
    results = load_results(ROOT / "results" / "sample", threats=["L2-crossing"])
    ((name, figure, table, caption),) = fooled_pictures(results)
    assert name == "fooled_pictures_sample_L2-crossing" and table["model"].nunique() == 1
    assert "What fools tf_efficientnet_lite0" in caption
    assert figure.get_figwidth() <= 3.4 and len(figure.axes) == 3 * len(table)
    pictures = [ax.get_images()[0].get_array().astype(float) for ax in figure.axes]
    columns = np.array_split(np.arange(len(pictures)), 3)  # axes come column by column
    for linf, *at in zip(table["linf"], *columns):
        cells = [pictures[i] for i in at]
        change = np.abs(cells[2] - cells[0]).max()
        assert abs(change - 255 * linf) <= 1  # rounded to 8 bits
        assert cells[1].std() > 5  # amplified until it is seen


LONG = [
    "convnextv2_huge.fcmae_ft_in22k_in1k_384",
    "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k",
    "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k",
]


def assert_texts_are_whole(figure):
    """No text leaves the figure, and no two labels of axes overlap."""
    figure.draw_without_rendering()
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    ticks = [text for ax in figure.axes for text in ax.get_yticklabels()]
    labels = [ax.xaxis.label for ax in figure.axes if ax.get_xlabel()]
    for text in [*legends, *ticks, *labels]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, text.get_text()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_long_names_leave_room_for_what_is_drawn(tmp_path):
    rows = [
        {"success": 1, "l2": norm, "forwards": 1000, "backwards": 900, "adv_pred": 1}
        for norm in (0.1, 1.0, 10.0)
    ]
    for model in LONG:
        write_run(tmp_path, "L2-crossing", model, "minimum_norm", rows, attack="crossing")
        for kind in ("fog", "snow", "frost", "contrast"):
            for severity in (1, 2):
                corruption = {"type": kind, "severity": severity}
                threat = f"corruptions-{kind}-{severity}"
                write_run(tmp_path, threat, model, "clean", [{}], corruption=corruption)
    results = load_results(tmp_path)
    with plt.rc_context(STYLE):
        for draw in (norm_distributions, cost, accuracy_vs_severity):
            ((_, figure, _, _),) = draw(results)
            assert_texts_are_whole(figure)
            widest = max(ax.get_window_extent().width for ax in figure.axes)
            assert widest > 0.2 * figure.bbox.width


def test_the_new_figures_say_what_makes_them_where_there_is_nothing(tmp_path):
    results = load_results(tmp_path)
    for figure in (clean_vs_robust, accuracy_vs_severity, norm_distributions, cost):
        assert list(figure(results)) == []
