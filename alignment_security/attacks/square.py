"""Square attack (Andriushchenko et al. 2020): random search on the margin, in Linf and L2.

Proposals are drawn from the reference implementation's distribution (fra31/auto-attack), but for
each image by itself instead of once per batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignment_security.attacks.attack import AttackedImage, Rows, State, initial_state
from alignment_security.attacks.geometry import ORDER, TINY, lp_norm, margin, normalize, per_row

FIRST_FRACTION = 0.8  # p of the paper
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries
SMALLEST_SIDE = {"Linf": 1, "L2": 3}  # an L2 bump needs two pyramids
TILES = 5  # bumps per side of the L2 start
# uniform numbers that place a proposal, before one per channel for its sign: row and column of
# the window (Linf); row and column of two windows, and whether the bump is transposed (L2)
PLACING_DRAWS = {"Linf": 2, "L2": 5}


def square_fraction(query: int) -> float:
    """Share of the image's area that proposal `query` changes; not rescaled to the budget."""
    return FIRST_FRACTION / 2 ** sum(query > bound for bound in HALVED_AFTER)


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
        delta = torch.stack(starts).to(state["x"])
        if self.norm == "L2":
            delta = normalize(delta, 2)
        state["draws"] = torch.stack(draws).to(state["x"])
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

    def is_candidate(self, state: State, logits: Tensor) -> Tensor:
        return logits.argmax(1) != state["y"]

    def update(self, state: State, logits: Tensor, grad: Tensor | None) -> Tensor:
        """Their Algorithm 1: keep the proposal if its margin is smaller, and draw the next one."""
        value = margin(logits, state["y"])
        better = (value < state["margin_best"]).nonzero().squeeze(1)
        state["x_best"][better], state["margin_best"][better] = (
            state["x_adv"][better],
            value[better],
        )
        finished = state["iteration"] >= self.queries
        state["x_adv"] = state["x_best"].clone()
        for side, rows in self._rows_by_side(state, finished).items():
            index = torch.tensor(rows, device=state["x"].device)
            if self.norm == "Linf":
                self._propose_linf(state, side, index)
            else:
                self._propose_l2(state, side, index)
        state["iteration"] += 1
        return finished

    def _rows_by_side(self, state: State, finished: Tensor) -> dict[int, list[int]]:
        """Unfinished rows, grouped by the side of their next square in pixels (odd in L2)."""
        h, w = state["x"].shape[2:]
        rows_by_side: dict[int, list[int]] = {}
        for row, query in enumerate(state["iteration"].tolist()):
            if finished[row]:
                continue
            side = round(math.sqrt(square_fraction(query) * h * w))
            side = max(side, SMALLEST_SIDE[self.norm])
            if self.norm == "L2" and side % 2 == 0:
                side += 1
            rows_by_side.setdefault(min(side, h, w), []).append(row)
        return rows_by_side

    def _draws(self, state: State, rows: Tensor) -> Tensor:
        """The random numbers of the next proposal of each of the b rows: (b, PLACING_DRAWS + C)."""
        return state["draws"][rows, state["iteration"].to(rows.device)[rows]]

    def _propose_linf(self, state: State, side: int, rows: Tensor) -> None:
        """Their Algorithm 2: a window of the perturbation becomes +eps or -eps in each channel."""
        draw = self._draws(state, rows)
        window = window_index(rows, state["x"].shape[1:], side, draw)
        eps, sign = per_row(state["eps"][rows]), (2 * draw[:, 2:] - 1).sign()[:, :, None, None]
        x = state["x"][window]
        proposal = state["x_best"][window] + 2 * eps * sign
        clipped = torch.minimum(torch.maximum(proposal, x - eps), x + eps)
        state["x_adv"][window] = clipped.clamp_(0, 1)

    def _propose_l2(self, state: State, side: int, rows: Tensor) -> None:
        """Their Algorithm 3: move the budget of a second window to a new bump in the first."""
        draw = self._draws(state, rows)
        x, eps = state["x"][rows], per_row(state["eps"][rows])
        channels = x.shape[1]
        delta = state["x_best"][rows] - x
        local = torch.arange(len(rows), device=rows.device)
        first = window_index(local, x.shape[1:], side, draw[:, :2])
        second = window_index(local, x.shape[1:], side, draw[:, 2:4])
        mask = torch.zeros_like(delta)
        mask[first] = mask[second] = 1.0
        norm_of_image = per_row(lp_norm(delta, ORDER["L2"]))
        norm_of_windows = channel_norm(delta * mask)
        bumps = torch.stack([bump(side, bool(t)) for t in draw[:, 4] > 0.5]).to(x)[:, None]
        sign = (2 * draw[:, 5:] - 1).sign()[:, :, None, None]
        old = delta[first]
        new = bumps * sign + old / (TINY + channel_norm(old))
        new = new / (TINY + channel_norm(new))
        unused = (eps**2 - norm_of_image**2).clamp(min=0) / channels
        delta[second] = 0.0
        delta[first] = new * (unused + norm_of_windows**2).sqrt()
        state["x_adv"][rows] = (x + eps * normalize(delta, 2)).clamp_(0, 1)

    def on_done(self, state: State, row: int, image: AttackedImage) -> None:
        pass


def window_index(rows: Tensor, shape: torch.Size, side: int, draw: Tensor) -> tuple[Tensor, ...]:
    """Index of one square window per row of a (B, C, H, W) tensor; selects (b, C, side, side).

    rows (b,); shape (C, H, W); draw (b, 2 or more) uniform numbers, row and column of the window.
    """
    c, h, w = shape
    grid, channels = torch.arange(side, device=rows.device), torch.arange(c, device=rows.device)
    top, left = (h - side) * draw[:, 0], (w - side) * draw[:, 1]
    return (
        per_row(rows),
        channels.view(1, -1, 1, 1),
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
