"""alignment_security.attacks.fmn."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment_security.attacks.attack import AttackedImage, State, initial_state
from alignment_security.attacks.geometry import (
    DUAL_ORDER,
    ORDER,
    TINY,
    cosine_schedule,
    lp_norm,
    margin,
    per_row,
    shrink_onto_ball,
)
from alignment_security.attacks.minimum_norm import BestSoFar, keep_smaller

GAMMA_LAST = 0.001  # where the cosine schedule of gamma ends (the authors' code)


class FMN(BestSoFar):
    """Fast Minimum-Norm, Algorithm 1 of Pintor et al. (2021), for L1, L2 and Linf.

    steps                    points with a gradient; one more point, the last update, is looked at
    step_size, final_...     length of the gradient step (in L2, pixel units), cosine from one to the other
    gamma                    relative change of eps, cosine to 0.001; below 1, or eps turns negative (trap 3)
    """

    def __init__(
        self,
        norm: str,
        steps: int,
        step_size: float = 1.0,
        final_step_size: float = 1e-5,
        gamma: float = 0.05,
    ):
        if steps < 1 or not 0 <= final_step_size <= step_size or step_size <= 0:
            raise ValueError(
                f"FMN: steps {steps}, step_size {step_size}, final_step_size {final_step_size}: steps is at "
                "least 1, and step_size at least final_step_size and above 0"
            )
        if not 0 < gamma < 1:
            raise ValueError(
                f"gamma {gamma}: has to lie in (0, 1); from 1 on, eps (1 - gamma) turns negative and the "
                "projection flips the perturbation's sign"
            )
        self.norm, self.steps, self.gamma, self.name = norm, steps, gamma, f"fmn-{norm}"
        self.step_size, self.final_step_size = step_size, final_step_size

    def start(self, jobs: list[AttackedImage]) -> State:
        s = initial_state(jobs)
        none = torch.full_like(s["eps"], torch.inf)
        return s | {
            "x_adv": s["x"].clone(),
            "best": s["x"].clone(),
            "size": none,
            "radius": none.clone(),
        }

    def loss(self, s: State, logits: Tensor, rows) -> Tensor:
        return -margin(logits, s["y"][rows])

    def claims(self, s: State, logits: Tensor) -> Tensor:
        keep_smaller(
            s,
            s["x_adv"],
            logits.argmax(1) != s["y"],
            lp_norm(s["x_adv"] - s["x"], ORDER[self.norm]),
        )
        return self.hand_in(s, logits.device)

    def update(self, s: State, logits: Tensor, grad: Tensor | None) -> Tensor:
        over = s["it"] >= self.steps
        if grad is None:
            return over
        delta, p, it = s["x_adv"] - s["x"], ORDER[self.norm], s["it"].to(grad.device)
        adversarial, found = logits.argmax(1) != s["y"], torch.isfinite(s["size"])
        gamma = cosine_schedule(it, self.steps, self.gamma, GAMMA_LAST)
        crossing = (1 + GAMMA_LAST) * (
            lp_norm(delta, p)
            + margin(logits, s["y"]).abs() / (lp_norm(grad, DUAL_ORDER[self.norm]) + TINY)
        )
        radius = torch.where(found, s["radius"] * (1 + gamma), crossing)
        radius = torch.where(
            adversarial, torch.minimum(s["radius"] * (1 - gamma), s["size"]), radius
        )
        s["radius"] = torch.minimum(radius, lp_norm(torch.maximum(s["x"], 1 - s["x"]), p))
        length = cosine_schedule(it, self.steps, self.step_size, self.final_step_size)
        delta = shrink_onto_ball(
            delta + grad * per_row(length / (lp_norm(grad, 2) + TINY)), s["radius"], self.norm
        )
        s["x_adv"] = (s["x"] + delta).clamp_(0, 1)
        s["it"] += 1
        return over
