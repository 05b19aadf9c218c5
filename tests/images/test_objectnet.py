"""ObjectNet: its mappings, its border, and classes that stand for several of ImageNet's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

from alignment_security.common.remarks import is_remark
from alignment_security.images.image_sets import DataError
from alignment_security.images.loading import load_image_set, load_photograph
from alignment_security.models.heads import RestrictedHead

# three of ObjectNet's 313 classes, in the words of its files
FOLDERS = {"chair": "Chair", "banana": "Banana", "coaster": "Coaster"}
CLASSES = {"Chair": "barber chair; folding chair; rocking chair, rocker", "Banana": "banana"}
CHAIRS, BANANA = (423, 559, 765), 954


def write(root: Path, folders=FOLDERS, classes=CLASSES) -> Path:
    """objectnet-1.0 with one photograph per folder: noise inside a red border of two pixels."""
    (root / "mappings").mkdir(parents=True)
    (root / "mappings" / "folder_to_objectnet_label.json").write_text(json.dumps(FOLDERS))
    (root / "mappings" / "objectnet_to_imagenet_1k.json").write_text(json.dumps(classes))
    image = np.full((20, 24, 3), (255, 0, 0), np.uint8)
    image[2:-2, 2:-2] = np.random.default_rng(0).integers(0, 255, (16, 20, 3))
    for folder in folders:
        (root / "images" / folder).mkdir(parents=True)
        Image.fromarray(image).save(root / "images" / folder / "1.png")
    return root


def test_the_classes_of_imagenet_are_taken_and_the_others_counted(tmp_path):
    names = ImageNetInfo()
    assert [names.index_to_description(k, detailed=False) for k in CHAIRS] == CLASSES[
        "Chair"
    ].split("; ")
    images = load_image_set("objectnet", str(write(tmp_path)))
    assert dict(zip(images.ids, images.labels)) == {"banana/1.png": BANANA, "chair/1.png": 423}
    assert images.restrict_to == (423, BANANA) and images.merged == (CHAIRS,)
    assert images.facts == {"restricted_to": 2, "merged_classes": [list(CHAIRS)], "border": 2}
    assert "1 images of classes that ImageNet does not have are left out" in images.notes[-1]
    assert is_remark(images.notes[-1])


def test_the_red_border_is_cut_off(tmp_path):
    images = load_image_set("objectnet", str(write(tmp_path)))
    pixels = np.asarray(load_photograph(images, 0))
    assert pixels.shape == (16, 20, 3)
    assert np.array_equal(pixels, np.asarray(Image.open(images.paths[0]))[2:-2, 2:-2])


def test_an_answer_counts_for_any_class_of_its_group():
    """By hand: the largest of the chairs against the banana; gradients reach the chair that won."""
    head = RestrictedHead((423, BANANA), [CHAIRS])
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    answers = head(logits)
    chair = logits[:, CHAIRS].amax(dim=1)
    expected = torch.where(chair > logits[:, BANANA], 423, BANANA)
    assert torch.equal(answers.argmax(dim=1), expected) and len(expected.unique()) == 2
    assert torch.equal(answers[:, 423], chair)
    (gradient,) = torch.autograd.grad(answers[:, 423].sum(), logits)
    assert torch.equal(gradient[:, CHAIRS].sum(dim=1), torch.ones(64)) and gradient.sum() == 64


@pytest.mark.parametrize(
    "folders, classes, message",
    [
        (["banana", "coaster"], CLASSES, "1 of its 2 folders with classes of ImageNet are missing"),
        (FOLDERS, {"Chair": "stool"}, "not ObjectNet's mappings"),
        (FOLDERS, {"Stool": "banana"}, "not ObjectNet's mappings"),
        (FOLDERS, ["Chair"], "not ObjectNet's mappings"),
        ([], CLASSES, "images: no such folder; --data_dir is ObjectNet's objectnet-1.0"),
    ],
)
def test_another_folder_is_refused(tmp_path, folders, classes, message):
    with pytest.raises(DataError, match=message) as error:
        load_image_set("objectnet", str(write(tmp_path, folders, classes)))
    assert "\n" not in str(error.value)


def test_a_folder_without_mappings_is_refused(tmp_path):
    with pytest.raises(DataError, match="not ObjectNet's mappings.*objectnet-1.0"):
        load_image_set("objectnet", str(tmp_path))


def test_objectnet_runs_from_the_command_line(cli, tiny, tmp_path):
    arguments = tiny.arguments(tmp_path)
    arguments[arguments.index("mine")] = "objectnet"
    arguments[arguments.index("--data_dir") + 1] = str(write(tmp_path / "objectnet-1.0"))
    status, out, _ = cli(*arguments, "Linf", "--eps", "8/255", "--attacks", "apgd-ce")
    assert status == 0 and "objectnet" in out
    (record,) = tmp_path.glob("records/objectnet/Linf/*.json")
    assert json.loads(record.read_text())["settings"]["run"]["border"] == 2
