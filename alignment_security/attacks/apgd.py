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

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment_security.attacks.engine import Job, State

TINY = 1e-12
CACHED = 2 ** 14    # floats; a row above it is worth its own loop on a CPU (2.7 times faster at 3 x 224 x 224)
# a float32 sum x + eps is off by at most half a unit in the last place of 1.0
ROUNDING = 1e-7


def per_row(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)"""
    return values.view(-1, 1, 1, 1)


def row_norm(delta: Tensor, norm: str) -> Tensor:
    """(B, C, H, W) -> (B,)"""
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "Linf" else flat.norm(dim=1)


def unit(delta: Tensor, norm: str) -> Tensor:
    """Each row over its norm; a zero row stays zero."""
    return delta / per_row(row_norm(delta, norm) + TINY)


def onto_ball(z: Tensor, x: Tensor, eps: Tensor, norm: str) -> Tensor:
    """z projected on the ball of radius eps (B,) around x, then on [0, 1]; changes z."""
    if norm == "Linf":
        return z.clamp_((x - per_row(eps)).clamp_(min=0), (x + per_row(eps)).clamp_(max=1))
    delta = z.sub_(x)
    length = row_norm(delta, "L2")
    return delta.mul_(per_row(torch.minimum(eps, length) / (length + TINY))).add_(x).clamp_(0, 1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """True-class logit minus the largest other one (B,); negative where misclassified."""
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return logits.gather(1, y[:, None]).squeeze(1) - others


def stack(jobs: list[Job]) -> State:
    """What every attack keeps of an image: x (B, C, H, W), y (B,), eps (B,), it (B,) on the CPU."""
    x = torch.stack([job.x for job in jobs])
    return {"x": x, "y": torch.tensor([job.label for job in jobs], device=x.device),
            "eps": torch.tensor([job.eps for job in jobs], device=x.device),
            "it": torch.zeros(len(jobs), dtype=torch.long)}


def targets(jobs: list[Job]) -> Tensor:
    """The class that run k aims at: the (k + 2)-th largest clean logit, in the reference's order (B,)."""
    logits = torch.stack([job.logits for job in jobs])
    runs = torch.tensor([job.run for job in jobs], device=logits.device)
    return logits.sort(dim=1)[1].gather(1, (logits.shape[1] - 2 - runs)[:, None]).squeeze(1)


# ---- APGD ------------------------------------------------------------------------------------------------------

class APGD:
    """Auto-PGD (Croce & Hein 2020, Algorithm 1): momentum 0.75, step 2 eps halved at checkpoints, back to the best point.

    targeted   False: cross-entropy, one run. True: DLR loss towards one of `runs` classes (their equation 9)
    """

    def __init__(self, norm: str, steps: int, targeted: bool, runs: int = 1, rho: float = 0.75):
        self.norm, self.steps, self.targeted, self.runs, self.rho = norm, steps, targeted, runs, rho
        self.name = "apgd-t" if targeted else "apgd-ce"
        self.window = torch.zeros(steps + 2, dtype=torch.long)    # window[i]: length of the check after iterate i, or 0
        k, at = max(int(0.22 * steps), 1), 0
        while at + k <= steps:
            at += k
            self.window[at] = k
            k = max(k - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))

    def start(self, jobs: list[Job]) -> State:
        s = stack(jobs)
        zero = torch.zeros_like(s["eps"])
        draw = torch.rand if self.norm == "Linf" else torch.randn
        noise = torch.stack([draw(job.x.shape, generator=job.generator(self.name)) for job in jobs]).to(s["x"])
        noise = 2 * noise - 1 if self.norm == "Linf" else noise
        s |= {"x_adv": (s["x"] + per_row(s["eps"]) * unit(noise, self.norm)).clamp_(0, 1),
              "x_best": torch.empty_like(s["x"]), "grad_best": torch.empty_like(s["x"]),
              "loss_best": zero - torch.inf, "loss_check": zero.clone(), "loss_before": zero.clone(),
              "rises": zero.clone(), "reduced": torch.ones_like(zero, dtype=torch.bool),
              "step": 2 * s["eps"], "blind": torch.zeros_like(zero, dtype=torch.bool)}
        s["x_before"] = s["x_adv"].clone()
        return s | ({"target": targets(jobs)} if self.targeted else {})

    def wants_gradient(self, s: State) -> Tensor:
        return s["it"] < self.steps     # the gradient at the last iterate is never used

    def loss(self, s: State, logits: Tensor, rows) -> Tensor:
        y = s["y"][rows]
        if not self.targeted:
            return F.cross_entropy(logits, y, reduction="none")
        top = logits.topk(4, dim=1)[0]
        return ((logits.gather(1, s["target"][rows][:, None]) - logits.gather(1, y[:, None])).squeeze(1)
                / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + TINY))

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
        momentum = (s["x_adv"] - s["x_before"]).mul_(per_row(torch.where(first, 0.0, 0.25)).to(loss.device))
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
        direction = grad.sign_() if self.norm == "Linf" else unit(grad, "L2")
        z = onto_ball(direction.mul_(per_row(s["step"])).add_(s["x_adv"]), s["x"], s["eps"], self.norm)
        weight = per_row(torch.where(first, 1.0, 0.75)).to(z.device)
        return onto_ball(z.sub_(s["x_adv"]).mul_(weight).add_(s["x_adv"]).add_(momentum), s["x"], s["eps"], self.norm)

    def leave(self, s: State, row: int, job: Job) -> None:
        job.known["blind"] = job.known.get("blind", False) or bool(s["blind"][row])


# ---- FAB -------------------------------------------------------------------------------------------------------

def to_hyperplane(t: Tensor, w: Tensor, c: Tensor, norm: str) -> Tensor:
    """The smallest d with w.(t + d) = w.t - c and t + d in [0, 1]; all the way to the faces where there is none.

    t, w (B, D), c (B,). What a pixel gives at multiplier lambda grows as `give` until lambda reaches its `limit` (the box),
    so the sum is concave and piecewise linear: Newton from 0 climbs it from the left and ends exactly, without a sort.
    """
    if t.device.type == "cpu" and len(t) > 1 and t.shape[1] > CACHED:      # row by row what is read ten times stays in cache
        return torch.cat([to_hyperplane(*row, norm) for row in zip(t.split(1), w.split(1), c.split(1))])
    v = w * torch.where(c >= 0, -1.0, 1.0)[:, None]
    size, room = v.abs(), torch.where(v > 0, 1 - t, t)
    give, limit = (size, room) if norm == "Linf" else (size.square(), room.div_(size.clamp(min=1e-30)))
    goal, lam = c.abs(), torch.zeros_like(c)
    for _ in range(64):
        gap = goal - torch.einsum("ij,ij->i", give, torch.minimum(limit, lam[:, None]))
        slope = torch.einsum("ij,ij->i", give, (limit > lam[:, None]).to(give))
        step = torch.where(gap > 0, gap / slope, 0.0)       # no slope left: inf, all the way to the faces
        lam += step
        if not ((step > 1e-6 * lam) & (slope > 0)).any():
            break
    return torch.minimum(limit, lam[:, None], out=limit).mul_(v.sign_() if norm == "Linf" else v)


class FAB:
    """Targeted FAB (Croce & Hein 2020b): steps to the linearised boundary, biased to the image, shrunk once across.

    alpha_max 0.1, overshoot eta 1.05, backward step beta 0.9. A point that is expected to be adversarial is only looked at
    (forward), since its gradient is needed after it has been shrunk. Expected is what came last time after a point like
    the one before: on most nets adversarial points alternate with others, on robust ones nearly all are.
    """
    name = "fab-t"

    def __init__(self, norm: str, steps: int, runs: int, alpha_max: float = 0.1, eta: float = 1.05, beta: float = 0.9):
        self.norm, self.steps, self.runs = norm, steps, runs
        self.alpha_max, self.eta, self.beta = alpha_max, eta, beta

    def start(self, jobs: list[Job]) -> State:
        s = stack(jobs)
        no = torch.zeros(len(jobs), 4, dtype=torch.bool)
        return s | {"x_adv": s["x"].clone(), "target": targets(jobs), "nearest": s["x"].clone(),
                    "distance": torch.full_like(s["eps"], torch.inf),
                    "check": no[:, 0].clone(), "last": no[:, 1].clone(), "after": no[:, 2:].clone()}

    def wants_gradient(self, s: State) -> Tensor:
        # the last point is only looked at
        expected = s["after"].gather(1, s["last"].long()[:, None]).squeeze(1)
        return ~s["check"] | (~expected & (s["it"] < self.steps - 1))

    def loss(self, s: State, logits: Tensor, rows) -> Tensor:
        return (logits.gather(1, s["target"][rows][:, None]) - logits.gather(1, s["y"][rows][:, None])).squeeze(1)

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
        s["x_adv"] = torch.where(per_row(crossed), s["x"] + (s["x_adv"] - s["x"]) * self.beta, s["x_adv"])
        go = asked & ~hit & ~over
        if go.any() and grad is not None:
            rows = go.nonzero().squeeze(1).to(device)
            s["x_adv"][rows] = self._step(s, rows, self.loss(s, logits, slice(None))[rows], grad[rows])
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
        c0 = gap + ((x0 - x1).flatten(1) * w).sum(1)    # the linear model's value at the image
        both = to_hyperplane(torch.cat([x1, x0]).flatten(1), torch.cat([w, w]), torch.cat([gap, c0]), self.norm)
        d1, d0 = both.view(2, *x0.shape)
        a1, a0 = (row_norm(d, self.norm).clamp(min=1e-8) for d in (d1, d0))
        alpha = per_row((a1 / (a1 + a0)).clamp(0, self.alpha_max))
        return ((x1 + self.eta * d1) * (1 - alpha) + (x0 + self.eta * d0) * alpha).clamp_(0, 1)

    def leave(self, s: State, row: int, job: Job) -> None:
        """What was found outside this ball decides the larger ones: FAB would find it there again."""
        distance = float(s["distance"][row])
        if distance < job.known.get("distance", math.inf):
            job.known |= {"distance": distance, "nearest": s["nearest"][row].clone(), "found_at": job.eps}


# ---- Square ----------------------------------------------------------------------------------------------------

def square_fraction(query: int) -> float:
    """Share of the image's area that proposal `query` changes: 0.8, halved on a fixed schedule (not rescaled)."""
    return 0.8 / 2 ** sum(query > bound for bound in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


class Square:
    """Square attack: stripes (Linf) or tiles (L2), then squares of random place and sign, kept when the margin falls."""
    name = "square"
    runs = 1

    def __init__(self, norm: str, queries: int):
        self.norm, self.queries = norm, queries

    def start(self, jobs: list[Job]) -> State:
        s = stack(jobs)
        c, h, w = jobs[0].x.shape
        places = 2 if self.norm == "Linf" else 5    # row and column of the window(s), and whether to transpose (L2)
        draws, begin = [], []
        for job in jobs:
            generator = job.generator(self.name)
            begin.append(self._begin((c, h, w), generator))
            draws.append(torch.rand(self.queries, places + c, generator=generator))
        delta = torch.stack(begin).to(s["x"])
        s["draws"] = torch.stack(draws).to(s["x"])
        s["x_adv"] = (s["x"] + per_row(s["eps"]) * (delta if self.norm == "Linf" else unit(delta, "L2"))).clamp_(0, 1)
        return s | {"x_best": s["x_adv"].clone(), "margin": torch.full_like(s["eps"], torch.inf)}

    def _begin(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Vertical stripes of random sign (Linf), or a grid of bumps (L2): (C, H, W)."""
        c, h, w = shape
        if self.norm == "Linf":
            return (2 * torch.rand(c, 1, w, generator=generator) - 1).sign().expand(c, h, w)
        delta, size = torch.zeros(shape), h // 5
        first = (h - 5 * size) // 2
        for top in range(first, first + (h // size) * size, size):
            for left in range(first, first + (w // size) * size, size):
                tile = bump(size, bool(torch.rand(1, generator=generator) > 0.5))
                sign = (2 * torch.rand(c, 1, 1, generator=generator) - 1).sign()
                window = delta[:, top:top + size, left:left + size]
                window += (tile * sign)[:, :window.shape[1], :window.shape[2]]
        return delta

    def wants_gradient(self, s: State) -> Tensor:
        return torch.zeros_like(s["it"], dtype=torch.bool)

    def loss(self, s: State, logits: Tensor, rows) -> Tensor:
        raise NotImplementedError("Square asks for no gradients")

    def claims(self, s: State, logits: Tensor) -> Tensor:
        return logits.argmax(1) != s["y"]

    def update(self, s: State, logits: Tensor, grad: Tensor | None) -> Tensor:
        value = margin(logits, s["y"])
        better = (value < s["margin"]).nonzero().squeeze(1)
        s["x_best"][better], s["margin"][better] = s["x_adv"][better], value[better]
        over = s["it"] >= self.queries
        s["x_adv"] = s["x_best"].clone()
        propose = self._propose_linf if self.norm == "Linf" else self._propose_l2
        for size, rows in self._sizes(s, over):
            propose(s, size, rows)
        s["it"] += 1
        return over

    def _sizes(self, s: State, over: Tensor):
        """Rows by the side of their next square."""
        c, h, w = s["x"].shape[1:]
        least = 1 if self.norm == "Linf" else 3
        sides: dict[int, list[int]] = {}
        for row, query in enumerate(s["it"].tolist()):
            if not over[row]:
                side = max(round(math.sqrt(square_fraction(query) * h * w)), least)
                side += int(self.norm == "L2" and side % 2 == 0)
                sides.setdefault(min(side, h, w), []).append(row)
        return [(side, torch.tensor(rows, device=s["x"].device)) for side, rows in sides.items()]

    def _window(self, s: State, rows: Tensor, size: int, draw: Tensor) -> tuple[Tensor, ...]:
        """Index of one square window a row, placed by two uniform numbers: shapes broadcast to (b, C, size, size)."""
        c, h, w = s["x"].shape[1:]
        grid, channels = torch.arange(size, device=rows.device), torch.arange(c, device=rows.device)
        top, left = ((span - size) * u for span, u in ((h, draw[:, 0]), (w, draw[:, 1])))
        return (per_row(rows), channels.view(1, -1, 1, 1), top.long()[:, None, None, None] + grid.view(1, 1, -1, 1),
                left.long()[:, None, None, None] + grid.view(1, 1, 1, -1))

    def _propose_linf(self, s: State, size: int, rows: Tensor) -> None:
        draw = s["draws"][rows, s["it"].to(rows.device)[rows]]
        at = self._window(s, rows, size, draw)
        eps, sign = per_row(s["eps"][rows]), (2 * draw[:, 2:] - 1).sign()[:, :, None, None]
        x = s["x"][at]
        z = s["x_best"][at] + 2 * eps * sign
        s["x_adv"][at] = torch.minimum(torch.maximum(z, x - eps), x + eps).clamp_(0, 1)

    def _propose_l2(self, s: State, size: int, rows: Tensor) -> None:
        """Take the budget of a second window, and give it with a new bump to the first (their Algorithm 3)."""
        draw = s["draws"][rows, s["it"].to(rows.device)[rows]]
        x, eps, c = s["x"][rows], per_row(s["eps"][rows]), s["x"].shape[1]
        delta = s["x_best"][rows] - x
        local = torch.arange(len(rows), device=rows.device)
        at, other = (self._window({"x": x}, local, size, draw[:, k:k + 2]) for k in (0, 2))
        mask = torch.zeros_like(delta)
        mask[at] = mask[other] = 1.0
        image = per_row(row_norm(delta, "L2"))
        windows = (delta * mask).square().sum(dim=(2, 3), keepdim=True).sqrt()
        bumps = torch.stack([bump(size, bool(t)) for t in draw[:, 4] > 0.5]).to(x)[:, None]
        old = delta[at]
        new = bumps * (2 * draw[:, 5:] - 1).sign()[:, :, None, None] + old / (
            TINY + old.square().sum(dim=(2, 3), keepdim=True).sqrt())
        new = new / (TINY + new.square().sum(dim=(2, 3), keepdim=True).sqrt())
        new = new * ((eps ** 2 - image ** 2).clamp(min=0) / c + windows ** 2).sqrt()
        delta[other] = 0.0
        delta[at] = new
        s["x_adv"][rows] = (x + eps * unit(delta, "L2")).clamp_(0, 1)

    def leave(self, s: State, row: int, job: Job) -> None:
        pass


def bump(size: int, transpose: bool) -> Tensor:
    """Two opposite pyramids side by side, of unit L2 norm: (size, size) (Andriushchenko et al. 2020, section 4.2)."""
    half = size // 2
    pair = torch.cat([pyramid(half, size), -pyramid(size - half, size)])
    pair /= pair.norm()
    return pair.T if transpose else pair


def pyramid(height: int, width: int) -> Tensor:
    """Nested rectangles around the middle, the k-th adding 1 / k^2; unit L2 norm: (height, width)."""
    value, row, column = torch.zeros(height, width), height // 2, width // 2
    for k in range(max(height // 2, width // 2) + 1):
        value[max(row - k, 0):max(row + k + 1, 0), max(column - k, 0):max(column + k + 1, 0)] += 1 / (k + 1) ** 2
    return value / value.norm()
