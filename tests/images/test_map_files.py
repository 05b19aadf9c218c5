"""Human maps in files of their own (--map_dir): whose they are, geometry, and bad ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from alignment_security.common.remarks import is_remark
from alignment_security.evaluation.evaluation import map_settings
from alignment_security.images.human_maps import check_maps, human_map, map_source, original_map
from alignment_security.images.image_sets import DataError, checked_set
from alignment_security.images.loading import PixelDataset, load_image_set
from alignment_security.images.map_files import map_remarks, read_map_file, with_map_files
from alignment_security.images.slices import our_permutation
from alignment_security.models.timm_nets import PREPROCESSING_KEYS
from alignment_security.records.record import read_record

CORNERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}


def corner(name: str, width: int, height: int) -> np.ndarray:
    """255 in one quarter of a picture, else 0; uint8 (height, width)."""
    down, right = CORNERS[name]
    marked = np.zeros((height, width), np.uint8)
    rows = slice(height // 2, None) if down else slice(0, height // 2)
    marked[rows, slice(width // 2, None) if right else slice(0, width // 2)] = 255
    return marked


def save_map(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    elif path.suffix == ".npy":
        np.save(path, values.astype(np.float32) / 255)
    elif path.suffix == ".npz":
        np.savez_compressed(path, heatmap=values, clicks=3)
    else:
        heatmap = torch.tensor(values)[None]
        torch.save({"image": torch.zeros(3, *values.shape), "heatmap": heatmap}, path)


def photographs(folder: Path, names: list[str], size=(500, 375), values=None):
    """An image set of pictures of one size."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.full(size[::-1], 99, np.uint8) if values is None else values
        Image.fromarray(picture).convert("RGB").save(path)
    return checked_set("mine", [(name, folder / name, 1) for name in names])


def timm_geometries() -> list[dict]:
    """Every preprocessing of timm's pretrained nets of 224 to 518 pixels, once."""
    found = {}
    for name in timm.list_models(pretrained=True):
        config = timm.get_pretrained_cfg(name).to_dict()
        for size, crop in (("input_size", "crop_pct"), ("test_input_size", "test_crop_pct")):
            one = {key: config[key] for key in PREPROCESSING_KEYS}
            one |= {"input_size": config.get(size), "crop_pct": config.get(crop) or one["crop_pct"]}
            if one["input_size"] and 224 <= one["input_size"][1] <= 518:
                found[json.dumps(one)] = one
    return list(found.values())


def test_timm_has_the_geometries_that_are_tested():
    sizes = {one["input_size"][1] for one in timm_geometries()}
    crops = {one["crop_pct"] for one in timm_geometries()}
    modes = {one["crop_mode"] for one in timm_geometries()}
    assert {224, 384, 448, 518} <= sizes and {0.875, 1.0} <= crops
    assert modes == {"center", "squash", "border"} and len(timm_geometries()) > 90


@pytest.mark.parametrize(
    "name, size",
    [
        *((name, (500, 375)) for name in CORNERS),
        ("top right", (300, 480)),
        ("top left", (256, 256)),
    ],
)
def test_a_map_marks_the_corner_of_its_photograph_after_every_preprocessing(tmp_path, name, size):
    marked = corner(name, *size)
    images = photographs(tmp_path / "images", ["a.png"], values=marked, size=size)
    save_map(tmp_path / "maps" / "a.png", marked)
    images = with_map_files(images, tmp_path / "maps")
    geometries = timm_geometries()
    geometries += [one | {"crop_mode": "border"} for one in geometries]
    shapes = {json.dumps(one | {"interpolation": "bilinear"}): one for one in geometries}
    for geometry in shapes.values():
        seen = PixelDataset(images, geometry)[0][0].numpy() / 255
        drawn = human_map(images, 0, geometry) / 255
        assert drawn.shape == seen.shape == tuple(geometry["input_size"][1:])
        if geometry["crop_mode"] == "border":
            seen = np.where(np.abs(seen - 0.485) < 0.01, 0, seen)  # padded with the mean
        assert np.abs(seen - drawn).mean() < 0.01, geometry
        height, width = drawn.shape
        down, right = CORNERS[name]
        y, x = (np.average(grid, weights=drawn) for grid in np.indices(drawn.shape))
        assert (y > height / 2, x > width / 2) == (bool(down), bool(right)), geometry


@pytest.mark.parametrize("ending", [".png", ".npy", ".npz", ".pth"])
@pytest.mark.parametrize("place", ["a/x{}", "x{}", "a/x.JPEG{}", "other/x{}"])
def test_a_map_is_found_by_the_file_name_of_its_image(tmp_path, ending, place):
    images = photographs(tmp_path / "images", ["a/x.JPEG", "b/y.JPEG"])
    values = corner("top right", 500, 375)
    save_map(tmp_path / "maps" / place.format(ending), values)
    found = with_map_files(images, tmp_path / "maps")
    drawn = original_map(found, 0)
    assert (drawn / drawn.max() == values / 255).all() and drawn.dtype == np.float32
    assert original_map(found, 1) is None
    assert "1 of 2 images of mine have a map" in next(map_remarks(found))


def test_maps_without_image_and_images_without_map_are_named_and_counted(tmp_path):
    images = photographs(tmp_path / "images", [f"{i}.jpg" for i in range(18)])
    for name in ("0", "3", "no_such"):
        save_map(tmp_path / "maps" / f"{name}.png", corner("top left", 500, 375))
    found = with_map_files(images, tmp_path / "maps")
    lacking, unused = map_remarks(found)
    assert "2 of 18 images of mine have a map" in lacking
    assert lacking.endswith("Without: 1.jpg, 2.jpg, 4.jpg, 5.jpg, 6.jpg, 7.jpg, 8.jpg, 9.jpg, "
                            "10.jpg, 11.jpg, 12.jpg, 13.jpg and 4 more")  # fmt: skip
    assert unused.endswith("maps without an image of mine (1): no_such.png")
    # a slice has the same source, and its own count
    part = found.take([0, 1])
    assert map_source(part) == map_source(found)
    assert "1 of 2 images" in next(map_remarks(part))


def test_the_source_tells_other_maps(tmp_path):
    images = photographs(tmp_path / "images", ["x.jpg"])
    sources = []
    for name in CORNERS:
        save_map(tmp_path / "maps" / "x.png", corner(name, 500, 375))
        sources.append(map_source(with_map_files(images, tmp_path / "maps")))
    assert len(set(sources)) == 4 and sources[0].startswith("folder maps, sha256 ")


@pytest.mark.parametrize(
    "files, says",
    [
        ([], "none of its 0 maps is of an image of mine"),
        (["z.png"], r"none of its 1 maps is of an image of mine; the map of a/x.jpg is x.png"),
        (["a/x.png", "a/x.npy"], "x.png: x.npy is a map of the same image|x.npy: x.png is"),
        (["x.png"], r"x.png: by its name it is of a/x.jpg and of b/x.jpg"),
    ],
)
def test_maps_that_are_nobodys_or_anybodys_are_refused(tmp_path, files, says):
    images = photographs(tmp_path / "images", ["a/x.jpg", "b/x.jpg"])
    (tmp_path / "maps").mkdir()
    for name in files:
        save_map(tmp_path / "maps" / name, corner("top left", 500, 375))
    with pytest.raises(DataError, match=says):
        with_map_files(images, tmp_path / "maps")


@pytest.mark.parametrize(
    "name", ["a/x.jpg", "x.JPEG", "a/x.tiff", "x.npy.gz", "a/x.jpg.mat", "x.heatmap", "x"]
)
@pytest.mark.parametrize("others", [[], ["b/y.png"]])
def test_a_map_of_another_format_is_named_with_its_image(tmp_path, name, others):
    images = photographs(tmp_path / "images", ["a/x.jpg", "b/y.jpg"])
    for other in others:
        save_map(tmp_path / "maps" / other, corner("top left", 500, 375))
    path = tmp_path / "maps" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a map")
    says = f"^{path}: by its name the map of a/x.jpg, but a map is a file .png, .npy, .npz, .pth"
    with pytest.raises(DataError, match=says):
        with_map_files(images, tmp_path / "maps")


def test_photographs_and_files_of_mapped_images_beside_maps_are_no_maps(tmp_path):
    images = photographs(tmp_path / "images", ["x.jpg", "y.jpg"])
    save_map(tmp_path / "images" / "x.png", corner("top left", 500, 375))
    (tmp_path / "images" / "x.xml").write_text("<boxes/>")
    (tmp_path / "images" / "README.txt").write_text("of no image")
    found = with_map_files(images, tmp_path / "images")
    assert "1 of 2 images of mine have a map" in next(map_remarks(found))
    shutil.copytree(tmp_path / "images", tmp_path / "maps")
    assert with_map_files(images, tmp_path / "maps").maps.paths.keys() == {"x.jpg"}


def bad_map(kind: str, path: Path) -> Path:
    values = np.ones((375, 500), np.float32)
    if kind == "colours":
        colours = np.zeros((375, 500, 3), np.uint8)
        colours[..., 0] = 200
        Image.fromarray(colours).save(path.with_suffix(".png"))
    elif kind == "page":
        path.with_suffix(".png").write_bytes(b"<html>not found</html>")
    elif kind == "cut":
        Image.fromarray(values.astype(np.uint8)).save(path.with_suffix(".png"))
        content = path.with_suffix(".png").read_bytes()
        path.with_suffix(".png").write_bytes(content[: len(content) // 2])
    elif kind == "square":
        np.save(path.with_suffix(".npy"), np.ones((224, 224)))
    elif kind == "objects":
        np.save(path.with_suffix(".npy"), np.array([[None]]), allow_pickle=True)
    elif kind == "nan":
        np.save(path.with_suffix(".npy"), values * np.nan)
    elif kind == "negative":
        np.save(path.with_suffix(".npy"), -values)
    elif kind == "stack":
        np.save(path.with_suffix(".npy"), np.ones((4, 375, 500)))
    elif kind == "two arrays":
        np.savez(path.with_suffix(".npz"), a=values, b=values)
    elif kind == "text":
        torch.save({"heatmap": "x"}, path.with_suffix(".pth"))
    elif kind == "code":
        path.with_suffix(".pth").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    return next(path.parent.glob("x.*"))


@pytest.mark.parametrize(
    "kind, says",
    {
        "colours": "has colours",
        "page": "no human map",
        "cut": "no human map",
        "square": "224 x 224 pixels, its photograph has 500 x 375 as stored",
        "objects": "no human map",
        "nan": "not finite",
        "negative": "below 0",
        "stack": r"a map is an array \(H, W\)",
        "two arrays": "holds a, b; the map is called heatmap",
        "text": "a map is an array",
        "code": "no human map",
    }.items(),
)
def test_a_file_that_is_no_map_is_one_line(tmp_path, kind, says):
    images = photographs(tmp_path / "images", ["x.jpg"])
    (tmp_path / "maps").mkdir()
    path = bad_map(kind, tmp_path / "maps" / "x")
    with pytest.raises(DataError, match=rf"^{path}: .*{says}") as error:
        check_maps(with_map_files(images, tmp_path / "maps"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["png", "npy", "npz", "pth"])
@pytest.mark.parametrize("level", [0, 7, 255])
def test_constant_maps_are_named_and_counted(tmp_path, ending, level):
    images = photographs(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg"])
    save_map(tmp_path / f"maps/a.{ending}", np.full((375, 500), level, np.uint8))
    save_map(tmp_path / f"maps/b.{ending}", corner("top left", 500, 375))
    (remark,) = check_maps(with_map_files(images, tmp_path / "maps"))
    assert "the maps of 1 images are constant" in remark and remark.endswith(" a.jpg")
    (tmp_path / f"maps/a.{ending}").unlink()
    assert check_maps(with_map_files(images, tmp_path / "maps")) == []


@pytest.mark.parametrize("scale", [(250, 188), (1000, 750), (125, 94)])
def test_a_map_of_the_same_proportions_is_resized(tmp_path, scale):
    save_map(tmp_path / "x.npy", corner("bottom left", *scale))
    found = read_map_file(tmp_path / "x.npy", (500, 375))
    assert found.shape == (375, 500)
    assert np.abs(found - corner("bottom left", 500, 375) / 255).mean() < 0.02


def test_sixteen_bits_keep_their_levels(tmp_path):
    levels = np.arange(375 * 500, dtype=np.uint32).reshape(375, 500) % 65536
    Image.fromarray(levels.astype(np.uint16)).save(tmp_path / "x.png")
    assert (read_map_file(tmp_path / "x.png", (500, 375)) == levels).all()


# ---- the script ----------------------------------------------------------------------------------


@pytest.fixture
def maps(tiny, tmp_path) -> Path:
    """A map for all but two of the images of `tiny`, and one of no image."""
    photos = sorted(path for path in tiny.data.rglob("*") if path.is_file())
    for path in photos[2:]:
        with Image.open(path) as image:
            values = corner("top left", *image.size)
        save_map(tmp_path / "maps" / f"{path.stem}.png", values)
    save_map(tmp_path / "maps" / "spare.png", np.ones((4, 4), np.uint8))
    return tmp_path / "maps"


def test_the_evaluator_aligns_over_the_images_that_have_a_map(cli, tiny, maps, tmp_path):
    arguments = tiny.arguments(tmp_path)
    words = ["--map_dir", str(maps), "L2", "--protocol", "crossing", "--steps", "3"]
    status, out, err = cli(*arguments, *words)
    assert status == 0, err
    rows = read_record(next(tmp_path.glob("records/mine/L2-crossing/*.csv")))
    run = json.loads(next(tmp_path.glob("records/mine/L2-crossing/*.json")).read_text())
    have = {path.stem for path in maps.iterdir()}
    with_map = rows["image_id"].map(lambda name: Path(name).stem in have)
    assert rows.loc[~with_map, "human_alignment"].isna().all()
    found = rows["human_alignment"].notna()
    assert found.sum() == (with_map & (rows["success"] == 1)).sum() > 0
    assert f"over {found.sum()} images (maps: folder maps, sha256" in out
    assert any("10 of 12 images of mine have a map" in one for one in run["warnings"])
    assert any("maps without an image of mine (1): spare.png" in one for one in run["warnings"])
    assert all(map(is_remark, (one for one in run["warnings"] if "map" in one)))
    # other maps are another request
    changed = maps / f"{Path(rows.loc[found, 'image_id'].iat[0]).stem}.png"
    with Image.open(changed) as image:
        save_map(changed, corner("bottom right", *image.size))
    status, _, err = cli(*arguments, *words)
    assert status == 2 and "human_map" in err


def test_what_maps_lack_is_said_before_the_attack(cli, tiny, maps, tmp_path, monkeypatch):
    """By a dry run too; the run that is stopped at once has said it."""
    flat = next(path for path in maps.iterdir() if path.stem != "spare")
    with Image.open(flat) as image:
        save_map(flat, np.full(image.size[::-1], 9, np.uint8))
    words = [*tiny.arguments(tmp_path), "--map_dir", str(maps), "L2", "--steps", "3"]
    for more, status in ([["--dry_run"], 0], [["--stop_after", "0"], 85]):
        found, out, err = cli(*words, *more)
        assert found == status, err
        for text in (
            "note: 10 of 12 images of mine have a map",
            "note: ",
            "maps without an image of mine (1): spare.png",
            f"warning: {maps}: the maps of 1 images are constant",
        ):
            assert text in out


@pytest.mark.parametrize("threat", ["clean", "Linf --eps 1/255 --attacks apgd-ce --steps 1"])
def test_a_threat_that_compares_with_no_maps_reads_none(cli, tiny, maps, tmp_path, threat):
    """A folder that is not there, and a map of another size, are of no interest to it."""
    for path in maps.iterdir():
        save_map(path, np.ones((3, 5), np.uint8))
    for folder in (maps, tmp_path / "nowhere"):
        words = ["-s", "2", "--dry_run", "--map_dir", str(folder), *threat.split()]
        status, out, err = cli(*tiny.arguments(tmp_path), *words)
        assert status == 0 and err.startswith("warning: --map_dir") and err.count("\n") == 1, err
        assert "maps" not in out


def test_a_slice_without_a_map_is_refused(cli, tiny, tmp_path):
    images = load_image_set("mine", str(tiny.data))
    first = our_permutation(images)[0]
    with Image.open(images.paths[first]) as image:
        values = corner("top left", *image.size)
    save_map(tmp_path / "maps" / f"{images.paths[first].stem}.png", values)
    words = [*tiny.arguments(tmp_path), "--map_dir", str(tmp_path / "maps"), "L2", "--steps", "3"]
    assert cli(*words, "-s", "1", "--dry_run")[0] == 0
    status, _, err = cli(*words, "-s", "1", "12")
    assert status == 2 and "none of its 1 maps is of the 11 images that -s takes of mine" in err
    assert not (tmp_path / "records").exists()


def test_a_bad_map_ends_the_evaluation_before_it_begins(cli, tiny, maps, tmp_path):
    bad = next(path for path in maps.iterdir() if path.stem != "spare")
    bad.write_bytes(b"")
    status, _, err = cli(*tiny.arguments(tmp_path), "--map_dir", str(maps), "L2", "--steps", "3")
    assert status == 2 and err.startswith(f"error: {bad}: no human map") and err.count("\n") == 1
    assert not (tmp_path / "records").exists()


def test_maps_are_read_with_harmonizations_blur_where_that_is_asked_for(tmp_path):
    images = photographs(tmp_path / "images", ["x.jpg"])
    save_map(tmp_path / "maps" / "x.png", corner("top left", 500, 375))
    blurred = with_map_files(images, tmp_path / "maps", blur=True)
    plain = replace(blurred, maps=replace(blurred.maps, blur=False))
    assert map_settings(blurred, "max")["human_map_blur"] and (
        "human_map_blur" not in map_settings(plain, "max")
    )
