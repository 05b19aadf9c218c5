"""A record survives kills, full disks, other settings, second writers and edits; merging."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from alignment_security.common.files import UserError, safe_file_name, write_atomic
from alignment_security.common.remarks import is_remark
from alignment_security.records.adversarial_examples import examples_folder
from alignment_security.records.norm_summary import (
    norm_summary,
    second_attempt_warnings,
    without_norm_warnings,
)
from alignment_security.records.record import RECORD_COLUMNS, read_record, rows_to_csv
from alignment_security.records.run import Run
from alignment_security.records.summary import merge_records, summary_table

IDS = ["b.jpg", "a.jpg", "c.jpg"]
EPS = [1 / 255, 2 / 255]


def row(name: str, correct: int = 1, **more) -> dict:
    return {
        "image_id": name,
        "label": 7,
        "clean_pred": 7 if correct else 3,
        "clean_correct": correct,
    } | more


def rows_of_eps(name: str, *robust: int) -> list[dict]:
    return [row(name, eps=eps, robust=r, forwards=10, backwards=5) for eps, r in zip(EPS, robust)]


# ---- a run ---------------------------------------------------------------------------------------


def test_passes_that_are_shares_of_a_batch_are_fractions(open_run):
    """As those of pyautoattack and foolbox; those of other records stay whole numbers."""
    with open_run() as run:
        run.append([row(name, forwards=13.0, backwards=14 / 3) for name in IDS])
        run.finish(IDS)
    rows = read_record(run.csv)
    assert rows["forwards"].tolist() == [13] * 3 and rows["backwards"].tolist() == [14 / 3] * 3
    assert run.csv.read_text().splitlines()[1].endswith(f",13,{14 / 3}")


def test_run_from_its_first_row_to_done(open_run):
    with open_run() as run:
        assert run.known() == {} and not run.done
        run.append([row("a.jpg", l2=0.5, success=1), row("c.jpg", 0)])
        run.append([])
        run.append([row("b.jpg", l2=0.25, success=1)])
    with open_run() as run:
        assert (
            list(run.known()) == ["a.jpg", "c.jpg", "b.jpg"]
            and run.known()["b.jpg"][0]["l2"] == 0.25
        )
        run.finish(IDS, seconds=1.5)
    lines = run.csv.read_text().splitlines()
    assert lines[0] == (
        "image_id,label,clean_pred,clean_correct,success,adv_pred,l2,linf,human_alignment_raw,"
        "human_alignment,forwards,backwards"
    )
    assert lines[1:] == [
        "b.jpg,7,7,1,1,,0.25,,,,,",
        "a.jpg,7,7,1,1,,0.5,,,,,",
        "c.jpg,7,3,0,,,,,,,,",
    ]
    info = json.loads(run.json.read_text())
    assert (info["status"], info["images"], len(info["sessions"])) == ("done", 3, 2)
    assert info["record_sha256"] == hashlib.sha256(run.csv.read_bytes()).hexdigest()
    with open_run() as run:
        assert run.done and list(run.rows["image_id"]) == IDS and len(run.info["sessions"]) == 2


def test_finish_sorts_rows_by_list_and_eps(open_run):
    with open_run(kind="ball", threat="Linf") as run:
        for name in ("c.jpg", "a.jpg"):
            run.append(rows_of_eps(name, 1, 0)[::-1])
        rows = run.finish(["a.jpg", "c.jpg"], EPS)
    assert list(zip(rows["image_id"], rows["eps"])) == [
        (name, eps) for name in ("a.jpg", "c.jpg") for eps in EPS
    ]


@pytest.mark.parametrize("tail", [b"c.jpg,7,7,1,1,,0.", b'"c', b"\0\0\0\0", b"c"])
def test_a_torn_tail_is_cut_and_no_good_row_lost(open_run, tail):
    with open_run() as run:
        run.append([row("b.jpg"), row("a.jpg")])
    good = run.csv.read_bytes()
    run.csv.write_bytes(good + tail)
    with open_run() as run:
        assert set(run.known()) == {"a.jpg", "b.jpg"} and run.csv.read_bytes() == good
        run.append([row("c.jpg")])
        run.finish(IDS)


def test_run_rewrites_a_torn_header(open_run):
    with open_run() as run:
        header = run.csv.read_bytes()
    run.csv.write_bytes(header[:20])
    with open_run() as run:
        assert run.csv.read_bytes() == header


def test_run_refuses_other_columns(open_run):
    with open_run() as run:
        run.append([row("a.jpg")])
    other = run.csv.read_bytes().replace(b"success", b"robust")
    run.csv.write_bytes(other)
    with pytest.raises(UserError, match=f"{run.csv}.*columns.*--overwrite"):
        open_run()
    assert run.csv.read_bytes() == other


@pytest.mark.parametrize(
    "changed, name",
    [
        ({"steps": 20}, "run.steps: 10 -> 20"),
        ({"weights": "v"}, "model.weights_sha256"),
        ({"eps": [0.1]}, r"run.eps: None -> \[0.1\]"),
    ],
)
def test_run_refuses_other_settings_by_name(open_run, changed, name):
    with open_run() as run:
        run.append([row("a.jpg")])
    before = run.csv.read_bytes(), run.json.read_bytes()
    with pytest.raises(UserError, match=f"{name}.*--overwrite"):
        open_run(**changed)
    assert (run.csv.read_bytes(), run.json.read_bytes()) == before
    with open_run(overwrite=True, **changed) as run:
        assert run.known() == {} and len(run.info["sessions"]) == 1


def test_run_refuses_a_record_without_its_run_file(open_run):
    with open_run() as run:
        run.append([row("a.jpg")])
    run.json.unlink()
    with pytest.raises(UserError, match="without its run file"):
        open_run()


@pytest.mark.parametrize("text", ['{"model": "net", "set', "", "\0\0", "{}"])
def test_read_run_file_names_a_damaged_file(open_run, tmp_path, text):
    with open_run() as run:
        pass
    run.json.write_text(text)
    for use in (open_run, lambda: merge_records(tmp_path)):
        with pytest.raises(UserError, match=re.escape(str(run.json))):
            use()


def test_a_second_writer_is_refused_while_the_first_is_there(open_run):
    with open_run() as run:
        with pytest.raises(UserError, match=f"{run.csv}.*another process.*pid {os.getpid()}"):
            open_run()
        run.append([row("a.jpg")])
    open_run().close()


OWNER = """
import os, sys, time
from alignment_security.records.run import Run
run = Run(sys.argv[1], "sample", "L2-fmn", "net", "minimum_norm", {"model": {}, "run": {}})
if sys.argv[2] == "alone" or not os.fork():  # the child acts as a process that decodes images
    print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("fork", ["fork", "alone"])
def test_the_lock_of_a_killed_process_is_no_obstacle(tmp_path, fork):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path, fork], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    last = int(owner.stdout.readline())

    def open_again():
        Run(tmp_path, "sample", "L2-fmn", "net", "minimum_norm", {"model": {}, "run": {}}).close()

    try:
        with pytest.raises(UserError, match=f"another process.*pid {owner.pid}"):
            open_again()
        owner.kill()
        owner.wait()
        open_again()
    finally:
        if fork == "fork":
            os.kill(last, 9)


def test_a_second_writer_that_no_lock_keeps_away_stops_at_its_first_row(open_run, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with open_run() as first, open_run() as second:
        first.append([row("a.jpg")])
        with pytest.raises(UserError, match=f"{first.csv}: another process writes it too"):
            second.append([row("a.jpg")])
        first.append([row(name) for name in ("b.jpg", "c.jpg")])
        first.finish(IDS)
    assert open_run().done


@pytest.mark.parametrize("name", ["ENOLCK", "EOPNOTSUPP", "ENOSYS", "EINVAL"])
def test_a_file_system_without_locks_is_a_word_and_no_obstacle(open_run, monkeypatch, capsys, name):
    def flock(*_):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr("fcntl.flock", flock)
    with open_run() as run:
        run.append([row(image) for image in IDS])
        run.finish(IDS)
    assert name == "ENOSYS" or "has no locks" in capsys.readouterr().err  # filelock has its own way


@pytest.mark.parametrize("gone", ["record", "folder", "another in its place"])
def test_a_record_that_goes_away_under_its_run_is_noticed(open_run, gone):
    with open_run() as run:
        run.append([row("a.jpg")])
        if gone == "folder":
            run.csv.parent.rename(run.csv.parent.with_name("moved"))
        else:
            run.csv.rename(run.csv.with_name("moved"))
        if gone == "another in its place":
            run.csv.write_text("image_id\n")
        with pytest.raises(UserError, match=f"{run.csv}: (was moved or deleted|another process)"):
            run.append([row("b.jpg")])
    assert not run.csv.exists() or run.csv.read_text() == "image_id\n"


# ---- overwriting ---------------------------------------------------------------------------------


def test_overwriting_leaves_the_old_run_until_the_first_row(open_run):
    with open_run() as run:
        run.append([row(name, l2=0.5) for name in IDS])
        run.finish(IDS)
    before = run.csv.read_bytes(), run.json.read_bytes()
    example = examples_folder(run.csv) / "a.jpg.npz"
    write_atomic(example, b"")
    with open_run(overwrite=True, steps=20) as run:
        run.warn("a warning")
        run.save(status="failed")
        run.discard_if_empty()
        assert run.counts() == {} and run.known() == {}
    assert (run.csv.read_bytes(), run.json.read_bytes()) == before and example.exists()
    with open_run(overwrite=True, steps=20) as run:
        run.append([row("b.jpg", l2=0.25)])
        assert not example.exists() and list(read_record(run.csv)["image_id"]) == ["b.jpg"]
        info = json.loads(run.json.read_text())
        assert info["settings"]["run"]["steps"] == 20 and len(info["sessions"]) == 1
    with open_run(steps=20) as run:
        assert run.counts() == {"b.jpg": 1}


@pytest.mark.parametrize("step", ["unlink", "write"])
def test_a_kill_while_the_old_run_is_replaced_mixes_no_rows(open_run, monkeypatch, step):
    with open_run() as run:
        run.append([row(name, l2=0.5) for name in IDS])
        run.finish(IDS)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if step == "write":
            patch.setattr("alignment_security.common.locked_run.write_atomic", killed)
        else:
            patch.setattr("alignment_security.records.run.shutil.rmtree", killed)
        with open_run(overwrite=True) as run:
            run.append([row("b.jpg", l2=0.25)])
    with pytest.raises(UserError, match="--overwrite"):
        open_run()


# ---- the disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["text\n", b"\x00bytes"])
def test_write_atomic_writes_the_whole_file(tmp_path, content):
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    assert sorted(os.listdir(path.parent)) == ["file", "other"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, step, full)
        write_atomic(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_takes_no_row(open_run, monkeypatch):
    """The kernel writes what fits, then refuses."""
    write, calls = os.write, []

    def full(handle, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:9])

    with open_run() as run:
        run.append([row("b.jpg", l2=0.5)])
        before = run.csv.read_bytes()
        with (
            monkeypatch.context() as patch,
            pytest.raises(OSError, match="No space left.*free some room") as error,
        ):
            patch.setattr(os, "write", full)
            run.append([row("a.jpg"), row("c.jpg")])
        assert (
            error.value.errno == errno.ENOSPC
            and error.value.filename == str(run.csv)
            and len(calls) == 2
        )
        assert run.csv.read_bytes() == before
        run.append([row("a.jpg"), row("c.jpg")])
        run.finish(IDS)


def test_append_continues_after_a_short_write(open_run, monkeypatch):
    write = os.write
    with open_run() as run:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda handle, data: write(handle, data[:5]))
            run.append([row(name) for name in IDS])
        assert list(read_record(run.csv)["image_id"]) == IDS


# ---- complete and exact --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, message",
    [
        (["a.jpg", "b.jpg"], r"1 row\(s\) missing, e.g. c.jpg"),
        ([*IDS, "x.jpg"], r"1 row\(s\) not in the image list, e.g. x.jpg"),
    ],
)
def test_finish_refuses_gaps_duplicates_and_unknown_images(open_run, names, message):
    with open_run() as run:
        run.append([row(name) for name in names])
        before = run.csv.read_bytes()
        with pytest.raises(UserError, match=message):
            run.finish(IDS)
    assert (
        json.loads(run.json.read_text())["status"] == "running" and run.csv.read_bytes() == before
    )


def test_rows_that_are_twice_and_equal_are_dropped_with_a_word(open_run, capsys):
    """As two processes write them where locks do nothing; on resume, and at the end."""
    with open_run() as run:
        run.append([row(name, l2=0.5) for name in IDS[:2]] * 2)
    with open_run() as run:
        assert "2 row(s) were there twice and equal" in capsys.readouterr().err
        assert run.counts() == dict.fromkeys(IDS[:2], 1)
        run.append([row(IDS[2])] * 2)
        assert len(run.finish(IDS)) == 3
    assert "1 row(s) were there twice" in capsys.readouterr().err
    assert open_run().done and len(run.csv.read_text().splitlines()) == 4


def test_rows_that_are_twice_and_differ_are_refused_with_a_way_out(open_run):
    """The command of the message removes them, and keeps the others."""
    with open_run() as run:
        run.append([row(name, l2=0.5) for name in IDS])
        run.append([row("a.jpg", l2=0.6)])
        with pytest.raises(UserError, match=r"1 row\(s\) twice, e.g. a.jpg") as error:
            run.finish(IDS)
    (command,) = re.findall(r"\((sed .*)\)", str(error.value))
    subprocess.run(command, shell=True, check=True)
    with open_run() as run:
        assert set(run.counts()) == {"b.jpg", "c.jpg"}
        run.append([row("a.jpg", l2=0.6)])
        assert run.finish(IDS)["l2"].tolist() == [0.5, 0.6, 0.5]


def test_finish_requires_every_eps_of_every_image(open_run):
    with open_run(kind="ball", threat="Linf") as run:
        run.append(rows_of_eps("a.jpg", 1, 0) + rows_of_eps("b.jpg", 1))
        with pytest.raises(UserError, match=f"missing, e.g. b.jpg at eps {EPS[1]}"):
            run.finish(["a.jpg", "b.jpg"], EPS)


FILE_NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1, max_size=20
)


@given(st.lists(st.tuples(FILE_NAMES, st.floats(0, 20000)), min_size=1, max_size=8))
def test_read_record_returns_text_and_floats_exactly(tmp_path_factory, pairs):
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    rows = pd.DataFrame(
        [row(name, l2=value) for name, value in pairs], columns=RECORD_COLUMNS["minimum_norm"]
    )
    path.write_bytes(rows_to_csv(rows).encode())
    back = read_record(path)
    assert list(back["image_id"]) == [name for name, _ in pairs]
    np.testing.assert_array_equal(
        back["l2"].to_numpy(float).view(np.int64), np.array([v for _, v in pairs]).view(np.int64)
    )


def test_rows_to_csv_keeps_integers_in_columns_with_empty_cells(open_run):
    with open_run() as run:
        run.append([row("a.jpg", success=1, adv_pred=5), row("b.jpg", 0)])
        rows = run.finish(["b.jpg", "a.jpg"])
    assert run.csv.read_text().splitlines()[1:] == ["b.jpg,7,3,0,,,,,,,,", "a.jpg,7,7,1,1,5,,,,,,"]
    assert rows["adv_pred"].isna().tolist() == [True, False]


# ---- names ---------------------------------------------------------------------------------------

MODEL_NAMES = st.text(st.sampled_from("ab/:.- _\\*\n\0é~"), min_size=1, max_size=8) | st.text(
    min_size=1, max_size=300
)


@given(MODEL_NAMES, MODEL_NAMES)
def test_safe_file_name_is_safe_and_distinct(a, b):
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", safe_file_name(a))
    assert a == b or safe_file_name(a) != safe_file_name(b)


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "vit_base-16", "A_1"])
def test_safe_file_name_keeps_a_safe_name(name):
    assert safe_file_name(name) == name


@pytest.mark.parametrize(
    "names",
    [
        ["a/b", "a:b", "a--b", "a b", " a b"],
        ["..", ".", "-", "...."],
        ["x" * 200, "x" * 201],
        ["a/b", safe_file_name("a/b")],
    ],
    ids=["signs", "dots", "long", "its own file name"],
)
def test_safe_file_name_keeps_similar_names_apart(names):
    assert len({safe_file_name(name) for name in names}) == len(names)


# ---- merge ---------------------------------------------------------------------------------------

NORMS = [
    row("a", success=1, l2=1.0, linf=0.1, human_alignment=0.2, forwards=10, backwards=9),
    row("b", success=1, l2=2.0, linf=0.2, human_alignment=0.6, forwards=10, backwards=9),
    row("c", success=1, l2=6.0, linf=0.6, forwards=10, backwards=9),
    row("d", success=0, forwards=10, backwards=9),
    # misclassified: it has no norm to average
    row("e", correct=0, success=1, l2=0.0, linf=0.0, forwards=1, backwards=0),
]


def test_merge_of_norms_by_hand(tiny_record, tmp_path):
    """Over correct images that were fooled.

    L2 norms 1, 2, 6: mean 3, SD sqrt(14/2), SEM sqrt(7/3), median 2.
    """
    tiny_record(NORMS)
    summary = merge_records(tmp_path)
    assert len(summary) == 1
    expected = {
        "model": "net",
        "threat": "L2-fmn",
        "image_set": "sample",
        "protocol": "fmn",
        "n": 5,
        "clean_correct": 4,
        "clean_acc": 0.8,
        "n_norm": 3,
        "success_rate": 0.75,
        "l2_mean": 3.0,
        "l2_sem": np.sqrt(7 / 3),
        "l2_median": 2.0,
        "linf_mean": 0.3,
        "linf_median": 0.2,
        "n_without_norm": 1,
        "l2_median_all": 4.0,  # of 1, 2, 6 and an infinite one
        "linf_median_all": 0.4,
        "human_alignment": 0.4,
        "human_alignment_sem": 0.2,
        "n_alignment": 2,
        "forwards_per_image": 41 / 5,
        "backwards_per_image": 36 / 5,
        "partial": 0,
        "weights_sha256": "w",
        "seconds": 2.0,
    }
    found = summary.iloc[0].to_dict()
    assert {key: found[key] for key in expected} == {
        key: pytest.approx(value) for key, value in expected.items()
    }
    written = pd.read_csv(tmp_path / "evaluation_results.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(
        written, summary.astype({"eps": float}), check_dtype=False, check_exact=True
    )


def test_norms_of_a_second_attempt_are_counted_and_accepted():
    rows = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "d", "e"],
            "clean_correct": [1, 1, 1, 0, 1],
            "success": [1, 1, 0, np.nan, 1],
            "backwards": [6, 12, 12, 0, 6],
        }
    )
    (warning,) = second_attempt_warnings(rows, 6)
    assert warning.startswith("1 of 4 correctly classified images") and "e.g. b;" in warning
    assert "more --steps" in warning and not is_remark(warning)
    assert second_attempt_warnings(rows[rows["image_id"] != "b"], 6) == []


def test_images_without_a_norm_are_said_aloud(tiny_record, tmp_path):
    """In a warning, in the table, and in medians that are missing where most have none."""
    run = tiny_record(NORMS)
    (warning,) = without_norm_warnings(run.rows)
    assert warning.startswith("1 of 4 correctly classified images have no norm, e.g. d")
    assert without_norm_warnings(run.rows[run.rows["image_id"] != "d"]) == []
    assert without_norm_warnings(run.rows.drop(columns="success")) == []
    table = summary_table(merge_records(tmp_path))
    assert "without_norm" in table and "1 of 4" in table
    few = run.rows.assign(success=[1, 0, 0, 0, 1])
    summary = norm_summary(few[few["clean_correct"] == 1])
    assert summary["n_without_norm"] == 3 and np.isnan(summary["l2_median_all"])
    assert summary["l2_median"] == 1.0


def norms(name: str, scale: float) -> dict:
    return row(name, success=1, adv_pred=5, l2=scale, linf=scale / 10, l1=10 * scale)


def test_the_printed_table_has_the_norm_that_an_attack_minimises(tiny_record, tmp_path):
    """Linf in 255ths; only records of L1 have l1, and no table names it without one."""
    linf = tiny_record([norms("a.jpg", 0.2), norms("b.jpg", 0.4)], threat="Linf-fmn")
    assert "l1" not in linf.rows
    header, line = summary_table(merge_records(tmp_path)).splitlines()
    assert "linf_mean" in header and "l1_mean" not in header and "7.650/255" in line
    assert "0.300" not in line
    tiny_record([norms("a.jpg", 0.2), norms("b.jpg", 0.6)], threat="L1-fmn")
    tiny_record([norms("a.jpg", 0.5)], threat="L2-fmn")
    summary = merge_records(tmp_path)
    assert summary["l1_mean"].dropna().tolist() == [4.0]
    assert summary["l1_median_all"].dropna().tolist() == [4.0]
    _, l1, l2, linf_again = summary_table(summary).splitlines()
    assert "4.000" in l1 and "0.400" not in l1 and "0.500" in l2 and "7.650/255" in linf_again


def test_an_l1_record_begun_without_its_norm_goes_on_without(open_run, tmp_path):
    with open_run(threat="L1-fmn") as run:
        run.append([norms("a.jpg", 0.2)])
    assert "l1" in run.csv.read_text().splitlines()[0].split(",")
    old = pd.read_csv(run.csv, dtype=str, keep_default_na=False).drop(columns="l1")
    old.to_csv(run.csv, index=False)
    with open_run(threat="L1-fmn") as run:
        run.append([norms("b.jpg", 0.4)])
        run.finish(["a.jpg", "b.jpg"])
    assert read_record(run.csv)["l2"].tolist() == [0.2, 0.4]
    summary = merge_records(tmp_path)
    assert "l1" not in read_record(run.csv) and "l1_mean" not in summary
    assert "0.300" in summary_table(summary)


def test_merge_of_balls_by_hand(tiny_record, tmp_path):
    for model, verdicts in {"m": [(1, 1), (1, 0)], "k": [(0, 0), (1, 1)]}.items():
        rows = [r for name, robust in zip("ab", verdicts) for r in rows_of_eps(name, *robust)]
        tiny_record(
            [*rows, *(row("c", 0, eps=eps, robust=0) for eps in EPS)],
            eps=EPS,
            kind="ball",
            threat="Linf",
            model=model,
        )
    summary = merge_records(tmp_path)
    assert summary[
        ["model", "eps", "n", "robust", "robust_acc", "clean_acc"]
    ].to_numpy().tolist() == [
        ["k", EPS[0], 3, 1, 1 / 3, 2 / 3],
        ["k", EPS[1], 3, 1, 1 / 3, 2 / 3],
        ["m", EPS[0], 3, 2, 2 / 3, 2 / 3],
        ["m", EPS[1], 3, 1, 1 / 3, 2 / 3],
    ]


def test_merge_refuses_an_unfinished_record_or_marks_it(tiny_record, tmp_path):
    tiny_record(NORMS)
    run = tiny_record(NORMS[:2], done=False, model="other")
    with pytest.raises(UserError, match=f"{run.csv}.*unfinished.*--allow_partial"):
        merge_records(tmp_path)
    assert not (tmp_path / "evaluation_results.csv").exists()
    summary = merge_records(tmp_path, allow_partial=True)
    assert summary[["model", "partial", "n"]].to_numpy().tolist() == [
        ["net", 0, 5],
        ["other", 1, 2],
    ]
    header, *lines = summary_table(summary).splitlines()
    assert "state" in header and ["unfinished" in line for line in lines] == [False, True]


def test_merge_ignores_a_torn_tail_of_an_unfinished_record(tiny_record, tmp_path):
    run = tiny_record(NORMS[:2], done=False)
    with open(run.csv, "ab") as file:
        file.write(b"c,7,7,1,1,,6")
    assert merge_records(tmp_path, allow_partial=True)[["n", "l2_mean"]].to_numpy().tolist() == [
        [2, 1.5]
    ]


def test_merge_refuses_unfinished_records_without_rows(tiny_record, tmp_path):
    tiny_record([], done=False)
    with pytest.raises(UserError, match="no rows|no records"):
        merge_records(tmp_path, allow_partial=True)


def test_merge_refuses_an_edited_record(tiny_record, tmp_path):
    run = tiny_record(NORMS)
    text = run.csv.read_text()
    run.csv.write_text(text.replace("6.0", "5.0"))
    assert run.csv.read_text() != text
    with pytest.raises(UserError, match=f"{run.csv}.*sha256"):
        merge_records(tmp_path)


def test_merge_refuses_a_missing_record(tiny_record, tmp_path):
    run = tiny_record(NORMS)
    run.csv.unlink()
    with pytest.raises(UserError, match=str(run.csv)):
        merge_records(tmp_path)


def test_merge_refuses_mixed_settings_naming_both(tiny_record, tmp_path):
    tiny_record(NORMS, model="a_net", weights="other weights are fine")
    tiny_record(NORMS, model="b_net")
    assert len(merge_records(tmp_path)) == 2
    tiny_record(NORMS, model="c_net", steps=20)
    with pytest.raises(UserError, match=r"c_net.json.*a_net.json.*steps: 10 -> 20"):
        merge_records(tmp_path)


def test_merge_leaves_out_what_is_odd_and_says_why(tiny_record, tmp_path):
    """One unfinished, one damaged and one of another seed; another budget has rows of its own."""
    for model in "ab":
        tiny_record(NORMS, model=model)
    tiny_record(NORMS, model="budget", steps=20, attack="FMN 20 steps")
    tiny_record(NORMS, model="seed", seed=7)
    tiny_record(NORMS[:2], done=False, model="unfinished")
    damaged = tiny_record(NORMS, model="damaged")
    damaged.csv.write_text(damaged.csv.read_text().replace("6.0", "5.0"))
    said: list[str] = []
    summary = merge_records(tmp_path, log=said.append)
    assert summary[["model", "attack"]].to_numpy().tolist() == [
        ["a", "FMN 10 steps"],
        ["b", "FMN 10 steps"],
        ["budget", "FMN 20 steps"],
    ]
    assert all(text.startswith("left out: ") for text in said) and len(said) == 3
    for model, why in (("seed", "seed: 0 -> 7"), ("unfinished", "unfinished"), ("damaged", "sha")):
        assert any(f"/{model}." in text and why in text for text in said), said
    with pytest.raises(UserError):
        merge_records(tmp_path)  # strict
    assert len(merge_records(tmp_path, allow_partial=True, log=said.append)) == 4


def test_merge_keeps_the_larger_group_of_a_folder(tiny_record, tmp_path):
    tiny_record(NORMS, model="a", seed=7)
    for model in "bc":
        tiny_record(NORMS, model=model)
    said: list[str] = []
    assert list(merge_records(tmp_path, log=said.append)["model"]) == ["b", "c"]
    assert len(said) == 1 and "seed: 0 -> 7" in said[0] and "b.json" in said[0]


def test_merge_of_nothing_names_the_command_that_makes_a_record(tmp_path):
    with pytest.raises(UserError, match="no records.*evaluate_robustness.py"):
        merge_records(tmp_path)


def test_merge_refuses_a_record_without_its_run_file(tiny_record, tmp_path):
    run = tiny_record(NORMS)
    run.csv.with_name("stray.csv").write_text(run.csv.read_text())
    with pytest.raises(UserError, match="stray.csv: a record without its run file"):
        merge_records(tmp_path)


def test_merge_averages_multilabel_accuracy_over_classes(tiny_record, tmp_path):
    """Class 3: 1 of 1, class 7: 1 of 4; nobody was asked about the last image: (1 + 1/4) / 2."""
    verdicts = [(3, 1), (7, 1), (7, 0), (7, 0), (7, 0), (9, None)]
    tiny_record(
        [
            {
                "image_id": f"{i}.jpg",
                "label": label,
                "clean_pred": label,
                "clean_correct": 1,
                "clean_multilabel": hit,
            }
            for i, (label, hit) in enumerate(verdicts)
        ],
        kind="clean",
        threat="clean",
    )
    assert merge_records(tmp_path)["clean_multilabel"].tolist() == [0.625]


def test_line_ends_of_a_checkout_do_not_make_a_record_another(tiny_record, tmp_path):
    r"""git with core.autocrlf=true writes `\r\n`; any other change is found."""
    run = tiny_record([row("a.jpg", l2=0.5, success=1), row("b.jpg", 0)])
    whole = run.csv.read_bytes()
    run.csv.write_bytes(whole.replace(b"\n", b"\r\n"))
    assert len(merge_records(tmp_path)) == 1
    for changed in (whole.replace(b"0.5", b"0.6"), whole + b"\n", whole.replace(b"\n", b"\r")):
        run.csv.write_bytes(changed)
        with pytest.raises(UserError, match="sha256 differs"):
            merge_records(tmp_path)


def test_a_file_system_without_modes_is_written_to(tmp_path, monkeypatch):
    """exFAT, CIFS, WSL's /mnt/c: chmod is refused, writing is not."""

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    write_atomic(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text" and len(list(tmp_path.iterdir())) == 1


def test_a_long_attack_stands_below_the_printed_table(tmp_path, tiny_record):
    """A line for each, with a number: two long ones that begin alike stay apart."""
    longest = "screened: " + ", ".join(f"attack-{i}(100)" for i in range(20))
    attacks = {"a": longest, "b": "FMN 10 steps", "c": f"{longest}, one more", "d": longest}
    for model, attack in attacks.items():
        tiny_record([row("a.jpg", l2=0.5)], model=model, attack=attack)
    summary = merge_records(tmp_path, log=print)
    header, *lines = summary_table(summary).splitlines()
    assert [line[-3:] for line in lines[:4]] == ["(1)", "eps", "(2)", "(1)"], lines
    assert lines[4:] == [f"(1) {longest}", f"(2) {longest}, one more"]
    assert max(map(len, [header, *lines[:4]])) < 160
