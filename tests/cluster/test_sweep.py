"""The folder of a sweep: what every job would refuse, what it needs, DAG and submit files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile

import pandas as pd
import pytest
from conftest import ROOT, run_utilities
from sweeps import NAMES, SETTINGS, make, study_of, submit_text

from alignment_security.cluster import arguments as arguments_module
from alignment_security.cluster.arguments import (
    KNOWN_SETS,
    VALIDATION_SETS,
    SweepError,
    check_requests,
    images_of_another_set,
)
from alignment_security.cluster.job import STAGED_TABLE
from alignment_security.cluster.studies import read_study
from alignment_security.cluster.sweep import chosen_models, node_name
from alignment_security.common.exit_status import CHECKPOINTED
from alignment_security.common.files import UserError, safe_file_name
from alignment_security.evaluation.protocols import THREATS
from alignment_security.images.image_sets import DATA_DIRS
from alignment_security.images.loading import CORRUPTED_SETS, NAMED_SETS

# ---- what every job would refuse -----------------------------------------------------------------


def test_a_sweep_knows_the_threats():
    assert arguments_module.THREATS == {*THREATS}


def test_a_sweep_knows_the_image_sets_and_which_share_a_folder():
    assert KNOWN_SETS == {*NAMED_SETS, *CORRUPTED_SETS} == set(DATA_DIRS)
    for name in VALIDATION_SETS:
        assert DATA_DIRS[name] == "IMAGENET_DIR"
        assert not images_of_another_set("images-imagenet-val.tar", name)
        assert images_of_another_set("images-imagenet-a.tar", name)


@pytest.mark.parametrize(
    "words, message",
    [
        ("Linff --eps 8/255", "Linff --eps 8/255: has to name one threat of .*; Linf?"),
        ("--dataset sample", "has to name one threat"),
        ("", "has to name one threat"),
        ("clean Linf", "has to name one threat"),
        ("Linf --eps 8", "eps 8 is above 1"),
        ("--eps 1/255 -3 L2", "eps -3 is negative"),
        ("L2 --eps x", "eps 'x' is not a number"),
        ("--dataset big12 clean", "--dataset big12: the jobs need its images"),
        ("--dataset=big12 --eps 1/255 Linf", "--dataset big12: the jobs need its images"),
    ],
)
def test_wrong_requests_are_refused_without_torch(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        check_requests(None, words.split(), None)
    if words:
        study = study_of(tmp_path, "clean", words)
        with pytest.raises(UserError, match=f"mine.txt, line 3: .*{message}"):
            check_requests(study, [], None)


@pytest.mark.parametrize(
    "words",
    [
        "Linf --eps 8/255 0.5/255 -s 5",
        "--eps 1/255 Linf",
        "L2 --eps 3",
        "--dataset clean --data_dir /data saliency",
        "--dataset=big12 --data_dir=/data L1",
    ],
)
def test_right_requests_are_taken_without_torch(tmp_path, words):
    check_requests(None, words.split(), None)
    check_requests(study_of(tmp_path, words, "clean"), ["--data_dir", "/data"], None)


def test_a_study_and_a_threat_are_not_one_request(tmp_path):
    with pytest.raises(UserError, match="--study and L2: a study has its own threats"):
        check_requests(study_of(tmp_path, "clean"), ["--seed", "3", "L2"], None)
    with pytest.raises(UserError, match="line 2: --dataset big12: the jobs need its images"):
        check_requests(study_of(tmp_path, "--dataset big12 clean"), [], None)


@pytest.mark.parametrize(
    "words, message",
    [
        # of the parser of evaluate_robustness.py
        ("-- --dataset big12 Linf --eps 8", "argument --eps: "),
        ("-- --overw clean", "unrecognized arguments: --overw"),
        ("-- --results /x clean", "unrecognized arguments: --results"),
        ("-- --model=x clean", "unrecognized arguments: --model;"),
        ("-- --stop 5 clean", "unrecognized arguments: --stop"),
        ("-- Linf", "--eps"),
        ("-- --seed=-1 clean", "argument --seed: '-1'"),
        # of make_sweep
        ("-- --dataset big12 clean", "--dataset big12: the jobs need its images"),
        ("--images images-clickme.tar -- --dataset big12 clean", "not the images"),
        ("--images images-big12.tar -- clean", "not the images of --dataset sample"),
        ("--images images-big12.tar -- --dataset imagenet-val clean", "not the images"),
        ("--images images-imagenet-r.tar -- --dataset big12 clean", "not the images"),
        ("--set cpu=2 -- clean", "--set cpu=2: write NAME=VALUE with one of"),
    ],
)
def test_make_sweep_refuses_what_every_job_would(staged, tmp_path, capsys, words, message):
    command = ["make_sweep", "--staged", staged / STAGED_TABLE, "--out", tmp_path / "s"]
    assert run_utilities(*command, "--set", "staging=/staging/x", *words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_the_tar_of_a_model_is_not_one_of_images(staged, tiny, tmp_path):
    tar = f"{safe_file_name(NAMES[0])}.tar"
    message = f"{tar}: is the model {NAMES[0]}; tars of images: images-{tiny.data.name}.tar"
    with pytest.raises(UserError, match=re.escape(message)):
        make(staged, tmp_path / "sweep", images=tar)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"only": ["x", NAMES[0], "y"]}, "x, y: not in staged.tsv"),
        ({"images": "../imgs"}, "0 lines for ../imgs; it has images-.*.tar; write one of them"),
        ({"settings": {"image": "no.sif", "staging": str(ROOT)}}, "image=no.sif: .* no such file"),
        ({"settings": {"requirements": "x"}}, "requirements=x: write NAME=VALUE with one of"),
        ({"arguments": []}, "no arguments"),
        ({"arguments": ["--stop_after=3", "clean"]}, "--stop_after=3: each job sets it itself"),
        ({"arguments": ["--dataset", "a\nb", "clean"]}, "no arguments"),
    ],
)
def test_make_sweep_refuses_wrong_requests(staged, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        make(staged, tmp_path / "sweep", **change)
    assert not (tmp_path / "sweep").exists()


def test_make_sweep_refuses_a_folder_that_is_not_empty(staged, tmp_path):
    make(staged, tmp_path / "sweep")
    with pytest.raises(SweepError, match="is not empty"):
        make(staged, tmp_path / "sweep")


@pytest.mark.parametrize("name", ['a"b', "a b", "a,b", "$(x)", "a\tb", ";rm", "-x", "'"])
def test_chosen_models_refuses_names_that_a_submit_file_cannot_hold(name):
    table = pd.DataFrame([{"name": name, "gpu_memory_mb": "1", "tar": "x"}])
    with pytest.raises(SweepError, match="a submit file cannot hold this name"):
        chosen_models(table, [])


# ---- what a job needs ----------------------------------------------------------------------------


def test_make_sweep_writes_what_a_job_needs(staged, tiny, tmp_path):
    out = tmp_path / "sweep"
    arguments, images = "--dataset mine Linf --eps 1/255".split(), f"images-{tiny.data.name}.tar"
    assert make(staged, out, arguments, images=images) == len(NAMES)
    files = [path for path in out.iterdir() if path.suffix in (".txt", ".inc")]
    lines = {path.name: path.read_text().splitlines() for path in files}
    assert lines["arguments.txt"] == ["--data_dir", images, *arguments]
    assert lines["evaluate_settings.inc"][1:] == [
        f"{name} = {value}" for name, value in (SETTINGS | {"images": images}).items()
    ]
    of_steps = [line.split(" = ")[0] for line in lines["step_settings.inc"][1:]]
    assert of_steps == ["staging", "image", "git_commit"]
    rows = [line.split(", ") for line in lines["models.txt"]]
    assert [name for name, _, _ in rows] == NAMES
    assert len({slug for _, slug, _ in rows}) == len(NAMES)
    for _, slug, memory in rows:
        assert (out / f"resume/{slug}/previous").is_dir() and int(memory) > 1500
    with tarfile.open(out / "code.tar.gz") as archive:
        inside = set(archive.getnames())
    wanted = "evaluate_robustness.py utilities.py plotting.py training.py .env requirements.txt"
    wanted += " alignment_security/records/run.py lists/images/big12.txt"
    assert {*wanted.split()} <= inside
    assert not any(name.startswith(("tests", "results", ".git", "figures/")) for name in inside)


def test_a_sweep_of_a_study_is_a_job_for_each_staged_model(staged, tiny, tmp_path, capsys):
    study = study_of(tmp_path, "images --dataset mine", "clean", "L2")
    out = tmp_path / "sweep"
    images = f"images-{tiny.data.name}.tar"
    assert make(staged, out, ["--precision", "tf32"], images=images, study=study) == 2
    missing, twice = capsys.readouterr().err.splitlines()
    assert missing == "note: 1 of 3 models are not staged and get no job: not_staged"
    assert "2 names have the same weights" in twice and NAMES[1] in twice
    words = (out / "arguments.txt").read_text().split()
    assert words == ["--data_dir", images, "--study", "mine.txt", "--precision", "tf32"]
    models = (out / "models.txt").read_text().splitlines()
    assert [line.split(", ")[0] for line in models] == NAMES[:2]
    with tarfile.open(out / "code.tar.gz") as archive:
        packed = archive.extractfile("mine.txt")
        assert packed and packed.read() == study.path.read_bytes()
    (tmp_path / "nets.txt").write_text("not_staged\n")
    with pytest.raises(SweepError, match="has none of the 1 models"):
        make(staged, tmp_path / "none", [], study=read_study(study.path))


def test_make_sweep_from_the_command_line(staged, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAGING_DIR", "/staging/n/netid/x")
    command = ["make_sweep", "--staged", staged / STAGED_TABLE, "--out", tmp_path / "s"]
    command += ["--only", NAMES[1], "--set", "cpus=2", "chunk_seconds=7"]
    assert run_utilities(*command, "--", "--dataset", "sample", "clean") == 0
    assert "1 models; go on with: cd" in capsys.readouterr().out
    lines = (tmp_path / "s/evaluate_settings.inc").read_text().splitlines()
    assert {"staging = /staging/n/netid/x", "chunk_seconds = 7", "cpus = 2"} <= {*lines}


def test_a_sweep_on_an_access_point_without_torch(staged, tmp_path):
    """htcondor/README.md installs pandas, numpy, filelock and python-dotenv there."""
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'matplotlib', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "from utilities import get_args_parser, main\n"
        "staged, out = sys.argv[1:]\n"
        "making = ['make_sweep', '--staged', staged, '--out', out, '--set', 'staging=/staging/x']\n"
        "for words in ([*making, '--', 'clean'], ['sweep_status', '--sweep', out]):\n"
        "    assert main(get_args_parser().parse_args(words)) == 0"
    )
    command = [sys.executable, "-c", code, staged / STAGED_TABLE, tmp_path / "sweep"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "alone are checked: no " in done.stderr, done.stderr
    assert "3 models: 3 waiting" in done.stdout


def test_a_sweep_that_is_interrupted_leaves_nothing_that_is_refused(staged, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("alignment_security.cluster.sweep.dag_text", interrupt)
        make(staged, tmp_path / "sweep")
    assert os.listdir(tmp_path) == []
    assert make(staged, tmp_path / "sweep") == len(NAMES)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.DS_Store").touch()
    assert make(staged, tmp_path / "empty") == len(NAMES)
    wanted = sorted([*os.listdir(tmp_path / "sweep"), ".DS_Store"])
    assert sorted(os.listdir(tmp_path / "empty")) == wanted


# ---- DAG and submit files ------------------------------------------------------------------------


def test_dag_text_has_one_node_per_model_with_distinct_names(staged, tmp_path):
    make(staged, tmp_path / "sweep")
    lines = (tmp_path / "sweep/sweep.dag").read_text().splitlines()
    jobs = [line.split()[1] for line in lines if line.startswith("JOB")]
    assert len(jobs) == len(set(jobs)) == len(NAMES) + 2 and jobs[-2:] == ["MERGE", "PLOT"]
    assert not any(set(".+") & set(job) for job in jobs)
    for number, name in enumerate(NAMES):
        row = next(line for line in lines if line.startswith(f"VARS {jobs[number]} "))
        variables = f'model="{name}" slug="{safe_file_name(name)}" gpu_memory_mb="'
        assert row.split(" ", 2)[2].startswith(variables)
    assert f"PARENT {' '.join(jobs[:-2])} CHILD MERGE" in lines
    assert "PARENT MERGE CHILD PLOT" in lines
    assert sum(line.startswith("FINAL") for line in lines) == 1 and "FINAL REPORT step.sub" in lines


def test_node_name_differs_for_slugs_that_differ_in_a_dot():
    assert node_name(1, "a.b+c") == "E0001_a_b_c" != node_name(2, "a_b_c")


@pytest.mark.parametrize(
    "line",
    [
        "container_image = $(stage)/$(image)",
        "+WantGPULab             = true",
        '+GPUJobLength           = "$(job_length)"',
        "+is_resumable             = true",
        "gpus_minimum_memory     = $(gpu_memory_mb)",
        f"checkpoint_exit_code      = {CHECKPOINTED}",
        "transfer_checkpoint_files = results",
        "transfer_output_files   = results",
        "when_to_transfer_output = ON_EXIT",
        "retry_until = (ExitCode =?= 2)",
        "stage = osdf:///chtc$(staging)",
    ],
)
def test_what_the_jobs_of_a_sweep_rely_on(line):
    assert line in (submit_text("evaluate.inc") + submit_text("job.inc")).splitlines()


def test_no_submit_file_has_a_default_that_holds_a_macro_or_a_hyphen():
    """HTCondor mangles `$(x:a$(y))`, and does not expand `$(x:a-b)`."""
    for path in [*(ROOT / "htcondor").glob("*.sub"), *(ROOT / "htcondor").glob("*.inc")]:
        assert not re.search(r"\$\([^()]*:[^()]*(\$\(|-)", path.read_text()), path


def test_scripts_are_sound_bash():
    for path in (ROOT / "htcondor").glob("*.sh"):
        assert subprocess.run(["bash", "-n", path]).returncode == 0 and path.stat().st_mode & 0o100


def test_keep_rows_keeps_the_rows_of_a_failed_try(staged, tmp_path):
    """keep_rows.sh, the PRE script: this model's files and no other's, at their place."""
    make(staged, tmp_path / "sweep")
    folder, slug = tmp_path / "sweep", safe_file_name(NAMES[0])
    own = [f"{slug}{beside}.{kind}" for beside in ("", "+steps-5") for kind in ("csv", "json")]
    for name in (*own, f"x{slug}.csv", f"{slug}-b.csv"):
        path = folder / "results/records/mine/clean" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for _ in range(2):
        assert subprocess.run(["./keep_rows.sh", slug], cwd=folder).returncode == 0
        kept = [path for path in (folder / f"resume/{slug}").rglob("*.*") if path.is_file()]
        place = folder / f"resume/{slug}/previous/records/mine/clean"
        assert sorted(kept) == sorted(place / name for name in own)
