"""Minimum-norm attacks as rows of a struct of arrays: the smallest perturbation of an image that fools the model.

    FMN        Fast Minimum-Norm (Pintor et al. 2021), the authors' algorithm with a projection that only shrinks
    Crossing   our own: the next radius is where the model, linearised along the perturbation, crosses the boundary
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

from alignment_security.attacks.apgd import TINY, margin, per_row, stack, to_hyperplane
from alignment_security.attacks.engine import Job, State

DUAL = {"L1": torch.inf, "L2": 2, "Linf": 1}
P = {"L1": 1, "L2": 2, "Linf": torch.inf}
OVERSHOOT, UNDER = 1e-3, 2e-4   # share by which a crossing is overstepped; by which the best norm is undercut
WALK_STEPS = 50     # a walk has converged by then
GAMMA_LAST = 0.001  # where the cosine schedule of gamma ends (the authors' code)


def lp(delta: Tensor, p: float) -> Tensor:
    """(B, C, H, W) -> (B,)"""
    return torch.linalg.vector_norm(delta.flatten(1), ord=p, dim=1)


def cosine(it: Tensor, steps: int, first: float | Tensor, last: float) -> Tensor:
    """From `first` at 0 to `last` at `steps`, (B,)."""
    return last + (first - last) * (1 + torch.cos(math.pi * it / steps)) / 2


def shrink(delta: Tensor, eps: Tensor, norm: str) -> Tensor:
    """delta projected onto the ball of radius eps (B,); what lies inside stays where it is. Changes delta."""
    if norm == "Linf":
        return delta.clamp_(-per_row(eps), per_row(eps))
    if norm == "L2":
        return delta.mul_(per_row((eps / (lp(delta, 2) + TINY)).clamp(max=1)))
    return delta.sign() * (delta.abs() - per_row(soft_threshold(delta, eps))).clamp_(min=0)


def soft_threshold(delta: Tensor, eps: Tensor) -> Tensor:
    """theta (B,) >= 0 with sum(max(|delta| - theta, 0)) = eps, 0 where delta lies inside the L1 ball.

    The sum is convex and falling in theta: Newton from 0 climbs to it from the left and ends exactly.
    """
    size, theta = delta.abs().flatten(1), torch.zeros_like(eps)
    for _ in range(64):
        rest = (size - theta[:, None]).clamp(min=0)
        step = ((rest.sum(1) - eps) / (rest > 0).sum(1).clamp(min=1)).clamp(min=0)
        theta += step
        if not (step > 1e-7 * theta).any():
            break
    return theta


def best_so_far(s: State, points: Tensor, adversarial: Tensor, size: Tensor) -> None:
    """Keep a point that fools and is not larger than the best."""
    better = adversarial & (size < s["size"])
    s["best"] = torch.where(per_row(better), points, s["best"])
    s["size"] = torch.where(better, size, s["size"])


class Smallest:
    """What minimum-norm attacks share: `steps` points with a gradient, one more to look at, then the best is handed in."""
    runs, steps = 1, 0

    def wants_gradient(self, s: State) -> Tensor:
        return s["it"] < self.steps

    def hand_in(self, s: State, device: torch.device) -> Tensor:
        """Rows at their end put their best point, if there is one, into x_adv and claim it: (B,) bool."""
        ended = (s["it"] >= self.steps).to(device)
        s["x_adv"] = torch.where(per_row(ended), s["best"], s["x_adv"])
        return ended & torch.isfinite(s["size"])

    def leave(self, s: State, row: int, job: Job) -> None:
        job.known["best"] = s["best"][row] if torch.isfinite(s["size"][row]) else None


class FMN(Smallest):
    """Fast Minimum-Norm, Algorithm 1 of Pintor et al. (2021), for L1, L2 and Linf.

    steps                    points with a gradient; one more point, the last update, is looked at
    step_size, final_...     length of the gradient step (in L2, pixel units), cosine from one to the other
    gamma                    relative change of eps, cosine to 0.001; below 1, or eps turns negative (trap 3)
    """

    def __init__(self, norm: str, steps: int, step_size: float = 1.0, final_step_size: float = 1e-5, gamma: float = 0.05):
        if steps < 1 or not 0 <= final_step_size <= step_size or step_size <= 0:
            raise ValueError(f"FMN: steps {steps}, step_size {step_size}, final_step_size {final_step_size}: steps is at "
                             "least 1, and step_size at least final_step_size and above 0")
        if not 0 < gamma < 1:
            raise ValueError(f"gamma {gamma}: has to lie in (0, 1); from 1 on, eps (1 - gamma) turns negative and the "
                             "projection flips the perturbation's sign")
        self.norm, self.steps, self.gamma, self.name = norm, steps, gamma, f"fmn-{norm}"
        self.step_size, self.final_step_size = step_size, final_step_size

    def start(self, jobs: list[Job]) -> State:
        s = stack(jobs)
        none = torch.full_like(s["eps"], torch.inf)
        return s | {"x_adv": s["x"].clone(), "best": s["x"].clone(), "size": none, "radius": none.clone()}

    def loss(self, s: State, logits: Tensor, rows) -> Tensor:
        return -margin(logits, s["y"][rows])

    def claims(self, s: State, logits: Tensor) -> Tensor:
        best_so_far(s, s["x_adv"], logits.argmax(1) != s["y"], lp(s["x_adv"] - s["x"], P[self.norm]))
        return self.hand_in(s, logits.device)

    def update(self, s: State, logits: Tensor, grad: Tensor | None) -> Tensor:
        over = s["it"] >= self.steps
        if grad is None:
            return over
        delta, p, it = s["x_adv"] - s["x"], P[self.norm], s["it"].to(grad.device)
        adversarial, found = logits.argmax(1) != s["y"], torch.isfinite(s["size"])
        gamma = cosine(it, self.steps, self.gamma, GAMMA_LAST)
        crossing = (1 + GAMMA_LAST) * (lp(delta, p) + margin(logits, s["y"]).abs() / (lp(grad, DUAL[self.norm]) + TINY))
        radius = torch.where(found, s["radius"] * (1 + gamma), crossing)
        radius = torch.where(adversarial, torch.minimum(s["radius"] * (1 - gamma), s["size"]), radius)
        s["radius"] = torch.minimum(radius, lp(torch.maximum(s["x"], 1 - s["x"]), p))
        length = cosine(it, self.steps, self.step_size, self.final_step_size)
        delta = shrink(delta + grad * per_row(length / (lp(grad, 2) + TINY)), s["radius"], self.norm)
        s["x_adv"] = (s["x"] + delta).clamp_(0, 1)
        s["it"] += 1
        return over


class Crossing(Smallest):
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
        self.norm, self.p, self.name = norm, P[norm], f"crossing-{norm}"
        self.steps, self.walks, self.smooth = steps, walks or max(1, steps // WALK_STEPS), smooth
        self.begin = torch.tensor([round(k * steps / self.walks) for k in range(self.walks + 1)])

    def start(self, jobs: list[Job]) -> State:
        s = stack(jobs)
        return s | {"x_adv": s["x"].clone(), "best": s["x"].clone(), "size": torch.full_like(s["eps"], torch.inf),
                    "walk_size": torch.full_like(s["eps"], torch.inf)}

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
        return torch.where(smooth, others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1), hard)

    def claims(self, s: State, logits: Tensor) -> Tensor:
        size, adversarial = lp(s["x_adv"] - s["x"], self.p), logits.argmax(1) != s["y"]
        best_so_far(s, s["x_adv"], adversarial, size)
        s["walk_size"] = torch.where(adversarial, torch.minimum(s["walk_size"], size), s["walk_size"])
        return self.hand_in(s, logits.device)

    def update(self, s: State, logits: Tensor, grad: Tensor | None) -> Tensor:
        over = s["it"] >= self.steps
        if grad is None:
            return over
        delta, m = s["x_adv"] - s["x"], margin(logits, s["y"])
        size, gained = lp(delta, self.p), (grad * delta).flatten(1).sum(1)
        rise = torch.maximum(gained + m, 0.05 * lp(grad, DUAL[self.norm]) * size) * (1 + OVERSHOOT) + OVERSHOOT ** 3
        d0 = to_hyperplane(s["x"].flatten(1), grad.flatten(1), -rise, self.norm).view_as(delta)
        shortest = lp(d0, self.p) + TINY
        slope = torch.maximum(gained / (size + TINY), 0.2 * rise / shortest) + TINY
        radius = (size + m / slope + OVERSHOOT * size).clamp(0.7 * size, 1.3 * size)
        radius = torch.where(size > 0, radius, shortest).minimum(s["walk_size"] * (1 - UNDER))
        fresh = 1 + (logits.shape[1] > 2)    # walks that start at the image
        walk, done = self._place(s["it"])
        share = cosine(done, 1, torch.where(walk < fresh, 1.0, 0.5), 0.03).to(grad.device)
        s["x_adv"] = s["x"] + self._on_sphere(s["x"], delta + per_row(share) * (d0 - delta), radius)
        s["it"] += 1
        self._begin_walks(s, fresh)
        return over

    def _begin_walks(self, s: State, fresh: int) -> None:
        """Rows whose walk is over begin the next: at the image while that is one of the `fresh`, else at their best point."""
        begin, again = torch.isin(s["it"], self.begin[1:-1]), self._place(s["it"])[0] >= fresh
        anew, onward = ((begin & rows).to(s["x"].device) for rows in (~again, again))
        s["x_adv"] = torch.where(per_row(anew), s["x"], torch.where(per_row(onward), s["best"], s["x_adv"]))
        s["walk_size"] = torch.where(anew, torch.inf, torch.where(onward, s["size"], s["walk_size"]))

    def _on_sphere(self, x: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
        """delta rescaled to the radius inside the box: what clipping takes away, the free pixels make up for."""
        for _ in range(3):
            delta = (x + delta * per_row(radius / (lp(delta, self.p) + TINY))).clamp_(0, 1).sub_(x)
        return delta
