"""Threats: what is done to every image, one frozen dataclass per protocol.

A threat is built once, from the command line or in a notebook, and answers every question about
itself: the folder of its records, the settings for the run file, the columns of its rows, its cost,
and the rows that its attack gives. A new protocol is one class here and a line in options.py.

    Clean            accuracy on the images as they are
    Corruptions      accuracy on corrupted images (Hendrycks & Dietterich 2019)
    AutoAttack       verdicts within eps, Linf or L2 (Croce & Hein 2020)
    FastMinimumNorm  minimal norms, `--protocol fmn` (Pintor et al. 2021)
    Crossing         minimal norms in few passes, `--protocol crossing` (ours, docs/threats.md)
    Foolbox          minimal L2 norms by foolbox's DDN, Carlini-Wagner, DeepFool, and by its FMN as
                     Feng 2025 ran it
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.clean import ImageStream, run_clean
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.libraries import FOOLBOX, run_foolbox, run_pyautoattack
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.common.files import UserError, sha256_file
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.labels import read_multilabels
from alignment_security.models.fast import WithoutTF32, fast_copy
from alignment_security.models.forward import device_of
from alignment_security.models.heads import HEAD_TEMPERATURE, Model, smooth_head

ENGINES = ("own", "reference")
# forward passes of one image, and how many of these also go backward
Cost = tuple[int, int]
Rows = Iterator[list[dict]]


@dataclass(frozen=True)
class Execution:
    """How a threat is run on this machine.

    batch_size    images a pass; halved when the device runs out of memory
    precision     float32, tf32 or bf16, of the search; findings are confirmed in float32
    compiled      whether torch.compile compiles the model
    log           receives warnings
    known_rows    rows of earlier sessions by image id, for threats with several eps
    """

    batch_size: int
    precision: str = "float32"
    compiled: bool = False
    log: Callable[[str], None] = lambda message: None
    known_rows: dict[str, list[dict]] = field(default_factory=dict)


class Threat(ABC):
    """The questions that a threat answers. Subclasses are frozen dataclasses."""

    kind: ClassVar[str]  # columns of its records: clean, ball or minimum_norm
    eps: tuple[float, ...] = ()  # radii in pixel units of [0, 1]; a row for each, else one row
    map_reduce: str | None = None  # perturbation -> map for the agreement with human maps

    @property
    @abstractmethod
    def name(self) -> str:
        """Folder of its records: `clean`, `Linf`, `L2-fmn`, `corruptions-fog-3`, ..."""

    @abstractmethod
    def settings(self, head: str) -> dict:
        """What changes a row, for the run file; compared on resume and on merge."""

    @abstractmethod
    def cost(self) -> tuple[Cost, Cost]:
        """(least, most) passes of one correctly classified image.

        The least is an attack whose first point fools; the most is one that nothing fools, at any
        eps. A finding is confirmed by one more pass. A misclassified image takes one pass.
        """

    @abstractmethod
    def run(self, model: Model, images: ImageStream, execution: Execution) -> Rows:
        """Record rows as they become known, images in any order."""

    def check(self, model: Model, images: ImageSet) -> None:  # noqa: B027
        """Raise UserError for a model or images that this threat is not defined on."""

    def attacked_module(self, model: Model, execution: Execution) -> nn.Module:
        """The module that the attack calls: the model itself, or a faster copy of it."""
        return model.module

    @property
    def rows_per_image(self) -> int:
        return max(1, len(self.eps))


def fast_module(module: nn.Module, model: Model, execution: Execution) -> nn.Module:
    """A faster copy of a module of the model, checked on random pixels."""
    example = torch.rand(2, *model.preprocessing["input_size"], device=device_of(model.module))
    return fast_copy(module, example, execution.precision, execution.compiled)


# ---- no attack -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clean(Threat):
    """Predictions on the images as they are.

    multilabel   human_accuracy_v3.0.0.json: every class that people accept for an image
    """

    multilabel: Path | None = None
    kind: ClassVar[str] = "clean"

    @property
    def name(self) -> str:
        return "clean"

    def settings(self, head: str) -> dict:
        settings = {"attack": "none", "protocol": "clean"}
        if self.multilabel and self.accepted_labels(head):
            settings["multilabel_sha256"] = sha256_file(self.multilabel)
        return settings

    def cost(self) -> tuple[Cost, Cost]:
        return (1, 0), (1, 0)

    def run(self, model: Model, images: ImageStream, execution: Execution) -> Rows:
        return run_clean(model.module, images, model.n_outputs, execution.batch_size, execution.log)

    def accepted_labels(self, head: str) -> dict[str, frozenset[int]]:
        """File name -> accepted classes; empty without a file, and for a head of two classes."""
        return read_multilabels(self.multilabel) if self.multilabel and head == "none" else {}


@dataclass(frozen=True)
class Corruptions(Clean):
    """Predictions on images under one corruption of ImageNet-C.

    type, severity   as in the paper: `fog`, 1 to 5; the image set has to hold them
    """

    type: str = ""
    severity: int = 0

    @property
    def name(self) -> str:
        return f"corruptions-{self.type}-{self.severity}"

    def check(self, model: Model, images: ImageSet) -> None:
        held = images.corruption and (images.corruption.type, images.corruption.severity)
        if held != (self.type, self.severity):
            raise UserError(
                f"{images.name}: its images are not under {self.type} {self.severity}; load them "
                f"with load_image_set(..., corruption=({self.type!r}, {self.severity}))"
            )


# ---- within eps ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AutoAttack(Threat):
    """AutoAttack's verdicts at one or more eps (Croce & Hein 2020).

    norm     Linf or L2
    eps      radii in pixel units of [0, 1]
    budget   attacks and their steps; only the default is AutoAttack's standard version
    engine   own, or reference: pyautoattack, unchanged
    bisect   try the middle eps first
    """

    norm: str
    eps: tuple[float, ...]
    budget: Budget = Budget()
    engine: str = "own"
    bisect: bool = False
    seed: int = 0
    kind: ClassVar[str] = "ball"

    def __post_init__(self):
        object.__setattr__(self, "eps", tuple(sorted(set(self.eps))))

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
            "ladder": "bisect" if self.bisect else "ascending",
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
            once = self._cost_once(attack)
            forwards += times * once[0]
            backwards += times * once[1]
        return first_point, (forwards, backwards)

    def _times_run(self, attack: str) -> int:
        """At how many eps an image that survives meets an attack."""
        if attack == "fab-t" and self.engine == "own":
            return 1  # FAB ignores eps, so its result settles them all
        if self.bisect:
            return math.ceil(math.log2(len(self.eps) + 1))
        return len(self.eps)

    def _cost_once(self, attack: str) -> Cost:
        """Passes of one attack at one eps on an image that survives it, counted on both engines."""
        steps, targets, queries = self.budget.steps, self.budget.targets, self.budget.queries
        if self.engine == "reference":
            return {
                "apgd-ce": (steps + 5, steps + 1),
                "apgd-t": (targets * (steps + 3) + 1, targets * (steps + 1)),
                "fab-t": (targets * (2 * steps + 4) + 1, targets * steps),
                "square": (queries + 6, 0),
            }[attack]
        return {
            "apgd-ce": (steps + 1, steps),
            "apgd-t": (targets * (steps + 1), targets * steps),
            "fab-t": (targets * 2 * steps, targets * 2 * steps),
            "square": (queries + 1, 0),
        }[attack]

    def attacked_module(self, model: Model, execution: Execution) -> nn.Module:
        if self.engine == "reference":
            return model.module
        return fast_module(model.module, model, execution)

    def run(self, model: Model, images: ImageStream, execution: Execution) -> Rows:
        if self.engine == "reference":
            return run_pyautoattack(
                model.module,
                images,
                self.norm,
                list(self.eps),
                model.n_outputs,
                self.budget,
                seed=self.seed,
                batch_size=execution.batch_size,
                begun=execution.known_rows,
                log=execution.log,
            )
        return run_autoattack(
            self.attacked_module(model, execution),
            images,
            self.norm,
            list(self.eps),
            model.n_outputs,
            self.budget,
            seed=self.seed,
            batch_size=execution.batch_size,
            bisect=self.bisect,
            begun=execution.known_rows,
            exact=WithoutTF32(model.module),
            log=execution.log,
        )


# ---- minimal norms -------------------------------------------------------------------------------


class MinimumNormThreat(Threat):
    """What our own minimum-norm protocols share; subclasses add the attack and its settings."""

    protocol: ClassVar[str]
    kind: ClassVar[str] = "minimum_norm"
    norm: str
    steps: int
    seed: int

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

    def attacked_module(self, model: Model, execution: Execution) -> nn.Module:
        return fast_module(model.module, model, execution)

    def run(self, model: Model, images: ImageStream, execution: Execution) -> Rows:
        return run_minimum_norm(
            self.attacked_module(model, execution),
            images,
            self.attack(),
            model.n_outputs,
            seed=self.seed,
            batch_size=execution.batch_size,
            exact=WithoutTF32(model.module),
            log=execution.log,
        )


@dataclass(frozen=True)
class FastMinimumNorm(MinimumNormThreat):
    """Minimal norms by FMN with a projection that only shrinks (Pintor et al. 2021).

    norm                        Linf, L2 or L1
    step_size, final_step_size  L2 length of the gradient step in pixel units, cosine schedule
    gamma                       first relative change of eps, in (0, 1)
    map_reduce                  max or l2: perturbation -> map over channels
    """

    norm: str
    steps: int = 1000
    step_size: float = 1.0
    final_step_size: float = 1e-5
    gamma: float = 0.05
    map_reduce: str = "max"
    seed: int = 0
    protocol: ClassVar[str] = "fmn"

    def settings(self, head: str) -> dict:
        return super().settings(head) | {
            "attack": f"FMN {self.steps} steps",
            "steps": self.steps,
            "step_size": self.step_size,
            "final_step_size": self.final_step_size,
            "gamma": self.gamma,
        }

    def attack(self) -> FMN:
        return FMN(self.norm, self.steps, self.step_size, self.final_step_size, self.gamma)


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
    protocol: ClassVar[str] = "crossing"

    def settings(self, head: str) -> dict:
        settings = super().settings(head) | {
            "attack": f"crossing {self.steps} steps",
            "steps": self.steps,
        }
        if head == "animate":
            settings["head_gradient"] = f"log-sum-exp at {HEAD_TEMPERATURE} std"
        return settings

    def attack(self) -> BoundaryCrossing:
        return BoundaryCrossing(self.norm, self.steps)

    def attacked_module(self, model: Model, execution: Execution) -> nn.Module:
        return fast_module(smooth_head(model.module), model, execution)


@dataclass(frozen=True)
class Foolbox(Threat):
    """Minimal L2 norms by an attack class of foolbox, for comparison with other papers.

    protocol     ddn, cw, deepfool, or feng2025: foolbox's FMN with the settings, pixels and map of
                 Feng 2025, whose norms are not minimal
    steps        0 takes the protocol's own
    map_reduce   max or l2; feng2025 always takes the published map
    """

    protocol: str
    steps: int = 0
    map_reduce: str = "max"
    seed: int = 0
    kind: ClassVar[str] = "minimum_norm"

    def __post_init__(self):
        if not self.steps:
            object.__setattr__(self, "steps", FOOLBOX[self.protocol][1]["steps"])
        if self.protocol == "feng2025":
            object.__setattr__(self, "map_reduce", "feng2025")

    @property
    def name(self) -> str:
        return f"L2-{self.protocol}"

    def settings(self, head: str) -> dict:
        class_name, class_settings = FOOLBOX[self.protocol]
        settings = {
            "protocol": self.protocol,
            "norm": "L2",
            "seed": self.seed,
            "attack": f"foolbox {class_name} {self.steps} steps",
            **class_settings,
            "steps": self.steps,
        }
        if self.protocol == "feng2025":
            settings["pixels"] = "stretched to [0, 1]"
        return settings

    def cost(self) -> tuple[Cost, Cost]:
        settings = FOOLBOX[self.protocol][1]
        if self.protocol == "deepfool":
            # a backward pass for each candidate class; it ends with the first point that fools
            candidates = settings["candidates"]
            most = (self.steps * candidates + 3, self.steps * candidates)
            return (candidates, candidates - 1), most
        steps = self.steps * settings.get("binary_search_steps", 1)
        always = (steps + 3, steps)
        return always, always

    def run(self, model: Model, images: ImageStream, execution: Execution) -> Rows:
        return run_foolbox(
            model.module,
            images,
            self.protocol,
            self.steps,
            model.n_outputs,
            execution.batch_size,
            execution.log,
        )
