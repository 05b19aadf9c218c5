"""The rehearsal behind a dry run: a threat attacks a few images, and its seconds are taken.

Most of an attack's time goes into the few images that nothing fools, each of which may take a
thousand times as long as another. They are among those whose linear distance to another class is
large, which one gradient tells: of every few images of about the same distance, one is attacked.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from alignment_security.attacks.clean import clean_pass
from alignment_security.attacks.geometry import margin
from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.evaluation.human_columns import add_human_columns
from alignment_security.evaluation.progress import work_of, work_of_row
from alignment_security.evaluation.stream import with_head_labels
from alignment_security.evaluation.threats.threat import Threat
from alignment_security.images.decoded import DECODED, KEPT_BYTES
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import stream_bytes
from alignment_security.images.slices import take_slice
from alignment_security.models.forward import Forward, device_of, filled_rows
from alignment_security.models.heads import Model

# images that are attacked: this share of all, within bounds, and a batch of them at least
SHARE, FEWEST, MOST = 5, 10, 32
LOOKED_AT = 4  # images whose distance is computed, for each that is attacked
LONGEST = 60.0  # seconds of an attack after its warm-up; images that are not finished are left
WARM_UP = 3  # steps of an attack before the clock: they compile, tune and fill caches
Item = tuple[str, Tensor, int]  # image id, pixels (3, H, W), label


@dataclass(frozen=True)
class Rehearsal:
    """What a threat takes of a model.

    images       of the evaluation
    work         passes of each image that was attacked, in units of a forward pass, in the order of
                 `by_distance`
    unfinished   how many of them were not finished after LONGEST seconds, and count with the
                 most passes
    unit         seconds of a unit of work, the attack's own arithmetic included
    start        seconds before the first image: checks, batch size, compilation
    decode       seconds to decode an image in one process; 0 where an earlier threat did it
    workers      processes that decode
    shapes       sizes of the batches that reach the network, ascending
    peak_bytes   of the GPU, else of this process
    """

    images: int
    work: Sequence[float]
    unfinished: int
    unit: float
    start: float
    decode: float
    workers: int
    shapes: Sequence[int]
    peak_bytes: int

    @cached_property
    def mean_work(self) -> float:
        return float(np.mean(self.work))

    @property
    def standard_error(self) -> float:
        """Of the mean work, from the differences of neighbours in a systematic sample.

        Wolter 2007, Introduction to Variance Estimation, section 8.2, estimator v2.
        """
        n = len(self.work)
        if n < 2:
            return 0.0
        variance = np.square(np.diff(self.work)).sum() / (2 * (n - 1) * n)
        return math.sqrt(max(0.0, 1 - n / self.images) * variance)

    @property
    def filled(self) -> float:
        """Rows that reach the network for each row that an image asks for.

        The images that take long are left in the end, in batches with idle rows. They are counted
        as if they took all the work, and each of them the same.
        """
        share = self.mean_work**2 / np.mean(np.square(self.work))
        rows = max(1, round(self.images * share))
        return filled_rows(self.shapes, rows) / rows

    def seconds(self, errors: float = 0) -> float:
        """Time of all images, at the mean work plus so many standard errors."""
        work = max(self.mean_work + errors * self.standard_error, min(self.work))
        attack = work * self.filled * self.unit
        if self.workers:
            return self.start + self.images * max(attack, self.decode / self.workers)
        return self.start + self.images * (attack + self.decode)


# ---- rehearsing ----------------------------------------------------------------------------------


def rehearse(evaluation: Evaluation, began: float | None = None) -> Rehearsal:
    """Attack a few images of an evaluation; nothing is written.

    began   when the evaluation was begun (time.perf_counter), for `start`; None: now
    """
    began = time.perf_counter() if began is None else began
    settings = evaluation.settings["run"]
    evaluation = evaluation.on_attacked_images(settings)
    model, images, device = evaluation.model, evaluation.images, device_of(evaluation.model.module)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    few = max(min(len(images) // SHARE, MOST), FEWEST, min(len(images), evaluation.batch_size))
    seen = take_slice(images, 0, LOOKED_AT * few)
    items, decoding = decode(seen, len(images), model)
    ranked = by_distance(evaluation, items)
    step = max(1, len(ranked) // few)
    chosen = ranked[step // 2 :: step]
    attacked = attack(evaluation, settings, [item for item in items if item[0] in chosen])
    return Rehearsal(
        images=len(images),
        work=[attacked.work[name] for name in chosen if name in attacked.work],
        unfinished=attacked.unfinished,
        unit=attacked.unit,
        start=attacked.began - began - decoding,
        decode=decoding / len(items),
        workers=evaluation.workers,
        shapes=Forward(model.module, evaluation.batch_size).shapes(items[0][1][None].to(device)),
        peak_bytes=peak_bytes(device),
    )


def decode(seen: ImageSet, total: int, model: Model) -> tuple[list[Item], float]:
    """The images, uint8, and the seconds that this took; where all fit in memory, each once."""
    if total * math.prod(model.preprocessing["input_size"]) > KEPT_BYTES:
        DECODED.clear()
    began = time.perf_counter()
    items = list(stream_bytes(seen, model.preprocessing))
    seconds = time.perf_counter() - began
    return list(with_head_labels(items, model.settings["head"])), seconds


def by_distance(evaluation: Evaluation, items: Sequence[Item]) -> list[str]:
    """Image ids by the linear distance in Linf to the next class; the largest distances come last.

    Where the threat takes no gradients, by the margin of the label's logit. Those of the images
    that LONGEST seconds are enough for.
    """
    began, model = time.perf_counter(), evaluation.model
    forward = Forward(model.module, evaluation.batch_size)
    backward = evaluation.threat.cost()[1][1] > 0
    distances: dict[str, float] = {}
    for first in range(0, len(items), evaluation.batch_size):
        batch = list(items[first : first + evaluation.batch_size])
        x, logits, _ = clean_pass(forward, batch, model.n_outputs)
        y = torch.tensor([label for _, _, label in batch], device=x.device)
        found = margin(logits, y)
        if backward:
            _, gradient = forward.gradient(x, partial(margin_of_rows, y))
            found = found / gradient.flatten(1).abs().sum(1)
        distances |= zip([name for name, _, _ in batch], found.tolist())
        if time.perf_counter() - began > LONGEST:
            break
    return sorted(distances, key=distances.__getitem__)


def margin_of_rows(y: Tensor, logits: Tensor, rows: slice) -> Tensor:
    return margin(logits, y[rows])


@dataclass(frozen=True)
class Attacked:
    """What `attack` took.

    work         of each image that was begun, by image id, as in `Rehearsal`
    unfinished   how many of them were not finished
    began        when the first steps were over (time.perf_counter)
    unit         seconds of a unit of work after them
    """

    work: dict[str, float]
    unfinished: int
    began: float
    unit: float


def attack(evaluation: Evaluation, settings: dict, items: Sequence[Item]) -> Attacked:
    """Attack images until all are finished, or for LONGEST seconds.

    settings   that the run file would have
    """
    threat = evaluation.threat
    rows_of: dict[str, list[dict]] = {}  # of the images that were begun
    passes = 0.0  # rows through the network, idle ones too, in units of a forward pass

    def source() -> Iterator[Item]:
        for item in items:
            rows_of[item[0]] = []
            yield item

    def on_pass(rows: int, backward: bool) -> None:
        nonlocal passes
        passes += rows * work_of((1, int(backward)))

    execution = evaluation.execution(on_pass=on_pass)
    steps = [(passes, time.perf_counter())]  # passes so far, and when they were over
    for rows in threat.run(evaluation.model, source(), execution):
        add_human_columns(rows, evaluation, settings)
        for row in rows:
            rows_of[row["image_id"]].append(row)
        if passes == steps[-1][0]:
            steps.pop()
        steps.append((passes, time.perf_counter()))
        if steps[-1][1] - steps[min(WARM_UP, len(steps) - 1)][1] > LONGEST:
            break
    (before, began), (after, ended) = steps[min(WARM_UP, len(steps) - 2)], steps[-1]
    unfinished = [name for name, rows in rows_of.items() if len(rows) < threat.rows_of(name)]
    work = {name: work_of_image(threat, rows) for name, rows in rows_of.items()}
    work |= dict.fromkeys(unfinished, work_of(threat.cost()[1]))
    return Attacked(work, len(unfinished), began, (ended - began) / (after - before))


def work_of_image(threat: Threat, rows: Sequence[dict]) -> float:
    """`work_of_row` of all rows of an image; one that waits for a second phase costs the most."""
    _, most = threat.cost()
    if threat.has_next_phase and any(row["robust"] for row in rows):
        return work_of(most)
    return sum(work_of_row(row, most) for row in rows)


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
