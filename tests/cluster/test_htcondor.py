"""Sweeps and trainings on a real HTCondor pool, with the production submit files.

`make test-htcondor` starts the pool. Not tested: containers at run time, GPUs (the pool simulates
two A100), CHTC's own policy.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from stand_in_plugins import write_package

import evaluate_robustness
import training
from alignment_security.cluster.events import follow_events, read_events
from alignment_security.cluster.job import STAGED_TABLE
from alignment_security.cluster.prestage import prestage
from alignment_security.cluster.status import status_table, status_text
from alignment_security.cluster.studies import Study, read_study
from alignment_security.cluster.sweep import (
    CODE_FILE,
    ROOT,
    TEMPLATES,
    make_sweep,
    pack_code,
)
from alignment_security.cluster.sweep_settings import DEFAULTS
from alignment_security.common.exit_status import CHECKPOINTED
from alignment_security.common.files import safe_file_name
from alignment_security.models.lists import WantedModel
from alignment_security.models.loading import load_model
from alignment_security.records.record import read_record, read_run_file
from alignment_security.trainer.run import read_training_run

NO_POOL = os.environ.get("NO_POOL", "no HTCondor pool; `make test-htcondor` starts one")
pytestmark = [
    pytest.mark.condor,
    pytest.mark.skipif("CONDOR_CONFIG" not in os.environ, reason=NO_POOL),
]
SMALL = {
    "use_container": "false",
    "python": sys.executable,
    "device": "cpu",
    "cpus": "1",
    "memory": "2GB",
    "disk": "1GB",
    "step_memory": "1GB",
    "step_disk": "1GB",
    "release_after": "2",
    "image": "none.sif",
    "git_commit": "test",
    "job_length": "short",
}
PLUGIN = "fetches"  # of the package in Brain-Score's place (stand_in_plugins.py)
LITE = [f"tf_efficientnet_lite{k}" for k in (0, 1, 2)]


# ---- the pool ------------------------------------------------------------------------------------


def condor(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def wait(condition, seconds: float = 240):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the pool took too long"
        time.sleep(0.2)
    return found


def submit(folder: Path, file: str = "sweep.sub") -> str:
    return condor("condor_submit", "-terse", file, cwd=folder).split(".")[0]


def left(cluster: str) -> bool:
    return not condor("condor_q", cluster, "-af", "ProcId").strip()


def run_dag(folder: Path) -> int:
    """Submit the sweep's DAG, wait for its end, and return its exit status."""
    out = folder / "sweep.dag.dagman.out"
    before = out.read_text().count("EXITING WITH STATUS") if out.exists() else 0
    condor("condor_submit_dag", "sweep.dag", cwd=folder)
    ends = wait(
        lambda: (
            out.exists()
            and len(found := re.findall(r"EXITING WITH STATUS (\d+)", out.read_text())) > before
            and found
        )
    )
    return int(ends[-1])


def events(folder: Path, slug: str) -> Counter:
    path = folder / "logs" / f"{slug}.log"
    return Counter(kind for kind, _, _ in read_events(path)) if path.is_file() else Counter()


# ---- staging -------------------------------------------------------------------------------------


@pytest.fixture
def staged(tmp_path) -> Iterator[Path]:
    """The folder that osdf:///chtc/staging/<its name> serves."""
    folder = Path(os.environ["CONDOR_CONFIG"]).parent / "staging" / tmp_path.name
    folder.mkdir(parents=True)
    yield folder
    subprocess.run(["condor_rm", "-all"], capture_output=True)  # jobs that a failed test left
    shutil.rmtree(folder)


@pytest.fixture
def make(tmp_path, staged, tiny):
    """Stage models (real ones, or the tiny net by other names) and its images; make a sweep."""

    def call(
        names: list[str],
        *arguments: str,
        images: bool = True,
        study: Study | None = None,
        **settings: str,
    ) -> Path:
        wanted = [
            WantedModel(name, None)
            if name == PLUGIN
            else WantedModel(
                name,
                name if name in LITE else "test_resnet",
                None if name in LITE else str(tiny.checkpoint),
            )
            for name in names
        ]
        assert prestage(wanted, staged, [tiny.data] if images else []) == {}
        (staged / STAGED_TABLE).rename(tmp_path / STAGED_TABLE)  # it travels with the sweep
        out = tmp_path / "sweep"
        make_sweep(
            out,
            tmp_path / STAGED_TABLE,
            ["--workers", "0", "--batch_size", "4", *arguments],
            SMALL | {"chunk_seconds": "3600", "staging": f"/staging/{staged.name}"} | settings,
            images=f"images-{tiny.data.name}.tar" if images else None,
            study=study,
        )
        return out

    return call


def record(folder: Path, name: str) -> tuple[pd.DataFrame, dict]:
    (path,) = folder.glob(f"results/records/*/*/{safe_file_name(name)}.csv")
    return read_record(path), read_run_file(path.with_suffix(".json"))


# ---- submit files --------------------------------------------------------------------------------


def dry_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["condor_submit", "-dry-run", "ad", *arguments], cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("container", ["true", "false"])
@pytest.mark.parametrize("images", [True, False])
def test_submit_files_are_free_of_warnings(make, container, images):
    folder = make(
        ["lab/net:v1.0", "net"], "clean", images=images, use_container=container, **DEFAULTS
    )
    one = ["model=lab/net:v1.0", "slug=x", "gpu_memory_mb=5000"]
    for file, more in (
        ("sweep.sub", []),
        ("evaluate.sub", one),
        ("step.sub", ["step=merge", "retries=0"]),
    ):
        done = dry_run(folder, file, *more)
        assert done.returncode == 0 and done.stderr == "", (file, done.stderr)
        ad = (folder / "ad").read_text()
        assert (DEFAULTS["image"] in ad.split("TransferInput")[1]) == (container == "true")
        assert "WARNING" not in done.stdout and "$(" not in ad
    (folder / "sweep.sub").write_text(
        "transfer_imput_files = x\n" + (folder / "sweep.sub").read_text()
    )
    assert "WARNING" in dry_run(folder, "sweep.sub").stderr


# ---- a sweep with its DAG ------------------------------------------------------------------------


def test_dag_with_a_failing_model_and_its_rescue(make, staged, tmp_path):
    """Three real models, and one with damaged staged weights.

    The three are done, and the report has the reason of the fourth. Submitting again runs that one
    alone, then merge, plot and report.
    """
    bad = "lab/net:v1.0"
    linf = ["Linf", "--eps", "0.25/255", "--attacks", "apgd-ce", "--steps", "3"]
    folder = make([*LITE, bad], "--dataset", "sample", "-s", "2", *linf, images=False, retries="1")
    tar = staged / f"{safe_file_name(bad)}.tar"
    sound = tar.read_bytes()
    tar.write_bytes(sound[:-600] + b"x" + sound[-599:])
    assert run_dag(folder) == 1
    table = status_table(folder).set_index("model")
    assert table["state"].to_dict() == dict.fromkeys(LITE, "done") | {bad: "failed"}
    assert "its sha256 is" in table["note"][bad] and table["note"][bad].startswith("exit status 1")
    report = (folder / "report.txt").read_text()
    assert "3 done, 1 failed" in report and "its sha256 is" in report
    summary = pd.read_csv(folder / "results/evaluation_results.csv")
    assert sorted(summary["model"]) == LITE and (summary["partial"] == 0).all()
    assert (folder / "figures/accuracy_vs_eps.pdf").is_file()
    runs = {name: events(folder, name)["EXECUTE"] for name in LITE}
    assert events(folder, safe_file_name(bad))["EXECUTE"] == 2  # once, and once again
    tar.write_bytes(sound)
    assert run_dag(folder) == 0
    assert {name: events(folder, name)["EXECUTE"] for name in LITE} == runs
    summary = pd.read_csv(folder / "results/evaluation_results.csv")
    assert sorted(summary["model"]) == sorted([*LITE, bad]) and (summary["n"] == 2).all()
    assert set(summary["model"]) == set(status_table(folder).query("state == 'done'")["model"])
    assert "4 models: 4 done" in (folder / "report.txt").read_text()
    rows, run = record(folder, bad)
    assert (
        run["model"] == bad
        and run["settings"]["model"]["weights"] == "file:net.pth"
        and run["sessions"][0]["git"] == "test"
    )


# ---- interruptions -------------------------------------------------------------------------------


def starter_of(job: str) -> int:
    """Pid of the condor_starter of a job's slot."""
    slot = condor("condor_q", job, "-af", "RemoteHost").split("@")[0]
    lines = subprocess.run(
        ["ps", "-eo", "pid,args"], capture_output=True, text=True
    ).stdout.splitlines()
    pids = [
        int(line.split()[0])
        for line in lines
        if "condor_starter" in line and re.search(rf"\b{slot}\b", line)
    ]
    assert len(pids) == 1, lines
    return pids[0]


def disturb(how: str, folder: Path, slug: str, job: str) -> None:
    if how == "vacated":
        condor("condor_vacate_job", job)
    elif how == "held":
        condor("condor_hold", job)
        wait(lambda: events(folder, slug)["JOB_HELD"])
        condor("condor_release", job)
    else:
        os.kill(starter_of(job), signal.SIGKILL)


# how a job is disturbed -> the event that says so
DISTURBANCES = {"vacated": "JOB_EVICTED", "held": "JOB_HELD", "killed": "JOB_RECONNECT_FAILED"}
FMN = ["-s", "8", "L2", "--protocol", "fmn", "--steps", "200"]


def in_second_session(slug: str) -> bool:
    """Whether a job attacks again after a checkpoint: its run file has a second session."""
    found = Path(os.environ["CONDOR_CONFIG"]).parent.glob(
        f"execute/dir_*/results/records/*/*/{slug}.json"
    )
    return any(
        len(run["sessions"]) == 2 and run["status"] == "running"
        for run in map(read_run_file, found)
    )


def test_a_disturbed_run_ends_as_the_uninterrupted_one(make, tiny, tmp_path):
    """Vacated, held and released, starter killed: each after a checkpoint and during an attack."""
    assert evaluate_robustness.main([*tiny.arguments(tmp_path), "--workers", "0", *FMN]) == 0
    (path,) = tmp_path.glob("records/mine/L2-fmn/*.csv")
    want = read_record(path)
    names = [f"net:{disturbance}" for disturbance in DISTURBANCES]
    folder = make(names, "--dataset", "mine", *FMN, chunk_seconds="2")
    cluster = submit(folder)
    for proc, (name, how) in enumerate(zip(names, DISTURBANCES)):
        slug = safe_file_name(name)
        wait(lambda: in_second_session(slug))  # noqa: B023
        begun = status_table(folder).iloc[
            proc
        ]  # HTCondor passes progress on when it likes, so `done` may lag
        assert begun["state"] == "running" and begun["done"] < len(want), (
            "over before it was disturbed"
        )
        time.sleep(0.5)
        disturb(how, folder, slug, f"{cluster}.{proc}")
    wait(lambda: left(cluster))
    assert list(status_table(folder)["state"]) == ["done"] * 3
    for name, event in zip(names, DISTURBANCES.values()):
        slug, (rows, run) = safe_file_name(name), record(folder, name)
        assert events(folder, slug)[event] == 1 and events(folder, slug)["EXECUTE"] == 2, events(
            folder, slug
        )
        assert (
            run["status"] == "done" and len(run["sessions"]) == 2
        )  # the one that was cut off left nothing
        job = follow_events(read_events(folder / "logs" / f"{slug}.log"))
        assert job.total == len(want) and job.done > 0 and job.per_hour > 0
        exact = rows.columns.drop(["l2", "linf"])
        pd.testing.assert_frame_equal(rows[exact], want[exact], check_exact=True)
        for norm, rtol in ("l2", 1e-5), ("linf", 1e-2):  # as in test_evaluate_robustness.py
            pd.testing.assert_series_equal(rows[norm], want[norm], rtol=rtol, atol=0)


def test_a_study_through_an_eviction_ends_as_single_commands(make, tiny, tmp_path):
    """One job, one load: vacated during its second threat, after a checkpoint."""
    threats = (["clean"], ["L2", "--protocol", "fmn", "--steps", "200"])
    for words in threats:
        arguments = [*tiny.arguments(tmp_path), "--workers", "0", "-s", "8"]
        assert evaluate_robustness.main([*arguments, *words]) == 0
    (tmp_path / "nets.txt").write_text("net\n")
    lines = ["models nets.txt", "images --dataset mine -s 8", *map(" ".join, threats)]
    (tmp_path / "mine.txt").write_text("\n".join(lines) + "\n")
    folder = make(["net"], study=read_study(tmp_path / "mine.txt"), chunk_seconds="3")
    cluster = submit(folder)
    wait(lambda: in_second_session("net"))
    disturb("vacated", folder, "net", f"{cluster}.0")
    wait(lambda: left(cluster))
    assert events(folder, "net")["JOB_EVICTED"] >= 1
    (row,) = status_table(folder).to_dict("records")
    assert (row["state"], row["total"]) == ("done", 16)
    for threat in ("clean", "L2-fmn"):
        (want,) = tmp_path.glob(f"records/mine/{threat}/*.csv")
        rows = read_record(folder / f"results/records/mine/{threat}/net.csv")
        pd.testing.assert_frame_equal(rows, read_record(want), rtol=1e-2, atol=0)


# ---- failures that are no use trying again -------------------------------------------------------


def test_a_wrong_request_is_tried_once(make):
    """One that the check of make_sweep cannot see, since it does not know the images."""
    folder = make(["net"], "--dataset", "mine", "-s", "5000", "6000", "clean")
    cluster = submit(folder)
    wait(lambda: left(cluster))
    assert events(folder, "net")["EXECUTE"] == 1
    (row,) = status_table(folder).to_dict("records")
    assert row["state"] == "failed" and row["note"].startswith(
        "exit status 2: error: -s 5000 6000: takes no image"
    )


def test_a_missing_tar_holds_the_job_and_ends_its_releases(make, staged):
    folder = make(["net", "other.net"], "--dataset", "mine", "clean")
    (staged / "net.tar").unlink()
    cluster = submit(folder)
    wait(lambda: events(folder, "net")["JOB_HELD"] >= 4)
    wait(lambda: events(folder, "other.net")["JOB_TERMINATED"])
    time.sleep(8)  # release_after is 2 seconds: a fourth release would have come
    assert (events(folder, "net")["JOB_HELD"], events(folder, "net")["JOB_RELEASED"]) == (4, 3)
    table = status_table(folder).set_index("model")
    assert (
        table["state"].to_dict() == {"net": "held", "other.net": "done"}
        and "net.tar" in table["note"]["net"]
    )
    assert table["note"]["net"].startswith(f"job {cluster}.0: ")
    assert "/net.tar" in status_text(status_table(folder))  # which shortens it
    assert table["evictions"]["net"] == 0  # it never ran
    condor("condor_rm", cluster)


# ---- a plugin of Brain-Score ---------------------------------------------------------------------


def test_a_plugin_runs_out_of_its_tar_alone(make, tmp_path, monkeypatch):
    """Beside a network of timm, in one sweep; what the plugin fetched is gone when its job runs."""
    weights = tmp_path / "far_away.pth"
    package = write_package(tmp_path / "package", weights)
    monkeypatch.setenv("PYTHONPATH", str(package))
    monkeypatch.syspath_prepend(package)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={package} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    folder = make([PLUGIN, "net"], "--dataset", "mine", "-s", "2", "clean", python=str(python))
    weights.unlink()
    cluster = submit(folder)
    wait(lambda: left(cluster))
    rows, run = record(folder, PLUGIN)
    assert len(rows) == 2 and run["status"] == "done", run
    assert run["settings"]["model"]["weights"] == f"brainscore:{PLUGIN}"
    assert record(folder, "net")[1]["status"] == "done"


# ---- rows of a failed try ------------------------------------------------------------------------


def test_a_model_that_failed_goes_on_from_its_rows(make, tiny):
    """keep_rows.sh gives a node that runs again the rows of its failed job."""
    folder = make(["net"], "--dataset", "mine", "clean")
    arguments = [
        *tiny.arguments(folder / "results"),
        "--architecture",
        tiny.name,
        "--model_name",
        "net",
    ]
    assert evaluate_robustness.main([*arguments, "--stop_after", "1e-9", "clean"]) == CHECKPOINTED
    assert run_dag(folder) == 0
    run = record(folder, "net")[1]
    assert run["status"] == "done" and run["sessions"][0]["pid"] == os.getpid()


# ---- trainings -----------------------------------------------------------------------------------

TRAIN = ["htcondor/train.sub", "git_commit=test"]
COMMON = (
    "--model_name test_resnet --num_classes 2 --batch_size 4 --epochs 2 --lr 0.01 --log_every 1"
)
LINF = "--objective both --lambda_1 0.1 --norm Linf --eps 2/255 --attack_steps 1   --random_start"
RECIPES = {
    "net_linf_eps2.0": f"{COMMON} {LINF}",
    "net_plain": f"{COMMON} --ema 0.9 --schedule step --decay_epochs 1",
}


@pytest.fixture
def project(tmp_path, staged, mapped) -> Path:
    """The project's folder of a user.

    Submit files, packed code, staged images and maps, and two recipes after a comment.
    """
    folder = tmp_path / "project"
    shutil.copytree(TEMPLATES, folder / "htcondor")
    (folder / "logs").mkdir()
    pack_code(folder / CODE_FILE)
    assert prestage([], staged, list(mapped)) == {}
    (staged / STAGED_TABLE).rename(folder / STAGED_TABLE)
    recipes = "".join(f"--name {name:20} {options}\n" for name, options in RECIPES.items())
    (folder / "recipes.txt").write_text(
        f"# some of the authors' nets\n#   --name commented\n\n{recipes}"
    )
    return folder


def train(project: Path, staged: Path, *settings: str) -> str:
    """Submit the recipes, a step of training a chunk; their cluster."""
    small = {
        name: SMALL[name]
        for name in ("use_container", "python", "device", "cpus", "memory", "disk", "release_after")
    }
    return condor(
        "condor_submit",
        "-terse",
        *TRAIN,
        "recipes=recipes.txt",
        f"staging=/staging/{staged.name}",
        "dataset=mine",
        "images=images-images.tar",
        "chunk_seconds=0",
        *(f"{name}={value}" for name, value in small.items()),
        *settings,
        cwd=project,
    ).split(".")[0]


def trains_again(name: str) -> bool:
    """Whether a job trains again after a checkpoint: its run file has a second session."""
    found = Path(os.environ["CONDOR_CONFIG"]).parent.glob(
        f"execute/dir_*/results/training/{name}/run.json"
    )
    return any(
        len(run["sessions"]) > 1 and run["status"] == "running"
        for run in map(read_training_run, found)
    )


def request(name: str, mapped, results: Path) -> list[str]:
    """The recipe as an uninterrupted training in this process."""
    return [
        "--name",
        name,
        *shlex.split(RECIPES[name]),
        "--dataset",
        "mine",
        "--data_dir",
        str(mapped[0]),
        "--map_dir",
        str(mapped[1]),
        "--results_dir",
        str(results),
        "--device",
        "cpu",
        "--workers",
        "0",
    ]


def trained(project: Path, name: str, want: Path) -> dict:
    """The run file of a returned training; its curve and weights equal `want`, byte for byte."""
    ours, theirs = project / "results/training" / name, want / "training" / name
    for file in ("log.csv", "model.safetensors"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    return json.loads((ours / "run.json").read_text())


def test_recipes_train_as_without_interruption(project, staged, mapped, tmp_path, signals_kept):
    """Two recipes, each checkpointed with status 85 after every step; the first is evicted too."""
    cluster, evicted = train(project, staged, "maps=images-maps.tar"), next(iter(RECIPES))
    wait(lambda: trains_again(evicted))
    condor("condor_vacate_job", f"{cluster}.0")
    wait(lambda: left(cluster))
    for name in RECIPES:
        with signals_kept():
            assert training.main(request(name, mapped, tmp_path)) == 0
        run = trained(project, name, tmp_path)
        assert run["status"] == "done" and run["step"] == 4 and len(run["sessions"]) >= 4
        assert {session["git"] for session in run["sessions"]} == {"test"} and events(
            project, name
        )["JOB_HELD"] == 0
        assert (
            events(project, name)["JOB_EVICTED"]
            == (name == evicted)
            == events(project, name)["EXECUTE"] - 1
        )
        loaded = load_model("test_resnet", project / f"results/training/{name}/model.safetensors")
        assert loaded.n_outputs == 2 and loaded.settings["weights_sha256"] == run["weights_sha256"]
    assert sorted(path.name for path in (project / "results/training").iterdir()) == sorted(RECIPES)


def test_a_training_goes_on_from_what_came_home(project, staged, mapped, tmp_path, signals_kept):
    """resume=results: an earlier submission, or another machine, did the first step."""
    name = "net_plain"
    (project / "recipes.txt").write_text(f"--name {name} {RECIPES[name]}\n")
    for results, status, options in (
        (tmp_path, 0, []),
        (project / "results", CHECKPOINTED, ["--stop_after", "0"]),
    ):
        with signals_kept():
            assert training.main([*request(name, mapped, results), *options]) == status
    cluster = train(project, staged, "resume=results", "chunk_seconds=3600")
    wait(lambda: left(cluster))
    run = trained(project, name, tmp_path)
    assert [session["pid"] == os.getpid() for session in run["sessions"]] == [True, False]


@pytest.mark.parametrize("recipes, count", [("robust.txt", 42), ("harmonized.txt", 9)])
@pytest.mark.parametrize("container", ["true", "false"])
def test_training_submit_file_is_free_of_warnings(project, recipes, count, container):
    """Every recipe is a job with all its options: with each setting that names a tar, and none."""
    shutil.copytree(ROOT / "lists", project / "lists")
    needed = [
        *TRAIN,
        f"recipes=lists/training/{recipes}",
        "staging=/staging/n/netid/x",
        f"use_container={container}",
    ]
    tars = [
        "images=images-train.tar",
        "clickme=c.tar",
        "maps=m.tar",
        "val=v.tar",
        "cuda=13.0",
        "options=--pass_size 64 --seed 1",
    ]
    want = [
        line.split()
        for line in (project / "lists/training" / recipes).read_text().splitlines()
        if line.startswith("--")
    ]
    for settings in [], *([tar] for tar in tars), tars:
        done = dry_run(project, *needed, *settings)
        ad = (project / "ad").read_text()
        assert (
            done.returncode == 0
            and done.stderr == ""
            and "WARNING" not in done.stdout
            and "$(" not in ad
        )
        jobs = [
            shlex.split(line) for line in re.findall(r'^Arguments="training.py (.*)"$', ad, re.M)
        ]
        assert [job[: len(recipe)] for job, recipe in zip(jobs, want, strict=True)] == want and len(
            jobs
        ) == count
    common = " ".join(jobs[0][len(want[0]) :])
    assert common == (
        "--dataset imagenet-train --data_dir images-train.tar --clickme_dir c.tar --map_dir m.tar "
        "--val_dataset imagenet-val --val_dir v.tar --pass_size 64 --seed 1"
    )
    assert ad.count("UserLog=") == count and f"logs/{want[-1][1]}.log" in ad
    assert re.search(r'^TransferInput="code.tar.gz,osdf:.*/images-train.tar,.*staged.tsv', ad, re.M)


@pytest.mark.parametrize("lacking", ["recipes", "staging"])
def test_a_training_submit_file_says_what_it_needs(project, lacking):
    given = [f"{name}=x" for name in ("recipes", "staging") if name != lacking]
    done = dry_run(project, *TRAIN, *given)
    assert done.returncode == 1 and f"{lacking}=" in done.stderr and "say w" in done.stderr
