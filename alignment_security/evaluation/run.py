"""alignment_security.evaluation.run."""

from __future__ import annotations

import io
import math
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import ImageNetInfo
from tqdm import tqdm

from alignment_security.attacks.autoattack import masked_gradient_warnings, run_autoattack
from alignment_security.attacks.clean import run_clean
from alignment_security.attacks.libraries import FOOLBOX, run_foolbox, run_pyautoattack
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.cluster.job import (
    StagingError,
    report_progress,
    staged_images,
    staged_weights,
    staging_dir,
)
from alignment_security.common.command_line import print_line
from alignment_security.common.files import UserError, utc_now, write_atomic
from alignment_security.common.settings import format_eps, setting, version_drift
from alignment_security.evaluation.options import CLEAN_THREATS, minimum_norm_attack
from alignment_security.evaluation.published import compare_with_published
from alignment_security.evaluation.threats import (
    accepted_labels,
    budget_of,
    has_alignment,
    map_reduce,
)
from alignment_security.images.human_maps import human_map
from alignment_security.images.image_sets import ImageSet, default_dir
from alignment_security.images.labels import multilabel_correct, real_correct
from alignment_security.images.loading import PixelDataset, stream_images
from alignment_security.models.fast import WithoutTF32, fast_copy
from alignment_security.models.forward import device_of
from alignment_security.models.heads import (
    ANIMATE_CLASSES,
    HEADS,
    IMAGENET_CLASSES,
    Model,
    smooth_head,
)
from alignment_security.models.loading import check_model, load_model
from alignment_security.models.names import listed_checkpoint
from alignment_security.records.adversarial_examples import example_path
from alignment_security.records.metrics import over_ceiling, rank_agreement
from alignment_security.records.run import Run


def load_staged(staging: Path, name: str, head: str, device) -> Any:
    """The models.Model called `name` from its staged weights; refused where they are not the ones that were staged."""
    staged = staged_weights(staging, name)
    model = load_model(
        name, staged.checkpoint, head=head, device=device, architecture=staged.facts["net"]
    )
    if model.settings["weights_sha256"] != staged.facts["weights_sha256"]:
        raise StagingError(
            f"{staged.checkpoint}: not the weights that were staged (sha256 differs); run prestage again"
        )
    return replace(model, settings=model.settings | {"weights": staged.facts["weights"]})


PROGRESS_SECONDS = 60  # between lines when the output is no terminal


class Stopped(BaseException):
    """SIGTERM, SIGHUP, or --stop_after is over: rows so far are on disk."""


# ---- the work --------------------------------------------------------------------------------------------------


def with_head_labels(source: Iterator, head: str) -> Generator:
    """The labels that the head's outputs stand for."""
    for name, x, label in source:
        yield name, x, label if HEADS[head] is None else int(label >= ANIMATE_CLASSES)


def attacked_module(args, model: Model) -> torch.nn.Module:
    """What the attack runs: the fast copy, but for clean passes and the libraries, which run the plain module."""
    if (
        args.threat in CLEAN_THREATS
        or args.protocol in FOOLBOX
        or getattr(args, "engine", "own") == "reference"
    ):
        return model.module
    example = torch.rand(2, *model.preprocessing["input_size"], device=device_of(model.module))
    module = smooth_head(model.module) if args.protocol == "crossing" else model.module
    return fast_copy(module, example, args.precision, args.compile)


def run_attack(
    args, model: Model, source: Iterator, batch_size: int, run: Run
) -> Iterator[list[dict]]:
    """Record rows as the threat's attack finds them."""
    common: dict[str, Any] = {
        "n_outputs": model.n_outputs,
        "batch_size": batch_size,
        "log": run.warn,
    }
    if args.threat in CLEAN_THREATS:
        return run_clean(model.module, source, **common)
    if args.protocol in FOOLBOX:
        return run_foolbox(model.module, source, args.protocol, args.steps, **common)
    common["seed"] = args.seed
    if args.protocol == "autoattack":
        common |= {
            "norm": args.threat,
            "eps": sorted(set(args.eps)),
            "budget": budget_of(args),
            "begun": run.known(),
        }
        if args.engine == "reference":
            return run_pyautoattack(model.module, source, **common)
    fast = attacked_module(args, model)
    common["exact"] = WithoutTF32(model.module)
    if args.protocol == "autoattack":
        return run_autoattack(fast, source, bisect=args.bisect, **common)
    return run_minimum_norm(fast, source, minimum_norm_attack(args), **common)


def load_requested_model(args, device: torch.device) -> Model:
    """The model by its name; with --chtc out of its tar in STAGING_DIR."""
    if args.chtc:
        return load_staged(staging_dir(setting("STAGING_DIR")), args.model_name, args.head, device)
    checkpoint = args.checkpoint or listed_checkpoint(args.model_name, setting("CHECKPOINT_DIR"))
    return load_model(
        args.model_name,
        checkpoint,
        args.trust_checkpoint,
        args.head,
        device,
        args.architecture,
        args.source,
    )


def requested_data_dir(args) -> str | None:
    """--data_dir, or its folder of .env; with --chtc X.tar is the folder inside that tar of STAGING_DIR."""
    if args.chtc and args.data_dir:
        return staged_images(staging_dir(setting("STAGING_DIR")), args.data_dir)
    return args.data_dir or default_dir(args.dataset)


def stop_after(source: Iterator, deadline: float) -> Iterator:
    """Images until the time is over, one at least: those under way are finished, so that nothing is computed twice."""
    for item in source:
        yield item
        if time.monotonic() > deadline:
            return


def evaluate_images(args, model: Model, images: ImageSet, batch_size: int, run: Run) -> None:
    """Everything that is not in the record yet, row by row into it. Raises Stopped when told to."""
    begin, eps = time.monotonic(), run.settings["run"].get("eps")
    deadline = begin + (args.stop_after or math.inf)
    counted = Counter({name: len(rows) for name, rows in run.known().items()})
    todo = images.take([i for i, name in enumerate(images.ids) if counted[name] < len(eps or [0])])
    for warning in [*version_drift(), *model.notes]:
        run.warn(warning)
    try:
        if len(todo):
            first = next(stream_images(todo, model.preprocessing))[1][None].to(
                device_of(model.module)
            )
            for warning in check_model(model.module, first, model.n_outputs, args.model_name):
                run.warn(warning)
            if args.threat not in CLEAN_THREATS:
                compare_with_published(args.published_accuracy, model, images, batch_size, run)
        place = {name: i for i, name in enumerate(images.ids)}
        progress = Progress(len(images), len(images) - len(todo), args.model_name)
        # closed before a failure travels on: decoding workers that outlive it would keep the process from ending
        with closing(
            with_head_labels(stream_images(todo, model.preprocessing, args.workers), args.head)
        ) as source:
            for rows in run_attack(args, model, stop_after(source, deadline), batch_size, run):
                add_human_columns(args, rows, images, model, place)
                run.append(rows)
                save_examples(args, rows, images, run)
                counted.update(row["image_id"] for row in rows)
                progress.show(
                    sum(
                        counted[name] == len(eps or [0])
                        for name in {row["image_id"] for row in rows}
                    ),
                    rows,
                )
        progress.close()
        if time.monotonic() > deadline and any(
            counted[name] < len(eps or [0]) for name in images.ids
        ):
            raise Stopped
    except BaseException as error:
        with suppress(OSError):  # a full disk: what is told is what happened first
            run.save(
                status="checkpointed"
                if isinstance(error, (Stopped, KeyboardInterrupt))
                else "failed",
                error=repr(error)[:500],
                seconds=time.monotonic() - begin,
            )
        if isinstance(error, UserError):
            run.discard_if_empty()
        raise
    run.finish(list(images.ids), eps, seconds=time.monotonic() - begin, error=None)
    if args.threat == "clean":
        compare_with_published(args.published_accuracy, model, images, batch_size, run)
    for warning in masked_gradient_warnings(run.rows):
        run.warn(warning)


def add_human_columns(args, rows: list[dict], images: ImageSet, model: Model, place: dict) -> None:
    """Clean predictions against all labels that fit; agreement of perturbations with human maps, no cell where it is undefined."""
    for row in rows:
        if args.threat in CLEAN_THREATS and model.n_outputs == IMAGENET_CLASSES:
            row["clean_real"] = real_correct(row["image_id"], row["clean_pred"])
            row["clean_multilabel"] = multilabel_correct(
                accepted_labels(args), row["image_id"], row["clean_pred"]
            )
        if row.get("perturbation") is None or not has_alignment(args):
            continue
        people = human_map(images, place[row["image_id"]], model.preprocessing)
        if people is None:
            continue
        raw = rank_agreement(
            people[None], row["perturbation"].cpu().numpy()[None], map_reduce(args)
        )[0]
        if not np.isnan(raw):
            row |= {"human_alignment_raw": float(raw), "human_alignment": float(over_ceiling(raw))}


def save_examples(args, rows: list[dict], images: ImageSet, run: Run) -> None:
    """Photograph and perturbation of the first --examples images that were fooled, one .npz an image, for figures."""
    for row in rows:
        if row.get("perturbation") is None or row["image_id"] not in images.ids[: args.examples]:
            continue
        at = images.ids.index(row["image_id"])
        pixels = PixelDataset(images, run.settings["model"]["preprocessing"])[at][1]
        people = human_map(images, at, run.settings["model"]["preprocessing"])
        shown: dict[str, Any] = {} if people is None else {"human_map": people.astype(np.float16)}
        file = io.BytesIO()
        np.savez_compressed(
            file,
            **shown,
            human_alignment=row.get("human_alignment", np.nan),
            image=(pixels.numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0),
            delta=row["perturbation"].cpu().numpy().astype(np.float16).transpose(1, 2, 0),
            label=class_name(row["label"], args.head),
            pred=class_name(row["adv_pred"], args.head),
            eps=row.get("eps", np.nan),
            l2=row["l2"],
            linf=row["linf"],
        )
        write_atomic(example_path(run.csv, row["image_id"]), file.getvalue())


def class_name(index: int, head: str) -> str:
    if HEADS[head]:
        return ("animate", "inanimate")[index]
    return (
        ImageNetInfo("imagenet-1k").index_to_description(index).split(",")[0]
        if index < 1000
        else str(index)
    )


class Progress:
    """Images done, rate, time left and the verdict so far: a bar on a terminal, else a line a minute."""

    def __init__(self, total: int, begun: int, name: str):
        self.bar = tqdm(
            total=total, initial=begun, desc=name, unit="image", disable=not sys.stderr.isatty()
        )
        self.start = self.shown = time.monotonic()
        self.total, self.begun, self.done, self.name = total, begun, begun, name
        self.verdicts: dict[str, list[float]] = {}
        report_progress(begun, total, 0)

    def rate(self) -> float:
        """Images a second of this process."""
        return (self.done - self.begun) / (time.monotonic() - self.start)

    def show(self, finished: int, rows: list[dict]) -> None:
        self.done += finished
        for row in rows:
            self.verdicts.setdefault(
                "correct" if "eps" not in row else f"robust at {format_eps(row['eps'])}", []
            ).append(row.get("robust", row["clean_correct"]))
            if row.get("success"):
                self.verdicts.setdefault("mean L2", []).append(row["l2"])
        if rows:
            self.bar.set_postfix_str(self.verdict(), refresh=False)
        self.bar.update(finished)
        if self.bar.disable and time.monotonic() - self.shown > PROGRESS_SECONDS:
            self.shown = time.monotonic()
            meter = tqdm.format_meter(
                self.done,
                self.total,
                self.shown - self.start,
                ncols=0,
                unit="image",
                initial=self.begun,
                postfix=self.verdict(),
            )
            print_line(f"{utc_now()} {self.name}: {meter}", sys.stderr)
            report_progress(self.done, self.total, 3600 * self.rate())

    def verdict(self) -> str:
        """Counts of what is decided so far: what falls early is decided first, so shares would mislead."""
        return ", ".join(
            f"{key} {sum(v) / len(v):.3f}" if key == "mean L2" else f"{key} {sum(v)} of {len(v)}"
            for key, v in self.verdicts.items()
        )

    def close(self) -> None:
        self.bar.close()
        report_progress(self.done, self.total, 3600 * self.rate())


def report_text(args, run: Run) -> str:
    """What the finished record says, a line per eps, and where it lies."""
    rows = run.rows
    correct = rows[rows["clean_correct"] == 1]
    n, right = rows["image_id"].nunique(), correct["image_id"].nunique()
    attack = "" if args.threat == "clean" else f"; {run.settings['run']['attack']}"
    lines = [
        f"{args.model_name} on {run.info['image_set']} (n = {n}): clean accuracy {right / n:.1%}{attack}"
    ]
    if "robust" in rows:
        lines += [
            f"  eps {format_eps(eps)}: robust accuracy {part['robust'].mean():.1%}"
            for eps, part in rows.groupby("eps")
        ]
    if "success" in rows:
        norms = correct.loc[correct["success"] == 1, "l2"]
        lines.append(
            f"  minimal L2 norm: mean {norms.mean():.4f}, median {norms.median():.4f} over {len(norms)} images"
        )
    return "\n".join([*lines, *(f"  warning: {w}" for w in run.info["warnings"]), f"  {run.csv}"])
