"""Edited, cut and damaged files of our own: one line with file, line and column, or key."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from alignment_security.common.files import UserError
from alignment_security.common.schema import check_shape, parse_table
from alignment_security.records.adversarial_examples import load_example
from alignment_security.records.audit import audit
from alignment_security.records.record import BALL_KINDS, RECORD_COLUMNS, read_record, read_run_file
from alignment_security.records.schemas import RECORD
from alignment_security.records.summary import merge_records

EPS = [1 / 255, 2 / 255]
IMPOSSIBLE = ["x", "nan", "inf", "-inf", "1e30", "TRUE", "=1+1", "-1", "1_0", " 1", "1,5", "0x1"]
TEXTS = ("image_id", "broken_by", "stage")


def rows_of(kind: str) -> list[dict]:
    """Rows of a kind of record, with a value in every cell that can have one."""
    clean: dict = {"label": 7, "clean_pred": 7, "clean_correct": 1}
    more: list[dict]
    if kind == "clean":
        more = [{"clean_top5": 1, "clean_real": 1, "clean_multilabel": 0}]
    elif kind in BALL_KINDS:
        found: dict = {"robust": 0, "adv_pred": 3, "broken_by": "apgd-ce", "linf": 0.003, "l2": 0.5}
        if kind == "ball_rand":
            found |= {"draws": 20, "wrong_share": 0.9, "wrong_low": 0.7, "wrong_high": 1.0}
        if kind == "ball_screened":
            found |= {"stage": "standard-top", "screen_norm": 0.01}
        more = [{"eps": eps, "from_eps": eps, "forwards": 9, "backwards": 8} | found for eps in EPS]
    else:
        alignment = {"human_alignment_raw": 0.1, "human_alignment": 0.1 / 0.65753}
        norms: dict = {"success": 1, "adv_pred": 3, "l2": 0.5, "linf": 0.1}
        more = [norms | alignment | {"forwards": 9, "backwards": 8}]
    return [{"image_id": f"{name}.jpg"} | clean | row for name in "ab" for row in more]


KINDS = {
    "clean": "clean",
    "ball": "Linf",
    "ball_rand": "Linf-rand",
    "ball_screened": "Linf-screened",
    "minimum_norm": "L2-fmn",
    "saliency": "saliency",
}
CELLS = [
    (kind, column, value)
    for kind, columns in RECORD_COLUMNS.items()
    for column in columns
    if column not in TEXTS
    for value in IMPOSSIBLE
    if not (value == "-1" and column.startswith("human_alignment"))  # a correlation may be
]


@pytest.mark.parametrize("kind, column, value", CELLS)
def test_an_impossible_cell_is_refused_by_line_and_column(tiny_record, kind, column, value):
    eps = EPS if kind in BALL_KINDS else None
    run = tiny_record(rows_of(kind), done=False, kind=kind, threat=KINDS[kind], eps=eps)
    table = pd.read_csv(run.csv, dtype=str, keep_default_na=False)
    assert len(read_record(run.csv)) == len(table)
    table.loc[1, column] = value
    run.csv.write_text(table.to_csv(index=False))
    place = re.escape(f"{run.csv}, line 3, column {column}: {value!r} is no ")
    with pytest.raises(UserError, match=f"^{place}[^\n]*sed -i '3d' {re.escape(str(run.csv))}"):
        read_record(run.csv)


@pytest.mark.parametrize("column", ["image_id", "label", "clean_pred", "clean_correct", "eps"])
def test_a_cell_that_every_row_has_may_not_be_empty(tiny_record, column):
    run = tiny_record(rows_of("ball"), done=False, kind="ball", threat="Linf")
    table = pd.read_csv(run.csv, dtype=str, keep_default_na=False)
    table.loc[2, column] = ""
    run.csv.write_text(table.to_csv(index=False))
    with pytest.raises(UserError, match=f"line 4, column {column}: '' is no"):
        read_record(run.csv)


def test_a_bad_line_of_an_unfinished_record_is_removed_as_the_message_says(open_run):
    with open_run() as run:
        run.append([row | {"l2": 0.5} for row in rows_of("minimum_norm")])
    good = run.csv.read_text()
    lines = good.splitlines(keepends=True)
    run.csv.write_text("".join([*lines[:2], lines[2].replace("0.5", "x")]))
    with pytest.raises(UserError, match="line 3, column l2: 'x'"):
        open_run()
    run.csv.write_text("".join(lines[:2]))
    with open_run() as run:
        assert set(run.counts()) == {"a.jpg"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("image_id,label\na.jpg,1", "the last line is cut off"),
        ("image_id,label\na.jpg,1\nb.jpg\n", "line 3, 1 cells and not 2"),
        ("image_id,label\na.jpg,1,2\n", "line 2, 3 cells and not 2"),
        ("label,label\n1,1\n", "line 1, a column is there twice"),
        ("stage\ntop\n" + "".join(f"{c}/x\n" for c in "abcdefgh"), "line 3, column stage: 'a/x'"),
        ("image_id;label\na.jpg;1\n", "its cells are separated by ';'"),
        ("sep=,\nimage_id,label\na.jpg,1\n", "delete that line"),
        ('image_id,label\n"a.jpg,1\n', "damaged table"),
        ("image_id,label\n\0,1\n", "NUL"),
        ("", "the last line is cut off"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=f"{tmp_path}.*{message}"):
        parse_table(tmp_path / "x.csv", text.encode(), RECORD, "fix it")


def test_parse_table_gives_exact_types(tmp_path):
    data = b"image_id,eps,label,more,other\r\nNA,0.1,3,1,x\r\nb,1e-3,4,,y\r\n"
    table = parse_table(tmp_path, data, RECORD, "")
    assert table["image_id"].tolist() == ["NA", "b"] and table["eps"].tolist() == [0.1, 1e-3]
    assert table["label"].dtype == "int64" and table["more"].isna().tolist() == [False, True]
    assert table["other"].tolist() == ["x", "y"]


# ---- run files -----------------------------------------------------------------------------------

CHANGES: dict[str, list] = {
    "sessions": [
        *[None, 5, "x", [1], [{}], [{"started": 1, "seconds": 1}], {}],
        [{"started": "2026-01-01", "seconds": 1.0, "versions": ["torch"]}],
        [{"started": "2026-01-01", "seconds": 1.0, "git": 5}],
    ],
    "settings": [None, [], {"model": {}}, {"model": [], "run": {}}, {"model": {}, "run": []}],
    "model": [["a"], None, 3],
    "warnings": [5, [1], "x"],
    "status": [None, True, 1],
    "kind": [None, "../x"],
    "image_set": ["x/../../..", "..", "", "/tmp", "a/b", "a\nb", None, ["sample"]],
    "threat": ["../../x", ".hidden", None],
    "images": ["3", True, 1.5],
}


@pytest.mark.parametrize("key, value", [(k, v) for k, values in CHANGES.items() for v in values])
def test_a_run_file_of_other_types_or_names_is_one_line(tiny_record, tmp_path, key, value):
    run = tiny_record(rows_of("minimum_norm"))
    info = json.loads(run.json.read_text())
    run.json.write_text(json.dumps(info | {key: value}))
    with pytest.raises(UserError, match=f"^{re.escape(str(run.json))}: [^\n]*$"):
        read_run_file(run.json)
    with pytest.raises(UserError):
        merge_records(tmp_path)
    assert any(line.startswith(str(run.json)) for line in audit(tmp_path))


@pytest.mark.parametrize("head", ["../../x", "a/b", 3])
def test_a_name_in_the_settings_is_no_path(tiny_record, head):
    run = tiny_record(rows_of("minimum_norm"))
    info = json.loads(run.json.read_text())
    info["settings"]["run"]["head"] = head
    run.json.write_text(json.dumps(info))
    with pytest.raises(UserError, match="head"):
        read_run_file(run.json)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ', "\0", "NaN", "[]", "\xff"])
def test_a_run_file_that_is_no_json_object_is_one_line(tiny_record, text):
    run = tiny_record(rows_of("minimum_norm"))
    run.json.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=f"^{re.escape(str(run.json))}[^\n]*$"):
        read_run_file(run.json)


@pytest.mark.parametrize("place", ["other/L2-fmn/net", "sample/L2-cw/net", "sample/L2-fmn/other"])
def test_a_record_in_the_place_of_another_is_refused(tiny_record, tmp_path, place):
    """Moved to another set, threat or model, it would be counted as that."""
    run = tiny_record(rows_of("minimum_norm"))
    target = tmp_path / "records" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in (run.csv, run.json):
        path.rename(target.with_name(target.name + path.suffix))
    with pytest.raises(UserError, match="is the run file of sample/L2-fmn/net.json; move it"):
        merge_records(tmp_path)
    assert any("move it and its record back" in line for line in audit(tmp_path))


def test_check_shape_takes_what_fits():
    check_shape(
        {"a": [1, 2], "c": None, "d": 1}, {"a": [int], "b?": str, "c": (str, type(None))}, "x"
    )
    with pytest.raises(ValueError, match="no a in x"):
        check_shape({}, {"a": int}, "x")


# ---- examples ------------------------------------------------------------------------------------

EXAMPLE = {
    "image": np.zeros((4, 5, 3), np.uint8),
    "delta": np.zeros((4, 5, 3), np.float32),
    "label": "dog",
    "pred": "cat",
    "eps": 0.1,
    "l2": 0.2,
    "linf": 0.1,
}


@pytest.mark.parametrize(
    "change",
    [
        {"image": np.zeros((4, 5), np.uint8)},
        {"image": np.zeros((4, 5, 3))},
        {"delta": np.zeros((5, 4, 3), np.float32)},
        {"delta": np.full((4, 5, 3), np.nan, np.float32)},
        {"human_map": np.zeros((9, 9))},
        {"l2": "x"},
        {"l2": np.zeros(3)},
        {"label": 0.5},
        {"image": np.array([{}], dtype=object)},
    ],
    ids=lambda change: "-".join(change),
)
def test_an_example_of_other_arrays_is_one_line(tmp_path, change):
    path = tmp_path / "a.npz"
    np.savez(path, **EXAMPLE)
    assert load_example(path)["label"] == "dog"
    np.savez(path, **EXAMPLE | change)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: damaged example[^\n]*$"):
        load_example(path)


def test_an_example_that_unpacks_to_more_than_any_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, **EXAMPLE | {"delta": np.zeros((1000, 1000, 3), np.float32)})
    monkeypatch.setattr("alignment_security.records.adversarial_examples.MAX_BYTES", 10**6)
    with pytest.raises(UserError, match="unpacks to 12,"):
        load_example(path)
