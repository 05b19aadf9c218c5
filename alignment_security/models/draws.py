"""Random networks: seeded draws of an image's logits, and the class that most draws give.

A random network (VOneNets, noise, dropout that stays on) gives an image other logits in every pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from alignment_security.common.seeds import seed_from_text
from alignment_security.models.forward import Forward


@contextmanager
def seeded(key: str, device: torch.device) -> Iterator[None]:
    """Seed the generators of torch, numpy and Python by a text; restore them afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed_from_text(key))
            np.random.seed(seed_from_text(key, 4))
            random.seed(seed_from_text(key))
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class DrawnForward(Forward):
    """`Forward` of a random network for one image at a time, which is asked `draws` times.

    Logits are (1, draws, K), gradients the mean over the draws: the expectation over transformation
    of Athalye et al. 2018. The k-th call is seeded by (key, k), so that an image's draws depend on
    neither the batch size, nor other images, nor an interruption.

    key        text that seeds the draws of this image
    together   draws are copies in one batch; False: passes of one row each, for a network that
               draws once for the whole batch
    """

    def __init__(
        self,
        module: nn.Module,
        draws: int,
        key: str,
        together: bool = True,
        log: Callable[[str], None] = lambda message: None,
    ):
        super().__init__(module, batch_size=1)
        self.draws, self.key, self._calls = draws, key, 0
        rows = draws if together else 1
        self._passes = Forward(module, rows, log, cpu_rows=rows)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (1, draws, K) of an image x (1, C, H, W), without a graph."""
        with self._seeded(x.device):
            return self._passes.logits(self._copies(x))[None]

    def gradient(self, x: Tensor, loss: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (1, draws, K) and the mean gradient (1, C, H, W) of the draws' losses at x.

        loss   (logits (b, K) of some draws, their rows in x (b,) int64, all 0) -> losses (b,)
        """

        def loss_of_draws(logits: Tensor, rows: slice) -> Tensor:
            return loss(logits, torch.zeros(len(logits), dtype=torch.long, device=x.device))

        with self._seeded(x.device):
            logits, gradients = self._passes.gradient(self._copies(x), loss_of_draws)
        return logits[None], gradients.mean(0, keepdim=True)

    def _copies(self, x: Tensor) -> Tensor:
        return x.expand(self.draws, *x.shape[1:])

    def _seeded(self, device: torch.device):
        self._calls += 1
        return seeded(f"{self.key}|{self._calls}", device)


def draws_differ_in_a_batch(module: nn.Module, image: Tensor) -> bool:
    """Whether copies of an image (1, C, H, W) in one batch get draws of their own."""
    with torch.no_grad(), seeded("a batch", image.device):
        logits = module(image.repeat(2, 1, 1, 1))
    return not torch.equal(logits[0], logits[1])


def share_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Share of the draws (B, draws, K) whose largest logit is another class than y (B,): (B,)."""
    return (logits.argmax(2) != y[:, None]).float().mean(1)
