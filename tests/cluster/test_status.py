"""sweep_status: every state of a model, from HTCondor's event logs and the records."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_utilities

from alignment_security.cluster.events import StatusError
from alignment_security.cluster.notes import NOTE_WIDTH, shortened
from alignment_security.cluster.status import (
    expected_hours,
    hours_text,
    print_status,
    status_table,
    status_text,
)
from alignment_security.records.run import Run

SUBMIT = "000 (012.000.000) {t} Job submitted from host: <127.0.0.1:9618?addrs=x>\n...\n"
EXECUTE = "001 (012.000.000) {t} Job executing on host: <127.0.0.1:9618?addrs=x>\n...\n"
REPORTED = (
    "028 (012.000.000) {t} Job ad information event triggered.\n"
    "ChirpImagesDone = {done}\nChirpImagesTotal = 100\n"
    'ChirpImagesPerHour = 40.0\nEventTypeNumber = 28\nMyType = "FileTransferEvent"\n...\n'
)
RUN_USAGE, TOTAL_USAGE = (
    "".join(
        f"\t\tUsr 0 00:00:01, Sys 0 00:00:00  -  {kind} {where} Usage\n"
        for where in ("Remote", "Local")
    )
    for kind in ("Run", "Total")
)
RUN_BYTES, TOTAL_BYTES = (
    f"\t7  -  {kind} Bytes Sent By Job\n\t7  -  {kind} Bytes Received By Job\n"
    for kind in ("Run", "Total")
)
EVICTED = f"004 (012.000.000) {{t}} Job was evicted.\n\t(0) CPU times\n{RUN_USAGE}{RUN_BYTES}...\n"
HELD = (
    "012 (012.000.000) {t} Job was held.\n"
    "\tTransfer input files failure: net.tar is not there\n\tCode 13 Subcode 2\n...\n"
)
REMOVED = "009 (012.000.000) {t} Job was aborted.\n\tvia condor_rm\n...\n"
LOST = (
    "024 (012.000.000) {t} Job reconnection failed\n    Job not found at execution machine\n"
    "    Can not reconnect to slot1_2@vm, rescheduling job\n...\n"
)
RELEASED = "013 (012.000.000) {t} Job was released.\n\tvia condor_release\n...\n"
ENDED = f"{RUN_USAGE}{TOTAL_USAGE}{RUN_BYTES}{TOTAL_BYTES}...\n"
TERMINATED = (
    "005 (012.000.000) {t} Job terminated.\n\t(1) Normal termination (return value {code})\n"
    + ENDED
)
KILLED = (
    "005 (012.000.000) {t} Job terminated.\n"
    "\t(0) Abnormal termination (signal 9)\n\t(0) No core file\n" + ENDED
)


def log_of(*events: tuple[int, str] | tuple[int, str, dict]) -> str:
    """An event log: (hours since the beginning, event, its fields)."""

    def at(hour: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_000 + 3600 * hour))

    return "".join(
        event[1].format(t=at(event[0]), **(event[2] if len(event) > 2 else {})) for event in events
    )


BEGUN = [(0, SUBMIT), (1, EXECUTE)]
FAILED = (2, TERMINATED, {"code": 1})
# model -> (events, error file, state, hours used at hour 10, note)
LOGS: dict[str, tuple] = {
    "done": ([*BEGUN, (3, TERMINATED, {"code": 0})], "", "done", 2, ""),
    "running": (
        [*BEGUN, (2, REPORTED, {"done": 10}), (4, EVICTED), (5, EXECUTE)]
        + [(9, REPORTED, {"done": 40})],
        "",
        "running",
        8,
        "",
    ),
    "idle": ([(0, SUBMIT)], "", "idle", 0, ""),
    "held": (
        [(0, SUBMIT), (1, HELD), (2, RELEASED), (3, HELD)],
        "",
        "held",
        0,
        "job 12.0: Transfer input files failure: net.tar is not there",
    ),
    "never began": (
        [(0, SUBMIT), (1, EVICTED), (1, HELD), (2, RELEASED), (3, EVICTED), (3, HELD)],
        "",
        "held",
        0,
        "net.tar is not there",
    ),
    "held later": ([*BEGUN, (2, EVICTED), (3, HELD)], "", "held", 1, "net.tar is not there"),
    "removed": ([*BEGUN, (3, EVICTED), (3, REMOVED)], "", "waiting", 2, "via condor_rm"),
    "node lost": ([*BEGUN, (3, LOST)], "", "idle", 2, ""),
    "study": (
        [*BEGUN, FAILED],
        "# 1 begin\nerror: old\n# 2 begin\n\nerror: net.tar: damaged\nerror: b\n0 of 3 evaluated\n",
        "failed",
        1,
        "exit status 1: error: net.tar: damaged",
    ),
    "failed": (
        [*BEGUN, FAILED],
        "Traceback\n  x\nRuntimeError: no luck\n\n",
        "failed",
        1,
        "exit status 1: RuntimeError: no luck",
    ),
    "killed": ([*BEGUN, (2, KILLED)], "", "failed", 1, "killed by signal 9"),
    "again": ([*BEGUN, FAILED, (3, SUBMIT), (4, EXECUTE)], "old\n", "running", 7, ""),
    "torn": (BEGUN, "", "idle", 0, ""),  # its last line is cut
    "nothing": (None, "", "waiting", 0, ""),
    "no record": ([*BEGUN, (2, TERMINATED, {"code": 0})], "", "failed", 1, "no finished record"),
}


@pytest.fixture
def swept(tmp_path, tiny_record) -> Path:
    """A sweep folder with these logs, and a finished record of `done` (2 images in 2 seconds)."""
    (tmp_path / "logs").mkdir()
    for name, (events, err, *_) in LOGS.items():
        if events is not None:
            text = log_of(*events)
            (tmp_path / "logs" / f"{name}.log").write_text(text[:-5] if name == "torn" else text)
            (tmp_path / "logs" / f"{name}.err").write_text(err)
    (tmp_path / "models.txt").write_text("".join(f"{name}, {name}, 5000\n" for name in LOGS))
    row = {"label": 1, "clean_pred": 1, "clean_correct": 1}
    rows = [{"image_id": "a", **row}, {"image_id": "b", **row}]
    tiny_record(rows, model="done", kind="clean", threat="clean")
    (tmp_path / "results").mkdir()
    (tmp_path / "records").rename(tmp_path / "results" / "records")
    return tmp_path


def test_status_table_of_every_kind_of_model(swept):
    table = status_table(swept, now=1_700_000_000 + 36_000).set_index("model")
    for name, (_, _, state, used, note) in LOGS.items():
        assert table["state"][name] == state and table["used"][name] == pytest.approx(used), name
        assert note in table["note"][name] if note else table["note"][name] == ""
    running = table.loc["running"]
    assert (running["done"], running["total"]) == (40, 100)
    evicted = ("running", "held later", "node lost")
    assert table["evictions"].to_dict() == {name: int(name in evicted) for name in LOGS}
    assert running["left"] == pytest.approx(60 / 40 - 1)  # reported an hour ago
    assert table["per_hour"]["done"] == pytest.approx(3600) and table["done"]["done"] == 2


def test_status_text_and_its_sums(swept):
    table = status_table(swept, now=1_700_000_000 + 36_000)
    text = status_text(table)
    assert "15 models: 1 done, 2 running, 3 idle, 3 held, 4 failed, 2 waiting\n" in text
    # 0.5 h of the running one, and the 2 h of the done one for each of again, the idle, the held,
    # nothing and removed
    assert "GPU hours (h:mm): 26:00 used, 18:30 still expected\n" in text
    assert re.search(r"running\s+running\s+40/100\s+40\s+0:30\s+8:00\s+1", text)
    assert "RuntimeError: no luck" in text
    assert max(map(len, text.splitlines())) < 250


def test_status_of_a_study_counts_all_its_threats(tmp_path):
    """A model whose study is not done is not done, though every record that came back is."""
    (tmp_path / "models.txt").write_text("a, a, 1\nb, b, 1\n")
    row = {"label": 1, "clean_pred": 1, "clean_correct": 1}
    for slug, state in (("a", "done"), ("b", "failed")):
        for threat in ("clean", "corruptions-fog-1"):
            settings: dict = {"model": {}, "run": {}}
            with Run(tmp_path / "results", "mine", threat, slug, "clean", settings, {}) as run:
                run.append([{"image_id": f"{k}.jpg"} | row for k in range(10)])
                run.finish([f"{k}.jpg" for k in range(10)], seconds=1800.0)
        study = tmp_path / "results/studies/mine"
        study.mkdir(parents=True, exist_ok=True)
        (study / f"{slug}.json").write_text(json.dumps({"status": state}))
    table = status_table(tmp_path).set_index("model")
    assert list(table["state"]) == ["done", "waiting"]
    assert table["total"]["a"] == 20 and table["per_hour"]["a"] == pytest.approx(20)


@pytest.mark.parametrize(
    "more",
    [
        [("a", {}, True), ("a", {"steps": 5}, False)],
        [("a", {}, True), ("a.weights_0123abcd", {}, False)],
    ],
)
def test_status_counts_a_record_beside_the_first(tmp_path, more):
    """Another budget or other weights: the first record alone does not make the model done."""
    (tmp_path / "models.txt").write_text("a, a, 1\n")
    row = {"image_id": "0.jpg", "label": 1, "clean_pred": 1, "clean_correct": 1}
    for model, beside, finished in more:
        settings: dict = {"model": {}, "run": {}}
        place = (tmp_path / "results", "mine", "clean", model, "clean")
        with Run(*place, settings, {}, beside=beside) as run:
            run.append([row])
            if finished:
                run.finish(["0.jpg"], seconds=1.0)
    assert list(status_table(tmp_path)["state"]) == ["waiting"]


@pytest.mark.parametrize(
    ("states", "used", "expected"),
    [
        (["done", "waiting", "waiting"], [0, 0, 0], None),
        (["done", "done", "waiting", "idle"], [0, 2, 0, 0], 4),
        (["done", "failed"], [0, 1], 0),
    ],
)
def test_what_was_done_without_a_job_says_nothing_about_hours(states, used, expected):
    left = [0.0 if state == "done" else math.nan for state in states]
    table = pd.DataFrame({"state": states, "used": used, "left": left})
    assert expected_hours(table) == expected
    says = "the rest is not known yet" if expected is None else f"{expected}:00 still expected"
    counted = table.assign(model="a", done=0, total=0, per_hour=0, note="", evictions=0)
    assert says in status_text(counted)


def test_a_note_of_a_hold_keeps_the_name_of_the_file():
    """HTCondor's text, which names the file last; a failure's names it first."""
    reason = (
        "Transfer input files failure at execution point slot1_2@vm using protocol osdf. Details: "
        "Error from slot1_2@vm: Failed to transfer files: FILETRANSFER:1:non-zero exit (1) from "
        "/usr/libexec/condor/stash_plugin. |Error: not found ( URL file = "
        "osdf:///chtc/staging/me/net.tar )|"
    )
    held = shortened(f"job 12: {reason}", keep_end=True)
    assert len(held) == NOTE_WIDTH and held.startswith("job 12: Transfer input files failure")
    assert held.endswith("URL file = osdf:///chtc/staging/me/net.tar )|")
    assert shortened(f"net.tar: {reason}", keep_end=False).startswith("net.tar: ")
    assert shortened("a\n  b", keep_end=True) == "a b"


def test_a_printed_status_has_its_date(swept, capsys):
    """Else the report of an earlier DAG looks like the present one's."""
    print_status(swept, swept / "report.txt")
    text = (swept / "report.txt").read_text()
    assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC\nmodel ", text)
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    "value, want",
    [(0.0, "0:00"), (1.5, "1:30"), (0.9999, "1:00"), (25 + 1 / 60, "25:01"), (math.nan, "")],
)
def test_hours_text(value, want):
    assert hours_text(value) == want


def test_sweep_status_refuses_a_folder_without_a_sweep(tmp_path, capsys):
    assert run_utilities("sweep_status", "--sweep", tmp_path) == 2
    assert "not a folder of `python utilities.py make_sweep`" in capsys.readouterr().err


def test_status_table_without_htcondor_names_the_requirements_file(swept, monkeypatch):
    monkeypatch.setitem(sys.modules, "htcondor2", None)
    with pytest.raises(StatusError, match="done.log.*pip install -r requirements-htcondor.txt"):
        status_table(swept)
