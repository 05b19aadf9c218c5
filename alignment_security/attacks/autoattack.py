"""Budgets and protocols: which attacks an image goes through, and what its record rows say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
from torch import nn

from alignment_security.attacks.apgd import APGD
from alignment_security.attacks.attack import AttackedImage, AttackError
from alignment_security.attacks.clean import (
    ImageStream,
    clean_columns,
    clean_pass,
    confirm_in_float32,
)
from alignment_security.attacks.engine import run_stages
from alignment_security.attacks.fab import FAB
from alignment_security.attacks.square import Square
from alignment_security.models.forward import Forward

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
SQUARE_SHARE = 0.002  # of all images, as in the reference's check
DLR_CLASSES = 4  # the targeted DLR loss divides by the 1st, 3rd and 4th logit


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
            raise AttackError(
                f"attack {unknown[:1] or '(none)'}: the attacks are {', '.join(AUTOATTACK)}"
            )
        if min(self.steps, self.targets, self.queries) < 1:
            raise AttackError(f"{self.name}: steps, targets and queries are at least 1")

    @property
    def name(self) -> str:
        """`AutoAttack standard` for the standard budget and for nothing else."""
        if self == Budget():
            return "AutoAttack standard"
        cost = {
            "apgd-ce": f"{self.steps}",
            "apgd-t": f"{self.targets}x{self.steps}",
            "fab-t": f"{self.targets}x{self.steps}",
            "square": f"{self.queries}",
        }
        return "reduced: " + " + ".join(f"{name}({cost[name]})" for name in self.attacks)

    def build(self, norm: str) -> list:
        make = {
            "apgd-ce": lambda: APGD(norm, self.steps, targeted=False),
            "apgd-t": lambda: APGD(norm, self.steps, targeted=True, runs=self.targets),
            "fab-t": lambda: FAB(norm, self.steps, runs=self.targets),
            "square": lambda: Square(norm, self.queries),
        }
        return [make[name]() for name in self.attacks]

    def check(self, n_outputs: int) -> None:
        """Raise AttackError where a loss is not defined (trap 10)."""
        targeted = [name for name in self.attacks if name in ("apgd-t", "fab-t")]
        if "apgd-t" in targeted and n_outputs < DLR_CLASSES:
            raise AttackError(
                f"apgd-t needs at least {DLR_CLASSES} classes (its DLR loss compares the 1st, 3rd and 4th "
                f"logit), the model has {n_outputs}; attack a two-class head with L2 --protocol fmn, or "
                "leave it out: --attacks apgd-ce square"
            )
        if targeted and self.targets > n_outputs - 1:
            raise AttackError(
                f"{targeted[0]}: {self.targets} targets, but {n_outputs} classes leave {n_outputs - 1}"
            )


# ---- AutoAttack: balls -----------------------------------------------------------------------------------------


class EpsSearch:
    """One image set against several eps, ascending or by bisection; what is known of an image is an interval.

    job.known["low"]    index of the largest eps it is known to survive (-1: none)
    job.known["high"]   index of the smallest eps it is known to break at (len(eps): none)
    Broken at eps is broken at every larger one (the ball contains it). Bisection also takes robust at eps as robust
    below, an inference; the column from_eps says at which eps a verdict was really obtained.
    """

    def __init__(
        self,
        attacks: list,
        eps: list[float],
        norm: str,
        seed: int,
        n_outputs: int,
        passes: Forward,
        confirm: Callable,
        bisect: bool = False,
        begun: dict[str, list[dict]] | None = None,
    ):
        self.attacks, self.eps, self.norm, self.seed, self.n_outputs = (
            attacks,
            eps,
            norm,
            seed,
            n_outputs,
        )
        self.passes, self.confirm, self.bisect, self.begun = passes, confirm, bisect, begun or {}
        self.blind: set[str] = set()  # images at whose start point a loss had no gradient at all

    def admit(self, batch: list) -> tuple[list[dict], list[AttackedImage]]:
        x, logits = clean_pass(self.passes, batch, self.n_outputs)
        rows, jobs = [], []
        for (name, _, label), image, z in zip(batch, x, logits):
            job = AttackedImage(name, image.clone(), label, z, seed=self.seed, forwards=1)
            job.known = {"clean": clean_columns(name, label, z), "high": len(self.eps)}
            decided, job.known["low"] = self._begin(job, self.begun.get(name, []))
            rows += decided
            if job.known["low"] + 1 < len(self.eps):
                self._aim(job)
                jobs.append(job)
        return rows, jobs

    def _begin(self, job: AttackedImage, done: list[dict]) -> tuple[list[dict], int]:
        """Rows that need no attack, and the index of the largest eps decided so far; `done` are rows of an earlier
        session, always the smallest eps."""
        last, left = len(self.eps) - 1, self.eps[len(done) :]
        if job.known["clean"]["clean_correct"] == 0:
            return self._rows(
                job,
                left,
                robust=0,
                adv_pred=job.known["clean"]["clean_pred"],
                broken_by="clean",
                from_eps=0.0,
            ), last
        if (
            done and not done[-1]["robust"]
        ):  # a torn write left some of the rows that one finding decides
            again = {
                key: done[-1][key]
                for key in ("robust", "adv_pred", "broken_by", "from_eps", "linf", "l2")
            }
            return self._rows(job, left, **again), last
        if left and left[0] == 0:
            return self._rows(job, left[:1], robust=1, adv_pred=job.label, from_eps=0.0), 0
        return [], len(done) - 1

    def _rows(self, job: AttackedImage, eps: list[float], **verdict) -> list[dict]:
        """Rows for these eps; the passes spent since the last row stand in the first."""
        point = verdict.pop("perturbation", None)
        rows = [
            job.known["clean"] | {"eps": e, "forwards": 0, "backwards": 0} | verdict for e in eps
        ]
        if rows:
            rows[0] |= {"forwards": job.forwards, "backwards": job.backwards, "perturbation": point}
            job.forwards = job.backwards = 0
        return rows

    def _aim(self, job: AttackedImage) -> None:
        low, high = job.known["low"], job.known["high"]
        job.known["at"] = (low + high) // 2 if self.bisect else low + 1
        job.eps = self.eps[job.known["at"]]

    def found(self, job: AttackedImage, finding: dict) -> tuple[list[dict], int | None]:
        """Broken here, hence at every larger eps, and at a smaller one that already holds the point."""
        at = job.known["at"]
        verdict = {"robust": 0, "broken_by": finding.pop("by"), "from_eps": job.eps} | finding
        while (
            self.bisect
            and at - 1 > job.known["low"]
            and self.eps[at - 1] >= finding[self.norm.lower()]
        ):
            at -= 1
        job.known.setdefault("broken", []).append((at, verdict))
        return self.settle(job, high=at)

    def survived(self, job: AttackedImage, stage: int) -> tuple[list[dict], int | None]:
        """On to the next attack, or robust at this eps."""
        job.known["fab_done"] = (
            job.known.get("fab_done", False) or self.attacks[stage].name == "fab-t"
        )
        return self._go_on(job, stage + 1)

    def _go_on(self, job: AttackedImage, stage: int) -> tuple[list[dict], int | None]:
        """To the first attack from `stage` on that can still say something; FAB, which does not depend on eps, cannot
        a second time. Robust when there is none."""
        left = [
            k
            for k in range(stage, len(self.attacks))
            if not (self.attacks[k].name == "fab-t" and job.known.get("fab_done"))
        ]
        return ([], left[0]) if left else self.settle(job, low=job.known["at"])

    def settle(
        self, job: AttackedImage, low: int | None = None, high: int | None = None
    ) -> tuple[list[dict], int | None]:
        """Take the new knowledge in; rows for every eps that it decides, and stage 0 again if an eps is left."""
        known, rows = job.known, []
        self.blind |= {job.image_id} if known.get("blind") else set()
        if low is not None:
            rows = self._rows(
                job,
                self.eps[known["low"] + 1 : low + 1],
                robust=1,
                adv_pred=job.label,
                from_eps=self.eps[low],
            )
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

    def _from_memory(self, job: AttackedImage) -> dict | None:
        """A point that FAB found outside a smaller ball and that lies inside this one, confirmed."""
        if job.known.get("distance", math.inf) > job.eps:
            return None
        (finding,) = self.confirm([job], job.known["nearest"][None])
        return finding and finding | {
            "by": "fab-t",
            "from_eps": job.known["found_at"],
        }  # `found` lets it win


def run_autoattack(
    module: nn.Module,
    source: ImageStream,
    norm: str,
    eps: list[float],
    n_outputs: int,
    budget: Budget,
    seed: int = 0,
    batch_size: int = 8,
    bisect: bool = False,
    begun: dict | None = None,
    exact: nn.Module | None = None,
    log: Callable[[str], None] = lambda m: None,
) -> Iterator[list[dict]]:
    """AutoAttack's verdicts by our engine. Yields lists of record rows (`ball` columns), images in any order.

    module      pixels (B, 3, H, W) in [0, 1] -> logits (B, n_outputs); `exact` is the float32 model that confirms what
                fools it (the same one by default)
    norm, eps   "Linf" or "L2"; ascending radii in pixel units of [0, 1]
    begun       rows already written, by image id: a ladder is taken up where it ended
    Raises AttackError for bad images, labels or logits, and for a budget that the model cannot take.
    """
    budget.check(n_outputs)
    passes = Forward(module, batch_size, log)
    confirm = confirm_in_float32(Forward(exact or module, batch_size, log), norm)
    attacks = budget.build(norm)
    ladder = EpsSearch(attacks, sorted(eps), norm, seed, n_outputs, passes, confirm, bisect, begun)
    yield from run_stages(
        source, attacks, passes, confirm, ladder.admit, ladder.survived, ladder.found
    )
    if ladder.blind:
        log(
            f"{len(ladder.blind)} image(s) had a zero gradient at a start point of APGD, e.g. {min(ladder.blind)}: "
            "white-box attacks are blind there"
        )


def masked_gradient_warnings(rows: pd.DataFrame) -> list[str]:
    """Square breaking what the white-box attacks left standing says that gradients are masked (AutoAttack's flag)."""
    if "broken_by" not in rows or "square" not in set(rows["broken_by"].dropna()):
        return []
    worst = (rows["broken_by"] == "square").groupby(rows["eps"]).mean().max()
    return (
        [
            f"square broke {worst:.1%} of the images that the white-box attacks left standing: masked gradients?"
        ]
        if worst > SQUARE_SHARE
        else []
    )
