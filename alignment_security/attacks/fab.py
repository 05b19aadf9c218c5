"""alignment_security.attacks.fab."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignment_security.attacks.attack import AttackedImage, State, initial_state, target_classes
from alignment_security.attacks.geometry import per_row, project_onto_hyperplane, row_norm


class FAB:
    """Targeted FAB (Croce & Hein 2020b): steps to the linearised boundary, biased to the image, shrunk once across.

    alpha_max 0.1, overshoot eta 1.05, backward step beta 0.9. A point that is expected to be adversarial is only looked at
    (forward), since its gradient is needed after it has been shrunk. Expected is what came last time after a point like
    the one before: on most nets adversarial points alternate with others, on robust ones nearly all are.
    """

    name = "fab-t"

    def __init__(
        self,
        norm: str,
        steps: int,
        runs: int,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
    ):
        self.norm, self.steps, self.runs = norm, steps, runs
        self.alpha_max, self.eta, self.beta = alpha_max, eta, beta

    def start(self, jobs: list[AttackedImage]) -> State:
        s = initial_state(jobs)
        no = torch.zeros(len(jobs), 4, dtype=torch.bool)
        return s | {
            "x_adv": s["x"].clone(),
            "target": target_classes(jobs),
            "nearest": s["x"].clone(),
            "distance": torch.full_like(s["eps"], torch.inf),
            "check": no[:, 0].clone(),
            "last": no[:, 1].clone(),
            "after": no[:, 2:].clone(),
        }

    def wants_gradient(self, s: State) -> Tensor:
        # the last point is only looked at
        expected = s["after"].gather(1, s["last"].long()[:, None]).squeeze(1)
        return ~s["check"] | (~expected & (s["it"] < self.steps - 1))

    def loss(self, s: State, logits: Tensor, rows) -> Tensor:
        return (
            logits.gather(1, s["target"][rows][:, None]) - logits.gather(1, s["y"][rows][:, None])
        ).squeeze(1)

    def claims(self, s: State, logits: Tensor) -> Tensor:
        inside = row_norm(s["x_adv"] - s["x"], self.norm) <= s["eps"]
        return (logits.argmax(1) != s["y"]) & inside

    def update(self, s: State, logits: Tensor, grad: Tensor | None) -> Tensor:
        """`check` rows hold a new point: one that is adversarial is shrunk and needs a gradient there, one that is
        not goes on from its gradient if it has one, else asks for it."""
        device, asked = logits.device, self.wants_gradient(s)
        adversarial = logits.argmax(1) != s["y"]
        crossed = adversarial & s["check"].to(device)
        if s["check"].any():
            self._keep_nearest(s, crossed)
        hit = crossed.cpu()
        s["it"] += s["check"].long()
        seen = s["check"].nonzero().squeeze(1)
        s["after"][seen, s["last"][seen].long()] = hit[seen]
        s["last"][seen] = hit[seen]
        over = s["it"] >= self.steps
        s["x_adv"] = torch.where(
            per_row(crossed), s["x"] + (s["x_adv"] - s["x"]) * self.beta, s["x_adv"]
        )
        go = asked & ~hit & ~over
        if go.any() and grad is not None:
            rows = go.nonzero().squeeze(1).to(device)
            s["x_adv"][rows] = self._step(
                s, rows, self.loss(s, logits, slice(None))[rows], grad[rows]
            )
        s["check"] = go
        return over

    def _keep_nearest(self, s: State, crossed: Tensor) -> None:
        distance = row_norm(s["x_adv"] - s["x"], self.norm)
        nearer = crossed & (distance < s["distance"])
        s["nearest"] = torch.where(per_row(nearer), s["x_adv"], s["nearest"])
        s["distance"] = torch.where(nearer, distance, s["distance"])

    def _step(self, s: State, rows: Tensor, gap: Tensor, grad: Tensor) -> Tensor:
        """From x1 and from the image to the hyperplane loss + grad.(z - x1) = 0, mixed by how far each has to go."""
        x0, x1, w = s["x"][rows], s["x_adv"][rows], grad.flatten(1)
        c0 = gap + ((x0 - x1).flatten(1) * w).sum(1)  # the linear model's value at the image
        both = project_onto_hyperplane(
            torch.cat([x1, x0]).flatten(1), torch.cat([w, w]), torch.cat([gap, c0]), self.norm
        )
        d1, d0 = both.view(2, *x0.shape)
        a1, a0 = (row_norm(d, self.norm).clamp(min=1e-8) for d in (d1, d0))
        alpha = per_row((a1 / (a1 + a0)).clamp(0, self.alpha_max))
        return ((x1 + self.eta * d1) * (1 - alpha) + (x0 + self.eta * d0) * alpha).clamp_(0, 1)

    def leave(self, s: State, row: int, job: AttackedImage) -> None:
        """What was found outside this ball decides the larger ones: FAB would find it there again."""
        distance = float(s["distance"][row])
        if distance < job.known.get("distance", math.inf):
            job.known |= {
                "distance": distance,
                "nearest": s["nearest"][row].clone(),
                "found_at": job.eps,
            }
