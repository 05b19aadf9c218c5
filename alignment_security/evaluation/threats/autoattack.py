"""AutoAttack's verdicts within eps, in Linf or L2."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.autoattack import Budget, estimate_of, run_autoattack
from alignment_security.attacks.clean import ImageStream
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.libraries import run_pyautoattack
from alignment_security.common.command_line import Parser, positive_int
from alignment_security.common.eps import parse_eps, parse_radius
from alignment_security.common.verdicts import AUTOATTACK
from alignment_security.evaluation.threats.threat import (
    FAST_OPTIONS,
    Cost,
    Execution,
    RecordRows,
    Threat,
    fast_module,
)
from alignment_security.images.image_sets import ImageSet
from alignment_security.models.heads import Model

BUDGETS = ("standard", "rand", "screened")
ENGINES = ("own", "reference")
NORMS = ("Linf", "L2")


@dataclass(frozen=True)
class AutoAttack(Threat):
    """AutoAttack's verdicts at one or more eps (Croce & Hein 2020).

    norm     Linf or L2
    eps      radii in pixel units of [0, 1], or one of them
    budget   attacks and their steps; only the default is AutoAttack's standard version
    """

    norm: str
    eps: Sequence[float]
    budget: Budget = Budget()
    seed: int = 0
    engine: ClassVar[str] = "own"  # one of ENGINES
    kind: ClassVar[str] = "ball"
    options: ClassVar[frozenset[str]] = FAST_OPTIONS | {
        "protocol",
        "eps",
        "budget",
        "engine",
        "attacks",
        "steps",
        "targets",
        "queries",
        "examples",
    }

    def __post_init__(self):
        if self.norm not in NORMS:
            raise AttackError(f"AutoAttack in {self.norm}: the norms are {' and '.join(NORMS)}")
        eps = [self.eps] if isinstance(self.eps, int | float) else self.eps
        radii = sorted({float(radius) for radius in eps})
        largest = 1 if self.norm == "Linf" else math.inf
        wrong = [radius for radius in radii if not 0 <= radius <= largest]
        if not radii:
            raise AttackError("AutoAttack needs at least one eps, e.g. 1 / 255")
        if wrong:
            raise AttackError(
                f"eps {wrong[0]:g}: a distance in pixel units of [0, 1]; write 8 / 255 for 8 of "
                "255 levels"
            )
        object.__setattr__(self, "eps", tuple(radii))

    @property
    def name(self) -> str:
        return self.norm if self.norm == "Linf" else f"{self.norm}-autoattack"

    def settings(self, head: str) -> dict:
        return {
            "protocol": "autoattack",
            "norm": self.norm,
            "seed": self.seed,
            "attack": self.budget.name,
            "eps": list(self.eps),
            "engine": self.engine,
            "attacks": self.budget.attacks,
            "steps": self.budget.steps,
            "targets": self.budget.targets,
            "queries": self.budget.queries,
        }

    def check(self, model: Model, images: ImageSet) -> None:
        self.budget.check(model.n_outputs)

    def cost(self) -> tuple[Cost, Cost]:
        first_point = (3, 0 if self.budget.attacks[0] == "square" else 1)
        forwards, backwards = 2, 0
        for attack in self.budget.attacks:
            times = self._times_run(attack)
            once = self.budget.cost_of(attack)
            forwards += times * once[0]
            backwards += times * once[1]
        if walk := self._estimate():
            forwards, backwards = forwards + walk.steps + 2, backwards + walk.steps
        return first_point, (forwards, backwards)

    def _times_run(self, attack: str) -> int:
        """At how many eps an image that survives meets an attack."""
        if attack == "fab-t":
            return 1  # FAB ignores eps, so its result settles them all
        if self._estimate() is None:
            return len(self.eps)
        return 2 if attack == self.budget.attacks[0] else 1  # the smallest and the largest eps

    def _estimate(self) -> BoundaryCrossing | None:
        """The walk that decides which eps is next."""
        return estimate_of(self.budget, self.norm, self.eps)

    def attacked_module(self, model: Model, execution: Execution) -> nn.Module:
        return fast_module(model.module, model, execution)

    def run(self, model: Model, images: ImageStream, execution: Execution) -> RecordRows:
        attacked, known = self.attacked_model(model, execution), execution.known_rows
        return run_autoattack(attacked, images, self.norm, self.eps, self.budget, known)

    @classmethod
    def from_args(cls, args: Namespace) -> AutoAttack:
        """Raises AttackError for an impossible budget."""
        budget = Budget(tuple(args.attacks or AUTOATTACK), args.steps, args.targets, args.queries)
        return cls(args.threat, args.eps, budget, args.seed)


@dataclass(frozen=True)
class ReferenceAutoAttack(AutoAttack):
    """The verdicts of pyautoattack, unchanged, which takes the eps in ascending order."""

    engine: ClassVar[str] = "reference"
    options: ClassVar[frozenset[str]] = AutoAttack.options - FAST_OPTIONS

    def cost(self) -> tuple[Cost, Cost]:
        least, _ = super().cost()
        passes = [self._cost_once(attack) for attack in self.budget.attacks]
        forwards, backwards = (len(self.eps) * sum(one) for one in zip(*passes))
        return least, (2 + forwards, backwards)

    def _cost_once(self, attack: str) -> Cost:
        """Passes of one attack at one eps on an image that survives it, as counted."""
        steps, targets, queries = self.budget.steps, self.budget.targets, self.budget.queries
        return {
            "apgd-ce": (steps + 3, steps + 1),
            "apgd-t": (targets * (steps + 2) + 2, targets * (steps + 1)),
            "fab-t": (targets * (2 * steps + 3) + 2, targets * steps),
            "square": (queries + 4, 0),
        }[attack]

    attacked_module = Threat.attacked_module

    def run(self, model: Model, images: ImageStream, execution: Execution) -> RecordRows:
        attacked, known = self.attacked_model(model, execution), execution.known_rows
        return run_pyautoattack(attacked, images, self.norm, self.eps, self.budget, known)


def add_autoattack_options(parser: Parser, norm: str) -> None:
    group = parser.add_argument_group("autoattack")
    group.add_argument(
        "--eps",
        nargs="+",
        type=parse_eps if norm == "Linf" else parse_radius,
        default=[],
        help="radii in pixel units of [0, 1]: 8/255 or 0.031",
    )
    group.add_argument(
        "--engine", choices=ENGINES, default="own", help="reference: pyautoattack, unchanged"
    )
    group.add_argument(
        "--budget",
        choices=BUDGETS,
        default=BUDGETS[0],
        help="rand: for random networks, over 20 draws; screened: an estimate with its interval, "
        "for a quarter of the passes; records in NORM-rand, NORM-screened",
    )
    group.add_argument(
        "--attacks",
        nargs="+",
        choices=AUTOATTACK,
        metavar="ATTACK",
        help=f"of {', '.join(AUTOATTACK)}; default: all, with --budget rand the first two",
    )
    group.add_argument(
        "--targets",
        type=positive_int,
        default=Budget().targets,
        help="classes that apgd-t and fab-t aim at",
    )
    group.add_argument(
        "--queries", type=positive_int, default=Budget().queries, help="queries of square"
    )
