"""alignment_security.attacks.square."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignment_security.attacks.attack import AttackedImage, State, initial_state
from alignment_security.attacks.geometry import TINY, margin, per_row, row_norm, unit_norm

# ---- Square ----------------------------------------------------------------------------------------------------


def square_fraction(query: int) -> float:
    """Share of the image's area that proposal `query` changes: 0.8, halved on a fixed schedule (not rescaled)."""
    return 0.8 / 2 ** sum(
        query > bound for bound in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    )


class Square:
    """Square attack: stripes (Linf) or tiles (L2), then squares of random place and sign, kept when the margin falls."""

    name = "square"
    runs = 1

    def __init__(self, norm: str, queries: int):
        self.norm, self.queries = norm, queries

    def start(self, jobs: list[AttackedImage]) -> State:
        s = initial_state(jobs)
        c, h, w = jobs[0].x.shape
        places = (
            2 if self.norm == "Linf" else 5
        )  # row and column of the window(s), and whether to transpose (L2)
        draws, begin = [], []
        for job in jobs:
            generator = job.generator(self.name)
            begin.append(self._begin((c, h, w), generator))
            draws.append(torch.rand(self.queries, places + c, generator=generator))
        delta = torch.stack(begin).to(s["x"])
        s["draws"] = torch.stack(draws).to(s["x"])
        s["x_adv"] = (
            s["x"] + per_row(s["eps"]) * (delta if self.norm == "Linf" else unit_norm(delta, "L2"))
        ).clamp_(0, 1)
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
                window = delta[:, top : top + size, left : left + size]
                window += (tile * sign)[:, : window.shape[1], : window.shape[2]]
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
        return (
            per_row(rows),
            channels.view(1, -1, 1, 1),
            top.long()[:, None, None, None] + grid.view(1, 1, -1, 1),
            left.long()[:, None, None, None] + grid.view(1, 1, 1, -1),
        )

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
        at, other = (self._window({"x": x}, local, size, draw[:, k : k + 2]) for k in (0, 2))
        mask = torch.zeros_like(delta)
        mask[at] = mask[other] = 1.0
        image = per_row(row_norm(delta, "L2"))
        windows = (delta * mask).square().sum(dim=(2, 3), keepdim=True).sqrt()
        bumps = torch.stack([bump(size, bool(t)) for t in draw[:, 4] > 0.5]).to(x)[:, None]
        old = delta[at]
        new = bumps * (2 * draw[:, 5:] - 1).sign()[:, :, None, None] + old / (
            TINY + old.square().sum(dim=(2, 3), keepdim=True).sqrt()
        )
        new = new / (TINY + new.square().sum(dim=(2, 3), keepdim=True).sqrt())
        new = new * ((eps**2 - image**2).clamp(min=0) / c + windows**2).sqrt()
        delta[other] = 0.0
        delta[at] = new
        s["x_adv"][rows] = (x + eps * unit_norm(delta, "L2")).clamp_(0, 1)

    def leave(self, s: State, row: int, job: AttackedImage) -> None:
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
        value[
            max(row - k, 0) : max(row + k + 1, 0), max(column - k, 0) : max(column + k + 1, 0)
        ] += 1 / (k + 1) ** 2
    return value / value.norm()
