"""Fixtures of all tests: one thread, no hub, real and tiny models, small records, the script."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Set before torch and huggingface_hub are imported: spinning threads on a shared machine cost a
# factor of four and more, and a name that is not in the cache would wait a minute for the network.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import hypothesis
import numpy as np
import pytest
import timm
import torch
from made_leaderboard import make_leaderboard
from nets import digits, digits_net
from PIL import Image

import evaluate_robustness
import utilities
from alignment_security.images.image_sets import ImageSet, synsets
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.models.heads import Model
from alignment_security.models.loading import load_model
from alignment_security.records.run import Run

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"  # published numbers; its README says from where
PUBLISHED_DIR = os.environ.pop("PUBLISHED_DIR", "")  # else every figure would draw what is there
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("steady")


@pytest.fixture(autouse=True)
def coverage_goes_on():
    """Restore the trace function: an exception inside of it, as from a signal, ends the tracing."""
    tracer = sys.gettrace()
    yield
    if sys.gettrace() is not tracer:
        sys.settrace(tracer)


@pytest.fixture(scope="session")
def lite0() -> Model:
    return load_model("tf_efficientnet_lite0")


@pytest.fixture(scope="session")
def robust_digits():
    return digits_net(eps=0.1, epochs=6)


@pytest.fixture(scope="session")
def sample() -> ImageSet:
    return load_image_set("sample")


@dataclass(frozen=True)
class Tiny:
    """A net of random weights, and photographs sorted into the classes that it predicts."""

    name: str
    checkpoint: Path
    data: Path
    images: int

    def arguments(self, results) -> list[str]:
        return [
            "--model_name",
            self.name,
            "--checkpoint",
            str(self.checkpoint),
            "--dataset",
            "mine",
            "--data_dir",
            str(self.data),
            "--results_dir",
            str(results),
            "--device",
            "cpu",
            "--batch_size",
            "4",
        ]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, sample) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet").state_dict(), root / "net.pth")
    model = load_model("test_resnet", root / "net.pth")
    for (_, x, _), path in zip(
        stream_images(sample.take(range(12)), model.preprocessing), sample.paths
    ):
        folder = root / "data" / synsets()[int(model.module(x[None]).argmax())]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return Tiny("test_resnet", root / "net.pth", root / "data", 12)


@pytest.fixture(scope="session")
def mapped(tmp_path_factory):
    """Photographs that are their own maps: (image folder, map folder). Two classes of four."""
    root = tmp_path_factory.mktemp("mapped")
    for k, (name, x, _) in enumerate(digits()[:8]):
        big = np.kron(x[0].numpy() * 255, np.ones((12, 16))).astype(np.uint8)
        for kind in ("images", "maps"):
            path = root / kind / "ab"[k % 2] / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(big).save(path)
    return root / "images", root / "maps"


LOADS = """
import sys
from alignment_security.models.heads import ModelError
from alignment_security.models.loading import load_model
for name in sys.argv[1:]:
    try:
        settings = load_model(name).settings
        print(settings["weights_sha256"], settings["weights"])
    except ModelError as error:
        print(error)
"""


def loaded_from_hub_cache(hf_home: Path, names: Sequence[str]) -> list[str]:
    """Load models from a hub cache in `hf_home`; a line each: hash and weights, or the error.

    In a separate process: the hub's library reads its environment when it is imported.
    """
    environment = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("HF_", "HUGGINGFACE_", "XDG_", "TORCH_HOME"))
    }
    process = subprocess.run(
        [sys.executable, "-c", LOADS, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "1"},
    )
    return process.stdout.splitlines()


def published_leaderboard(age: str = "new") -> Path:
    """Brain-Score's own file of 2025-05-07 in PUBLISHED_DIR; skips the test where there is none."""
    name = f"brainscore/{age}_leaderboard*.csv"
    if PUBLISHED_DIR and (found := sorted(Path(PUBLISHED_DIR).resolve().glob(name))):
        return found[0]
    pytest.skip(f"no {name} in PUBLISHED_DIR: tests/data/README.md says how to get it")


@pytest.fixture(scope="session", params=["made_up", "published"])
def leaderboard(request, tmp_path_factory) -> Path:
    """A leaderboard of made-up scores, and Brain-Score's own where PUBLISHED_DIR has it."""
    if request.param == "published":
        return published_leaderboard()
    path = tmp_path_factory.mktemp("leaderboard") / "new_leaderboard_made_up.csv"
    make_leaderboard().to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def signals_kept():
    """A context that gives back the handlers which a script's main replaces."""

    @contextmanager
    def context():
        handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
        yield
        for name, handler in handlers.items():
            signal.signal(name, handler)

    return context


@pytest.fixture
def cli(capsys, signals_kept):
    """evaluate_robustness.main in this process: (*arguments) -> (exit status, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = evaluate_robustness.main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        return status, *capsys.readouterr()

    with signals_kept():
        yield call


def run_utilities(*words) -> int:
    """utilities.py in this process; returns its exit status."""
    try:
        return utilities.main(utilities.get_args_parser().parse_args([str(word) for word in words]))
    except SystemExit as error:
        return int(error.code or 0)


@pytest.fixture
def open_run(tmp_path):
    """Opens a records.Run under tmp_path; keywords beyond the names replace settings of the run."""

    def call(
        model="net",
        kind="minimum_norm",
        threat="L2-fmn",
        weights="w",
        overwrite=False,
        beside=None,
        **settings,
    ) -> Run:
        run = {
            "protocol": "fmn",
            "attack": "FMN 10 steps",
            "steps": 10,
            "list_sha256": "l",
            "seed": 0,
        } | settings
        return Run(
            tmp_path,
            "sample",
            threat,
            model,
            kind,
            {"model": {"weights_sha256": weights}, "run": run},
            {"git": "abc", "device": "cpu"},
            overwrite,
            beside=beside,
        )

    return call


@pytest.fixture
def tiny_record(open_run):
    """Writes a record, finished unless `done` is false.

    (rows, image_ids, eps, **of open_run) -> Run
    """

    def call(rows, image_ids=None, eps=None, done=True, **names) -> Run:
        with open_run(**names) as run:
            run.append(rows)
            if done:
                run.finish(
                    image_ids or list(dict.fromkeys(row["image_id"] for row in rows)),
                    eps,
                    seconds=2.0,
                )
            return run

    return call
