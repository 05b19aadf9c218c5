"""Test sets of ImageNet's classes, and lists of other benchmarks, from folders of their shape."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment_security.images import subsets
from alignment_security.images.image_sets import IMAGE_LISTS, DataError, read_image_list, synsets
from alignment_security.images.labels import real_correct
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.images.variants import VARIANTS
from alignment_security.models.loading import load_model
from alignment_security.records.record import read_record

SYNSETS = synsets()
NUMBERS = [str(k) for k in range(1000)]
# Class indices as the authors' eval.py list them: first, last and sum of 200
PUBLISHED = {"imagenet-a": (6, 988, 102_178), "imagenet-r": (1, 988, 86_135)}


def folders_of(name: str) -> list[str]:
    """The class folders of a set as it is distributed."""
    return NUMBERS if name == "imagenet-v2" else [SYNSETS[k] for k in VARIANTS[name].classes]


def write(root: Path, folders: list[str], file_name: str = "art_0.jpg") -> Path:
    """A file per folder, of the same name in each, as in ImageNet-R; none is decoded."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / file_name).touch()
    return root


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_the_labels_of_its_folders(tmp_path, name):
    folders = folders_of(name)
    images = load_image_set(name, str(write(tmp_path, folders)))
    by_folder = dict(zip(folders, VARIANTS[name].classes))
    labels = {image_id.split("/")[0]: label for image_id, label in zip(images.ids, images.labels)}
    assert labels == by_folder and images.n_classes == 1000
    restricted = VARIANTS[name].classes if len(folders) == 200 else ()
    assert images.restrict_to == restricted
    assert images.facts == ({"restricted_to": 200} if restricted else {})
    assert f"{len(folders)} images; {name} was published with" in images.notes[-1]


@pytest.mark.parametrize("name, first_last_sum", PUBLISHED.items())
def test_the_200_classes_are_the_published_ones(name, first_last_sum):
    classes = VARIANTS[name].classes
    assert len(set(classes)) == 200
    assert (classes[0], classes[-1], sum(classes)) == first_last_sum


@pytest.mark.parametrize(
    "name, folders, message",
    [
        ("imagenet-v2", NUMBERS[:-1], "labels would be a guess"),
        ("imagenet-v2", SYNSETS[:10], "not the 1000 class folders of imagenet-v2: 990 missing"),
        ("imagenet-sketch", SYNSETS[1:], "1 missing .n01440764., 0 of other sets"),
        ("imagenet-a", folders_of("imagenet-a")[1:], "1 missing .n01498041., 0 of other sets"),
        ("imagenet-a", folders_of("imagenet-r"), "114 missing .*, 114 of other sets"),
        ("imagenet-r", SYNSETS, "0 missing .-., 800 of other sets"),
        (
            "imagenet-r",
            ["cat", "dog"],
            "2 of its 2 folders are no classes of imagenet-r .cat, dog.; --data_dir is",
        ),
        ("imagenet-r", ["imagenet-r"], "1 of its 1 folders are no classes .* .imagenet-r.;"),
        ("imagenet-v2", [*NUMBERS, "top"], "1 of its 1001 folders .* .top.; .* its 1000 class"),
        ("imagenet-a", ["art.jpg"], "1 of its 1 folders are no classes of imagenet-a .art.jpg.;"),
    ],
)
def test_other_class_folders_are_refused(tmp_path, name, folders, message):
    with pytest.raises(DataError, match=message):
        load_image_set(name, str(write(tmp_path, folders)))


def test_a_variant_needs_a_model_of_1000_outputs(tmp_path):
    root = write(tmp_path, folders_of("imagenet-r"))
    with pytest.raises(DataError, match="imagenet-r: has 1000 classes, the model 200 outputs"):
        load_image_set("imagenet-r", str(root), n_outputs=200)


def test_imagenet_a_is_judged_over_its_classes(cli, tiny, sample, tmp_path):
    """The record's answers are the best of the 200 classes, as by the authors' eval.py."""
    root = tmp_path / "imagenet-a"
    for k, folder in enumerate(folders_of("imagenet-a")):
        (root / folder).mkdir(parents=True)
        if k < len(sample):
            shutil.copy(sample.paths[k], root / folder / "art_0.jpg")
    arguments = tiny.arguments(tmp_path)
    arguments[arguments.index("mine")] = "imagenet-a"
    arguments[arguments.index("--data_dir") + 1] = str(root)
    status, out, _ = cli(*arguments, "clean")
    assert status == 0 and "not restricted" not in out

    (record,) = tmp_path.glob("records/imagenet-a/clean/*.csv")
    model, images = load_model(tiny.name, tiny.checkpoint), load_image_set("imagenet-a", str(root))
    allowed = torch.tensor(images.restrict_to)
    with torch.no_grad():
        logits = [model.module(x[None]) for _, x, _ in stream_images(images, model.preprocessing)]
    best = [int(allowed[one[0, allowed].argmax()]) for one in logits]
    assert read_record(record)["clean_pred"].astype(int).tolist() == best
    assert best != [int(one.argmax()) for one in logits]


# ---- lists of other benchmarks -------------------------------------------------------------------

ROBUSTBENCH = read_image_list(IMAGE_LISTS / "robustbench.txt")


def test_the_list_of_robustbench():
    """5000 of the 50,000, with labels that ReaL accepts in nine of ten."""
    names = [name for name, _ in ROBUSTBENCH]
    assert len(set(names)) == len(names) == 5000
    assert names[0] == "ILSVRC2012_val_00015253.JPEG" and ROBUSTBENCH[0][1] == 979
    lines = "".join(f"{SYNSETS[label]}/{name}\n" for name, label in ROBUSTBENCH)
    # of RobustBench's file, with a newline at its end
    published = "49cc660768bb59fb01b0b6b0b9858489592dc1a6dbbc86dfc7e62edcc843a656"
    assert hashlib.sha256(lines.encode()).hexdigest() == published
    judged = [real_correct(name, label) for name, label in ROBUSTBENCH]
    known = [one for one in judged if one is not None]
    assert np.mean(known) == pytest.approx(0.905, abs=0.001)


@pytest.mark.parametrize("flat", [True, False])
def test_robustbench_from_a_validation_folder(tmp_path, flat):
    for name, label in ROBUSTBENCH:
        folder = tmp_path if flat else tmp_path / SYNSETS[label]
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    images = load_image_set("robustbench", str(tmp_path))
    assert list(zip(images.ids, images.labels)) == ROBUSTBENCH and images.groups == ()
    images.paths[7].unlink()
    with pytest.raises(DataError, match="1 of the 5000 listed images are missing"):
        load_image_set("robustbench", str(tmp_path))


def write_validation(root: Path) -> list[str]:
    """1000 empty files in synset folders; returns the names of every third."""
    names = [f"ILSVRC2012_val_{k + 1:08d}.JPEG" for k in range(1000)]
    for name, synset in zip(names, SYNSETS):
        (root / synset).mkdir(parents=True)
        (root / synset / name).touch()
    return names[::3]


@pytest.mark.parametrize("place", [".", ".."])
def test_attackbench_reads_its_list_beside_the_images(tmp_path, monkeypatch, place):
    root = tmp_path / "val"
    names = write_validation(root)
    with pytest.raises(DataError, match="list is missing; fetch it with `curl -o .*cb475a2"):
        load_image_set("attackbench", str(root))
    path = root / place / subsets.ATTACKBENCH_LIST
    path.write_text("\n".join(reversed(names)) + "\n")
    with pytest.raises(DataError, match="not AttackBench's list"):
        load_image_set("attackbench", str(root))
    monkeypatch.setattr(subsets, "ATTACKBENCH_SHA256", subsets.sha256_file(path))
    images = load_image_set("attackbench", str(root))
    assert images.name == "attackbench" and list(images.ids) == names
    assert images.labels == tuple(range(0, 1000, 3))
    images.paths[0].rename(images.paths[0].with_name("other.JPEG"))
    with pytest.raises(DataError, match="1 of the 334 images of imagenet-5000-val.txt are missing"):
        load_image_set("attackbench", str(root))


def test_the_training_images_are_not_imagenet_val(tmp_path):
    write(tmp_path, SYNSETS, "ILSVRC2012_val_00000001.JPEG")
    (tmp_path / SYNSETS[5] / "n01443537_10026.JPEG").touch()
    with pytest.raises(DataError, match="1 images of ImageNet's training set .n01443537_10026"):
        load_image_set("imagenet-val", str(tmp_path))
