"""A finished record grows: more images, larger eps. What differs otherwise shares no row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from alignment_security.records.audit import audit
from alignment_security.records.record import read_record
from alignment_security.records.summary import merge_records

CROSSING = ["L2", "--protocol", "crossing", "--steps", "10"]
LINF = ["Linf", "--attacks", "apgd-ce", "square", "--steps", "3", "--queries", "5", "--eps"]


def record(results: Path) -> tuple[pd.DataFrame, dict]:
    (path,) = results.glob("records/*/*/*.csv")
    return read_record(path), json.loads(path.with_suffix(".json").read_text())


def at_once(cli, tiny, folder, *arguments) -> pd.DataFrame:
    assert cli(*tiny.arguments(folder), *arguments)[0] == 0
    return record(folder)[0]


@pytest.mark.parametrize("threat", [["clean"], CROSSING, [*LINF, "8/255", "32/255"]])
@pytest.mark.parametrize("sizes", [("4", "9"), ("3", "6", None)])
def test_a_record_that_grew_is_the_one_made_at_once(cli, tiny, tmp_path, threat, sizes):
    """Row for row: a longer slice of the permutation, and the whole list, in list order."""
    for size in sizes:
        part = ["-s", size] if size else []
        status, out, _ = cli(*tiny.arguments(tmp_path / "grown"), *part, *threat)
        assert status == 0
    rows, info = record(tmp_path / "grown")
    want = at_once(cli, tiny, tmp_path / "once", *part, *threat)
    norms = [name for name in ("l2", "linf") if name in rows]
    exact = rows.columns.drop(norms)
    pd.testing.assert_frame_equal(rows[exact], want[exact])
    pd.testing.assert_frame_equal(rows[norms], want[norms], rtol=1e-2)  # batches differ
    assert info["status"] == "done" and info["images"] == len(want["image_id"].unique())
    assert [old["images"] for old in info["grown"]] == [int(size) for size in sizes[:-1]]
    assert len(merge_records(tmp_path / "grown")) == len(merge_records(tmp_path / "once"))


def test_a_slice_of_another_subset_is_another_record(cli, tiny, tmp_path):
    """Grown within --subset hoak2025, refused beyond it, and audited as another image list."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for size in ("3", "6"):
        assert cli(*tiny.arguments(theirs), "--subset", "hoak2025", "-s", size, "clean")[0] == 0
    rows, info = record(theirs)
    assert info["settings"]["run"]["subset"] == "hoak2025" and len(rows) == 6
    status, _, err = cli(*tiny.arguments(theirs), "-s", "6", "clean")
    assert status == 2 and "subset" in err
    assert cli(*tiny.arguments(ours), "-s", "6", "clean")[0] == 0
    assert set(record(ours)[0]["image_id"]) != set(rows["image_id"])
    crossing = ["-s", "6", *CROSSING]
    assert cli(*tiny.arguments(theirs), *crossing)[0] == 0
    assert not [line for line in audit(theirs) if "another image list" in line]


def test_replaced_photographs_do_not_join_a_finished_record(cli, tiny, tmp_path):
    """The same names, other photographs, and a longer slice; an untouched copy is welcome."""
    data = shutil.copytree(tiny.data, tmp_path / "data")
    arguments = [*tiny.arguments(tmp_path / "results"), "--data_dir", data, "--workers", "0"]
    assert cli(*arguments, "-s", "4", "clean")[0] == 0
    assert cli(*arguments, "-s", "6", "clean")[0] == 0
    rows, _ = record(tmp_path / "results")
    for path in data.rglob("*.jpg"):
        if path.name in set(rows["image_id"].map(lambda name: Path(name).name)):
            Image.new("RGB", (200, 200), (255, 0, 0)).save(path)
    status, _, err = cli(*arguments, "clean")
    assert status == 2 and "were replaced since this record was begun" in err
    pd.testing.assert_frame_equal(record(tmp_path / "results")[0], rows)


@pytest.mark.parametrize(
    "old, more",
    [
        (["8/255", "32/255"], ["64/255"]),
        (["32/255", "64/255"], ["8/255"]),
        (["16/255"], ["1/255", "8/255", "32/255", "64/255"]),
        (["8/255", "64/255"], ["0", "16/255", "32/255"]),
    ],
)
def test_eps_are_added(cli, tiny, tmp_path, old, more):
    """Verdicts as at once, smaller eps, larger and between; old rows stay as they were."""
    cli(*tiny.arguments(tmp_path / "grown"), *LINF, *old)
    before, info = record(tmp_path / "grown")
    assert cli(*tiny.arguments(tmp_path / "grown"), *LINF, *old, *more)[0] == 0
    rows, grown = record(tmp_path / "grown")
    assert grown["grown"][0]["eps"] == info["settings"]["run"]["eps"]
    same = rows[rows["eps"].isin(before["eps"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, before)
    want = at_once(cli, tiny, tmp_path / "once", *LINF, *old, *more)
    verdicts = ["image_id", "label", "clean_pred", "clean_correct", "eps", "robust"]
    pd.testing.assert_frame_equal(rows[verdicts], want[verdicts])
    assert want["robust"].nunique() == 2
    merge_records(tmp_path / "grown")
    harmless = ("git", "pins", "its run warned")
    found = audit(tmp_path / "grown")
    assert not [line for line in found if not any(word in line for word in harmless)]


@pytest.mark.parametrize(
    "first, then",
    [
        (["-s", "9", *CROSSING], ["-s", "4", *CROSSING]),  # fewer images
        (["-s", "4", *CROSSING], ["-s", "2", "9", *CROSSING]),  # not all of them
    ],
)
def test_what_shares_no_row_is_refused_and_nothing_changes(cli, tiny, tmp_path, first, then):
    assert cli(*tiny.arguments(tmp_path), *first)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("records/*/*/*.*s*")}
    status, _, err = cli(*tiny.arguments(tmp_path), *then)
    assert status == 2 and "keep both with another --results_dir" in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before


def test_a_record_whose_labels_changed_does_not_grow(cli, tiny, tmp_path):
    data = tmp_path / "data"
    folder = next(path for path in tiny.data.iterdir())
    (data / folder.name).mkdir(parents=True)
    for path in sorted(tiny.data.rglob("*.jpg")):
        (data / folder.name / path.name).symlink_to(path)
    arguments = tiny.arguments(tmp_path / "results")
    arguments[arguments.index("--data_dir") + 1] = str(data)
    assert cli(*arguments, "-s", "4", "clean")[0] == 0
    other = "n01440764" if folder.name != "n01440764" else "n01443537"
    (data / folder.name).rename(data / other)
    assert cli(*arguments, "-s", "9", "clean")[0] == 2


def test_growth_that_is_stopped_goes_on(cli, tiny, tmp_path):
    arguments = [*tiny.arguments(tmp_path), "--workers", "0"]
    assert cli(*arguments, "-s", "4", "clean")[0] == 0
    assert cli("--stop_after", "1e-9", *arguments, "clean")[0] == 85
    rows, info = record(tmp_path)
    assert info["status"] == "checkpointed" and 4 < len(rows) < tiny.images
    assert cli(*arguments, "clean")[0] == 0
    assert len(record(tmp_path)[0]) == tiny.images
