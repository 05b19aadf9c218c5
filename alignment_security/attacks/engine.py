"""The engine: runs images through a sequence of attacks in full batches.

Each attack has one `AttackBatch`. An image leaves it as soon as its question is answered, and the
next waiting image takes over its row. `run_stages` always steps the latest attack that can fill a
batch, and in the end, when none can, the first one, so that images gather for the later ones. So
few images are unfinished at any time (an interruption loses little), and batches are full. An
image's path does not depend on the other images of its batch: its random numbers come from (seed,
image id, attack, run).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from alignment_security.attacks.attack import (
    BAD_GRADIENT,
    BAD_LOGITS,
    Attack,
    AttackedImage,
    AttackError,
    Finding,
    State,
    to_device,
)
from alignment_security.attacks.geometry import lp_norm
from alignment_security.models.forward import Forward

# (images, points (b, C, H, W), name of the attack) -> a finding for each point that is confirmed
Confirm = Callable[[list[AttackedImage], Tensor, str], list[Finding | None]]
# record rows, and the stage to which the image goes next (None: it is finished)
Decision = tuple[list[dict], int | None]


# ---- one attack --------------------------------------------------------------------------------


class AttackBatch:
    """The rows of one attack, at most `capacity`, and the images that wait for a row."""

    def __init__(self, attack: Attack, capacity: int):
        self.attack, self.capacity = attack, capacity
        self.waiting: deque[AttackedImage] = deque()
        self.images: list[AttackedImage] = []  # image of each row
        self.state: State = {}
        self.free: list[int] = []  # rows whose image has left

    @property
    def ready(self) -> int:
        """Number of images in a row or waiting for one."""
        return len(self.images) - len(self.free) + len(self.waiting)

    def step(
        self, forward: Forward, confirm: Confirm
    ) -> Iterator[tuple[AttackedImage, Finding | None]]:
        """Evaluate the model once at every row's point.

        Yields the images whose run ended, with the confirmed finding that ended it, or None.
        Raises AttackError for NaN or infinite logits or gradients.
        """
        self.fill()
        wanted = self.attack.wants_gradient(self.state)
        logits, grad = self._evaluate(forward, wanted)
        self._note_finite(logits, grad, wanted)
        candidates, looked = self._look(logits)
        findings = self._confirmed(candidates, confirm)
        finished = self.attack.update(self.state, logits, grad, looked)
        rows = sorted({*finished.nonzero().squeeze(1).tolist(), *findings})
        if not rows:
            return
        self.attack.on_done(self.state, rows, [self.images[row] for row in rows])
        self.free += rows
        for row in rows:
            yield self.images[row], findings.get(row)

    # -- rows

    def fill(self) -> None:
        """Give rows to waiting images, and drop the rows that no image needs."""
        room = self.capacity - len(self.images) + len(self.free)
        new = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        if new:
            started = self.attack.start(new)
            reused = self._reuse_free_rows(new, started)
            self._append_rows(new[reused:], started, reused)
        if self.free:
            self._drop_free_rows()

    def _reuse_free_rows(self, new: list[AttackedImage], started: State) -> int:
        """Put the first new images into free rows; returns how many."""
        rows, self.free = self.free[: len(new)], self.free[len(new) :]
        for row, image in zip(rows, new):
            self.images[row] = image
        if rows:
            for name, tensor, index in self._indexed(rows):
                tensor[index] = started[name][: len(rows)]
        return len(rows)

    def _append_rows(self, new: list[AttackedImage], started: State, first: int) -> None:
        """Append the started rows from `first` on, whose images are `new`."""
        if not new:
            return
        self.images += new
        if not self.state:
            self.state = started
            return
        self.state = {
            name: torch.cat([self.state[name], tensor[first:]]) for name, tensor in started.items()
        }

    def _drop_free_rows(self) -> None:
        free = set(self.free)
        keep = [row for row in range(len(self.images)) if row not in free]
        self.images = [self.images[row] for row in keep]
        self.state = {name: tensor[index] for name, tensor, index in self._indexed(keep)}
        self.free = []

    def _indexed(self, rows: list[int]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, tensor, `rows` as an index on its device) of the state; nothing for no rows."""
        if not rows:
            return
        on_cpu = torch.tensor(rows)
        on_device = to_device(on_cpu, self.state["x"].device)
        for name, tensor in self.state.items():
            yield name, tensor, on_cpu if tensor.device == on_cpu.device else on_device

    # -- evaluation

    def _evaluate(self, forward: Forward, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, K) and gradients (B, C, H, W) at every row's point.

        wanted   (B,) bool on the CPU: rows that need a gradient

        Gradients are None if no row wants one, and undefined in rows that want none.
        """
        state, attack = self.state, self.attack
        x_adv = state["x_adv"]
        for image, backward in zip(self.images, wanted.tolist()):
            image.forwards += forward.draws
            image.backwards += forward.draws * backward
        if not wanted.any():
            return forward.logits(x_adv), None
        if not forward.split_pays(x_adv, int(wanted.sum())):
            return forward.gradient(x_adv, lambda z, rows: attack.loss(state, z, rows))
        with_grad = to_device(wanted.nonzero().squeeze(1), x_adv.device)
        without = to_device((~wanted).nonzero().squeeze(1), x_adv.device)
        some_logits, some_grads = forward.gradient(
            x_adv[with_grad], lambda z, rows: attack.loss(state, z, with_grad[rows])
        )
        logits = some_logits.new_empty(len(wanted), *some_logits.shape[1:])
        logits[with_grad], logits[without] = some_logits, forward.logits(x_adv[without])
        grad = torch.zeros_like(x_adv)
        grad[with_grad] = some_grads
        return logits, grad

    def _note_finite(self, logits: Tensor, grad: Tensor | None, wanted: Tensor) -> None:
        """Note the rows whose logits or wanted gradients are NaN or infinite."""
        state, finite = self.state, torch.isfinite(logits).flatten(1).all(1)
        state["finite"] = state["finite"] & finite
        if grad is not None:
            # of logits that are not finite, no gradient is
            passes = torch.isfinite(lp_norm(grad, torch.inf)) | ~finite
            passes |= to_device(~wanted, passes.device)
            state["finite_gradient"] = state["finite_gradient"] & passes

    def _look(self, logits: Tensor) -> tuple[list[int], list[Tensor]]:
        """The rows that are candidates, and what `update` asks for, from `Attack.look`.

        The one moment of a step at which the host waits for the device. Raises AttackError for NaN
        or infinite logits or gradients, of this step or of those since the last look.
        """
        state, wanted = self.state, self.attack.look(self.state, logits)
        if not wanted:
            return [], []
        both = (state["finite_gradient"], state["finite"])
        finite_gradient, finite, candidate, *looked = torch.stack([*both, *wanted]).cpu()
        # NaN gradients lead to points with NaN logits
        for passes, text in ((finite_gradient, BAD_GRADIENT), (finite, BAD_LOGITS)):
            if not passes.all():
                image = self.images[int((~passes).nonzero()[0])]
                raise AttackError(f"{image.image_id}: {text} under {self.attack.name}")
        return candidate.nonzero().squeeze(1).tolist(), looked

    def _confirmed(self, rows: list[int], confirm: Confirm) -> dict[int, Finding]:
        """Confirmed findings among the candidates `rows`."""
        if not rows:
            return {}
        images = [self.images[row] for row in rows]
        x_adv = self.state["x_adv"]
        index = to_device(torch.tensor(rows), x_adv.device)
        findings = confirm(images, x_adv[index], self.attack.name)
        return {row: finding for row, finding in zip(rows, findings) if finding is not None}


# ---- a sequence of attacks ---------------------------------------------------------------------


class Search(Protocol):
    """What is asked about every image, and where an answer sends it."""

    confirm: Confirm

    def on_images(self, batch: list) -> tuple[list[dict], list[AttackedImage]]:
        """Items of the source -> rows that need no attack, and images for stage 0."""
        ...

    def on_fooled(self, image: AttackedImage, finding: Finding) -> Decision:
        """A confirmed adversarial point was found."""
        ...

    def on_exhausted(self, image: AttackedImage, stage: int) -> Decision:
        """All runs of the attack of this stage failed."""
        ...


def run_stages(
    source: Iterable, attacks: list[Attack], forward: Forward, search: Search
) -> Iterator[list[dict]]:
    """Run every image of `source` through `attacks`; yields record rows as they become known.

    Yields at least an empty list after each evaluation, so that the caller can check a deadline.
    """
    source = iter(source)
    batches = [AttackBatch(attack, forward.batch_size) for attack in attacks]
    source_is_empty = False
    while True:
        batch = _latest_full(batches)
        if batch is None and not source_is_empty:
            items = list(islice(source, forward.batch_size))
            source_is_empty = not items
            if items:
                rows, images = search.on_images(items)
                batches[0].waiting.extend(images)
                yield rows
            continue
        if batch is None:
            batch = next((b for b in batches if b.ready), None)
        if batch is None:
            return
        for image, finding in batch.step(forward, search.confirm):
            image.run += 1
            if finding is None and image.run < batch.attack.runs:
                batch.waiting.appendleft(image)
                continue
            if finding is not None:
                rows, next_stage = search.on_fooled(image, finding)
            else:
                rows, next_stage = search.on_exhausted(image, batches.index(batch))
            image.run = 0
            if next_stage is not None:
                batches[next_stage].waiting.append(image)
            if rows:
                yield rows
        yield []


def _latest_full(batches: list[AttackBatch]) -> AttackBatch | None:
    """The last stage with enough images to fill its rows."""
    for batch in reversed(batches):
        if batch.ready >= batch.capacity:
            return batch
    return None
