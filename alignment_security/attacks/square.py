"""Square attack (Andriushchenko et al. 2020): random search on the margin, in Linf and L2.

Proposals are drawn from the reference implementation's distribution (fra31/auto-attack), but for
each image by itself instead of once per batch.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from alignment_security.attacks.attack import (
    AttackedImage,
    Rows,
    State,
    initial_state,
    to_device,
)
from alignment_security.attacks.geometry import ORDER, TINY, lp_norm, margin, normalize, per_row

FIRST_FRACTION = 0.8  # p of the paper
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries
SMALLEST_SIDE = {"Linf": 1, "L2": 3}  # an L2 bump needs two pyramids
TILES = 5  # bumps per side of the L2 start
# uniform numbers that place a proposal, before one per channel for its sign: row and column of
# the window (Linf); row and column of two windows, and whether the bump is transposed (L2)
PLACING_DRAWS = {"Linf": 2, "L2": 5}


def square_fraction(query: Tensor) -> Tensor:
    """Share of the image's area that proposals `query` change; not rescaled to the budget."""
    return FIRST_FRACTION / 2 ** torch.bucketize(query, torch.tensor(HALVED_AFTER)).double()


class Square:
    """Changes one random square at a time and keeps the change if the margin decreases.

    Starts from vertical stripes (Linf) or a grid of bumps (L2).

    norm      "Linf" or "L2"
    queries   proposals per image
    """

    name = "square"
    runs = 1

    def __init__(self, norm: str, queries: int):
        self.norm, self.queries = norm, queries

    def start(self, images: list[AttackedImage]) -> State:
        """Rows at their random starts. Keys besides `initial_state`'s:

        x_adv, x_best   (B, C, H, W)
        margin_best     (B,)
        draws           (B, queries, PLACING_DRAWS + C) uniform in [0, 1): all proposals
        """
        state = initial_state(images)
        channels = images[0].x.shape[0]
        starts, draws = [], []
        for image in images:
            generator = image.generator(self.name)
            starts.append(self._random_start(image.x.shape, generator))
            size = (self.queries, PLACING_DRAWS[self.norm] + channels)
            draws.append(torch.rand(size, generator=generator))
        delta = to_device(torch.stack(starts), state["x"].device)
        if self.norm == "L2":
            delta = normalize(delta, 2)
        state["draws"] = to_device(torch.stack(draws), state["x"].device)
        state["x_adv"] = (state["x"] + per_row(state["eps"]) * delta).clamp_(0, 1)
        state["x_best"] = state["x_adv"].clone()
        state["margin_best"] = torch.full_like(state["eps"], torch.inf)
        return state

    def _random_start(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Vertical stripes (Linf) or a grid of bumps (L2), of random signs: (C, H, W)."""
        c, h, w = shape
        if self.norm == "Linf":
            return (2 * torch.rand(c, 1, w, generator=generator) - 1).sign().expand(c, h, w)
        delta, size = torch.zeros(shape), h // TILES
        first = (h - TILES * size) // 2
        for top in range(first, first + (h // size) * size, size):
            for left in range(first, first + (w // size) * size, size):
                tile = bump(size, bool(torch.rand(1, generator=generator) > 0.5))
                sign = (2 * torch.rand(c, 1, 1, generator=generator) - 1).sign()
                window = delta[:, top : top + size, left : left + size]
                window += (tile * sign)[:, : window.shape[1], : window.shape[2]]
        return delta

    def wants_gradient(self, state: State) -> Tensor:
        return torch.zeros_like(state["iteration"], dtype=torch.bool)

    def loss(self, state: State, logits: Tensor, rows: Rows) -> Tensor:
        raise NotImplementedError("Square uses no gradients")

    def look(self, state: State, logits: Tensor) -> list[Tensor]:
        return [logits.argmax(1) != state["y"]]

    def update(
        self, state: State, logits: Tensor, grad: Tensor | None, looked: list[Tensor]
    ) -> Tensor:
        """Their Algorithm 1: keep the proposal if its margin is smaller, and draw the next one."""
        value = margin(logits, state["y"])
        better = value < state["margin_best"]
        state["margin_best"] = torch.where(better, value, state["margin_best"])
        state["x_best"] = torch.where(per_row(better), state["x_adv"], state["x_best"])
        finished = state["iteration"] >= self.queries
        query = state["iteration"].clamp(max=self.queries - 1)
        side = square_sides(self.norm, *state["x"].shape[2:], self.queries)[query]
        row, query = torch.arange(len(value), device=value.device), to_device(query, value.device)
        draw = state["draws"][row, query]  # (B, PLACING_DRAWS + C)
        if self.norm == "Linf":
            self._propose_linf(state, to_device(side, value.device), draw)
        else:
            self._propose_l2(state, side, draw)
        state["iteration"] += 1
        return finished

    def _propose_linf(self, state: State, side: Tensor, draw: Tensor) -> None:
        """Their Algorithm 2: a window of the perturbation becomes +eps or -eps in each channel."""
        x, (h, w) = state["x"], state["x"].shape[2:]
        rows = is_inside(((h - side) * draw[:, 0]).long(), side, h)[:, None, :, None]
        columns = is_inside(((w - side) * draw[:, 1]).long(), side, w)[:, None, None, :]
        sign = (2 * draw[:, 2:] - 1).sign()[:, :, None, None]
        changed = (x + per_row(state["eps"]) * sign).clamp_(0, 1)
        state["x_adv"] = torch.where(rows & columns, changed, state["x_best"])

    def _propose_l2(self, state: State, side: Tensor, draw: Tensor) -> None:
        """A proposal for each row, by the side (B,) of its windows."""
        state["x_adv"] = state["x_best"].clone()
        for value in side.unique().tolist():
            rows = to_device((side == value).nonzero().squeeze(1), draw.device)
            x, eps, draws = state["x"][rows], state["eps"][rows], draw[rows]
            state["x_adv"][rows] = propose_l2(x, state["x_best"][rows], eps, value, draws)

    def on_done(self, state: State, rows: list[int], images: list[AttackedImage]) -> None:
        pass


@cache
def square_sides(norm: str, h: int, w: int, queries: int) -> Tensor:
    """Side of the square of each proposal in pixels, odd in L2: (queries,) int64."""
    side = (square_fraction(torch.arange(queries)) * h * w).sqrt().round().long()
    side = side.clamp(min=SMALLEST_SIDE[norm])
    if norm == "L2":
        side += 1 - side % 2
    return side.clamp(max=min(h, w))


def is_inside(first: Tensor, side: Tensor, length: int) -> Tensor:
    """Which of `length` positions are in [first, first + side): (B,), (B,) -> (B, length) bool."""
    positions = torch.arange(length, device=first.device)
    return (positions >= first[:, None]) & (positions < (first + side)[:, None])


def propose_l2(x: Tensor, x_best: Tensor, eps: Tensor, side: int, draw: Tensor) -> Tensor:
    """Their Algorithm 3: move the budget of a second window to a new bump in the first.

    x, x_best (b, C, H, W), eps (b,), draw (b, PLACING_DRAWS + C) -> (b, C, H, W)
    """
    channels, delta = x.shape[1], x_best - x
    first = window_index(x.shape, side, draw[:, :2])
    second = window_index(x.shape, side, draw[:, 2:4])
    mask = torch.zeros_like(delta)
    mask[first] = mask[second] = 1.0
    norm_of_image = per_row(lp_norm(delta, ORDER["L2"]))
    norm_of_windows = channel_norm(delta * mask)
    upright = to_device(bump(side, transpose=False), x.device)
    bumps = torch.where(per_row(draw[:, 4] > 0.5), upright.T, upright)
    sign = (2 * draw[:, 5:] - 1).sign()[:, :, None, None]
    old = delta[first]
    new = bumps * sign + old / (TINY + channel_norm(old))
    new = new / (TINY + channel_norm(new))
    unused = (per_row(eps) ** 2 - norm_of_image**2).clamp(min=0) / channels
    delta[second] = 0.0
    delta[first] = new * (unused + norm_of_windows**2).sqrt()
    return (x + per_row(eps) * normalize(delta, 2)).clamp_(0, 1)


def window_index(shape: torch.Size, side: int, draw: Tensor) -> tuple[Tensor, ...]:
    """Index of one square window per row of a tensor of `shape`; selects (B, C, side, side).

    draw (B, 2 or more) uniform numbers: row and column of the window.
    """
    b, c, h, w = shape
    grid = torch.arange(side, device=draw.device)
    top, left = (h - side) * draw[:, 0], (w - side) * draw[:, 1]
    return (
        per_row(torch.arange(b, device=draw.device)),
        torch.arange(c, device=draw.device).view(1, -1, 1, 1),
        per_row(top.long()) + grid.view(1, 1, -1, 1),
        per_row(left.long()) + grid.view(1, 1, 1, -1),
    )


def channel_norm(delta: Tensor) -> Tensor:
    """L2 norm of each channel: (B, C, H, W) -> (B, C, 1, 1)."""
    return delta.square().sum(dim=(2, 3), keepdim=True).sqrt()


def bump(size: int, transpose: bool) -> Tensor:
    """Two adjacent pyramids of opposite sign, unit L2 norm: (size, size) (their section 4.2)."""
    half = size // 2
    pair = torch.cat([pyramid(half, size), -pyramid(size - half, size)])
    pair /= pair.norm()
    return pair.T if transpose else pair


def pyramid(height: int, width: int) -> Tensor:
    """Nested rectangles around the middle, the k-th adds 1 / k^2; unit L2 norm: (height, width)."""
    value, row, column = torch.zeros(height, width), height // 2, width // 2
    for k in range(max(height // 2, width // 2) + 1):
        top, left = max(row - k, 0), max(column - k, 0)
        bottom, right = max(row + k + 1, 0), max(column + k + 1, 0)
        value[top:bottom, left:right] += 1 / (k + 1) ** 2
    return value / value.norm()
