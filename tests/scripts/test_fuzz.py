"""Damaged files: each reader reads them correctly, or rejects them in one line that names the file.

Each reader gets damaged copies of good files for a bounded time (FUZZ_SECONDS, default 1.5 s). The
copies are the same every time.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import time
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_security.analysis.brainscore_leaderboard import benchmark_columns, read_leaderboard
from alignment_security.common.files import UserError
from alignment_security.images.clickme import clickme_sample, masked_crc, read_tfrecords
from alignment_security.images.image_sets import DataError
from alignment_security.images.loading import load_image_set
from alignment_security.records.run import Run

tfrecord = pytest.importorskip("tfrecord")
SECONDS = float(os.environ.get("FUZZ_SECONDS", "1.5"))
SPLICES = [
    b"",
    b"\0",
    b",",
    b'"',
    b"\n",
    b"\r\n",
    b"X",
    b"=1+1",
    b"1,234",
    b"nan",
    b"<html>",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"model_name",
]


def damaged(good: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (number, damaged copy of one of the files) until the time is over.

    A few bytes are flipped, cut off, doubled, or replaced.
    """
    end = time.monotonic() + SECONDS
    for number in itertools.count():
        draw = random.Random(number)
        data = bytearray(draw.choice(good))
        for _ in range(draw.randint(1, 3)):
            a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
            b = min(b, a + 64)
            damage = draw.randrange(4)
            if damage == 0 and data:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            elif damage == 1:
                del data[a:b]
            elif damage == 2:
                data[a:a] = data[a:b]
            else:
                data[a:b] = draw.choice(SPLICES)
        yield number, bytes(data)
        if time.monotonic() > end:
            return


def one_line(error: Exception, path, number: int) -> None:
    assert str(path) in str(error) and "\n" not in str(error), f"copy {number}: {error}"


SCORES = (
    "model_name,layers,V1,IT,lab.X2020-pls\n"
    'net_a,{},.467,X,\n"net,b",,0.5,0.25,1\nr\u00e9seau,,,-.1,1e-3\n'
)
DOWNLOAD = (
    "# Generated on 2026-01-20\n# Brain-Score\n"
    "Rank,Model,Model ID,V1,IT\n1,net a,7,0.47,\n2,net b,8,,0.25\n"
)


def zipped(text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("leaderboard.csv", text)
        archive.writestr("plugin-info.csv", "plugin_name,plugin_type,model_id,metadata\n")
    return file.getvalue()


def test_fuzz_the_score_reader(tmp_path):
    path, read, refused = tmp_path / "scores.csv", 0, 0
    for number, data in damaged(
        [SCORES.encode(), SCORES.encode("utf-16"), DOWNLOAD.encode(), zipped(DOWNLOAD)]
    ):
        path.write_bytes(data)
        try:
            scores, _ = read_leaderboard(path)
        except UserError as error:
            one_line(error, path, number)
            refused += 1
            continue
        cells = scores[benchmark_columns(scores)].to_numpy().ravel()
        assert all(cell in ("X", "", "null") or np.isfinite(float(cell)) for cell in cells), (
            f"copy {number}"
        )
        read += 1
    assert read and refused


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("shard") / "val-0.tfrecords"
    writer, (image, heatmap) = (
        tfrecord.TFRecordWriter(str(path)),
        (np.zeros((224, 224, c), "<f4").tobytes() for c in (3, 1)),
    )
    for label in (5, 7):
        writer.write(
            {
                "image": (image[:4000], "byte"),
                "heatmap": (heatmap[:1000], "byte"),
                "label": (label, "int"),
            }
        )
    writer.close()
    return path.read_bytes()


def test_fuzz_the_clickme_reader(tmp_path, shard):
    """Checksums find damage: either a record is unchanged, or it is rejected."""
    path, read, refused = tmp_path / "val-0.tfrecords", 0, 0
    good = {payload for _, payload in payloads(tmp_path / "good", shard)}
    for number, data in damaged([shard]):
        path.write_bytes(data)
        try:
            images = load_image_set("clickme", str(tmp_path))
        except DataError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error), f"copy {number}: {error}"
            refused += 1
            continue
        assert (
            set(images.labels) <= {5, 7}
            and {payload for _, payload in read_tfrecords(path)} <= good
        ), f"copy {number}"
        read += 1
    assert refused


def payloads(path, data: bytes) -> list[tuple[int, bytes]]:
    path.write_bytes(data)
    return list(read_tfrecords(path))


def test_fuzz_a_payload_whose_checksum_is_right(tmp_path, shard):
    """TFRecords of another data set: correctly framed, with other content than ClickMe's."""
    path, _ = tmp_path / "val-0.tfrecords", masked_crc(b"")
    payload = payloads(path, shard)[0][1]
    for number, data in damaged([payload[:200] + payload[-80:], payload]):
        length = len(data).to_bytes(8, "little")
        path.write_bytes(length + masked_crc(length) + data + masked_crc(data))
        try:
            images = load_image_set("clickme", str(tmp_path))
            clickme_sample(images, 0)
        except DataError as error:
            one_line(error, path, number)


# ---- shapes of CSV -------------------------------------------------------------------------------

CELL = st.one_of(
    st.sampled_from(["", "X"]),
    st.floats(-2, 2, allow_nan=False).map(repr),
    st.integers(-9, 9).map(str),
)
NAMES = st.lists(
    st.text("abcXYZ019.:/-_\u00e9 ,\"'=", min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name and name not in ("model_name", "Model")),
    min_size=1,
    max_size=5,
    unique=True,
)
BENCHMARKS = st.lists(
    st.text("abcXYZ019.-_", min_size=1, max_size=8).map("b{}-metric".format),
    min_size=1,
    max_size=4,
    unique_by=str.lower,
)


@settings(max_examples=60)
@given(
    NAMES,
    BENCHMARKS,
    st.data(),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([1, 2, 3]),
)
def test_a_table_is_the_same_in_every_shape_encoding_and_line_ending(
    tmp_path_factory, models, benchmarks, data, newline, encoding, shape
):
    cells = [[data.draw(CELL) for _ in benchmarks] for _ in models]
    head, comments = {
        1: (["model_name"], ""),
        2: (["model_name", "model_id", "rank"], ""),
        3: (["Rank", "Model", "Model ID"], "# Generated on 2026-01-20" + newline),
    }[shape]
    names = {
        1: lambda k, name: [name],
        2: lambda k, name: [name, k, k],
        3: lambda k, name: [k, name, k],
    }[shape]
    rows = [
        [*head, *benchmarks],
        *([*names(k, name), *row] for k, (name, row) in enumerate(zip(models, cells))),
    ]
    text = comments + "".join(
        ",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) + newline for row in rows
    )
    path = tmp_path_factory.getbasetemp() / "shape.csv"
    path.write_bytes(text.encode(encoding))
    scores, facts = read_leaderboard(path)
    assert facts["shape"] == shape and list(scores["model_name"]) == models
    assert scores[benchmarks].to_numpy().tolist() == cells


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "@SUM(A1)", "+1+1", "-1+1", "=cmd|' /C calc'!A0", "1,5", "1 234", "0x1F", "1_000"],
)
def test_a_formula_or_foreign_number_in_a_cell_is_refused_with_line_and_column(tmp_path, cell):
    path = tmp_path / "scores.csv"
    path.write_text(f'model_name,V1,IT\nnet_a,.1,.2\nnet_b,.1,"{cell}"\n')
    with pytest.raises(UserError, match="scores.csv, line 3, column IT: .* is no score"):
        read_leaderboard(path)


# ---- records -------------------------------------------------------------------------------------

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1, max_size=12
)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(TEXT, st.integers(0, 999), st.booleans(), st.floats(0, 1)),
        min_size=1,
        max_size=5,
        unique_by=lambda row: row[0],
    ),
    st.integers(0, 400),
)
def test_a_record_cut_anywhere_keeps_its_whole_rows_and_goes_on(tmp_path_factory, rows, cut):
    """A record cut at any byte opens with every complete row, and is finished with the rest."""
    root = tmp_path_factory.mktemp("cut")
    table = [
        {
            "image_id": name,
            "label": label,
            "clean_pred": label,
            "clean_correct": 1,
            "success": int(fooled),
            "l2": size if fooled else None,
        }
        for name, label, fooled, size in rows
    ]

    def opened():
        return Run(root, "mine", "L2-fmn", "net", "minimum_norm", {"model": {}, "run": {}})

    with opened() as run:
        run.append(table)
    data = run.csv.read_bytes()
    run.csv.write_bytes(data[: max(len(data) - cut, 0)])
    with opened() as run:
        known = run.known()
        assert list(known) == [name for name, *_ in rows][: len(known)]
        run.append([row for row in table if row["image_id"] not in known])
        done = run.finish([name for name, *_ in rows])
    assert done["label"].tolist() == [label for _, label, *_ in rows]
    assert [None if np.isnan(value) else value for value in done["l2"].astype(float)] == [
        row["l2"] for row in table
    ]
