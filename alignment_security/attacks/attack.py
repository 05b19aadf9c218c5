"""The contract between the engine and an attack: `Attack`, `AttackedImage`, and its progress.

An attack is a struct of arrays: a dict of tensors (`State`) with one row per image. The engine
evaluates the model and keeps the rows of the batch filled; the attack only computes the next point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from alignment_security.common.files import UserError
from alignment_security.common.seeds import seed_from_text

# The first dimension of every tensor is the batch's B rows. "iteration" (B,) int64 is kept on the
# CPU, and so are masks derived from it, so that decisions about rows need not wait for the device;
# `to_device` takes them there. The other tensors are on the model's device.
State = dict[str, Tensor]
Rows = Tensor | slice


BAD_LOGITS = "the model gives NaN or infinite logits"
BAD_GRADIENT = (
    "the gradient of the model's logits is NaN or infinite (often that of a square root or norm at "
    "zero: add a small number inside)"
)


class AttackError(UserError):
    """The image, label, model or budget cannot be attacked; the message says which, and why."""


# ---- an image under attack ---------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """An adversarial point that the plain float32 model confirmed."""

    adv_pred: int  # class that the float32 model predicts
    linf: float
    l2: float
    perturbation: Tensor  # (C, H, W) float32
    broken_by: str  # name of the attack
    from_eps: float  # eps of the attack that found it

    def norm(self, norm: str) -> float:
        """Its "Linf" or "L2" norm."""
        return self.linf if norm == "Linf" else self.l2

    def columns(self) -> dict[str, Any]:
        """The columns that bounded and minimum-norm records share."""
        return {"adv_pred": self.adv_pred, "linf": self.linf, "l2": self.l2}


@dataclass
class FabMemory:
    """The nearest adversarial point that FAB has found for an image, in any run and at any eps.

    FAB does not use eps to choose its steps, so a point outside one ball may decide a larger one.
    """

    nearest: Tensor | None = None  # (C, H, W)
    distance: float = math.inf  # its distance from the image, in the norm of the attack
    found_at: float = math.nan  # eps of the attack that found it
    finished: bool = False  # all runs were made: FAB would find the same points again

    def remember(self, nearest: Tensor, distance: float, eps: float) -> None:
        """Keep the point if it is nearer than the one before."""
        if distance < self.distance:
            self.nearest, self.distance, self.found_at = nearest.clone(), distance, eps


@dataclass
class MinimumNormProgress:
    """What a minimum-norm attack leaves when its steps are over."""

    x_best: Tensor | None = None  # (C, H, W); None: no adversarial point was found
    start: Tensor | None = None  # (C, H, W) adversarial: where a second attempt starts


@dataclass(kw_only=True)
class EpsProgress(MinimumNormProgress):
    """What norm-bounded attacks know of an image: an interval of eps, and verdicts.

    Indices count `eps`. The image is decided when nothing is left between `survived_index` and
    `broken_index`.
    """

    eps: list[float] = field(default_factory=list)  # at which the image is attacked, ascending
    broken_index: int = 0  # smallest eps that the image is known to break at (number of eps: none)
    survived_index: int = -1  # largest eps that the image is known to survive (-1: none)
    eps_index: int = 0  # the eps under attack
    estimate_index: int = -1  # largest eps that the image is expected to survive (-1: no estimate)
    # columns of record rows, by the index of the smallest eps that they decide
    verdicts: dict[int, dict[str, Any]] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)  # eps whose rows an earlier session wrote
    fab: FabMemory = field(default_factory=FabMemory)
    zero_gradient: bool = False  # APGD met a zero gradient at a start point

    @property
    def decided(self) -> bool:
        return self.survived_index + 1 >= self.broken_index


Progress = TypeVar("Progress")  # EpsProgress or MinimumNormProgress


@dataclass
class AttackedImage(Generic[Progress]):
    """One image on its way through the attacks."""

    image_id: str
    x: Tensor  # (C, H, W) float32 in [0, 1], on the device of the model
    label: int
    logits: Tensor  # (K,) of the clean image
    progress: Progress
    clean: dict[str, Any] = field(default_factory=dict)  # columns of the clean prediction
    seed: int = 0
    eps: float = 0.0  # radius under attack; infinite for minimum-norm attacks
    run: int = 0  # which target or restart of the present attack
    # rows through the model since the last record row of this image was written; fractions where
    # a library's passes are shared evenly among the images of a batch
    forwards: float = 0
    backwards: float = 0

    def generator(self, attack: str) -> torch.Generator:
        """Random numbers of this image, attack and run: the same on any machine, in any batch."""
        key = f"{self.seed}|{self.image_id}|{attack}|{self.run}"
        return torch.Generator().manual_seed(seed_from_text(key))


# ---- an attack ---------------------------------------------------------------------------------


class Attack(Protocol[Progress]):
    """An attack that the engine can run. See `apgd.py` for an example.

    `start` makes the rows of new images, with the first points in state["x_adv"] (B, C, H, W).
    The engine then repeats, until a row is finished or its point is confirmed to be adversarial:

        wants_gradient  which rows need a gradient at x_adv
        loss            what a gradient ascends (called inside the forward pass)
        look            what the host has to know: which points the float32 model should confirm
        update          puts the next points into x_adv, in place of the evaluated ones
        on_done         for the rows that leave the batch

    A row must not depend on another row: rows join and leave the batch at any time.
    """

    name: str  # as in the column broken_by
    runs: int  # how many times an image is started: targets or restarts (AttackedImage.run)

    def start(self, images: list[AttackedImage[Progress]]) -> State:
        """The state of new rows, one per image. Each attack documents its keys."""
        ...

    def wants_gradient(self, state: State) -> Tensor:
        """(B,) bool on the CPU: rows that need the gradient of `loss` at x_adv."""
        ...

    def loss(self, state: State, logits: Tensor, rows: Rows) -> Tensor:
        """Loss to ascend, (b,), from logits (b, K) of the b rows `rows` of the state."""
        ...

    def look(self, state: State, logits: Tensor) -> list[Tensor]:
        """What the host has to know of the points: tensors (B,) bool on the device.

        The first: x_adv may be an answer; `look` may put another point there. The others go to
        `update`. An empty list: nothing yet, and the host does not wait for the device.
        """
        ...

    def update(
        self, state: State, logits: Tensor, grad: Tensor | None, looked: list[Tensor]
    ) -> Tensor:
        """Write the next x_adv from logits (B, K) and gradients (B, C, H, W) at the present one.

        `grad` is None if no row wanted one. It may be overwritten. Rows that wanted none do not
        use theirs.
        `looked`: the tensors of `look` but the first, on the CPU.
        Returns (B,) bool on the CPU: rows whose run is finished.
        """
        ...

    def on_done(self, state: State, rows: list[int], images: list[AttackedImage[Progress]]) -> None:
        """Called before `rows` leave the batch: keep in image.progress what has to outlive them."""
        ...


def initial_state(images: list[AttackedImage]) -> State:
    """What the state of every attack begins with.

    x (B, C, H, W) the images, y (B,) their labels, eps (B,), iteration (B,) zeros on the CPU,
    finite (B,) bool: all logits of the row so far were finite. finite_gradient (B,) bool: so were
    the gradients of these logits.
    """
    x = torch.stack([image.x for image in images])
    return {
        "x": x,
        "y": to_device(torch.tensor([image.label for image in images]), x.device),
        "eps": to_device(torch.tensor([image.eps for image in images]), x.device),
        "iteration": torch.zeros(len(images), dtype=torch.long),
        "finite": torch.ones(len(images), dtype=torch.bool, device=x.device),
        "finite_gradient": torch.ones(len(images), dtype=torch.bool, device=x.device),
    }


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on the device; the host does not wait for a GPU."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def target_classes(images: list[AttackedImage]) -> Tensor:
    """Target of each image's run, (B,): for run k, the class of the (k + 2)-th largest logit.

    Ties are ordered as in the reference implementation.
    """
    logits = torch.stack([image.logits for image in images])
    runs = to_device(torch.tensor([image.run for image in images]), logits.device)
    ascending = logits.sort(dim=1)[1]
    return ascending.gather(1, (logits.shape[1] - 2 - runs)[:, None]).squeeze(1)
