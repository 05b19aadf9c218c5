"""Clean against published accuracy: timm's table, the interval, the warning in the run file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DATA
from scipy import stats

from alignment_security.common.files import UserError
from alignment_security.common.remarks import is_remark
from alignment_security.evaluation.published import (
    compare_accuracy,
    comparison_warning,
    find_published,
    read_published,
)
from alignment_security.models.names import published_names

TIMM = ["results-imagenet_2023-05-24_049b1332.csv", "results-imagenet_2025-10-30_4e5207c7.csv"]
TABLE = (
    "model,img_size,top1,top1_err,param_count\n"
    'big.a,336,89.466,10.534,"1,013.01"\n'
    "resnet50.a1_in1k,288,81.240,18.760,25.56\n"
    "resnet50.a1_in1k,224,80.382,19.618,25.56\n"
)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "results.csv").write_text(TABLE)
    return tmp_path / "results.csv"


# ---- the table -----------------------------------------------------------------------------------


def test_a_model_is_taken_at_its_size(table):
    rows = read_published(table)
    assert find_published(rows, ["resnet50", "resnet50.a1_in1k"], 224) == (
        {"model": "resnet50.a1_in1k", "img_size": 224, "top1": pytest.approx(0.80382)},
        "",
    )
    assert find_published(rows, ["resnet50.a1_in1k"], 160) == (
        {},
        "the accuracy of resnet50.a1_in1k is published at 224, 288 pixels, not at 160",
    )
    assert (
        find_published(rows, ["resnet50.a1_in1k", "big.a"], 336)[0] == {}
    )  # the first name, not any
    assert find_published(rows, ["a", "b"], 224) == ({}, "no published accuracy of a or b")


@pytest.mark.parametrize("name", TIMM)
def test_timms_own_tables_are_read(name):
    rows = read_published(DATA / "timm" / name)
    assert len(rows) > 900 and rows["top1"].between(0, 1).all()
    found, _ = find_published(rows, published_names("tf_efficientnet_lite0", "pypi:x"), 224)
    assert found["model"] == "tf_efficientnet_lite0.in1k" and found["top1"] == pytest.approx(
        0.748, abs=0.001
    )


def test_a_table_without_sizes_has_each_model_at_any(tmp_path):
    (tmp_path / "robust.csv").write_text("model,norm,eps,top1\nresnet18_l2_eps3,L2,3,53.12\n")
    rows = read_published(tmp_path / "robust.csv")
    assert find_published(rows, ["resnet18_l2_eps3"], 224)[0]["top1"] == pytest.approx(0.5312)


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,top1\na,1\n", "no column model"),
        ("model,img_size\na,224\n", "no column top1"),
        ("", "not a CSV"),
        ("<html><body>404</body></html>\n", "no column model or top1"),
        ("model,top1\na,80\nb,x\n", "line 3, column top1: 'x'"),
        ("model,top1\na,801\n", "line 2, column top1: '801'"),
        ("model,top1,img_size\na,80,\n", "line 2, column img_size: ''"),
        ("model,top1\na,-1\n", "'-1'"),
        ("model,top1\na,nan\n", "'nan'"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path, text, message):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(UserError, match=f"results.csv.*{message}") as error:
        read_published(tmp_path / "results.csv")
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there_is_named():
    with pytest.raises(UserError, match="/nowhere/results.csv: not a CSV"):
        read_published("/nowhere/results.csv")


# ---- names and the interval ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, weights, names",
    [
        ("resnet50", "timm:timm/resnet50.a1_in1k", ["resnet50", "resnet50.a1_in1k"]),
        ("timm/resnet50.tv_in1k", "timm:x", ["resnet50.tv_in1k"]),
        ("resnet50", "file:mine.pth", ["resnet50"]),
        ("resnet50_l2_eps3", "file:resnet50_l2_eps3.ckpt", ["resnet50_l2_eps3"]),
        ("xception", "timm:x", ["xception", "legacy_xception.tf_in1k"]),
    ],
)
def test_weights_of_ones_own_are_not_compared_with_timms(name, weights, names):
    assert published_names(name, weights) == names


@pytest.mark.parametrize(
    "correct, n, top1, far",
    [
        (0, 500, 0.80, True),
        (1, 1000, 0.001, False),
        (400, 500, 0.80, False),
        (372, 500, 0.80, False),
        (370, 500, 0.80, True),
        (330, 500, 0.80, True),
        (18, 20, 0.748, False),
        (2, 20, 0.748, True),
        (39900, 50000, 0.80, False),
        (39500, 50000, 0.80, True),
        (20, 20, 0.99, False),
    ],
)
def test_far_off_is_wilsons_interval(correct, n, top1, far):
    """The interval inverts the score test: |p - p0| <= z sqrt(p0 (1 - p0) / n) for z at 99.9 %."""
    found = compare_accuracy({"model": "m", "top1": top1}, correct, n)
    z = stats.norm.ppf(1 - (1 - 0.999) / 2)
    assert (
        found["far_off"]
        == far
        == bool(abs(correct / n - top1) > z * np.sqrt(top1 * (1 - top1) / n))
    )
    assert found["low"] <= correct / n <= found["high"]


def test_only_an_accuracy_below_the_published_one_asks_for_the_class_order():
    asked = "check the class order"
    assert asked in comparison_warning(compare_accuracy({"model": "m", "top1": 0.8}, 1, 50), "set")
    above = comparison_warning(compare_accuracy({"model": "m", "top1": 0.2}, 49, 50), "set")
    assert asked not in above and "easier images" in above


# ---- the script ----------------------------------------------------------------------------------


def run_file(folder) -> dict:
    (path,) = folder.glob("records/*/*/*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("threat", ["clean", "L2 --steps 1"])
@pytest.mark.parametrize("top1, warns", [(99.9, False), (9.0, True)])
def test_far_off_is_a_warning_in_the_run_file_and_on_the_screen(
    cli, tiny, tmp_path, threat, top1, warns
):
    """The tiny model is right on all 12 of its images, so that 9 % is far off and 99.9 % is not."""
    (tmp_path / "results.csv").write_text(f"model,top1,img_size\n{tiny.name},{top1},160\n")
    status, out, err = cli(
        *tiny.arguments(tmp_path), "--published_accuracy", tmp_path / "results.csv", *threat.split()
    )
    info = run_file(tmp_path)
    kept = info["published"]
    assert status == 0 and (kept["correct"], kept["n"], kept["far_off"], kept["file"]) == (
        12,
        12,
        warns,
        "results.csv",
    )
    assert (
        kept["top1"] == pytest.approx(top1 / 100)
        and kept["img_size"] == 160
        and len(kept["sha256"]) == 64
    )
    sentence = (
        f"clean accuracy 100.0% on 12 images of mine, but {top1}% is published for {tiny.name}"
    )
    for place in (out, " ".join(info["warnings"])):
        assert (sentence in place) == warns
    assert (sentence in err) == (warns and threat != "clean")  # early, before an attack
    assert "check the class order" not in out + err  # it is above what is published
    assert "published" not in json.dumps(info["settings"])  # not a setting: it changes no row


@pytest.mark.parametrize(
    "arguments, why",
    [
        (["L2", "--steps", "1"], "no published accuracy of test_resnet"),
        (["--head", "animate", "L2", "--steps", "1"], "the published accuracy is of 1000 classes"),
    ],
)
def test_what_cannot_be_compared_says_so(cli, tiny, tmp_path, table, arguments, why):
    status, _, err = cli(
        *tiny.arguments(tmp_path), "-s", "2", "--published_accuracy", table, *arguments
    )
    info = run_file(tmp_path)
    assert (
        status == 0
        and "published" not in info
        and any(why in warning and is_remark(warning) for warning in info["warnings"])
        and err.count(why) == 1
        and "check the class order" not in err
    )


def test_a_bad_table_is_refused_before_anything_is_written(cli, tiny, tmp_path):
    (tmp_path / "results.csv").write_text("<html>")
    status, out, err = cli(
        *tiny.arguments(tmp_path / "r"), "--published_accuracy", tmp_path / "results.csv", "clean"
    )
    assert (
        (status, out) == (2, "")
        and err.startswith("error: ")
        and err.count("\n") == 1
        and not (tmp_path / "r").exists()
    )
