"""Big-12 and its variants, the sample's hashes, corruptions (on disk, while loading), labels."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataloading
from alignment_security.images.corruptions import corrupt
from alignment_security.images.image_sets import (
    IMAGE_LISTS,
    Corruption,
    DataError,
    read_list_fields,
    synsets,
)
from alignment_security.images.labels import (
    multilabel_correct,
    read_multilabels,
    real_correct,
    real_labels,
)
from alignment_security.images.loading import load_image_set, set_preprocessing, stream_images
from alignment_security.images.subsets import draw_subset, groupings

SYNSETS = synsets()
LIST = read_list_fields(IMAGE_LISTS / "big12.txt")
FACTS = (
    Path(os.environ.get("BRAINSCORE_VISION_PATH", "/nowhere"))
    / "benchmarks"
    / "imagenet"
    / "imagenet2012.csv"
)
WORDNET = Path(os.environ.get("WORDNET_DIR", "/nowhere"))
PLAIN = {
    "input_size": (3, 64, 64),
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
needs_corruptions = pytest.mark.skipif(
    not importlib.util.find_spec("imagecorruptions"), reason="no imagecorruptions"
)


def jpeg(color=(10, 200, 30), size=(8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "JPEG")
    return file.getvalue()


def write_big12(root: Path, flat: bool = False, skip: int = 0) -> Path:
    for name, label, _ in LIST[skip:]:
        folder = root if flat else root / SYNSETS[int(label)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg((int(label) % 256, 0, 0)))
    return root


# ---- the table and the list ----------------------------------------------------------------------


def test_groupings_of_big12():
    """Known ranges of classes; six superclasses are animate, six inanimate, split at class 398."""
    big12 = groupings()["big_12"]
    assert list(big12) == [
        "dog",
        "bird",
        "reptile",
        "carnivore",
        "insect",
        "primate",
        "structure",
        "clothing",
        "wheeled_vehicle",
        "musical_instrument",
        "food",
        "furniture",
    ]
    assert all(len(set(classes)) == 20 for classes in big12.values())
    assert big12["dog"] == list(range(151, 171)) and big12["bird"] == [*range(7, 25), 87, 88]
    assert big12["carnivore"] == [*range(269, 281), *range(286, 294)] and big12["primate"] == list(
        range(365, 385)
    )
    assert big12["food"] == [930, 931, 932, *range(936, 948), *range(949, 954)]
    assert [all(c < 398 for c in classes) for classes in big12.values()] == [True] * 6 + [False] * 6
    assert len({c for classes in big12.values() for c in classes}) == 240


def test_big12_list_is_12_x_20_x_4():
    assert len(LIST) == len({name for name, *_ in LIST}) == 960
    assert Counter(int(label) for _, label, _ in LIST) == {
        c: 4 for classes in groupings()["big_12"].values() for c in classes
    }
    assert all(int(label) in groupings()["big_12"][group] for _, label, group in LIST)


@pytest.mark.skipif(
    not FACTS.is_file(), reason="BRAINSCORE_VISION_PATH has no benchmarks/imagenet/imagenet2012.csv"
)
def test_draw_subset_gives_the_committed_list():
    with open(FACTS, newline="") as file:
        labelled = [(row["filename"], int(row["label"])) for row in csv.DictReader(file)]
    assert len(labelled) == 50_000
    np.random.default_rng(0).shuffle(labelled)
    assert [[n, str(y), g] for n, y, g in draw_subset([(n, int(y)) for n, y in labelled])] == LIST


@pytest.mark.skipif(
    not (WORDNET / "wordnet.is_a.txt").is_file(),
    reason="WORDNET_DIR has no wordnet.is_a.txt, words.txt",
)
@pytest.mark.parametrize(
    "grouping", ["big_12", "mid_12", "living_9", "mixed_10", "mixed_13", "geirhos_16"]
)
def test_groupings_are_those_of_the_robustness_package(tmp_path, grouping):
    from robustness.tools.imagenet_helpers import ImageNetHierarchy, common_superclass_wnid

    for synset in SYNSETS:
        (tmp_path / "train" / synset).mkdir(parents=True)
    for name in ("wordnet.is_a.txt", "words.txt"):
        (tmp_path / name).symlink_to(WORDNET / name)
    (tmp_path / "imagenet_class_index.json").write_text(
        json.dumps({k: [s, s] for k, s in enumerate(SYNSETS)})
    )
    ranges, names = ImageNetHierarchy(tmp_path, tmp_path).get_subclasses(
        common_superclass_wnid(grouping), balanced=True
    )
    want = {
        names[k].split(",")[0].replace(" ", "_"): sorted(found) for k, found in enumerate(ranges)
    }
    assert groupings()[grouping] == want


def made_up() -> list[tuple[str, int]]:
    return [
        (f"ILSVRC2012_val_{50 * y + k + 1:08d}.JPEG", y) for y in range(1000) for k in range(50)
    ]


def test_draw_subset_depends_on_names_only_and_is_nested():
    labelled = made_up()
    assert (
        draw_subset(labelled) == draw_subset(labelled[::-1]) and len(draw_subset(labelled)) == 960
    )
    assert (
        set(draw_subset(labelled, per_class=2))
        < set(draw_subset(labelled))
        < set(draw_subset(labelled, per_class=50))
    )
    assert [
        len(draw_subset(labelled, grouping=g, per_class=1))
        for g in ("mid_12", "living_9", "geirhos_16")
    ] == [192, 72, 32]


def test_draw_subset_is_uniform():
    """The number of the image within its class: mean 24.5, SD 14.43 / sqrt(960) = 0.47."""
    numbers = [(int(name[15:23]) - 1) % 50 for name, *_ in draw_subset(made_up())]
    assert abs(np.mean(numbers) - 24.5) < 3 * 0.47


@pytest.mark.parametrize("request_", [{"per_class": 51}, {"per_class": 0}, {"grouping": "big_13"}])
def test_draw_subset_refuses_impossible_requests(request_):
    with pytest.raises(DataError, match="has 50|big_13.*big_12, mid_12"):
        draw_subset(made_up(), **request_)


# ---- the set -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
def test_big12_set_in_both_layouts(tmp_path, flat):
    images = load_image_set("big12", str(write_big12(tmp_path / "val", flat)))
    assert [[n, str(y), g] for n, y, g in zip(images.ids, images.labels, images.groups)] == LIST
    assert images.n_classes == 1000 and images.facts == {}
    part = images.take([959, 0])
    assert part.groups == ("furniture", "dog") and part.ids == (LIST[959][0], LIST[0][0])


def test_big12_set_names_missing_images(tmp_path):
    root = write_big12(tmp_path / "val", skip=7)
    with pytest.raises(
        DataError,
        match=rf"{root}: 7 of the 960 listed images are missing, e.g. n02085620/{LIST[0][0]}",
    ):
        load_image_set("big12", str(root))


def test_big12_command_checks_exports_and_leaves_the_source_alone(tmp_path, capsys):
    root = write_big12(tmp_path / "val")
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert (
        dataloading.main(["big12", "--imagenet", str(root), "--out", str(tmp_path / "links")]) == 0
    )
    assert (
        dataloading.main(
            ["big12", "--imagenet", str(root), "--out", str(tmp_path / "copies"), "--copy"]
        )
        == 0
    )
    assert "all 960 images are there, 12 superclasses x 20 classes x 4" in capsys.readouterr().out
    sets = [
        load_image_set("big12", str(folder))
        for folder in (root, tmp_path / "links", tmp_path / "copies")
    ]
    assert len({s.list_sha256 for s in sets}) == len({s.contents_sha256() for s in sets}) == 1
    assert all(p.is_symlink() for p in sets[1].paths) and not any(
        p.is_symlink() for p in sets[2].paths
    )
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    assert read_list_fields(tmp_path / "links" / "big12.txt") == LIST
    sets[2].paths[5].write_bytes(jpeg((0, 0, 99)))
    assert sets[2].contents_sha256() != sets[0].contents_sha256()


def test_big12_command_exports_a_smaller_set(tmp_path, capsys):
    root, out = write_big12(tmp_path / "val"), tmp_path / "small"
    assert (
        dataloading.main(["big12", "--imagenet", str(root), "--out", str(out), "--per_class", "1"])
        == 0
    )
    assert "big_12-1: all 240 images" in capsys.readouterr().out
    images = load_image_set("small", str(out))
    assert len(images) == 240 and set(images.labels) == {int(label) for _, label, _ in LIST}


@pytest.mark.parametrize(
    "change, message",
    [(["--out", "{root}/new"], "never altered"), (["--imagenet", "/nowhere"], "no such folder")],
)
def test_big12_command_refuses(tmp_path, capsys, change, message):
    root = write_big12(tmp_path / "val")
    arguments = ["big12", "--imagenet", str(root), *(part.format(root=root) for part in change)]
    assert dataloading.main(arguments) == 2 and message in capsys.readouterr().err


def test_two_orders_of_classes_are_noticed(tmp_path):
    """A flat folder whose labels are in the order of names, not of synsets."""
    root = write_big12(tmp_path, flat=True)
    (root / "val.txt").write_text(
        "".join(f"{name} {999 - int(label)}\n" for name, label, _ in LIST)
    )
    with pytest.raises(
        DataError, match=f"val.txt: its classes are in another order.* {min(LIST)[0]} class"
    ):
        load_image_set("imagenet-val", str(root))


def test_a_photograph_that_changed_is_named(tmp_path, monkeypatch, sample):
    for path in sample.paths:
        (tmp_path / "data" / path.name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    changed = tmp_path / "data" / sample.ids[3]
    changed.write_bytes(changed.read_bytes() + b"\0")
    spec = dataclasses.make_dataclass("Spec", ["submodule_search_locations"])([str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match=f"{sample.ids[3]}: not the photograph of the list"):
        load_image_set("sample")


# ---- corruptions on disk -------------------------------------------------------------------------


def write_corrupted(root: Path, classes, kind="fog", severity=3) -> Path:
    for k, synset in enumerate(classes):
        folder = root / kind / str(severity) / synset
        folder.mkdir(parents=True)
        (folder / f"ILSVRC2012_val_{k + 1:08d}.JPEG").write_bytes(jpeg())
    return root


def test_corruption_set_keeps_the_ids_of_the_clean_images(tmp_path):
    images = load_image_set(
        "imagenet-c", str(write_corrupted(tmp_path, SYNSETS)), corruption=("fog", 3)
    )
    assert (
        len(images) == 1000
        and images.labels == tuple(range(1000))
        and images.ids[0] == "ILSVRC2012_val_00000001.JPEG"
    )
    assert images.facts == {
        "corruption": {"type": "fog", "severity": 3, "source": "folder", "seed": 0},
        "crop_pct": 1.0,
    }
    assert set_preprocessing(images, PLAIN) == PLAIN | {"crop_pct": 1.0}


def test_corruption_set_of_tiny_imagenet_c_restricts_the_answers(tmp_path):
    classes = sorted(np.random.default_rng(0).choice(SYNSETS, 200, replace=False).tolist())
    images = load_image_set(
        "tiny-imagenet-c", str(write_corrupted(tmp_path, classes)), corruption=("fog", 3)
    )
    assert images.restrict_to == images.labels == tuple(SYNSETS.index(c) for c in classes)
    assert images.n_classes == 1000 and images.facts["restricted_to"] == 200


@pytest.mark.parametrize(
    "asked, message",
    [
        (None, "no corruption was named; in the folder: fog, snow"),
        (("mist", 3), "no corruption 'mist'; in the folder: fog, snow"),
        (("fog", 6), "no severity 6; in the folder: 3"),
        (("fog", 2), "no severity 2; in the folder: 3"),
        (("snow", 1), "no severity 1; in the folder: nothing"),
        (("fog", 3), "not the 1000 ImageNet folders: 990 missing"),
    ],
)
def test_corruption_set_names_what_is_on_disk(tmp_path, asked, message):
    (write_corrupted(tmp_path, SYNSETS[:10]) / "snow").mkdir()
    with pytest.raises(DataError, match=message):
        load_image_set("imagenet-c", str(tmp_path), corruption=asked)


@pytest.mark.parametrize(
    "classes, message",
    [
        (SYNSETS[:199], "199 class folders, Tiny-ImageNet-C has 200"),
        (["cat", *SYNSETS[:199]], "not ImageNet synsets"),
    ],
)
def test_corruption_set_refuses_tiny_imagenet_c_of_other_classes(tmp_path, classes, message):
    with pytest.raises(DataError, match=message):
        load_image_set(
            "tiny-imagenet-c", str(write_corrupted(tmp_path, classes)), corruption=("fog", 3)
        )


# ---- corruptions while loading -------------------------------------------------------------------


@needs_corruptions
@pytest.mark.parametrize("kind", ["gaussian_noise", "impulse_noise", "glass_blur"])
def test_corrupt_depends_on_seed_and_image_only(sample, kind):
    """Not on the order, the workers or numpy's global generator, which it leaves unchanged."""
    images = load_image_set("sample", corruption=(kind, 3))
    np.random.seed(1)
    whole = {name: x for name, x, _ in stream_images(images, PLAIN)}
    after = np.random.random()
    np.random.seed(1)
    assert np.random.random() == after
    assert all(
        torch.equal(whole[name], x)
        for name, x, _ in stream_images(images.take([9, 3, 0]), PLAIN, workers=2)
    )
    other = load_image_set("sample", corruption=(kind, 3), seed=1)
    assert not torch.equal(next(stream_images(other, PLAIN))[1], whole[images.ids[0]])
    assert images.list_sha256 == sample.list_sha256 and images.facts["corruption"][
        "source"
    ].startswith("imagecorruptions-imaug 1")


@needs_corruptions
def test_corrupt_has_the_published_strength_of_gaussian_noise():
    """c = .08, .12, ... of the pixel range (create_c); mid-grey is hardly clipped. JPEG keeps the
    luma, whose noise is sqrt(.299^2 + .587^2 + .114^2) = 0.6686 of the channels'."""
    grey = Image.new("RGB", (300, 400), (128, 128, 128))
    for severity, c in ((1, 0.08), (2, 0.12)):
        noisy = corrupt(grey, Corruption("gaussian_noise", severity, "made"), "x")
        assert noisy.size == (224, 224)
        assert np.asarray(noisy.convert("L"), dtype=float).std() / 255 == pytest.approx(
            0.6686 * c, rel=0.1
        )


@needs_corruptions
@pytest.mark.parametrize(
    "asked, message",
    [
        (("mist", 3), "no corruption 'mist'; there are gaussian_noise, "),
        (("fog", 6), "fog: no severity 6"),
        (("fog", 0), "fog: no severity 0"),
    ],
)
def test_with_corruption_refuses_an_unknown_one(asked, message):
    with pytest.raises(DataError, match=message):
        load_image_set("sample", corruption=asked)


def test_with_corruption_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(DataError, match="pip install imagecorruptions-imaug"):
        load_image_set("sample", corruption=("fog", 1))


# ---- further labels ------------------------------------------------------------------------------


def test_real_labels_are_those_of_timms_evaluator():
    """timm's RealLabelsImagenet, given one-hot outputs, counts the same images."""
    from timm.data import RealLabelsImagenet

    rng, names = (
        np.random.default_rng(0),
        [f"ILSVRC2012_val_{k + 1:08d}.JPEG" for k in range(50_000)],
    )
    judge, preds = RealLabelsImagenet(names, topk=(1,)), rng.integers(0, 1000, 2000)
    preds[:1000] = [(real_labels()[name] or [0])[-1] for name in names[:1000]]
    judge.add_result(torch.nn.functional.one_hot(torch.from_numpy(preds), 1000).float())
    ours = [real_correct(f"n0144/{name}", int(p)) for name, p in zip(names, preds)]
    assert [bool(v) for v in ours if v is not None] == judge.is_correct[1] and None in ours


def test_real_correct_is_none_without_real_labels():
    assert real_correct("imagenet_00_243.jpg", 243) is None
    assert real_correct("ILSVRC2012_val_00000001.JPEG", 65) is None
    assert [real_correct("ILSVRC2012_val_00000002.JPEG", k) for k in (970, 795, 65)] == [1, 1, 0]
    assert (
        sum(not labels for labels in real_labels().values()) == 50_000 - 46_837
    )  # Beyer et al. 2020


ANNOTATED = {
    "initial_annots": {
        "ILSVRC2012_val_00000001.JPEG": {
            "correct": ["n01440764"],
            "wrong": ["n01443537"],
            "unclear": ["n01484850"],
        },
        "ILSVRC2012_val_00000002.JPEG": {"correct": ["n01440764"]},
        "imagenetv2_x.JPEG": {"correct": ["n01440764"]},
    },
    "problematic_images": {"ILSVRC2012_val_00000002.JPEG": "drawing"},
    "imagenet_m": [],
}


def test_read_multilabels_accepts_correct_and_unclear(tmp_path):
    (tmp_path / "human_accuracy.json").write_text(json.dumps(ANNOTATED))
    labels = read_multilabels(tmp_path / "human_accuracy.json")
    assert labels == {"ILSVRC2012_val_00000001.JPEG": frozenset({0, 2})}
    assert [multilabel_correct(labels, "x/ILSVRC2012_val_00000001.JPEG", k) for k in range(4)] == [
        1,
        0,
        1,
        0,
    ]
    assert multilabel_correct(labels, "ILSVRC2012_val_00000002.JPEG", 0) is None


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04pickle",
        b"[]",
        b"{}",
        b'{"initial_annots": {"ILSVRC2012_val_1": 3}}',
        b'{"initial_annots": {"ILSVRC2012_val_1": {"correct": ["n0"]}}, "problematic_images": {}}',
    ],
)
def test_read_multilabels_refuses_another_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match="a.json: not human_accuracy"):
        read_multilabels(tmp_path / "a.json")


def test_big12_list_sha256_has_not_changed():
    """The sha256 of the committed list is the one in every run file of big12."""
    lines = "".join(f"{name} {label}\n" for name, label, _ in LIST)
    assert hashlib.sha256(lines.encode()).hexdigest()[:12] == "c007a418f82d"


@pytest.mark.parametrize("first, second", [([], ["--copy"]), (["--copy"], []), ([], [])])
def test_an_export_over_another_is_what_was_asked_for(tmp_path, first, second):
    root, out = write_big12(tmp_path / "val"), tmp_path / "out"
    command = ["big12", "--imagenet", str(root), "--out", str(out)]
    assert dataloading.main(command + first) == 0
    spoiled = out / SYNSETS[int(LIST[0][1])] / LIST[0][0]
    spoiled.unlink()
    spoiled.write_bytes(jpeg((9, 9, 9)))  # a file of another content in its place
    assert dataloading.main(command + second) == 0
    images = load_image_set("big12", str(out))
    assert {path.is_symlink() for path in images.paths} == {second != ["--copy"]}
    assert images.contents_sha256() == load_image_set("big12", str(root)).contents_sha256()


def test_an_export_into_the_folder_of_another_set_is_refused(tmp_path, capsys):
    root, out = write_big12(tmp_path / "val"), tmp_path / "out"
    command = ["big12", "--imagenet", str(root), "--out", str(out)]
    assert dataloading.main([*command, "--per_class", "1"]) == 0
    assert dataloading.main([*command, "--per_class", "2"]) == 0  # holds the smaller draw
    assert dataloading.main([*command, "--per_class", "1"]) == 2
    assert "holds 240 images that are not of this set" in capsys.readouterr().err
