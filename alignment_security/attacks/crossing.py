"""alignment_security.attacks.crossing."""

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
    project_onto_hyperplane,
)
from alignment_security.attacks.minimum_norm import BestSoFar, keep_smaller

OVERSHOOT, UNDER = (
    1e-3,
    2e-4,
)  # share by which a crossing is overstepped; by which the best norm is undercut
WALK_STEPS = 50  # a walk has converged by then


class BoundaryCrossing(BestSoFar):
    """Minimal L2 and Linf norms in few passes: a walk on spheres whose radius is where the linearised model crosses.

    At x + delta, with margin m (true logit minus the largest other) and g the gradient of -m, the linear model crosses at
    every d with g.d = g.delta + m; d0 is the smallest of these inside the box. The next point lies between delta and d0,
    by a share that falls by a cosine to 0.03, and is rescaled inside the box to the radius where the model crosses along
    delta, |delta| + m / max(g.delta / |delta|, 0.2 g.d0 / |d0|), within 0.7 to 1.3 of |delta| and just under the best
    norm so far. One walk settles into the basin it first meets, a worse one for some images in ten, so the passes are
    shared by `walks`, one for every WALK_STEPS. The first starts at the clean image, with log-sum-exp, which sees every
    class near, instead of the maximum of the other logits; the second there too, with the maximum. Walks that would
    repeat these (on two classes the second would) go on from the best point so far. The share begins at 1, there at 0.5.
    """

    def __init__(self, norm: str, steps: int, walks: int | None = None, smooth: float = 0.3):
        if steps < 1 or norm not in ("L2", "Linf"):
            raise ValueError(f"crossing: {steps} steps in {norm}; at least 1, in L2 or Linf")
        self.norm, self.p, self.name = norm, ORDER[norm], f"crossing-{norm}"
        self.steps, self.walks, self.smooth = steps, walks or max(1, steps // WALK_STEPS), smooth
        self.begin = torch.tensor([round(k * steps / self.walks) for k in range(self.walks + 1)])

    def start(self, jobs: list[AttackedImage]) -> State:
        s = initial_state(jobs)
        return s | {
            "x_adv": s["x"].clone(),
            "best": s["x"].clone(),
            "size": torch.full_like(s["eps"], torch.inf),
            "walk_size": torch.full_like(s["eps"], torch.inf),
        }

    def _place(self, it: Tensor) -> tuple[Tensor, Tensor]:
        """(walk, share of it that is done) of each row."""
        walk = (torch.searchsorted(self.begin, it, right=True) - 1).clamp(max=self.walks - 1)
        first, last = self.begin[walk], self.begin[walk + 1]
        return walk, (it - first) / (last - first)

    def loss(self, s: State, logits: Tensor, rows) -> Tensor:
        y = s["y"][rows]
        walk, done = self._place(s["it"])
        smooth = ((walk == 0) & (done < self.smooth)).to(logits.device)[rows]
        hard = -margin(logits, y)
        if not smooth.any():
            return hard
        others = logits.scatter(1, y[:, None], -torch.inf)
        return torch.where(
            smooth, others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1), hard
        )

    def claims(self, s: State, logits: Tensor) -> Tensor:
        size, adversarial = lp_norm(s["x_adv"] - s["x"], self.p), logits.argmax(1) != s["y"]
        keep_smaller(s, s["x_adv"], adversarial, size)
        s["walk_size"] = torch.where(
            adversarial, torch.minimum(s["walk_size"], size), s["walk_size"]
        )
        return self.hand_in(s, logits.device)

    def update(self, s: State, logits: Tensor, grad: Tensor | None) -> Tensor:
        over = s["it"] >= self.steps
        if grad is None:
            return over
        delta, m = s["x_adv"] - s["x"], margin(logits, s["y"])
        size, gained = lp_norm(delta, self.p), (grad * delta).flatten(1).sum(1)
        rise = (
            torch.maximum(gained + m, 0.05 * lp_norm(grad, DUAL_ORDER[self.norm]) * size)
            * (1 + OVERSHOOT)
            + OVERSHOOT**3
        )
        d0 = project_onto_hyperplane(s["x"].flatten(1), grad.flatten(1), -rise, self.norm).view_as(
            delta
        )
        shortest = lp_norm(d0, self.p) + TINY
        slope = torch.maximum(gained / (size + TINY), 0.2 * rise / shortest) + TINY
        radius = (size + m / slope + OVERSHOOT * size).clamp(0.7 * size, 1.3 * size)
        radius = torch.where(size > 0, radius, shortest).minimum(s["walk_size"] * (1 - UNDER))
        fresh = 1 + (logits.shape[1] > 2)  # walks that start at the image
        walk, done = self._place(s["it"])
        share = cosine_schedule(done, 1, torch.where(walk < fresh, 1.0, 0.5), 0.03).to(grad.device)
        s["x_adv"] = s["x"] + self._on_sphere(s["x"], delta + per_row(share) * (d0 - delta), radius)
        s["it"] += 1
        self._begin_walks(s, fresh)
        return over

    def _begin_walks(self, s: State, fresh: int) -> None:
        """Rows whose walk is over begin the next: at the image while that is one of the `fresh`, else at their best point."""
        begin, again = torch.isin(s["it"], self.begin[1:-1]), self._place(s["it"])[0] >= fresh
        anew, onward = ((begin & rows).to(s["x"].device) for rows in (~again, again))
        s["x_adv"] = torch.where(
            per_row(anew), s["x"], torch.where(per_row(onward), s["best"], s["x_adv"])
        )
        s["walk_size"] = torch.where(
            anew, torch.inf, torch.where(onward, s["size"], s["walk_size"])
        )

    def _on_sphere(self, x: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
        """delta rescaled to the radius inside the box: what clipping takes away, the free pixels make up for."""
        for _ in range(3):
            delta = (
                (x + delta * per_row(radius / (lp_norm(delta, self.p) + TINY))).clamp_(0, 1).sub_(x)
            )
        return delta
