"""Image sets in every layout, with known labels, and pixels in every mode."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from scipy.io import savemat
from torchvision.datasets import ImageFolder

from alignment_security.common.files import UserError
from alignment_security.images.image_sets import (
    DataError,
    ImageSet,
    checked_set,
    synsets,
)
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.images.slices import take_slice
from alignment_security.models.loading import load_model

PLAIN = {
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
SYNSETS = synsets()


def jpeg(size=(8, 8), color=(10, 200, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "JPEG")
    return file.getvalue()


def write_folders(root: Path, classes, names=None) -> dict[str, str]:
    """One image per class folder, their names in reverse order; returns {file name: class}."""
    names = names or [f"ILSVRC2012_val_{len(classes) - i:08d}.JPEG" for i in range(len(classes))]
    for name, folder in zip(names, classes):
        (root / folder).mkdir(parents=True)
        (root / folder / name).write_bytes(jpeg())
    return dict(zip(names, classes))


def decoded(tmp_path, name: str, content: bytes | Image.Image, **save) -> torch.Tensor:
    """The pixels of a file, loaded without a change of size: (3, 32, 32)."""
    path = tmp_path / name
    content.save(path, **save) if isinstance(content, Image.Image) else path.write_bytes(content)
    images = checked_set("mine", [(name, path, 0)])
    return next(stream_images(images, PLAIN))[1]


# ---- the sample ----------------------------------------------------------------------------------


def test_sample_set_is_20_photographs_labelled_in_their_names(sample, lite0):
    assert len(sample) == 20 and [
        int(name.split("_")[2].removesuffix(".jpg")) for name in sample.ids
    ] == list(sample.labels)
    streamed = list(stream_images(sample, lite0.preprocessing))
    assert [(name, label) for name, _, label in streamed] == list(zip(sample.ids, sample.labels))
    for _, x, _ in streamed:
        assert (
            x.shape == (3, 224, 224) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
        )
    assert min(x.min() for _, x, _ in streamed) == 0 and max(x.max() for _, x, _ in streamed) == 1


@pytest.mark.parametrize(
    "name, right", [("tf_efficientnet_lite0", 18), ("tf_efficientnet_lite1", 19)]
)
def test_models_recognise_the_sample_at_224(sample, lite0, name, right):
    model = load_model(name)
    batch = torch.stack([x for _, x, _ in stream_images(sample, lite0.preprocessing)])
    with torch.no_grad():
        assert int((model.module(batch).argmax(1) == torch.tensor(sample.labels)).sum()) == right


# ---- ImageNet in folders -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    return root, write_folders(root, sorted(SYNSETS))


def test_synsets_are_in_the_order_of_the_logits():
    """ImageNet's classes are its 1000 synsets in the order of their numbers: tench 0, tabby 281,
    toilet paper 999."""
    assert len(set(SYNSETS)) == 1000 and sorted(SYNSETS) == SYNSETS
    assert [SYNSETS[k] for k in (0, 281, 999)] == ["n01440764", "n02123045", "n15075141"]


def test_imagenet_folders_are_in_file_order_with_labels_of_their_folder(imagenet):
    root, folder_of = imagenet
    images = load_image_set("imagenet-val", str(root))
    assert images.ids == tuple(sorted(folder_of)) and len(images) == images.n_classes == 1000
    assert images.labels == tuple(
        sorted(SYNSETS).index(folder_of[name]) for name in sorted(folder_of)
    )


def test_imagenet_folders_names_a_missing_or_unknown_folder(imagenet):
    root, _ = imagenet
    (root / SYNSETS[7]).rename(root / "n99999999")
    try:
        with pytest.raises(
            DataError, match=rf"{root}: .*1 missing \(.*{SYNSETS[7]}\), 1 unknown \(.*n99999999\)"
        ):
            load_image_set("imagenet-val", str(root))
    finally:
        (root / "n99999999").rename(root / SYNSETS[7])


def test_an_empty_synset_folder_is_named(imagenet, tmp_path):
    root, _ = imagenet
    (image,) = (root / SYNSETS[3]).iterdir()
    image.rename(tmp_path / image.name)
    try:
        with pytest.raises(DataError, match=f"{root / SYNSETS[3]}: no images"):
            load_image_set("imagenet-val", str(root))
    finally:
        (tmp_path / image.name).rename(image)


def test_two_images_of_one_name_are_refused(tmp_path):
    write_folders(tmp_path, SYNSETS, ["same.JPEG"] * 1000)
    with pytest.raises(DataError, match="1 image.* listed twice, e.g. same.JPEG"):
        load_image_set("imagenet-val", str(tmp_path))


# ---- ImageNet in one flat folder -----------------------------------------------------------------

KAGGLE = "LOC_val_solution.csv"
FLAT = {
    f"ILSVRC2012_val_{k + 1:08d}": label for k, label in enumerate([65, 970, 230, 809, 516, 57])
}


def write_kaggle(folder: Path) -> None:
    with open(folder / "LOC_val_solution.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "PredictionString"])
        rows.writerows(
            [name, f"{SYNSETS[y]} 1 2 30 40 {SYNSETS[y]} 5 6 70 80 "]
            for name, y in reversed(FLAT.items())
        )


def write_caffe(folder: Path) -> None:
    (folder / "val.txt").write_text("".join(f"{name}.JPEG {y}\n" for name, y in FLAT.items()))


def write_devkit(folder: Path) -> None:
    """The devkit numbers the synsets in another order, followed by inner nodes of WordNet."""
    order = np.random.default_rng(0).permutation(1000)
    rows = [(k + 1, SYNSETS[label]) for k, label in enumerate(order)] + [(1001, "n00001740")]
    savemat(
        folder / "meta.mat",
        {"synsets": np.array(rows, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])[:, None]},
    )
    ids = [int(np.flatnonzero(order == y)[0]) + 1 for y in FLAT.values()]
    assert ids != [y + 1 for y in FLAT.values()]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{k}\n" for k in ids))


@pytest.fixture
def flat(tmp_path) -> Path:
    folder = tmp_path / "val"
    folder.mkdir()
    for name in FLAT:
        (folder / f"{name}.JPEG").write_bytes(jpeg())
    return folder


@pytest.mark.parametrize("in_parent", [True, False], ids=["in the parent", "in the folder"])
@pytest.mark.parametrize("write", [write_kaggle, write_caffe, write_devkit])
def test_imagenet_flat_is_labelled_by_its_ground_truth(flat, write, in_parent):
    write(flat.parent if in_parent else flat)
    images = load_image_set("imagenet-val", str(flat))
    assert dict(zip(images.ids, images.labels)) == {f"{name}.JPEG": y for name, y in FLAT.items()}
    assert list(images.ids) == sorted(images.ids)


def test_imagenet_flat_without_labels_is_refused(flat):
    with pytest.raises(
        DataError,
        match=f"{flat}: .*LOC_val_solution.csv, val.txt, ILSVRC2012_validation_ground_truth.txt",
    ):
        load_image_set("imagenet-val", str(flat))


def test_imagenet_flat_names_an_image_without_a_label(flat):
    write_caffe(flat.parent)
    (flat / "ILSVRC2012_val_00000007.JPEG").write_bytes(jpeg())
    with pytest.raises(DataError, match="val.txt: has no label for ILSVRC2012_val_00000007.JPEG"):
        load_image_set("imagenet-val", str(flat))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("val.txt", "a.JPEG\n", "val.txt, line 1: 'a.JPEG' is no line of val.txt"),
        ("val.txt", "a.JPEG 1\n\nb.JPEG x\n", "val.txt, line 3: 'b.JPEG x' is no line"),
        ("val.txt", "image,label\na.JPEG,1\n", "val.txt, line 1: 'image,label'.* no header"),
        ("val.txt", "a.JPEG 1\nval/a.JPEG 2\n", "line 2: class 2 for a.JPEG, .* class 1"),
        (KAGGLE, "Id,Label\n1,2\n", f"{KAGGLE}: no column ImageId, PredictionString"),
        (KAGGLE, "ImageId;PredictionString\na;n01440764 1\n", f"{KAGGLE}.* separated by ';'"),
        (KAGGLE, "sep=,\nImageId,PredictionString\na,n01440764 1\n", f"{KAGGLE}.*delete that"),
        (KAGGLE, "ImageId,PredictionString\na\n", f"{KAGGLE}: not a table .line 2"),
        (KAGGLE, "ImageId,PredictionString\na,n00000000 1\n", f"{KAGGLE}, line 2: 'n00000000 1'"),
        (
            KAGGLE,
            "ImageId,PredictionString\na,n01440764 1\na.JPEG,n01443537 1\n",
            f"{KAGGLE}, line 3: class 1 for a.JPEG, .* class 0",
        ),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n2\n", "2 labels for 6 images"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n" * 6, "meta.mat: missing"),
    ],
)
def test_read_ground_truth_names_a_wrong_file(flat, name, text, message):
    (flat / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_image_set("imagenet-val", str(flat))


def test_devkit_synsets_names_a_damaged_meta_mat(flat):
    write_devkit(flat)
    (flat / "meta.mat").write_bytes((flat / "meta.mat").read_bytes()[:200])
    with pytest.raises(DataError, match="meta.mat|ground_truth.txt"):
        load_image_set("imagenet-val", str(flat))


# ---- any folder ----------------------------------------------------------------------------------


def test_folder_set_of_200_synsets_keeps_labels_among_1000(tmp_path):
    """Labels 0..199 by sorted folder would give accuracies near chance, without an error."""
    classes = sorted(np.random.default_rng(1).choice(SYNSETS, 200, replace=False).tolist())
    folder_of = write_folders(tmp_path, classes)
    images = load_image_set("mine", str(tmp_path))
    assert images.n_classes == 1000 and images.labels == tuple(
        SYNSETS.index(folder) for folder in classes
    )
    assert images.ids == tuple(f"{folder}/{name}" for name, folder in folder_of.items())


@pytest.mark.parametrize("classes", [["cat", "dog"], [*SYNSETS[:3], "cat"]])
def test_folder_set_refuses_other_classes_for_1000_outputs(tmp_path, classes):
    write_folders(tmp_path, classes)
    with pytest.raises(DataError, match=f"{len(classes)} class folders .*1000 outputs"):
        load_image_set("mine", str(tmp_path))


def test_folder_set_takes_as_many_classes_as_outputs(tmp_path):
    write_folders(tmp_path, ["dog", "cat", "eel"])
    images = load_image_set("mine", str(tmp_path), n_outputs=3)
    assert [name.split("/")[0] for name in images.ids] == ["cat", "dog", "eel"]
    assert images.labels == (0, 1, 2) and images.n_classes == 3


@pytest.mark.parametrize(
    "folder, message",
    [(None, "needs --data_dir"), ("/nowhere/val", "/nowhere/val: no such folder")],
)
def test_existing_folder_names_a_missing_folder(folder, message):
    with pytest.raises(DataError, match=message):
        load_image_set("imagenet-val", folder)


@pytest.mark.parametrize(
    "name, message",
    [
        ("mine", "mine: needs --data_dir DIR, or DATA_DIR in .env.local; .* no folder$"),
        ("imagenet-val", "or IMAGENET_DIR in .env.local"),
        ("tiny-imagenet-c", "or TINY_IMAGENET_C_DIR in .env.local"),
        ("imagenet-r", "or IMAGENET_R_DIR in .env.local; .* no folder$"),
        ("robustbench", "or IMAGENET_DIR in .env.local"),
        ("imagnet-val", "is imagenet-val meant"),
        ("samples", "is sample meant"),
    ],
)
def test_a_set_without_a_folder_names_its_variable(name, message):
    corruption = ("fog", 1) if name.endswith("-c") else None
    with pytest.raises(DataError, match=message):
        load_image_set(name, None, corruption=corruption)


def test_checked_set_refuses_what_is_not_there_or_out_of_range(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    with pytest.raises(DataError, match="b.jpg: missing"):
        checked_set("mine", [(name, tmp_path / name, 0) for name in ("a.jpg", "b.jpg")])
    with pytest.raises(DataError, match="label 1000 of a.jpg is outside 0..999"):
        checked_set("mine", [("a.jpg", tmp_path / "a.jpg", 1000)])


# ---- slices and hashes ---------------------------------------------------------------------------


def made_up(n: int) -> ImageSet:
    ids = tuple(f"{i}.jpg" for i in range(n))
    return ImageSet("made up", ids, tuple(map(Path, ids)), tuple(range(n)))


def test_take_slice_is_numpys_permutation_in_list_order():
    images = made_up(1000)
    wanted = sorted(np.random.default_rng(42).permutation(1000)[20:120].tolist())
    assert take_slice(images, 20, 120).labels == tuple(wanted)


def test_take_slice_partitions_the_list():
    images, parts = made_up(100), []
    for start in range(0, 100, 30):
        parts += take_slice(images, start, start + 30).ids
    assert sorted(parts) == sorted(images.ids) and len(parts) == 100
    assert take_slice(images, 0, None) == take_slice(images, 0, 1000) == images


def test_take_slice_is_a_fair_sample():
    """200 of 1000 images sorted by class: about 20 of each hundred (hypergeometric, SD 3.8)."""
    counts = np.bincount(np.array(take_slice(made_up(1000), 0, 200).labels) // 100, minlength=10)
    assert counts.sum() == 200 and counts.min() >= 8 and counts.max() <= 32


@pytest.mark.parametrize("start, stop", [(0, 0), (5, 5), (7, 2), (20, None), (25, 30), (-1, 5)])
def test_take_slice_of_nothing_is_refused(start, stop):
    with pytest.raises(DataError, match=f"-s {start} {stop}: takes no image; made up has 20"):
        take_slice(made_up(20), start, stop)


# numpy.random.seed(42); numpy.random.permutation(10) gives 8 1 5 0 7 2 9 4 3 6. Below, the file
# names are in another order than their class folders; 1_c is the second of the first folder.
HAND_MADE = {
    "n01440764": ["0_c.JPEG", "1_c.JPEG", "4_a.JPEG"],  # positions 0 1 2 of ImageFolder
    "n01443537": ["2_b.JPEG", "9_b.JPEG"],  # 3 4
    "n02123045": ["0_a.JPEG", "3_z.JPEG", "5_k.JPEG", "7_k.JPEG", "8_k.JPEG"],  # 5 6 7 8 9
}
DRAWN = ["7_k.JPEG", "1_c.JPEG", "0_a.JPEG", "0_c.JPEG"]  # those at 8 1 5 0


def hand_made(root: Path) -> Path:
    for folder, names in HAND_MADE.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(jpeg())
    return root


def test_subset_hoak2025_worked_out_by_hand(tmp_path):
    images = load_image_set("mine", str(hand_made(tmp_path / "folders")))
    for k in (1, 2, 3, 4):
        taken = take_slice(images, 0, k, "hoak2025")
        assert {Path(name).name for name in taken.ids} == set(DRAWN[:k])
    (between,) = take_slice(images, 1, 2, "hoak2025").ids
    assert between == "n01440764/1_c.JPEG"
    # the same images without folders, in the order of their names, as the flat validation set
    order = sorted((name, SYNSETS.index(f)) for f, names in HAND_MADE.items() for name in names)
    names = tuple(name for name, _ in order)
    flat = ImageSet("imagenet-val", names, tuple(map(Path, names)), tuple(y for _, y in order))
    assert set(take_slice(flat, 0, 4, "hoak2025").ids) == set(DRAWN)


@pytest.mark.parametrize("start, stop", [(0, 50), (50, 120), (900, None)])
def test_subset_hoak2025_is_that_of_imagefolder_and_numpys_global_generator(imagenet, start, stop):
    root, _ = imagenet
    folder = ImageFolder(root)
    np.random.seed(42)
    wanted = {Path(folder.samples[i][0]).name for i in np.random.permutation(1000)[start:stop]}
    images = load_image_set("imagenet-val", str(root))
    taken = take_slice(images, start, stop, "hoak2025")
    assert set(taken.ids) == wanted and list(taken.ids) == sorted(taken.ids)
    assert taken.facts == {"subset": "hoak2025"} and taken.slice == (start, stop)
    ours = take_slice(images, start, stop)
    assert set(ours.ids) != wanted and ours.facts == {}


def test_list_sha256_is_that_of_its_lines(sample):
    lines = "".join(f"{name} {label}\n" for name, label in zip(sample.ids, sample.labels))
    hashes = [
        sample.list_sha256,
        sample.take([1, 0, *range(2, 20)]).list_sha256,
        sample.take(range(19)).list_sha256,
        replace(sample, labels=(0, *sample.labels[1:])).list_sha256,
    ]
    assert hashes[0] == hashlib.sha256(lines.encode()).hexdigest() and len(set(hashes)) == 4


# ---- pixels --------------------------------------------------------------------------------------


def noise(mode="RGB", size=(64, 64)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(**save) -> bytes:
    file = io.BytesIO()
    noise().save(file, **save)
    return file.getvalue()


BAD = {
    "zero bytes.jpg": b"",
    "text.jpg": b"<html>404</html>",
    "half.jpg": encoded(format="JPEG")[:1500],
    "half.png": encoded(format="PNG")[:6000],
    "half.tif": encoded(format="TIFF")[:6000],
    "wrong checksum.png": encoded(format="PNG").replace(b"IDAT", b"IDAX"),
    "noise.jpeg": bytes(range(256)) * 20,
    "half.webp": encoded(format="WEBP")[:300],
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", BAD)
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, name, workers):
    """After a good image, and from a worker process as one line."""
    (tmp_path / "good.jpg").write_bytes(jpeg())
    (tmp_path / name).write_bytes(BAD[name])
    images = checked_set("mine", [(file, tmp_path / file, 0) for file in ("good.jpg", name)])
    source = stream_images(images, PLAIN, workers)
    assert next(source)[0] == "good.jpg"
    with pytest.raises(DataError, match=f"^{tmp_path / name}: cannot be decoded") as error:
        next(source)
    assert "\n" not in str(error.value)


def test_half_an_image_stays_an_error_where_pillow_would_fill_it_up(tmp_path):
    # a library that we import could have set it
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_stream_images_with_workers_keeps_the_order(sample):
    streamed = list(stream_images(sample, PLAIN, workers=2))
    assert [(name, label) for name, _, label in streamed] == list(zip(sample.ids, sample.labels))
    for (_, x, _), (_, same, _) in zip(streamed, stream_images(sample, PLAIN)):
        assert torch.equal(x, same)


GREY = np.full((32, 32), 51)
COLORS = {  # file name -> (image, (red, green, blue) in [0, 1], how to save it)
    "grey.png": (Image.fromarray(GREY.astype(np.uint8)), (0.2, 0.2, 0.2), {}),
    "grey.jpg": (Image.new("L", (32, 32), 51), (0.2, 0.2, 0.2), {}),
    "grey and alpha.png": (Image.new("LA", (32, 32), (51, 9)), (0.2, 0.2, 0.2), {}),
    "16 bits.png": (Image.fromarray(np.full((32, 32), 32768, np.uint16)), (0.5, 0.5, 0.5), {}),
    "16 bits.tif": (Image.fromarray(np.full((32, 32), 32768, np.uint16)), (0.5, 0.5, 0.5), {}),
    "dark 16 bits.png": (
        Image.fromarray(np.full((32, 32), 257, np.uint16)),
        (1 / 255, 1 / 255, 1 / 255),
        {},
    ),
    "float.tif": (Image.fromarray(np.full((32, 32), 0.25, np.float32)), (0.25, 0.25, 0.25), {}),
    "one bit.png": (Image.new("1", (32, 32), 1), (1, 1, 1), {}),
    "palette.png": (Image.new("RGB", (32, 32), (255, 0, 51)).quantize(4), (1, 0, 0.2), {}),
    "alpha.png": (Image.new("RGBA", (32, 32), (255, 51, 0, 128)), (1, 0.2, 0), {}),
    "cmyk.jpg": (Image.new("CMYK", (32, 32), (0, 255, 255, 0)), (1, 0, 0), {"quality": 100}),
    "cmyk.tif": (Image.new("CMYK", (32, 32), (0, 255, 255, 0)), (1, 0, 0), {}),
    "rgb.webp": (Image.new("RGB", (32, 32), (0, 51, 255)), (0, 0.2, 1), {"lossless": True}),
    "rgb.ppm": (Image.new("RGB", (32, 32), (0, 51, 255)), (0, 0.2, 1), {}),
}


@pytest.mark.parametrize("name", COLORS)
def test_every_mode_becomes_three_channels_with_its_values(tmp_path, name):
    image, color, save = COLORS[name]
    x = decoded(tmp_path, name, image, **save)
    assert x.shape == (3, 32, 32) and x.dtype == torch.float32
    expected = torch.tensor(color, dtype=torch.float32).view(3, 1, 1).expand_as(x)
    torch.testing.assert_close(x, expected, rtol=0, atol=0.013 if name.endswith("jpg") else 0.0021)


def test_stream_images_gives_the_pixels_of_the_file(tmp_path):
    image = noise(size=(32, 32))
    assert torch.equal(
        decoded(tmp_path, "noise.png", image),
        torch.tensor(np.asarray(image)).permute(2, 0, 1).to(torch.float32) / 255,
    )


def test_stream_images_resizes_with_the_aspect_ratio(tmp_path):
    """The model sees the centre square of a 2 : 1 image; a squash would show its red ends."""
    image = Image.new("RGB", (128, 64), (255, 0, 0))
    image.paste((0, 255, 0), (30, 0, 98, 64))
    assert torch.equal(
        decoded(tmp_path, "wide.png", image),
        torch.tensor([0.0, 1, 0]).view(3, 1, 1).expand(3, 32, 32),
    )
    assert torch.equal(
        decoded(tmp_path, "high.png", image.rotate(90, expand=True)),
        torch.tensor([0.0, 1, 0]).view(3, 1, 1).expand(3, 32, 32),
    )


@pytest.mark.parametrize("size, refused", [((40, 25), False), ((40, 26), True)])
def test_more_pixels_than_allowed_are_refused(tmp_path, monkeypatch, size, refused):
    monkeypatch.setattr("alignment_security.images.decoding.MAX_PIXELS", 1000)
    if refused:
        with pytest.raises(DataError, match="large.png: 40 x 26 pixels, more than 1,000"):
            decoded(tmp_path, "large.png", noise(size=size))
    else:
        assert decoded(tmp_path, "large.png", noise(size=size)).shape == (3, 32, 32)
