"""The four attacks of AutoAttack (Croce & Hein 2020) as rows of a struct of arrays, for Linf and L2.

From the same start point the iterates of an image are those of the reference implementation (fra31/auto-attack), to
float rounding, until the image is fooled, whatever shares its batch. Square draws its proposals from the same
distribution, per image instead of per batch.

    APGD     Auto-PGD on cross-entropy, or on the targeted difference-of-logits-ratio loss
    FAB      Fast Adaptive Boundary (Croce & Hein 2020b), targeted; does not depend on eps, so what it finds outside
             one ball is kept for the larger ones
    Square   random search (Andriushchenko et al. 2020), margin loss
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment_security.attacks.attack import AttackedImage, State, initial_state, target_classes
from alignment_security.attacks.geometry import TINY, per_row, project_onto_ball, unit_norm

# ---- APGD ------------------------------------------------------------------------------------------------------


class APGD:
    """Auto-PGD (Croce & Hein 2020, Algorithm 1): momentum 0.75, step 2 eps halved at checkpoints, back to the best point.

    targeted   False: cross-entropy, one run. True: DLR loss towards one of `runs` classes (their equation 9)
    """

    def __init__(self, norm: str, steps: int, targeted: bool, runs: int = 1, rho: float = 0.75):
        self.norm, self.steps, self.targeted, self.runs, self.rho = norm, steps, targeted, runs, rho
        self.name = "apgd-t" if targeted else "apgd-ce"
        self.window = torch.zeros(
            steps + 2, dtype=torch.long
        )  # window[i]: length of the check after iterate i, or 0
        k, at = max(int(0.22 * steps), 1), 0
        while at + k <= steps:
            at += k
            self.window[at] = k
            k = max(k - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))

    def start(self, jobs: list[AttackedImage]) -> State:
        s = initial_state(jobs)
        zero = torch.zeros_like(s["eps"])
        draw = torch.rand if self.norm == "Linf" else torch.randn
        noise = torch.stack(
            [draw(job.x.shape, generator=job.generator(self.name)) for job in jobs]
        ).to(s["x"])
        noise = 2 * noise - 1 if self.norm == "Linf" else noise
        s |= {
            "x_adv": (s["x"] + per_row(s["eps"]) * unit_norm(noise, self.norm)).clamp_(0, 1),
            "x_best": torch.empty_like(s["x"]),
            "grad_best": torch.empty_like(s["x"]),
            "loss_best": zero - torch.inf,
            "loss_check": zero.clone(),
            "loss_before": zero.clone(),
            "rises": zero.clone(),
            "reduced": torch.ones_like(zero, dtype=torch.bool),
            "step": 2 * s["eps"],
            "blind": torch.zeros_like(zero, dtype=torch.bool),
        }
        s["x_before"] = s["x_adv"].clone()
        return s | ({"target": target_classes(jobs)} if self.targeted else {})

    def wants_gradient(self, s: State) -> Tensor:
        return s["it"] < self.steps  # the gradient at the last iterate is never used

    def loss(self, s: State, logits: Tensor, rows) -> Tensor:
        y = s["y"][rows]
        if not self.targeted:
            return F.cross_entropy(logits, y, reduction="none")
        top = logits.topk(4, dim=1)[0]
        return (
            logits.gather(1, s["target"][rows][:, None]) - logits.gather(1, y[:, None])
        ).squeeze(1) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + TINY)

    def claims(self, s: State, logits: Tensor) -> Tensor:
        return logits.argmax(1) != s["y"]

    def update(self, s: State, logits: Tensor, grad: Tensor | None) -> Tensor:
        over = s["it"] >= self.steps
        if grad is None:
            return over
        loss, first = self.loss(s, logits, slice(None)), s["it"] == 0
        self._bookkeeping(s, loss, grad, first.to(loss.device))
        if first.any():
            s["blind"] |= first.to(loss.device) & (grad.flatten(1).abs().amax(1) == 0)
        self._checkpoint(s, grad)
        momentum = (s["x_adv"] - s["x_before"]).mul_(
            per_row(torch.where(first, 0.0, 0.25)).to(loss.device)
        )
        s["x_before"], s["x_adv"] = s["x_adv"], self._step(s, grad, momentum, first)
        s["it"] += 1
        return over

    def _bookkeeping(self, s: State, loss: Tensor, grad: Tensor, first: Tensor) -> None:
        """Best point so far, and rises of the loss since the last check (the reference counts the first against 0)."""
        better = loss > s["loss_best"]
        s["x_best"] = torch.where(per_row(better), s["x_adv"], s["x_best"])
        s["grad_best"] = torch.where(per_row(better), grad, s["grad_best"])
        s["loss_best"] = torch.where(better, loss, s["loss_best"])
        s["loss_check"] = torch.where(first, loss, s["loss_check"])
        s["rises"] += ((loss > s["loss_before"]) & ~first).float()
        s["loss_before"] = torch.where(first, 0.0, loss)

    def _checkpoint(self, s: State, grad: Tensor) -> None:
        """Halve the step of rows that rose too seldom or did not improve, and set them back to their best point."""
        at = self.window[s["it"]].nonzero().squeeze(1)
        if not len(at):
            return
        length, at = self.window[s["it"]][at].to(grad.device), at.to(grad.device)
        stuck = ~s["reduced"][at] & (s["loss_check"][at] >= s["loss_best"][at])
        reduce = (s["rises"][at] <= length * self.rho) | stuck
        s["reduced"][at], s["loss_check"][at], s["rises"][at] = reduce, s["loss_best"][at], 0.0
        back = at[reduce]
        s["step"][back] /= 2
        s["x_adv"][back], grad[back] = s["x_best"][back], s["grad_best"][back]

    def _step(self, s: State, grad: Tensor, momentum: Tensor, first: Tensor) -> Tensor:
        direction = grad.sign_() if self.norm == "Linf" else unit_norm(grad, "L2")
        z = project_onto_ball(
            direction.mul_(per_row(s["step"])).add_(s["x_adv"]), s["x"], s["eps"], self.norm
        )
        weight = per_row(torch.where(first, 1.0, 0.75)).to(z.device)
        return project_onto_ball(
            z.sub_(s["x_adv"]).mul_(weight).add_(s["x_adv"]).add_(momentum),
            s["x"],
            s["eps"],
            self.norm,
        )

    def leave(self, s: State, row: int, job: AttackedImage) -> None:
        job.known["blind"] = job.known.get("blind", False) or bool(s["blind"][row])
