"""One model x one threat x one image set -> one record file (and its run file) under results/records/.

    python evaluate_robustness.py --model_name tf_efficientnet_lite0 clean
    python evaluate_robustness.py --model_name tf_efficientnet_lite0 Linf --eps 0.25/255 0.5/255 1/255
    python evaluate_robustness.py --model_name tf_efficientnet_lite0 --head animate L2 --steps 1000
    python evaluate_robustness.py --model_name resnet50.a1_in1k --dataset imagenet-val --data_dir DIR -s 960 Linf --eps 1/255

Start it again after an interruption and it goes on at the next image; with other settings it refuses. Exit status:
0 done, 2 the request is wrong, 85 checkpointed (--stop_after, SIGTERM, SIGHUP), anything else is worth another try.
"""
from __future__ import annotations

import errno
import io
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import Any

import numpy as np
import torch
from timm.data import ImageNetInfo
from tqdm import tqdm

import utilities
from alignment_security.attacks import autoattack as attacks
from alignment_security.attacks import engine, libraries
from alignment_security.cluster import job as chtc
from alignment_security.evaluation import dry_run as rehearsal
from alignment_security.evaluation import options as command_line
from alignment_security.evaluation import published
from alignment_security.evaluation.options import CLEAN_THREATS
from alignment_security.images import human_maps
from alignment_security.images import loading as dataloading
from alignment_security.models import fast as passes
from alignment_security.models import forward as sessions
from alignment_security.models import loading as models
from alignment_security.models import names as zoo
from alignment_security.records import adversarial_examples as examples
from alignment_security.records import metrics
from alignment_security.records import run as records

REQUEST_ERRORS = (models.ModelError, dataloading.DataError, engine.AttackError, records.RecordError)
PROGRESS_SECONDS = 60       # between lines when the output is no terminal


DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class Stopped(BaseException):
    """SIGTERM, SIGHUP, or --stop_after is over: rows so far are on disk."""


def tell(text: str, stream=None) -> None:
    """Print a line; that nobody listens any more (a closed pipe, a terminal that hung up) ends no run."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# ---- settings --------------------------------------------------------------------------------------------------

def threat_name(args) -> str:
    """The folder of the record: `clean`, `Linf`, `L2-fmn`, `corruptions-fog-3`, ..."""
    if args.threat == "corruptions":
        return f"corruptions-{args.corruption_type}-{args.corruption_severity}"
    if args.threat == "clean" or (args.threat == "Linf" and args.protocol == "autoattack"):
        return args.threat
    return f"{args.threat}-{args.protocol}"


def budget_of(args) -> attacks.Budget:
    return attacks.Budget(tuple(args.attacks), args.steps, args.targets, args.queries)


def attack_settings(args) -> dict:
    """What the attack spends: constant over the models of a folder, compared on resume and on merge."""
    if args.threat in CLEAN_THREATS:
        return {"attack": "none", "protocol": "clean"}
    common = {"protocol": args.protocol, "norm": args.threat, "seed": args.seed}
    if args.protocol == "autoattack":
        budget = budget_of(args)
        return common | {"attack": budget.name, "eps": sorted(set(args.eps)), "engine": args.engine,
                         "ladder": "bisect" if args.bisect else "ascending", "attacks": budget.attacks,
                         "steps": budget.steps, "targets": budget.targets, "queries": budget.queries}
    if args.protocol in libraries.FOOLBOX:
        name, settings = libraries.FOOLBOX[args.protocol]
        return common | {"attack": f"foolbox {name} {args.steps} steps", **settings, "steps": args.steps,
                         **({"pixels": "stretched to [0, 1]"} if args.protocol == "feng2025" else {})}
    if args.protocol == "crossing":
        return common | {"attack": f"crossing {args.steps} steps", "steps": args.steps,
                         **({"head_gradient": f"log-sum-exp at {models.SMOOTH} std"} if args.head == "animate" else {})}
    return common | {"attack": f"FMN {args.steps} steps", "steps": args.steps, "step_size": args.step_size,
                     "final_step_size": args.final_step_size, "gamma": args.gamma}


def run_settings(args, images: dataloading.ImageSet) -> dict:
    return {**attack_settings(args), "precision": args.precision, "head": args.head, "image_set": images.name,
            "images": len(images), "list_sha256": images.list_sha256, "slice": args.slice, **images.facts,
            **({"contents_sha256": images.contents_sha256()} if images.name == "big12" else {}),
            **({"multilabel_sha256": records.sha256_file(args.multilabel)} if accepted_labels(args) else {}),
            **({"human_map": human_maps.map_source(images), "map_reduce": map_reduce(args),
                "human_ceiling": metrics.HUMAN_CEILING} if has_alignment(args) and human_maps.map_source(images) else {})}


def accepted_labels(args) -> dict[str, frozenset[int]]:
    """Classes that people accept for an image; of no use to attacks, nor to a head of two classes."""
    wanted = args.multilabel and args.threat in CLEAN_THREATS and args.head == "none"
    return human_maps.read_multilabels(args.multilabel) if wanted else {}


def has_alignment(args) -> bool:
    return args.threat not in CLEAN_THREATS and args.protocol != "autoattack"


def map_reduce(args) -> str:
    """Perturbation -> map; the published norms come with the published map, |max over channels|."""
    return "feng2025" if args.protocol == "feng2025" else args.map_reduce


# ---- the work --------------------------------------------------------------------------------------------------

def labelled(source: Iterator, head: str) -> Generator:
    """The labels that the head's outputs stand for."""
    for name, x, label in source:
        yield name, x, label if models.HEADS[head] is None else int(label >= models.ANIMATE_CLASSES)


def attacked(args, model: models.Model) -> torch.nn.Module:
    """What the attack runs: the fast copy, but for clean passes and the libraries, which run the plain module."""
    if args.threat in CLEAN_THREATS or args.protocol in libraries.FOOLBOX or getattr(args, "engine", "own") == "reference":
        return model.module
    example = torch.rand(2, *model.preprocessing["input_size"], device=engine.device_of(model.module))
    module = models.smoothed(model.module) if args.protocol == "crossing" else model.module
    return passes.faster(module, example, args.precision, args.compile)


def run_attack(args, model: models.Model, source: Iterator, batch_size: int, run: records.Run) -> Iterator[list[dict]]:
    """Record rows as the threat's attack finds them."""
    common: dict[str, Any] = {"n_outputs": model.n_outputs, "batch_size": batch_size, "log": run.warn}
    if args.threat in CLEAN_THREATS:
        return attacks.clean_rows(model.module, source, **common)
    if args.protocol in libraries.FOOLBOX:
        return libraries.foolbox_rows(model.module, source, args.protocol, args.steps, **common)
    common["seed"] = args.seed
    if args.protocol == "autoattack":
        common |= {"norm": args.threat, "eps": sorted(set(args.eps)), "budget": budget_of(args), "begun": run.known()}
        if args.engine == "reference":
            return libraries.reference_balls(model.module, source, **common)
    fast = attacked(args, model)
    common["exact"] = passes.Strict(model.module)
    if args.protocol == "autoattack":
        return attacks.attack_balls(fast, source, bisect=args.bisect, **common)
    return attacks.attack_minimum_norm(fast, source, command_line.minimum_norm_attack(args), **common)


def load_model(args, device: torch.device) -> models.Model:
    """The model by its name; with --chtc out of its tar in STAGING_DIR."""
    if args.chtc:
        return chtc.load_staged(chtc.staging_dir(utilities.setting("STAGING_DIR")), args.model_name, args.head, device)
    checkpoint = args.checkpoint or zoo.checkpoint_of(args.model_name, utilities.setting("CHECKPOINT_DIR"))
    return models.load_model(args.model_name, checkpoint, args.trust_checkpoint, args.head, device, args.architecture, args.source)


def data_dir(args) -> str | None:
    """--data_dir, or its folder of .env; with --chtc X.tar is the folder inside that tar of STAGING_DIR."""
    if args.chtc and args.data_dir:
        return chtc.staged_images(chtc.staging_dir(utilities.setting("STAGING_DIR")), args.data_dir)
    return args.data_dir or sessions.default_dir(args.dataset)


def until(source: Iterator, deadline: float) -> Iterator:
    """Images until the time is over, one at least: those under way are finished, so that nothing is computed twice."""
    for item in source:
        yield item
        if time.monotonic() > deadline:
            return


def evaluate(args) -> int:
    device = sessions.pick_device(args.device)
    passes.tune_process(device, args.precision)
    model = load_model(args, device)
    model.module.to(memory_format=torch.channels_last)
    images = dataloading.load_image_set(
        args.dataset, data_dir(args), model.n_outputs if args.head == "none" else models.IMAGENET_CLASSES,
        command_line.parse_corruption(args), args.seed)
    model = models.restricted(model, images.restrict_to)
    if args.slice:
        images = dataloading.take_slice(images, *args.slice)
    settings = {"model": model.settings, "run": run_settings(args, images)}
    if args.published_accuracy:
        published.read_published(args.published_accuracy)   # a table that cannot be read is refused before anything is written
    if args.threat not in CLEAN_THREATS and args.protocol == "autoattack":
        budget_of(args).check(model.n_outputs)
    batch_size = (engine.auto_batch_size(model.module, model.preprocessing["input_size"], device) if args.batch_size == "auto"
                  else args.batch_size)
    if args.dry_run:
        print(rehearsal.describe(model, images, threat_name(args), settings["run"], attacked(args, model), batch_size))
        return 0
    with records.Run(args.results_dir, images.name, threat_name(args), args.model_name,
                     {"clean": "clean", "autoattack": "ball"}.get(settings["run"]["protocol"], "minimum_norm"), settings,
                     sessions.facts(device, batch_size), args.overwrite) as run:
        if args.overwrite:
            shutil.rmtree(examples.folder_of(run.csv), ignore_errors=True)
        if not run.done:
            work(args, model, images, batch_size, run)
        tell(report(args, run))
        return 0


def work(args, model: models.Model, images: dataloading.ImageSet, batch_size: int, run: records.Run) -> None:
    """Everything that is not in the record yet, row by row into it. Raises Stopped when told to."""
    begin, eps = time.monotonic(), run.settings["run"].get("eps")
    deadline = begin + (args.stop_after or math.inf)
    counted = Counter({name: len(rows) for name, rows in run.known().items()})
    todo = images.take([i for i, name in enumerate(images.ids) if counted[name] < len(eps or [0])])
    for warning in [*utilities.version_drift(), *model.notes]:
        run.warn(warning)
    try:
        if len(todo):
            first = next(dataloading.stream(todo, model.preprocessing))[1][None].to(engine.device_of(model.module))
            for warning in models.check_model(model.module, first, model.n_outputs, args.model_name):
                run.warn(warning)
            if args.threat not in CLEAN_THREATS:
                rehearsal.compare_with_published(args.published_accuracy, model, images, batch_size, run)
        place = {name: i for i, name in enumerate(images.ids)}
        progress = Progress(len(images), len(images) - len(todo), args.model_name)
        # closed before a failure travels on: decoding workers that outlive it would keep the process from ending
        with closing(labelled(dataloading.stream(todo, model.preprocessing, args.workers), args.head)) as source:
            for rows in run_attack(args, model, until(source, deadline), batch_size, run):
                add_human_columns(args, rows, images, model, place)
                run.append(rows)
                save_examples(args, rows, images, run)
                counted.update(row["image_id"] for row in rows)
                progress.show(sum(counted[name] == len(eps or [0]) for name in {row["image_id"] for row in rows}), rows)
        progress.close()
        if time.monotonic() > deadline and any(counted[name] < len(eps or [0]) for name in images.ids):
            raise Stopped
    except BaseException as error:
        with suppress(OSError):     # a full disk: what is told is what happened first
            run.save(status="checkpointed" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed",
                     error=repr(error)[:500], seconds=time.monotonic() - begin)
        if isinstance(error, REQUEST_ERRORS):
            run.discard_if_empty()
        raise
    run.finish(list(images.ids), eps, seconds=time.monotonic() - begin, error=None)
    if args.threat == "clean":
        rehearsal.compare_with_published(args.published_accuracy, model, images, batch_size, run)
    for warning in attacks.suspicions(run.rows):
        run.warn(warning)


def add_human_columns(args, rows: list[dict], images: dataloading.ImageSet, model: models.Model, place: dict) -> None:
    """Clean predictions against all labels that fit; agreement of perturbations with human maps, no cell where it is undefined."""
    for row in rows:
        if args.threat in CLEAN_THREATS and model.n_outputs == models.IMAGENET_CLASSES:
            row["clean_real"] = human_maps.real_correct(row["image_id"], row["clean_pred"])
            row["clean_multilabel"] = human_maps.multilabel_correct(accepted_labels(args), row["image_id"], row["clean_pred"])
        if row.get("perturbation") is None or not has_alignment(args):
            continue
        people = human_maps.human_map(images, place[row["image_id"]], model.preprocessing)
        if people is None:
            continue
        raw = metrics.rank_agreement(people[None], row["perturbation"].cpu().numpy()[None], map_reduce(args))[0]
        if not np.isnan(raw):
            row |= {"human_alignment_raw": float(raw), "human_alignment": float(metrics.over_ceiling(raw))}


def save_examples(args, rows: list[dict], images: dataloading.ImageSet, run: records.Run) -> None:
    """Photograph and perturbation of the first --examples images that were fooled, one .npz an image, for figures."""
    for row in rows:
        if row.get("perturbation") is None or row["image_id"] not in images.ids[:args.examples]:
            continue
        at = images.ids.index(row["image_id"])
        pixels = dataloading.Pixels(images, run.settings["model"]["preprocessing"])[at][1]
        people = human_maps.human_map(images, at, run.settings["model"]["preprocessing"])
        shown: dict[str, Any] = {} if people is None else {"human_map": people.astype(np.float16)}
        file = io.BytesIO()
        np.savez_compressed(file, **shown, human_alignment=row.get("human_alignment", np.nan),
                            image=(pixels.numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0),
                            delta=row["perturbation"].cpu().numpy().astype(np.float16).transpose(1, 2, 0),
                            label=class_name(row["label"], args.head), pred=class_name(row["adv_pred"], args.head),
                            eps=row.get("eps", np.nan), l2=row["l2"], linf=row["linf"])
        records.write_atomic(examples.path_of(run.csv, row["image_id"]), file.getvalue())


def class_name(index: int, head: str) -> str:
    if models.HEADS[head]:
        return ("animate", "inanimate")[index]
    return ImageNetInfo("imagenet-1k").index_to_description(index).split(",")[0] if index < 1000 else str(index)


class Progress:
    """Images done, rate, time left and the verdict so far: a bar on a terminal, else a line a minute."""

    def __init__(self, total: int, begun: int, name: str):
        self.bar = tqdm(total=total, initial=begun, desc=name, unit="image", disable=not sys.stderr.isatty())
        self.start = self.shown = time.monotonic()
        self.total, self.begun, self.done, self.name = total, begun, begun, name
        self.verdicts: dict[str, list[float]] = {}
        chtc.tell_progress(begun, total, 0)

    def rate(self) -> float:
        """Images a second of this process."""
        return (self.done - self.begun) / (time.monotonic() - self.start)

    def show(self, finished: int, rows: list[dict]) -> None:
        self.done += finished
        for row in rows:
            self.verdicts.setdefault("correct" if "eps" not in row else f"robust at {utilities.format_eps(row['eps'])}", []
                                     ).append(row.get("robust", row["clean_correct"]))
            if row.get("success"):
                self.verdicts.setdefault("mean L2", []).append(row["l2"])
        if rows:
            self.bar.set_postfix_str(self.verdict(), refresh=False)
        self.bar.update(finished)
        if self.bar.disable and time.monotonic() - self.shown > PROGRESS_SECONDS:
            self.shown = time.monotonic()
            meter = tqdm.format_meter(self.done, self.total, self.shown - self.start, ncols=0, unit="image",
                                      initial=self.begun, postfix=self.verdict())
            tell(f"{records.now()} {self.name}: {meter}", sys.stderr)
            chtc.tell_progress(self.done, self.total, 3600 * self.rate())

    def verdict(self) -> str:
        """Counts of what is decided so far: what falls early is decided first, so shares would mislead."""
        return ", ".join(f"{key} {sum(v) / len(v):.3f}" if key == "mean L2" else f"{key} {sum(v)} of {len(v)}"
                         for key, v in self.verdicts.items())

    def close(self) -> None:
        self.bar.close()
        chtc.tell_progress(self.done, self.total, 3600 * self.rate())


def report(args, run: records.Run) -> str:
    """What the finished record says, a line per eps, and where it lies."""
    rows = run.rows
    correct = rows[rows["clean_correct"] == 1]
    n, right = rows["image_id"].nunique(), correct["image_id"].nunique()
    attack = "" if args.threat == "clean" else f"; {run.settings['run']['attack']}"
    lines = [f"{args.model_name} on {run.info['image_set']} (n = {n}): clean accuracy {right / n:.1%}{attack}"]
    if "robust" in rows:
        lines += [f"  eps {utilities.format_eps(eps)}: robust accuracy {part['robust'].mean():.1%}"
                  for eps, part in rows.groupby("eps")]
    if "success" in rows:
        norms = correct.loc[correct["success"] == 1, "l2"]
        lines.append(f"  minimal L2 norm: mean {norms.mean():.4f}, median {norms.median():.4f} over {len(norms)} images")
    return "\n".join([*lines, *(f"  warning: {w}" for w in run.info["warnings"]), f"  {run.csv}"])


def main(argv: list[str] | None = None) -> int:
    args = command_line.parse(sys.argv[1:] if argv is None else argv, __doc__ or "")

    def stop(*_):
        raise Stopped
    sessions.on_stop(stop)
    try:
        return evaluate(args)
    except REQUEST_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, chtc.DamagedTar) else 2
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        print(f"error: {error.filename}: cannot be written ({error.strerror}); give another --results_dir", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error.filename or args.results_dir}: {str(error.strerror).partition(';')[0]}; what is written stays, make "
              "room and run the same command again", file=sys.stderr)
        return 1
    except Stopped:
        tell("checkpointed: run the same command again to go on", sys.stderr)
        return sessions.CHECKPOINTED
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
