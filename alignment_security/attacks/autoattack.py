"""Budgets and protocols: which attacks an image goes through, and what its record rows say."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pandas as pd
import torch
from torch import Tensor, nn

from alignment_security.attacks.apgd import APGD, FAB, ROUNDING, Square
from alignment_security.attacks.engine import AttackError, Job, Passes, device_of, run_stages
from alignment_security.attacks.minimum_norm import P, lp

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
SQUARE_SHARE = 0.002    # of all images, as in the reference's check
DLR_CLASSES = 4     # the targeted DLR loss divides by the 1st, 3rd and 4th logit
Source = Iterable[tuple[str, Tensor, int]]


@dataclass(frozen=True)
class Budget:
    """What AutoAttack spends on an image that nothing fools. The defaults are the standard version's."""
    attacks: tuple[str, ...] = AUTOATTACK
    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self):
        unknown = [name for name in self.attacks if name not in AUTOATTACK]
        if unknown or not self.attacks:
            raise AttackError(f"attack {unknown[:1] or '(none)'}: the attacks are {', '.join(AUTOATTACK)}")
        if min(self.steps, self.targets, self.queries) < 1:
            raise AttackError(f"{self.name}: steps, targets and queries are at least 1")

    @property
    def name(self) -> str:
        """`AutoAttack standard` for the standard budget and for nothing else."""
        if self == Budget():
            return "AutoAttack standard"
        cost = {"apgd-ce": f"{self.steps}", "apgd-t": f"{self.targets}x{self.steps}",
                "fab-t": f"{self.targets}x{self.steps}", "square": f"{self.queries}"}
        return "reduced: " + " + ".join(f"{name}({cost[name]})" for name in self.attacks)

    def build(self, norm: str) -> list:
        make = {"apgd-ce": lambda: APGD(norm, self.steps, targeted=False),
                "apgd-t": lambda: APGD(norm, self.steps, targeted=True, runs=self.targets),
                "fab-t": lambda: FAB(norm, self.steps, runs=self.targets),
                "square": lambda: Square(norm, self.queries)}
        return [make[name]() for name in self.attacks]

    def check(self, n_outputs: int) -> None:
        """Raise AttackError where a loss is not defined (trap 10)."""
        targeted = [name for name in self.attacks if name in ("apgd-t", "fab-t")]
        if "apgd-t" in targeted and n_outputs < DLR_CLASSES:
            raise AttackError(f"apgd-t needs at least {DLR_CLASSES} classes (its DLR loss compares the 1st, 3rd and 4th "
                              f"logit), the model has {n_outputs}; attack a two-class head with L2 --protocol fmn, or "
                              "leave it out: --attacks apgd-ce square")
        if targeted and self.targets > n_outputs - 1:
            raise AttackError(f"{targeted[0]}: {self.targets} targets, but {n_outputs} classes leave {n_outputs - 1}")


# ---- inputs and findings ---------------------------------------------------------------------------------------

def check_images(x: Tensor, labels: list[int], ids: list[str], n_outputs: int) -> None:
    """Raise AttackError for pixels outside [0, 1] or not finite, or a label out of range, naming the image."""
    for name, image, label in zip(ids, x, labels):
        if not torch.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise AttackError(f"{name}: pixels are not all in [0, 1] (from {image.min():.3g} to {image.max():.3g})")
        if not 0 <= label < n_outputs:
            raise AttackError(f"{name}: label {label} is outside 0..{n_outputs - 1}")


def clean_pass(passes: Passes, batch: list, n_outputs: int) -> tuple[Tensor, Tensor]:
    """(x, logits) of a batch of (image_id, image, label), checked."""
    x = torch.stack([image for _, image, _ in batch])
    check_images(x, [label for *_, label in batch], [name for name, *_ in batch], n_outputs)
    x = x.to(device_of(passes.module), non_blocking=True)
    logits = passes.logits(x)
    if logits.shape[1] != n_outputs:
        raise AttackError(f"{batch[0][0]}: the model gives {logits.shape[1]} logits, {n_outputs} are wanted")
    if bad := [name for (name, *_), z in zip(batch, logits) if not torch.isfinite(z).all()]:
        raise AttackError(f"{bad[0]}: the model gives NaN or infinite logits ({len(bad)} image(s) of this batch)")
    return x, logits


def clean_columns(name: str, label: int, logits: Tensor) -> dict:
    pred = int(logits.argmax())
    return {"image_id": name, "label": label, "clean_pred": pred, "clean_correct": int(pred == label)}


def clean_rows(module: nn.Module, source: Source, n_outputs: int, batch_size: int,
               log: Callable[[str], None] = lambda m: None) -> Iterator[list[dict]]:
    """Predictions on clean images: top-1 and, from five classes on, top-5."""
    passes, source = Passes(module, batch_size, log), iter(source)
    while batch := list(islice(source, batch_size)):
        _, logits = clean_pass(passes, batch, n_outputs)
        best = logits.topk(min(5, n_outputs), dim=1)[1].tolist()
        yield [clean_columns(name, label, z) | ({"clean_top5": int(label in top)} if n_outputs > 5 else {})
               for (name, _, label), z, top in zip(batch, logits, best)]


def confirm_in_float32(exact: Passes, norm: str) -> Callable:
    """A judge of findings: the point, run through the float32 model again, is misclassified and inside its ball."""
    def confirm(jobs: list[Job], points: Tensor) -> list[dict | None]:
        delta = points - torch.stack([job.x for job in jobs])
        size = lp(delta, P[norm]).tolist()
        linf, l2, preds = lp(delta, P["Linf"]).tolist(), lp(delta, 2).tolist(), exact.logits(points).argmax(1).tolist()
        for job in jobs:
            job.forwards += 1
        return [{"adv_pred": preds[i], "linf": linf[i], "l2": l2[i], "perturbation": delta[i]}
                if preds[i] != job.label and size[i] <= job.eps * (1 + 1e-5) + ROUNDING else None
                for i, job in enumerate(jobs)]
    return confirm


# ---- AutoAttack: balls -----------------------------------------------------------------------------------------

class Ladder:
    """One image set against several eps, ascending or by bisection; what is known of an image is an interval.

    job.known["low"]    index of the largest eps it is known to survive (-1: none)
    job.known["high"]   index of the smallest eps it is known to break at (len(eps): none)
    Broken at eps is broken at every larger one (the ball contains it). Bisection also takes robust at eps as robust
    below, an inference; the column from_eps says at which eps a verdict was really obtained.
    """

    def __init__(self, attacks: list, eps: list[float], norm: str, seed: int, n_outputs: int, passes: Passes,
                 confirm: Callable, bisect: bool = False, begun: dict[str, list[dict]] | None = None):
        self.attacks, self.eps, self.norm, self.seed, self.n_outputs = attacks, eps, norm, seed, n_outputs
        self.passes, self.confirm, self.bisect, self.begun = passes, confirm, bisect, begun or {}
        self.blind: set[str] = set()    # images at whose start point a loss had no gradient at all

    def admit(self, batch: list) -> tuple[list[dict], list[Job]]:
        x, logits = clean_pass(self.passes, batch, self.n_outputs)
        rows, jobs = [], []
        for (name, _, label), image, z in zip(batch, x, logits):
            job = Job(name, image.clone(), label, z, seed=self.seed, forwards=1)
            job.known = {"clean": clean_columns(name, label, z), "high": len(self.eps)}
            decided, job.known["low"] = self._begin(job, self.begun.get(name, []))
            rows += decided
            if job.known["low"] + 1 < len(self.eps):
                self._aim(job)
                jobs.append(job)
        return rows, jobs

    def _begin(self, job: Job, done: list[dict]) -> tuple[list[dict], int]:
        """Rows that need no attack, and the index of the largest eps decided so far; `done` are rows of an earlier
        session, always the smallest eps."""
        last, left = len(self.eps) - 1, self.eps[len(done):]
        if job.known["clean"]["clean_correct"] == 0:
            return self._rows(job, left, robust=0, adv_pred=job.known["clean"]["clean_pred"], broken_by="clean",
                              from_eps=0.0), last
        if done and not done[-1]["robust"]:     # a torn write left some of the rows that one finding decides
            again = {key: done[-1][key] for key in ("robust", "adv_pred", "broken_by", "from_eps", "linf", "l2")}
            return self._rows(job, left, **again), last
        if left and left[0] == 0:
            return self._rows(job, left[:1], robust=1, adv_pred=job.label, from_eps=0.0), 0
        return [], len(done) - 1

    def _rows(self, job: Job, eps: list[float], **verdict) -> list[dict]:
        """Rows for these eps; the passes spent since the last row stand in the first."""
        point = verdict.pop("perturbation", None)
        rows = [job.known["clean"] | {"eps": e, "forwards": 0, "backwards": 0} | verdict for e in eps]
        if rows:
            rows[0] |= {"forwards": job.forwards, "backwards": job.backwards, "perturbation": point}
            job.forwards = job.backwards = 0
        return rows

    def _aim(self, job: Job) -> None:
        low, high = job.known["low"], job.known["high"]
        job.known["at"] = (low + high) // 2 if self.bisect else low + 1
        job.eps = self.eps[job.known["at"]]

    def found(self, job: Job, finding: dict) -> tuple[list[dict], int | None]:
        """Broken here, hence at every larger eps, and at a smaller one that already holds the point."""
        at = job.known["at"]
        verdict = {"robust": 0, "broken_by": finding.pop("by"), "from_eps": job.eps} | finding
        while self.bisect and at - 1 > job.known["low"] and self.eps[at - 1] >= finding[self.norm.lower()]:
            at -= 1
        job.known.setdefault("broken", []).append((at, verdict))
        return self.settle(job, high=at)

    def survived(self, job: Job, stage: int) -> tuple[list[dict], int | None]:
        """On to the next attack, or robust at this eps."""
        job.known["fab_done"] = job.known.get("fab_done", False) or self.attacks[stage].name == "fab-t"
        return self._go_on(job, stage + 1)

    def _go_on(self, job: Job, stage: int) -> tuple[list[dict], int | None]:
        """To the first attack from `stage` on that can still say something; FAB, which does not depend on eps, cannot
        a second time. Robust when there is none."""
        left = [k for k in range(stage, len(self.attacks))
                if not (self.attacks[k].name == "fab-t" and job.known.get("fab_done"))]
        return ([], left[0]) if left else self.settle(job, low=job.known["at"])

    def settle(self, job: Job, low: int | None = None, high: int | None = None) -> tuple[list[dict], int | None]:
        """Take the new knowledge in; rows for every eps that it decides, and stage 0 again if an eps is left."""
        known, rows = job.known, []
        self.blind |= {job.image_id} if known.get("blind") else set()
        if low is not None:
            rows = self._rows(job, self.eps[known["low"] + 1:low + 1], robust=1, adv_pred=job.label, from_eps=self.eps[low])
            known["low"] = low
        if high is not None:
            known["high"] = high
        if known["low"] + 1 < known["high"]:
            self._aim(job)
            finding = self._from_memory(job)
            more, onward = self.found(job, finding) if finding else self._go_on(job, 0)
            return rows + more, onward
        broken = sorted(known.get("broken", []), key=lambda pair: pair[0])
        for (at, verdict), (until, _) in zip(broken, [*broken[1:], (len(self.eps), None)]):
            rows += self._rows(job, self.eps[at:until], **verdict)
        return rows, None

    def _from_memory(self, job: Job) -> dict | None:
        """A point that FAB found outside a smaller ball and that lies inside this one, confirmed."""
        if job.known.get("distance", math.inf) > job.eps:
            return None
        finding, = self.confirm([job], job.known["nearest"][None])
        return finding and finding | {"by": "fab-t", "from_eps": job.known["found_at"]}    # `found` lets it win


def attack_balls(module: nn.Module, source: Source, norm: str, eps: list[float], n_outputs: int, budget: Budget,
                 seed: int = 0, batch_size: int = 8, bisect: bool = False, begun: dict | None = None,
                 exact: nn.Module | None = None, log: Callable[[str], None] = lambda m: None) -> Iterator[list[dict]]:
    """AutoAttack's verdicts by our engine. Yields lists of record rows (`ball` columns), images in any order.

    module      pixels (B, 3, H, W) in [0, 1] -> logits (B, n_outputs); `exact` is the float32 model that confirms what
                fools it (the same one by default)
    norm, eps   "Linf" or "L2"; ascending radii in pixel units of [0, 1]
    begun       rows already written, by image id: a ladder is taken up where it ended
    Raises AttackError for bad images, labels or logits, and for a budget that the model cannot take.
    """
    budget.check(n_outputs)
    passes = Passes(module, batch_size, log)
    confirm = confirm_in_float32(Passes(exact or module, batch_size, log), norm)
    attacks = budget.build(norm)
    ladder = Ladder(attacks, sorted(eps), norm, seed, n_outputs, passes, confirm, bisect, begun)
    yield from run_stages(source, attacks, passes, confirm, ladder.admit, ladder.survived, ladder.found)
    if ladder.blind:
        log(f"{len(ladder.blind)} image(s) had a zero gradient at a start point of APGD, e.g. {min(ladder.blind)}: "
            "white-box attacks are blind there")


# ---- minimal norms ---------------------------------------------------------------------------------------------

NUDGES = [1e-5 * 4 ** k for k in range(8)]   # a point on the boundary that rounding puts back is moved out by these


class MinimumNorm:
    """Every correctly classified image through one minimum-norm attack; one row per image."""

    def __init__(self, norm: str, seed: int, n_outputs: int, passes: Passes, confirm: Callable):
        self.norm, self.seed, self.n_outputs, self.passes, self.confirm = norm, seed, n_outputs, passes, confirm

    def admit(self, batch: list) -> tuple[list[dict], list[Job]]:
        x, logits = clean_pass(self.passes, batch, self.n_outputs)
        rows, jobs = [], []
        for (name, _, label), image, z in zip(batch, x, logits):
            clean = clean_columns(name, label, z)
            job = Job(name, image.clone(), label, z, seed=self.seed, eps=math.inf, forwards=1, known={"clean": clean})
            if clean["clean_correct"]:
                jobs.append(job)
            else:
                rows.append(clean | {"forwards": 1, "backwards": 0})
        return rows, jobs

    def found(self, job: Job, finding: dict) -> tuple[list[dict], None]:
        return [self._row(job, success=1, **finding)], None

    def survived(self, job: Job, stage: int) -> tuple[list[dict], None]:
        """Nothing found, or a best point that float32 denies: then the nearest one further out that it confirms."""
        best = job.known["best"]
        for nudge in NUDGES if best is not None else []:
            point = (job.x + (best - job.x) * (1 + nudge)).clamp(0, 1)
            if finding := self.confirm([job], point[None])[0]:
                return self.found(job, finding)
        return [self._row(job, success=0)], None

    def _row(self, job: Job, **outcome) -> dict:
        return job.known["clean"] | outcome | {"forwards": job.forwards, "backwards": job.backwards}


def attack_minimum_norm(module: nn.Module, source: Source, attack, n_outputs: int, seed: int = 0, batch_size: int = 8,
                        exact: nn.Module | None = None,
                        log: Callable[[str], None] = lambda m: None) -> Iterator[list[dict]]:
    """The smallest perturbation that `attack` (FMN, ...) finds for each image. Yields `minimum_norm` record rows.

    A misclassified image gets a row without a norm. Every reported point is misclassified by the float32 model
    `exact` and lies in [0, 1]; l2 and linf are measured on it. Raises AttackError for bad images, labels or logits.
    """
    passes = Passes(module, batch_size, log)
    confirm = confirm_in_float32(Passes(exact or module, batch_size, log), attack.norm)
    run = MinimumNorm(attack.norm, seed, n_outputs, passes, confirm)
    yield from run_stages(source, [attack], passes, confirm, run.admit, run.survived, run.found)


def suspicions(rows: pd.DataFrame) -> list[str]:
    """Square breaking what the white-box attacks left standing says that gradients are masked (AutoAttack's flag)."""
    if "broken_by" not in rows or "square" not in set(rows["broken_by"].dropna()):
        return []
    worst = (rows["broken_by"] == "square").groupby(rows["eps"]).mean().max()
    return [f"square broke {worst:.1%} of the images that the white-box attacks left standing: masked gradients?"
            ] if worst > SQUARE_SHARE else []
