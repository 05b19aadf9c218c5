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
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.data import resolve_model_data_config
from torch import nn

import utilities
from alignment_security.attacks import autoattack as attacks
from alignment_security.attacks import engine
from alignment_security.cluster import job as chtc
from alignment_security.images import human_maps
from alignment_security.images import loading as dataloading
from alignment_security.models import fast as passes
from alignment_security.models import forward as sessions
from alignment_security.models import loading as models
from alignment_security.models import names as zoo
from alignment_security.records import run as records
from alignment_security.trainer import images as training_images
from alignment_security.trainer import objectives
from alignment_security.trainer import options as training_options
from alignment_security.trainer.images import Augmented, DataError
from alignment_security.trainer.loop import fit, make_learner, rank, shared, take_up, world
from alignment_security.trainer.run import LAST, LOG, TrainingError, TrainingRun, folder_of, read_state

REQUEST_ERRORS = (models.ModelError, DataError, engine.AttackError, records.RecordError, TrainingError,
                  objectives.ObjectiveError)


# ---- what is trained -------------------------------------------------------------------------------------------

def starting_model(args, classes: int) -> models.Model:
    """The net that training begins with, as models.load_model gives it, but of random weights for --init random."""
    if args.init == "random":
        entry = zoo.find(args.model_name)
        if not entry.net:
            raise models.ModelError(entry.note)
        torch.manual_seed(args.seed)
        net: Any = models.create_net(entry.net, pretrained=False)
        if classes != net.num_classes:
            net.reset_classifier(classes)
        config = resolve_model_data_config(net)
        module: nn.Module = models.PixelModel(net, config["mean"], config["std"])
        preprocessing = {key: config[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode")}
        facts = {"name": args.model_name, "mean": config["mean"], "std": config["std"], "preprocessing": preprocessing}
        model = models.Model(module, facts, preprocessing, classes)
    else:
        model = models.load_model(args.model_name, None if args.init == "pretrained" else Path(args.init))
        net = model.module.requires_grad_(True).net
        if classes != model.n_outputs:
            torch.manual_seed(args.seed)
            net.reset_classifier(classes)
    facts = model.settings | {"weights": model.settings.get("weights", "random"), "classes": classes,
                              "weights_sha256": models.weights_sha256(net)}
    return replace(model, settings=facts, n_outputs=classes)


# ---- a run -----------------------------------------------------------------------------------------------------

def unpack_staged(args) -> None:
    """Where a folder is given as X.tar, put the folder inside that tar of STAGING_DIR in its place."""
    staging = chtc.staging_dir(utilities.setting("STAGING_DIR"))
    for name in ("data_dir", "clickme_dir", "map_dir", "val_dir"):
        if given := getattr(args, name):
            setattr(args, name, type(given)(chtc.staged_images(staging, str(given))))


def load_images(args) -> list[dataloading.ImageSet]:
    """The lists to train on; --clickme_dir adds ClickMe's images, which bring maps."""
    folder = args.data_dir or sessions.default_dir(args.dataset)
    extra = [dataloading.load_image_set("clickme", str(args.clickme_dir))] if args.clickme_dir else []
    return [dataloading.load_image_set(args.dataset, folder, args.num_classes), *extra]


def run_settings(args, sets: list[dataloading.ImageSet]) -> dict:
    """The recipe: everything that changes the weights; compared on resume."""
    maps = [f"folder {args.map_dir.name}"] if args.map_dir else []
    maps += [source for images in sets if (source := human_maps.map_source(images))]
    return {**{name: getattr(args, name) for name in training_options.RECIPE}, "augmentation": args.augmentation,
            **({"human_map": maps, "blur_maps": args.blur_maps} if args.objective in ("harmonizer", "both") else {}),
            "images_per_pass": args.pass_size or args.batch_size // world(), "image_set": [s.name for s in sets],
            "images": [len(s) for s in sets], "list_sha256": [s.list_sha256 for s in sets]}


def check_request(args, sets: list[dataloading.ImageSet]) -> None:
    """Raise TrainingError for a request that cannot be trained, before anything is written."""
    count, name = sum(map(len, sets)), " and ".join(images.name for images in sets)
    if args.batch_size % world():
        raise TrainingError(f"--batch_size {args.batch_size}: cannot be shared by {world()} processes")
    if count < args.batch_size:
        raise TrainingError(f"{name}: {count} images, fewer than a batch of {args.batch_size}; --batch_size {count} at most")
    if args.map_dir and not args.map_dir.is_dir():
        raise TrainingError(f"--map_dir {args.map_dir}: no such folder")
    if args.objective in ("harmonizer", "both") and not args.allow_missing_maps:
        if missing := training_images.classes_without_map(sets, args.map_dir):
            raise TrainingError(f"{args.map_dir or name}: no human map for any image of class {missing[0]} ({len(missing)} such "
                                "classes); bring maps (--clickme_dir, --map_dir), or pass --allow_missing_maps to train those "
                                "classes by cross-entropy alone")


def join(device_name: str) -> torch.device | None:
    """Join the processes of torchrun, a GPU each; the device of this one, or None where there is one process."""
    if "LOCAL_RANK" not in os.environ:
        return None
    local, gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available() and device_name != "cpu"
    if gpu and local >= torch.cuda.device_count():
        raise TrainingError(f"process {local + 1} has no GPU, this machine has {torch.cuda.device_count()}; --processes "
                            f"{torch.cuda.device_count()}, or --device cpu")
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo")
    return device


def validation(args, model: models.Model, device: torch.device) -> Callable[[nn.Module], float] | None:
    """Accuracy on the images of --val_dataset, shared by the processes."""
    if not args.val_dataset:
        return None
    images = dataloading.load_image_set(args.val_dataset, args.val_dir or sessions.default_dir(args.val_dataset), model.n_outputs)
    share = images.take(range(rank(), len(images), world()))

    def accuracy(net: nn.Module) -> float:
        training, source = net.training, dataloading.stream(share, model.preprocessing, args.workers)
        rows = attacks.clean_rows(net.eval(), source, model.n_outputs, args.pass_size or args.batch_size // world())
        right = torch.tensor(float(sum(row["clean_correct"] for some in rows for row in some)), device=device)
        net.train(training)
        if world() > 1:
            dist.all_reduce(right)
        return right.item() / len(images)
    return accuracy


class Stop:
    """Asked after every step: has SIGTERM or SIGHUP come, or is --stop_after over?"""

    def __init__(self, after: float | None):
        self.end, self.told = time.monotonic() + (math.inf if after is None else after), False
        sessions.on_stop(self.tell)

    def tell(self, *_) -> None:
        self.told = True

    def __call__(self) -> bool:
        return self.told or time.monotonic() > self.end


def train(args) -> int:
    stop = Stop(args.stop_after)
    device = join(args.device) or sessions.pick_device(args.device)
    passes.tune_process(device, args.precision)
    sets = load_images(args)
    check_request(args, sets)
    model = starting_model(args, args.num_classes)
    settings = {"model": model.settings, "run": run_settings(args, sets)}
    if args.dry_run:
        if rank() == 0:
            print(json.dumps(settings, indent=1))
        return 0
    with open_run(args, settings, sessions.facts(device, args.batch_size) | {"processes": world()}) or nullcontext() as run:
        if not shared(run and run.done) and not work(args, model, sets, settings, device, run, stop):
            if rank() == 0:
                print("checkpointed: run the same command again to go on", file=sys.stderr)
            return sessions.CHECKPOINTED
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
    if said := shared(refusal):
        raise TrainingError(said)
    return run


def work(args, model: models.Model, sets: list[dataloading.ImageSet], settings: dict, device: torch.device,
         run: TrainingRun | None, stop: Stop) -> bool:
    """Train from the last checkpoint on, and hand the weights over. Returns False when stopped before the end."""
    begin, status = time.monotonic(), "failed"
    data = Augmented(sets, model.preprocessing, args.augmentation, args.seed, args.objective in ("harmonizer", "both"),
                     args.map_dir, args.blur_maps)
    try:
        learner = make_learner(args, model.module, len(data.ids) // args.batch_size, device)
        if state := read_state(folder_of(args.results_dir, args.name) / LAST, settings):
            take_up(learner, state)
        if run:
            run.cut_log(learner.step)
            for warning in set(utilities.version_drift()) - set(run.info["warnings"]):
                run.info["warnings"].append(warning)
        finished = fit(args, learner, data, data.ids, run, validation(args, model, device), stop)
        status = "running" if finished else "checkpointed"
    except REQUEST_ERRORS:
        if run:
            run.save(status=status, seconds=time.monotonic() - begin)
            run.discard_if_untrained()
        raise
    finally:
        if run and run.json.exists():
            run.save(status=status, seconds=time.monotonic() - begin)
    if run and finished:
        net: Any = learner.trained.net
        run.finish(net.state_dict(), weights_sha256=models.weights_sha256(net))
    return finished


def report(args, run: TrainingRun) -> str:
    last = run.csv.read_text().splitlines()[-1].split(",")
    shown = ", ".join(f"{name} {float(value):.4g}" for name, value in zip(LOG, last) if value)
    return "\n".join([f"{args.name}: {shown}", *(f"  warning: {w}" for w in run.info["warnings"]), f"  {run.final}"])


# ---- command line ----------------------------------------------------------------------------------------------

def launch(argv: list[str], processes: int) -> int:
    """torchrun on this machine, with the exit status of its processes: torchrun itself ends with 1 whatever theirs was."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    try:
        torchrun.main(["--standalone", "--nproc_per_node", str(processes), str(Path(__file__).resolve()), *argv])
        return 0
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return next((code for code in (2, sessions.CHECKPOINTED) if code in codes), 1)
    except SignalException:
        return sessions.CHECKPOINTED


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = training_options.parse(argv, __doc__ or "")
    try:
        if args.chtc:                                       # before there are several processes, which find the folders then
            unpack_staged(args)
        if args.processes > 1 and "LOCAL_RANK" not in os.environ:
            return launch(argv, args.processes)
        return train(args)
    except REQUEST_ERRORS as error:
        if rank() == 0 or isinstance(error, DataError):     # the others refuse the same, but each decodes its own images
            print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, chtc.DamagedTar) else 2
    except torch.OutOfMemoryError:
        print(f"error: {args.pass_size or args.batch_size // world()} images at once do not fit on the device; a smaller "
              "--pass_size takes a step in parts, --precision bf16 about half the memory", file=sys.stderr)
        return 2
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        print(f"error: {error.filename}: cannot be written ({error.strerror}); give another --results_dir", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
