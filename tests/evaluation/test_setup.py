"""From a command line to images: what is remarked on before anything runs."""

from __future__ import annotations

import json

import pytest

from alignment_security.evaluation.setup import similar
from alignment_security.images.loading import CORRUPTED_SETS, NAMED_SETS

KNOWN = [*NAMED_SETS, *CORRUPTED_SETS, "sample"]


@pytest.mark.parametrize(
    "name, meant",
    [
        ("imagnet-val", "imagenet-val"),
        ("imagenet_val", "imagenet-val"),
        ("ImageNet-Val", "imagenet-val"),
        ("imagenet-vla", "imagenet-val"),
        ("imagenetval", "imagenet-val"),
        ("big21", "big12"),
        ("clikme", "clickme"),
        ("samples", "sample"),
        ("imagenet-c-tiny", None),
        ("imagenet-r", "imagenet-r"),
        ("imagenetv2", "imagenet-v2"),
        ("imagenet-skech", "imagenet-sketch"),
        ("robust-bench", "robustbench"),
        ("imagenet-o", None),
        ("imagenet-v3", None),
        ("imagenet-x", None),
        ("imagenet", None),
        ("mine", None),
        ("ObjectNet", "objectnet"),
    ],
)
def test_a_slip_is_told_from_another_set(name, meant):
    assert [known for known in KNOWN if similar(name, known)] == ([meant] if meant else [])


def test_a_slip_for_a_set_with_records_is_said(cli, tiny, tmp_path):
    """A name of one's own counts too, once it has records; it is no refusal."""
    arguments = tiny.arguments(tmp_path)
    assert "is a new image set" not in cli(*arguments, "clean")[1]
    arguments[arguments.index("mine")] = "minne"
    status, out, _ = cli(*arguments, "clean")
    assert status == 0 and "--dataset minne is a new image set; is mine meant?" in out
    assert "is a new image set" not in cli(*arguments, "clean")[1]  # it has records now


def test_answers_are_restricted_to_the_classes_with_images(cli, tiny, tmp_path):
    arguments = [*tiny.arguments(tmp_path), "clean"]
    classes = len(list(tiny.data.iterdir()))
    status, out, _ = cli(*arguments)
    assert f"mine: {classes} of 1000 classes have images" in out and status == 0
    status, out, _ = cli(*arguments, "--overwrite", "--restrict_classes")
    (path,) = tmp_path.glob("records/*/*/*.json")
    settings = json.loads(path.read_text())["settings"]["run"]
    assert status == 0 and settings["restricted_to"] == classes and "not restricted" not in out
    assert cli(*arguments)[0] == 2  # other answers: not the same record


def test_a_set_of_ours_needs_no_remark(cli, tiny, tmp_path):
    arguments = tiny.arguments(tmp_path)
    at = arguments.index("--dataset")
    arguments[at : at + 4] = ["--dataset", "sample"]  # without --data_dir
    status, out, _ = cli(*arguments, "-s", "2", "clean")
    assert status == 0 and "not restricted" not in out
