"""The engine: images go through attacks in the slots of a batch, and each leaves the moment its question is answered.

An attack is a struct of arrays with one row per image (`start`, `update`); a `Pool` keeps its batch full by giving the
row of an image that leaves to one that waits; `run_stages` always steps the latest stage that can fill a batch, so that
few images are under way at any time (an eviction loses little) and the accelerator sees full batches to the end.
Nothing an image goes through depends on the images beside it: its randomness comes from (seed, image id, attack, run).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from alignment_security.attacks.attack import Attack, AttackedImage, AttackError, State
from alignment_security.models.forward import Forward

# ---- slots -----------------------------------------------------------------------------------------------------


class AttackBatch:
    """One attack's batch: at most `capacity` rows under way, and the images that wait for one."""

    def __init__(self, attack: Attack, capacity: int):
        self.attack, self.capacity = attack, capacity
        self.waiting: deque[AttackedImage] = deque()
        self.jobs: list[AttackedImage] = []
        self.state: State = {}
        self.free: list[int] = []

    @property
    def ready(self) -> int:
        return len(self.jobs) - len(self.free) + len(self.waiting)

    def fill(self) -> None:
        """Give free rows to waiting images; drop the rows for which there is none."""
        room = self.capacity - len(self.jobs) + len(self.free)
        new = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        rows = self.attack.start(new) if new else {}
        reused, self.free = self.free[: len(new)], self.free[len(new) :]
        for row, job in zip(reused, new):
            self.jobs[row] = job
        if reused:
            for name, tensor in self.state.items():
                tensor[reused] = rows[name][: len(reused)]
        if len(new) > len(reused):
            self.jobs += new[len(reused) :]
            self.state = {
                name: torch.cat([self.state[name], t[len(reused) :]]) if self.state else t
                for name, t in rows.items()
            }
        if self.free:
            keep = [row for row in range(len(self.jobs)) if row not in set(self.free)]
            self.jobs = [self.jobs[row] for row in keep]
            self.state = {name: tensor[keep] for name, tensor in self.state.items()} if keep else {}
            self.free = []

    def evaluate(self, passes: Forward) -> tuple[Tensor, Tensor | None]:
        """Logits of every row's point, and the gradients of the rows that want one (zero elsewhere)."""
        s, want = self.state, self.attack.wants_gradient(self.state)
        for row, job in enumerate(self.jobs):
            job.forwards += 1
            job.backwards += int(want[row])
        if not want.any():
            return passes.logits(s["x_adv"]), None
        if want.all():
            return passes.gradient(
                s["x_adv"], lambda logits, rows: self.attack.loss(s, logits, rows)
            )
        on, off = (mask.nonzero().squeeze(1).to(s["x_adv"].device) for mask in (want, ~want))
        some, grads = passes.gradient(
            s["x_adv"][on], lambda logits, rows: self.attack.loss(s, logits, on[rows])
        )
        logits = some.new_empty(len(want), some.shape[1])
        logits[on], logits[off] = some, passes.logits(s["x_adv"][off])
        grad = torch.zeros_like(s["x_adv"])
        grad[on] = grads
        return logits, grad

    def step(
        self, passes: Forward, confirm: Callable
    ) -> Iterator[tuple[AttackedImage, dict | None]]:
        """One evaluation of every row; yields the images whose run is over, with the finding that ended it or None.

        confirm(jobs, points) is asked about the points that rows claim; a finding it denies is no finding.
        """
        self.fill()
        logits, grad = self.evaluate(passes)
        if not torch.isfinite(logits).all():
            bad = self.jobs[int((~torch.isfinite(logits).all(1)).nonzero()[0])]
            raise AttackError(
                f"{bad.image_id}: the model gives NaN or infinite logits under {self.attack.name}"
            )
        rows = self.attack.claims(self.state, logits).nonzero().squeeze(1).tolist()
        found: dict[int, dict] = {}
        if rows:
            findings = confirm([self.jobs[row] for row in rows], self.state["x_adv"][rows])
            found = {
                row: finding | {"by": self.attack.name}
                for row, finding in zip(rows, findings)
                if finding
            }
        over = self.attack.update(self.state, logits, grad)
        for row in sorted({*over.nonzero().squeeze(1).tolist(), *found}):
            self.attack.leave(self.state, row, self.jobs[row])
            self.free.append(row)
            yield self.jobs[row], found.get(row)


def run_stages(
    source: Iterable,
    attacks: list[Attack],
    passes: Forward,
    confirm: Callable,
    admit: Callable,
    survived: Callable,
    found: Callable,
) -> Iterator[list[dict]]:
    """Drive every image of `source` through `attacks`; yields record rows as they become known.

    admit(batch)          -> (rows of images that need no attack, jobs for stage 0)
    found(job, finding)   -> (rows, stage to go on with or None)        the model was fooled
    survived(job, stage)  -> (rows, stage to go on with or None)        all runs of the stage were in vain
    """
    source = iter(source)
    pools = [AttackBatch(attack, passes.batch_size) for attack in attacks]
    exhausted = False
    while True:
        pool = next((p for p in reversed(pools) if p.ready >= p.capacity), None)
        if pool is None and not exhausted:
            batch = list(islice(source, passes.batch_size))
            exhausted = not batch
            if batch:
                rows, jobs = admit(batch)
                pools[0].waiting.extend(jobs)
                yield rows
            continue
        pool = pool or max(pools, key=lambda p: p.ready)
        if not pool.ready:
            return
        stage = pools.index(pool)
        for job, finding in pool.step(passes, confirm):
            job.run += 1
            if finding is None and job.run < pool.attack.runs:
                pool.waiting.appendleft(job)
                continue
            rows, onward = found(job, finding) if finding else survived(job, stage)
            job.run = 0
            if onward is not None:
                pools[onward].waiting.append(job)
            if rows:
                yield rows
        yield []  # a moment for the caller to look at the clock
