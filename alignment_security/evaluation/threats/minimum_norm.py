"""Minimal norms by our own attacks: FMN, and walks along the decision boundary."""

from __future__ import annotations

from abc import abstractmethod
from argparse import Namespace
from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd
from torch import nn

from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.clean import ImageStream
from alignment_security.attacks.crossing import (
    LEAST_STEPS_PER_WALK,
    SATURATION,
    STEPS_PER_WALK,
    BoundaryCrossing,
)
from alignment_security.attacks.fmn import FINAL_STEP_SIZE, FMN, STEP_SIZE, STEP_UNITS
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.common.command_line import Parser, non_negative
from alignment_security.evaluation.threats.threat import (
    FAST_OPTIONS,
    MAP_OPTIONS,
    Cost,
    Execution,
    RecordRows,
    Threat,
    fast_module,
)
from alignment_security.models.heads import HEAD_TEMPERATURE, Model, smooth_head
from alignment_security.records.norm_summary import second_attempt_warnings


class MinimumNormThreat(Threat):
    """What our own minimum-norm protocols share; subclasses add the attack and its settings."""

    protocol: ClassVar[str]
    kind: ClassVar[str] = "minimum_norm"
    options: ClassVar[frozenset[str]] = (
        MAP_OPTIONS | FAST_OPTIONS | {"protocol", "steps", "examples"}
    )
    norm: str
    steps: int
    seed: int

    def __post_init__(self):
        """Raise AttackError for settings that the attack cannot take."""
        try:
            self.attack()
        except KeyError:
            raise AttackError(f"{self.protocol}: {self.norm!r} is none of its norms") from None
        except ValueError as error:
            raise AttackError(str(error)) from None

    @abstractmethod
    def attack(self) -> FMN | BoundaryCrossing:
        """The attack object. Raises ValueError for settings that it cannot take."""

    @property
    def name(self) -> str:
        return f"{self.norm}-{self.protocol}"

    def settings(self, head: str) -> dict:
        return {"protocol": self.protocol, "norm": self.norm, "seed": self.seed}

    def cost(self) -> tuple[Cost, Cost]:
        always = (self.steps + 3, self.steps)
        return always, always

    def notes_on(self, rows: pd.DataFrame) -> list[str]:
        return second_attempt_warnings(rows, self.steps)

    def attacked_module(self, model: Model, execution: Execution) -> nn.Module:
        return fast_module(model.module, model, execution)

    def run(self, model: Model, images: ImageStream, execution: Execution) -> RecordRows:
        return run_minimum_norm(self.attacked_model(model, execution), images, self.attack())


@dataclass(frozen=True)
class FastMinimumNorm(MinimumNormThreat):
    """Minimal norms by FMN with a projection that only shrinks (Pintor et al. 2021).

    norm                        Linf, L2 or L1
    step_size, final_step_size  L2 length of the gradient step, cosine schedule
    step_unit                   of both: distance, each image's first linear distance, or pixels.
                                Default: distance, or pixels where one of the two is given
    gamma                       first relative change of eps, in (0, 1)
    map_reduce                  max or l2: perturbation -> map over channels
    """

    norm: str
    steps: int = 1000
    step_size: float | None = None
    final_step_size: float | None = None
    gamma: float = 0.05
    map_reduce: str = "max"
    seed: int = 0
    step_unit: str | None = None
    protocol: ClassVar[str] = "fmn"
    options: ClassVar[frozenset[str]] = MinimumNormThreat.options | {
        "step_size",
        "final_step_size",
        "step_unit",
        "gamma",
    }

    def __post_init__(self):
        given = self.step_size is not None or self.final_step_size is not None
        values = {
            "step_unit": self.step_unit or STEP_UNITS[given],
            "step_size": STEP_SIZE if self.step_size is None else self.step_size,
            "final_step_size": (
                FINAL_STEP_SIZE if self.final_step_size is None else self.final_step_size
            ),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def settings(self, head: str) -> dict:
        settings = super().settings(head) | {
            "attack": f"FMN {self.steps} steps",
            "steps": self.steps,
            "step_size": self.step_size,
            "final_step_size": self.final_step_size,
            "gamma": self.gamma,
        }
        # runs of earlier versions have steps in pixels, and no step_unit
        return settings | ({"step_unit": self.step_unit} if self.step_unit != "pixels" else {})

    def as_begun(self, settings: dict) -> FastMinimumNorm:
        return self if "step_unit" in settings else replace(self, step_unit="pixels")

    def attack(self) -> FMN:
        assert self.step_size is not None and self.final_step_size is not None and self.step_unit
        return FMN(
            self.norm, self.steps, self.step_size, self.final_step_size, self.gamma, self.step_unit
        )

    @classmethod
    def from_args(cls, args: Namespace) -> FastMinimumNorm:
        return cls(
            args.threat,
            args.steps,
            args.step_size,
            args.final_step_size,
            args.gamma,
            args.map_reduce,
            args.seed,
            args.step_unit,
        )


def add_fmn_options(parser: Parser) -> None:
    group = parser.add_argument_group("fmn")
    group.add_argument(
        "--step_size",
        type=non_negative,
        help=f"first step, L2 length in --step_unit; default {STEP_SIZE:g}",
    )
    group.add_argument(
        "--step_unit",
        choices=STEP_UNITS,
        help="of the steps: each image's first linear distance (default), or pixels in [0, 1], as "
        "the authors (default where a step is given)",
    )
    group.add_argument(
        "--final_step_size",
        type=non_negative,
        help=f"last step, the same; default {FINAL_STEP_SIZE:g}",
    )
    group.add_argument(
        "--gamma",
        type=non_negative,
        default=FastMinimumNorm.gamma,
        help="first relative change of eps, in (0, 1)",
    )


@dataclass(frozen=True)
class Crossing(MinimumNormThreat):
    """Minimal norms by walks along the decision boundary, in a tenth of FMN's passes.

    norm         Linf or L2
    map_reduce   max or l2: perturbation -> map over channels
    """

    norm: str
    steps: int = 100
    map_reduce: str = "max"
    seed: int = 0
    walks: int | None = None  # None: `attacks.crossing.default_walks`
    saturation: float = SATURATION  # in Linf
    protocol: ClassVar[str] = "crossing"

    def settings(self, head: str) -> dict:
        settings = super().settings(head) | {
            "attack": f"crossing {self.steps} steps",
            "steps": self.steps,
            "walks": self.attack().walks,
        }
        if self.attack().saturation > 1:
            settings["saturation"] = self.saturation
        if head == "animate":
            settings["head_gradient"] = f"log-sum-exp at {HEAD_TEMPERATURE} std"
        return settings

    @property
    def notes(self) -> tuple[str, ...]:
        if self.steps >= LEAST_STEPS_PER_WALK:
            return ()
        return (
            f"crossing with {self.steps} steps: a walk of fewer than {LEAST_STEPS_PER_WALK} ends "
            f"before it converges, and norms are too large; the default is {Crossing.steps}",
        )

    def attack(self) -> BoundaryCrossing:
        return BoundaryCrossing(self.norm, self.steps, self.walks, saturation=self.saturation)

    def as_begun(self, settings: dict) -> Crossing:
        """With the walks and the saturation of the run, which early versions did not write."""
        walks = settings.get("walks", max(1, self.steps // STEPS_PER_WALK))
        return replace(self, walks=walks, saturation=settings.get("saturation", 1.0))

    def attacked_module(self, model: Model, execution: Execution) -> nn.Module:
        return fast_module(smooth_head(model.module), model, execution)

    @classmethod
    def from_args(cls, args: Namespace) -> Crossing:
        return cls(args.threat, args.steps, args.map_reduce, args.seed)
