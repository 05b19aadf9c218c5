"""Train a net: harmonized (Fel et al. 2022), adversarially (Madry et al. 2018), both, or plainly -> results/training/<name>/.

    python training.py --model_name tf_efficientnet_lite0 --init pretrained --dataset sample --batch_size 10 --epochs 2 \\
                       --objective harmonizer --form code --lambda_1 1 --lr 1e-4
    python training.py --recipe lists/training/robust.txt:resnet50_linf_eps4.0 --dataset imagenet-train --data_dir DIR
    python training.py --recipe lists/training/harmonized.txt:resnet50_harmonized --processes 4 --dataset imagenet-train \\
                       --data_dir DIR --clickme_dir DIR2

Start it again after an interruption and it goes on from its last checkpoint along the same loss curve; with another recipe
it refuses. `evaluate_robustness.py --checkpoint results/training/<name>/model.safetensors` takes what it trained. Several
GPUs: --processes N, which is torchrun with exit status, or torchrun itself. Exit status: 0 done, 2 the request is wrong or
training diverged (the last good checkpoint is kept), 85 checkpointed (--stop_after, SIGTERM), else worth another try.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from alignment_security.cluster.job import DamagedTar
from alignment_security.common.command_line import CHECKPOINTED, on_stop
from alignment_security.common.files import UserError
from alignment_security.common.settings import version_drift
from alignment_security.images.image_sets import DataError, ImageSet
from alignment_security.models.checkpoints import weights_sha256
from alignment_security.models.forward import pick_device, session_facts, tune_process
from alignment_security.models.heads import Model
from alignment_security.trainer.images import Augmented
from alignment_security.trainer.loop import broadcast, fit, make_learner, rank, resume, world_size
from alignment_security.trainer.options import parse_args
from alignment_security.trainer.run import (
    LAST,
    LOG_COLUMNS,
    TrainingError,
    TrainingRun,
    read_state,
    training_folder,
)
from alignment_security.trainer.setup import (
    check_request,
    load_training_images,
    recipe_settings,
    starting_model,
    unpack_staged,
    validation,
)


def join(device_name: str) -> torch.device | None:
    """Join the processes of torchrun, a GPU each; the device of this one, or None where there is one process."""
    if "LOCAL_RANK" not in os.environ:
        return None
    local, gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available() and device_name != "cpu"
    if gpu and local >= torch.cuda.device_count():
        raise TrainingError(
            f"process {local + 1} has no GPU, this machine has {torch.cuda.device_count()}; --processes "
            f"{torch.cuda.device_count()}, or --device cpu"
        )
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo")
    return device


class Stop:
    """Asked after every step: has SIGTERM or SIGHUP come, or is --stop_after over?"""

    def __init__(self, after: float | None):
        self.end, self.told = time.monotonic() + (math.inf if after is None else after), False
        on_stop(self.tell)

    def tell(self, *_) -> None:
        self.told = True

    def __call__(self) -> bool:
        return self.told or time.monotonic() > self.end


def train(args) -> int:
    stop = Stop(args.stop_after)
    device = join(args.device) or pick_device(args.device)
    tune_process(device, args.precision)
    sets = load_training_images(args)
    check_request(args, sets)
    model = starting_model(args, args.num_classes)
    settings = {"model": model.settings, "run": recipe_settings(args, sets)}
    if args.dry_run:
        if rank() == 0:
            print(json.dumps(settings, indent=1))
        return 0
    with (
        open_run(
            args, settings, session_facts(device, args.batch_size) | {"processes": world_size()}
        )
        or nullcontext() as run
    ):
        if not broadcast(run and run.done) and not work(
            args, model, sets, settings, device, run, stop
        ):
            if rank() == 0:
                print("checkpointed: run the same command again to go on", file=sys.stderr)
            return CHECKPOINTED
        if run:
            print(report(args, run))
    return 0


def open_run(args, settings: dict, facts: dict) -> TrainingRun | None:
    """The folder, in the hands of the first process; what that refuses, every process refuses."""
    run = refusal = None
    if rank() == 0:
        try:
            run = TrainingRun(args.results_dir, args.name, settings, facts, args.overwrite)
        except TrainingError as error:
            refusal = str(error)
    if said := broadcast(refusal):
        raise TrainingError(said)
    return run


def work(
    args,
    model: Model,
    sets: list[ImageSet],
    settings: dict,
    device: torch.device,
    run: TrainingRun | None,
    stop: Stop,
) -> bool:
    """Train from the last checkpoint on, and hand the weights over. Returns False when stopped before the end."""
    begin, status = time.monotonic(), "failed"
    data = Augmented(
        sets,
        model.preprocessing,
        args.augmentation,
        args.seed,
        args.objective in ("harmonizer", "both"),
        args.map_dir,
        args.blur_maps,
    )
    try:
        learner = make_learner(args, model.module, len(data.ids) // args.batch_size, device)
        if state := read_state(training_folder(args.results_dir, args.name) / LAST, settings):
            resume(learner, state)
        if run:
            run.cut_log(learner.step)
            for warning in set(version_drift()) - set(run.info["warnings"]):
                run.info["warnings"].append(warning)
        finished = fit(args, learner, data, data.ids, run, validation(args, model, device), stop)
        status = "running" if finished else "checkpointed"
    except UserError:
        if run:
            run.save(status=status, seconds=time.monotonic() - begin)
            run.discard_if_untrained()
        raise
    finally:
        if run and run.json.exists():
            run.save(status=status, seconds=time.monotonic() - begin)
    if run and finished:
        net: Any = learner.trained.net
        run.finish(net.state_dict(), weights_sha256=weights_sha256(net))
    return finished


def report(args, run: TrainingRun) -> str:
    last = run.csv.read_text().splitlines()[-1].split(",")
    shown = ", ".join(
        f"{name} {float(value):.4g}" for name, value in zip(LOG_COLUMNS, last) if value
    )
    return "\n".join(
        [
            f"{args.name}: {shown}",
            *(f"  warning: {w}" for w in run.info["warnings"]),
            f"  {run.final}",
        ]
    )


# ---- command line ----------------------------------------------------------------------------------------------


def launch(argv: list[str], processes: int) -> int:
    """torchrun on this machine, with the exit status of its processes: torchrun itself ends with 1 whatever theirs was."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        torchrun.main(
            [
                "--standalone",
                "--nproc_per_node",
                str(processes),
                str(Path(__file__).resolve()),
                *argv,
            ]
        )
        return 0
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return next((code for code in (2, CHECKPOINTED) if code in codes), 1)
    except SignalException:
        return CHECKPOINTED


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv, __doc__ or "")
    try:
        if args.chtc:  # before there are several processes, which find the folders then
            unpack_staged(args)
        if args.processes > 1 and "LOCAL_RANK" not in os.environ:
            return launch(argv, args.processes)
        return train(args)
    except UserError as error:
        if rank() == 0 or isinstance(
            error, DataError
        ):  # the others refuse the same, but each decodes its own images
            print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DamagedTar) else 2
    except torch.OutOfMemoryError:
        print(
            f"error: {args.pass_size or args.batch_size // world_size()} images at once do not fit on the device; a smaller "
            "--pass_size takes a step in parts, --precision bf16 about half the memory",
            file=sys.stderr,
        )
        return 2
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        print(
            f"error: {error.filename}: cannot be written ({error.strerror}); give another --results_dir",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted: run the same command again to go on from the last checkpoint",
            file=sys.stderr,
        )
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
