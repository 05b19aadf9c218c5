"""Sweeps on SLURM: the batch files, and a real cluster of one node (`make test-slurm` starts it).

Not tested: containers, GPUs (`--gres` is only written), accounting (a stand-in of sacct answers).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import evaluate_robustness
from alignment_security.cluster.events import follow_events
from alignment_security.cluster.job import STAGED_TABLE, report_progress
from alignment_security.cluster.prestage import prestage
from alignment_security.cluster.slurm import (
    TEMPLATE_FILE,
    batch_files,
    gpu_kinds,
    ranges,
    slurm_settings_text,
    task_events,
)
from alignment_security.cluster.status import status_table
from alignment_security.cluster.studies import read_study
from alignment_security.cluster.sweep import TEMPLATES, make_sweep
from alignment_security.cluster.sweep_settings import DEFAULTS
from alignment_security.common.files import UserError
from alignment_security.models.lists import WantedModel
from alignment_security.records.record import read_record, read_run_file

NO_CLUSTER = os.environ.get("NO_POOL", "no SLURM cluster; `make test-slurm` starts one")


def on_cluster(test):
    """Mark a test that needs the cluster."""
    skipped = pytest.mark.skipif("SLURM_CONF" not in os.environ, reason=NO_CLUSTER)
    return pytest.mark.slurm(skipped(test))


# ---- batch files ---------------------------------------------------------------------------------


def test_an_array_for_each_kind_of_gpu():
    """The smallest GPU with enough memory; a model that none can hold gets the largest."""
    models = pd.DataFrame({"gpu_memory_mb": ["3000", "11000", "30000", "11001", "90000"]})
    settings = {"slurm_gpus": "gpu:a100:1@40000,gpu:rtx:1@11000", "slurm_options": "--account=x"}
    files = batch_files(models, settings, "#!/bin/bash\n# text\n")
    lines = {name: text.splitlines() for name, text in files.items()}
    assert sorted(files) == ["sweep-a100-1.sbatch", "sweep-rtx-1.sbatch"]
    assert "#SBATCH --array=1-2%200" in lines["sweep-rtx-1.sbatch"]
    assert "#SBATCH --array=3-5%200" in lines["sweep-a100-1.sbatch"]
    assert "#SBATCH --gres=gpu:a100:1" in lines["sweep-a100-1.sbatch"]
    assert all(text[0] == "#!/bin/bash" and text[-1] == "# text" for text in lines.values())
    assert all("#SBATCH --account=x" in text for text in lines.values())
    (text,) = batch_files(models, {"device": "cpu"}, "#!/bin/bash\n").values()
    assert "--array=1-5%200" in text and "gres" not in text


def test_ranges_and_kinds():
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10" and ranges([4]) == "4"
    assert gpu_kinds("b@2,a@1") == [("a", 1), ("b", 2)]
    with pytest.raises(UserError, match="slurm_gpus=a100: write GRES@MB"):
        gpu_kinds("a100")


@pytest.mark.parametrize(
    "text, state, note, evictions, hours",
    [
        ("begin 0 1\n", "running", "", 0, 2.0),
        ("begin 0 1\nend 3600 85\n", "idle", "exit status 85, to be tried again", 0, 1.0),
        ("begin 0 1\nbegin 3600 1\n", "running", "", 1, 2.0),
        ("begin 0 1\nend 3600 2\n", "failed", "exit status 2", 0, 1.0),
        (
            "begin 0 1\nend 3600 137\n",
            "failed",
            "exit status 137 (killed, most often for its memory)",
            0,
            1.0,
        ),
        ("begin 0 1\nend 3600 0\nbeg", "failed", "", 0, 1.0),
        ("begin 0 1\nstopped 3600 1\n", "idle", "exit status 1, to be tried again", 0, 1.0),
        ("begin 0 1\nstopped 3600 0\n", "failed", "", 0, 1.0),
    ],
)
def test_states_of_tasks(tmp_path, text, state, note, evictions, hours):
    (tmp_path / "net.slurm").write_text(text)
    job = follow_events(task_events(tmp_path / "net.slurm"))
    found = (job.state, job.note, job.evictions, job.gpu_hours(now=7200))
    assert found == (state, note, evictions, hours)


@pytest.mark.parametrize(
    "text, in_queue, state, note, hours",
    [
        ("", "PENDING", "idle", "", 0.0),
        ("", "", "waiting", "", 0.0),
        ("begin 0 1\n", "RUNNING", "running", "", 2.0),
        ("begin 0 1\n", "PENDING", "idle", "", 0.5),  # its node was lost
        ("begin 0 1\n", "", "waiting", "ended without a word", 0.5),
        ("begin 0 1\n", None, "running", "no sign since 1970-01-01 00:30 UTC", 0.5),
        ("begin 0 1\nprogress 60 1/4/9\n", "", "waiting", "ended without a word", 0.5),
        ("begin 0 1\nend 900 85\n", "PENDING", "idle", "", 0.25),
        ("begin 0 1\nstopped 900 85\n", "", "waiting", "cancelled", 0.25),
        ("begin 0 1\nstopped 900 85\n", None, "idle", "exit status 85, to be tried", 0.25),
        ("begin 0 1\nend 900 1\n", "PENDING", "idle", "", 0.25),
        ("begin 0 1\nend 900 1\n", "", "failed", "exit status 1", 0.25),
    ],
)
def test_states_that_slurm_knows(tmp_path, monkeypatch, text, in_queue, state, note, hours):
    """A stand-in of squeue, or none; what was written last is of 00:30, now is 02:00."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "models.txt").write_text("other, other, 1\nnet.v1, net.v1, 1\n")
    if text:
        (tmp_path / "logs/net.v1.slurm").write_text(text)
        os.utime(tmp_path / "logs/net.v1.slurm", (1800, 1800))
    squeue = tmp_path / "bin/squeue"
    squeue.parent.mkdir()
    if in_queue is not None:
        lines = ["2|FAILED|/elsewhere", "N/A|RUNNING|/a|b"]
        lines += [f"2|{in_queue}|{tmp_path}"] if in_queue else []
        squeue.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent))
    (row,) = status_table(tmp_path, now=7200).to_dict("records")[1:]
    assert (row["state"], row["used"]) == (state, hours)
    assert note in row["note"] and bool(note) == bool(row["note"])
    assert row["evictions"] == ((text, in_queue) == ("begin 0 1\n", "PENDING"))


@pytest.mark.parametrize(
    "notes, answer, note",
    [
        ("begin 0 7\nend 9 85\nbegin 10 8\n", "8|OUT_OF_MEMORY", "OUT_OF_MEMORY: the machine's "),
        (
            "begin 0 8\nprogress 60 1/4/9\n",
            "8|TIMEOUT",
            "TIMEOUT: it took too long to stop; `sb",
        ),
        ("begin 0 8\n", "7|TIMEOUT\n8|NODE_FAIL", "NODE_FAIL: its node was lost; not in SLURM's"),
        ("begin 0 8\n", "8|CANCELLED by 1000", "CANCELLED; not in SLURM's queue"),
        ("begin 0 8\nstopped 9 85\n", "8|PREEMPTED", "stopped (PREEMPTED); not in SLURM's queue"),
        ("begin 0 8\n", "", "ended without a word"),
        ("begin 0 8\n", "sacct is slow today", "ended without a word"),
        ("begin 0 8\n", None, "ended without a word"),  # accounting is off
        ("begin 0 8\nend 9 2\n", "8|FAILED", "exit status 2"),
    ],
)
def test_accounting_says_how_a_task_ended(tmp_path, monkeypatch, notes, answer, note):
    """sacct is asked once, about those jobs alone that noted no end of their own."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "models.txt").write_text("done, done, 1\nnet, net, 1\nqueued, queued, 1\n")
    (tmp_path / "logs/done.slurm").write_text("begin 0 5\nend 9 0\n")
    (tmp_path / "logs/net.slurm").write_text(notes)
    (tmp_path / "logs/queued.slurm").write_text("begin 0 6\n")
    programs = {"squeue": f"echo '3|RUNNING|{tmp_path}'", "sacct": f'echo "$@" >> {tmp_path}/asked'}
    programs["sacct"] += "; exit 1" if answer is None else f"; echo '{answer}'" if answer else ""
    (tmp_path / "bin").mkdir()
    for name, line in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    table = status_table(tmp_path).set_index("model")
    assert table["note"]["net"].startswith(note)
    if "end 9 2" in notes:
        assert not (tmp_path / "asked").exists()
    else:
        (asked,) = (tmp_path / "asked").read_text().splitlines()
        assert asked.endswith("--format=JobIDRaw,State --jobs=8")
        assert table["state"]["net"] == "waiting" and table["state"]["queued"] == "running"


def test_progress_of_a_task(tmp_path, monkeypatch):
    """The program notes it, also of a threat that begins anew."""
    noted = tmp_path / "net.slurm"
    noted.write_text("begin 0 1\n")
    monkeypatch.setenv("PROGRESS_FILE", str(noted))
    for done, rate in ((0, 0.0), (30, 123.456)):
        report_progress(done, 100, rate)
    job = follow_events(task_events(noted))
    assert (job.state, job.done, job.total, job.per_hour) == ("running", 30, 100, 123.46)
    monkeypatch.setenv("PROGRESS_FILE", str(tmp_path / "none/net.slurm"))
    report_progress(1, 2, 3.0)  # it cannot be written: nothing happens


@pytest.fixture
def batch(tmp_path):
    """The batch file without a cluster, in tmp_path: a stand-in of scontrol notes into `queued`."""
    settings = {"use_container": "false", "retries": "1"}
    (tmp_path / "slurm_settings.sh").write_text(slurm_settings_text(settings))
    (tmp_path / "models.txt").write_text("a, a, 1\nlab/b:1, lab--b, 1\n")
    for name in ("code.tar.gz", "arguments.txt"):
        (tmp_path / name).touch()
    for name in ("logs", "tmp", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin/scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/queued\n')
    (tmp_path / "bin/scontrol").chmod(0o755)

    def start(job: int, program: str) -> subprocess.Popen:
        """A try of the second model with these lines in the place of job.sh."""
        (tmp_path / "job.sh").write_text(program)
        (tmp_path / "queued").write_text("")
        numbers = {"SLURM_JOB_ID": job, "SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": 2}
        environment = {name: str(number) for name, number in numbers.items()}
        environment |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_TMPDIR": str(tmp_path / "tmp")}
        environment["PATH"] = f"{tmp_path}/bin:{os.environ['PATH']}"
        batch_file = tmp_path / "sweep.sbatch"
        text = (TEMPLATES / TEMPLATE_FILE).read_text()
        batch_file.write_text(text.replace("LATE=100 ", "LATE=2 "))
        return subprocess.Popen(["bash", batch_file], env=environment)

    return start


def is_requeued(folder: Path, job: int) -> bool:
    return (folder / "queued").read_text() == f"requeue {job}_2\n"


def test_a_task_is_tried_again_so_often_in_each_submission(tmp_path, batch):
    def is_queued_again(job: int, status: int) -> bool:
        """After a try that ends with this status."""
        returned = batch(job, f'echo "$@"; exit {status}\n').wait()
        again = is_requeued(tmp_path, job)
        assert returned == (0 if again else status)
        return again

    assert [is_queued_again(7, status) for status in (85, 1, 85, 1)] == [True, True, True, False]
    assert [is_queued_again(77, status) for status in (1, 1)] == [True, False]
    assert not is_queued_again(8, 2) and not is_queued_again(9, 0)
    assert (tmp_path / "logs/lab--b.out").read_text().count("--model_name lab/b:1\n") == 8
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    "signals, goes_on",
    [
        (["TERM"], False),  # scancel, or a preemption: SLURM itself queues it again
        (["USR1"], True),  # before the end of the time
        (["USR1", "TERM"], False),  # scancel just before the end of the time
        (["USR1", "late", "TERM"], True),  # the end of the time
    ],
)
def test_a_stopped_task_is_queued_again_unless_slurm_decides(tmp_path, batch, signals, goes_on):
    """The program ends with 85, a moment after the last signal."""
    program = "trap 'touch asked' TERM\necho > ready\n"
    program += f"while [ ! -e {tmp_path}/end ]; do sleep 0.05; done\n[ -e asked ]; exit 85\n"
    task = batch(7, program)
    wait(lambda: list(tmp_path.glob("tmp/*/ready")))
    for name in signals:
        if name == "late":
            time.sleep(2.5)
        else:
            os.kill(task.pid, getattr(signal, f"SIG{name}"))
            time.sleep(0.2)
    (tmp_path / "end").touch()
    assert task.wait() == (0 if goes_on else 85)
    assert is_requeued(tmp_path, 7) == goes_on
    words = (tmp_path / "logs/lab--b.slurm").read_text().split()
    assert words[3::2] == ["end" if goes_on else "stopped", "85"]


# ---- a real cluster ------------------------------------------------------------------------------


def slurm(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout.strip()


def wait(condition: Callable, seconds: float = 300):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, slurm("squeue")
        time.sleep(0.2)
    return found


@pytest.fixture
def sweep(tmp_path, tiny):
    """Stage tiny nets and their images; make a sweep of a study: (names, threats) -> folder."""

    def call(names: list[str], *threats: str, **settings: str) -> Path:
        staged = tmp_path / "staged"
        wanted = [WantedModel(name, "test_resnet", str(tiny.checkpoint)) for name in names]
        assert prestage(wanted, staged, [tiny.data]) == {}
        (tmp_path / "nets.txt").write_text("\n".join(names) + "\n")
        lines = ["models nets.txt", "images --dataset mine -s 8", *threats]
        (tmp_path / "mine.txt").write_text("\n".join(lines) + "\n")
        small = {"use_container": "false", "python": sys.executable, "device": "cpu", "cpus": "1"}
        small |= {"memory": "1GB", "staging": str(staged), "retries": "1", "git_commit": "test"}
        make_sweep(
            tmp_path / "sweep",
            staged / STAGED_TABLE,
            ["--batch_size", "4", "--workers", "0"],
            DEFAULTS | small | settings,
            images=f"images-{tiny.data.name}.tar",
            study=read_study(tmp_path / "mine.txt"),
        )
        return tmp_path / "sweep"

    return call


def submit(folder: Path) -> str:
    return slurm("sbatch", "--parsable", "sweep.sbatch", cwd=folder)


def is_attacked(folder: Path, name: str) -> bool:
    """Whether a task attacks images of its second threat."""
    run = folder / f"results/records/mine/L2-fmn/{name}.json"
    return run.exists() and read_run_file(run)["status"] == "running"


@on_cluster
def test_a_study_through_checkpoints_and_a_preemption(sweep, tiny, tmp_path):
    """Requeued with 85, and preempted by a job of another partition: as single commands."""
    threats = ("clean", "L2 --protocol fmn --steps 200")
    for words in threats:
        arguments = [*tiny.arguments(tmp_path), "--workers", "0", "-s", "8"]
        assert evaluate_robustness.main([*arguments, *words.split()]) == 0
    folder = sweep(["net", "other.net"], *threats, chunk_seconds="3")
    array = submit(folder)
    wait(lambda: is_attacked(folder, "net"))
    slurm("sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null", "--wrap=true")
    wait(lambda: not slurm("squeue", "--noheader", "--jobs", array))
    noted = [(folder / f"logs/{name}.slurm").read_text() for name in ("net", "other.net")]
    assert all(text.count("begin") > 1 and " 85\n" in text for text in noted), noted
    table = status_table(folder)
    assert list(table["state"]) == ["done"] * 2 and list(table["total"]) == [16] * 2
    for threat in ("clean", "L2-fmn"):
        (want,) = tmp_path.glob(f"records/mine/{threat}/*.csv")
        for name in ("net", "other.net"):
            rows = read_record(folder / f"results/records/mine/{threat}/{name}.csv")
            pd.testing.assert_frame_equal(rows, read_record(want), rtol=1e-2, atol=0)


@on_cluster
def test_a_wrong_request_is_tried_once_and_a_damaged_tar_twice(sweep, tmp_path):
    folder = sweep(["net", "bad"], "L2 --steps 2 --examples no_such.jpg")
    tar = tmp_path / "staged/bad.tar"
    sound = tar.read_bytes()
    tar.write_bytes(sound[:-600] + b"x" + sound[-599:])
    array = submit(folder)
    wait(lambda: not slurm("squeue", "--noheader", "--jobs", array))
    tries = [(folder / f"logs/{name}.slurm").read_text().count("begin") for name in ("net", "bad")]
    assert tries == [1, 2]
    table = status_table(folder).set_index("model")
    assert list(table["state"]) == ["failed", "failed"]
    assert "exit status 2: error: --examples no_such.jpg" in table["note"]["net"]
    assert "exit status 1" in table["note"]["bad"] and "its sha256 is" in table["note"]["bad"]


@on_cluster
def test_a_preempted_task_goes_on_and_a_cancelled_one_does_not(sweep):
    """Both get SIGTERM; SLURM queues the first one again."""
    folder = sweep(["net"], "L2 --protocol fmn --steps 20000", chunk_seconds="3600")
    array = submit(folder)
    noted = folder / "logs/net.slurm"
    wait(lambda: is_attacked(folder, "net"))
    slurm("sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null", "--wrap=true")
    wait(lambda: noted.read_text().count("begin") == 2)
    assert noted.read_text().count("stopped") == 1
    slurm("scancel", array)
    wait(lambda: not slurm("squeue", "--noheader", "--jobs", array))
    time.sleep(5)  # a task that was queued again would have begun
    assert not slurm("squeue", "--noheader", "--states=all", "--jobs", array).count("PENDING")
    assert noted.read_text().count("begin") == noted.read_text().count("stopped") == 2
    (row,) = status_table(folder).to_dict("records")
    assert row["state"] == "waiting" and "cancelled" in row["note"]
