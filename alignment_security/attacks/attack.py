"""alignment_security.attacks.attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from alignment_security.common.files import UserError
from alignment_security.common.seeds import seed_from_text


def initial_state(jobs: list[AttackedImage]) -> State:
    """What every attack keeps of an image: x (B, C, H, W), y (B,), eps (B,), it (B,) on the CPU."""
    x = torch.stack([job.x for job in jobs])
    return {
        "x": x,
        "y": torch.tensor([job.label for job in jobs], device=x.device),
        "eps": torch.tensor([job.eps for job in jobs], device=x.device),
        "it": torch.zeros(len(jobs), dtype=torch.long),
    }


def target_classes(jobs: list[AttackedImage]) -> Tensor:
    """The class that run k aims at: the (k + 2)-th largest clean logit, in the reference's order (B,)."""
    logits = torch.stack([job.logits for job in jobs])
    runs = torch.tensor([job.run for job in jobs], device=logits.device)
    return logits.sort(dim=1)[1].gather(1, (logits.shape[1] - 2 - runs)[:, None]).squeeze(1)


State = dict[str, Tensor]  # every tensor has a leading dimension of rows; `it` lives on the CPU


class AttackError(UserError):
    """An input no attack can work on; the message says which."""


@dataclass
class AttackedImage:
    """One image on its way. x (C, H, W) float32 in [0, 1] on the device; logits (K,) of the clean image."""

    image_id: str
    x: Tensor
    label: int
    logits: Tensor
    seed: int = 0
    eps: float = 0.0
    run: int = 0  # which target or restart of the present attack
    forwards: float = (
        0  # passes since the last row was written (a share of a batch's for the reference)
    )
    backwards: float = 0
    known: dict = field(default_factory=dict)  # what attacks leave behind for later ones

    def generator(self, attack: str) -> torch.Generator:
        """Random numbers of this image, attack and run: the same on every machine, in every batch."""
        key = f"{self.seed}|{self.image_id}|{attack}|{self.run}"
        return torch.Generator().manual_seed(seed_from_text(key))


class Attack(Protocol):
    """What the engine asks of an attack. Rows of `s` are images; s["x_adv"] is the point to evaluate next.

    Each turn: wants_gradient, loss, claims, update. A row that claims an answer may put another point into s["x_adv"].
    """

    name: str
    runs: int

    def start(self, jobs: list[AttackedImage]) -> State: ...
    def wants_gradient(self, s: State) -> Tensor: ...  # (B,) bool on the CPU
    def loss(self, s: State, logits: Tensor, rows) -> Tensor: ...  # (len(rows),) to ascend
    def claims(
        self, s: State, logits: Tensor
    ) -> Tensor: ...  # (B,) bool: s["x_adv"] answers the question
    def update(
        self, s: State, logits: Tensor, grad: Tensor | None
    ) -> Tensor: ...  # (B,) bool on the CPU: run over
    def leave(self, s: State, row: int, job: AttackedImage) -> None: ...
