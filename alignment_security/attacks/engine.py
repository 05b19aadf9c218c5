"""The engine: images go through attacks in the slots of a batch, and each leaves the moment its question is answered.

An attack is a struct of arrays with one row per image (`start`, `update`); a `Pool` keeps its batch full by giving the
row of an image that leaves to one that waits; `run_stages` always steps the latest stage that can fill a batch, so that
few images are under way at any time (an eviction loses little) and the accelerator sees full batches to the end.
Nothing an image goes through depends on the images beside it: its randomness comes from (seed, image id, attack, run).
"""
from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Protocol

import torch
from torch import Tensor, nn

State = dict[str, Tensor]   # every tensor has a leading dimension of rows; `it` lives on the CPU
CPU_BATCH, FIRST_CUDA_BATCH, LARGEST_BATCH = 8, 32, 1024


class AttackError(ValueError):
    """An input no attack can work on; the message says which."""


@dataclass
class Job:
    """One image on its way. x (C, H, W) float32 in [0, 1] on the device; logits (K,) of the clean image."""
    image_id: str
    x: Tensor
    label: int
    logits: Tensor
    seed: int = 0
    eps: float = 0.0
    run: int = 0                # which target or restart of the present attack
    forwards: float = 0         # passes since the last row was written (a share of a batch's for the reference)
    backwards: float = 0
    known: dict = field(default_factory=dict)   # what attacks leave behind for later ones

    def generator(self, attack: str) -> torch.Generator:
        """Random numbers of this image, attack and run: the same on every machine, in every batch."""
        key = f"{self.seed}|{self.image_id}|{attack}|{self.run}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7]))


class Attack(Protocol):
    """What the engine asks of an attack. Rows of `s` are images; s["x_adv"] is the point to evaluate next.

    Each turn: wants_gradient, loss, claims, update. A row that claims an answer may put another point into s["x_adv"].
    """
    name: str
    runs: int

    def start(self, jobs: list[Job]) -> State: ...
    def wants_gradient(self, s: State) -> Tensor: ...                       # (B,) bool on the CPU
    def loss(self, s: State, logits: Tensor, rows) -> Tensor: ...           # (len(rows),) to ascend
    def claims(self, s: State, logits: Tensor) -> Tensor: ...               # (B,) bool: s["x_adv"] answers the question
    def update(self, s: State, logits: Tensor, grad: Tensor | None) -> Tensor: ...   # (B,) bool on the CPU: run over
    def leave(self, s: State, row: int, job: Job) -> None: ...


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters (or buffers) lie; the CPU when it has none."""
    return next(chain(module.parameters(), module.buffers()), torch.empty(0)).device


# ---- passes ----------------------------------------------------------------------------------------------------

class Passes:
    """A model run in chunks of at most `batch_size` rows, halved when the device is out of memory. Counts rows."""

    def __init__(self, module: nn.Module, batch_size: int, log: Callable[[str], None] = lambda message: None):
        self.module, self.batch_size, self.log = module, batch_size, log
        self.forwards = self.backwards = 0

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) float32 without a graph."""
        with torch.no_grad():
            return self._chunks(x, lambda part, rows: self.module(part).float())

    def gradient(self, x: Tensor, loss: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and the gradient of each row's loss at x (B, C, H, W); no gradient reaches the weights."""
        out: list[Tensor] = []

        def one(part: Tensor, rows: slice) -> Tensor:
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                logits = self.module(leaf).float()
                grad, = torch.autograd.grad(loss(logits, rows).sum(), leaf)
            out.append(logits.detach())
            return grad
        grad = self._chunks(x, one, out)
        self.backwards += len(x)
        return (out[0] if len(out) == 1 else torch.cat(out)), grad

    def _chunks(self, x: Tensor, evaluate, done: list | None = None) -> Tensor:
        parts, begin = [], 0
        while begin < len(x):
            rows = slice(begin, begin + self.batch_size)
            try:
                parts.append(evaluate(x[rows], rows))
            except torch.OutOfMemoryError:
                if done is not None:
                    del done[len(parts):]
                if self.batch_size == 1:
                    raise
                self.batch_size = max(1, min(self.batch_size, len(x)) // 2)
                self.log(f"out of device memory: batch size is now {self.batch_size}")
                torch.cuda.empty_cache() if x.is_cuda else None
                continue
            begin = rows.stop
        self.forwards += len(x)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def auto_batch_size(module: nn.Module, shape: tuple[int, int, int], device: torch.device) -> int:
    """The largest power of two that fits forward and backward and still gains 5 % in images per second.

    On a CPU time is linear in the batch, and a small one stays in its caches: CPU_BATCH.
    """
    if device.type != "cuda":
        return CPU_BATCH
    best, rate, size = 1, 0.0, FIRST_CUDA_BATCH
    while size <= LARGEST_BATCH:
        try:
            now = _probe(module, torch.rand(size, *shape, device=device))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            size //= 2
            if size <= best or rate:
                break
            continue
        if now < 1.05 * rate:
            break
        best, rate, size = size, now, size * 2
    return best


def _probe(module: nn.Module, x: Tensor) -> float:
    passes, begin, end = Passes(module, len(x)), torch.cuda.Event(True), torch.cuda.Event(True)
    passes.gradient(x, lambda logits, rows: logits.amax(1))
    begin.record()
    passes.gradient(x, lambda logits, rows: logits.amax(1))
    end.record()
    torch.cuda.synchronize()
    return len(x) / begin.elapsed_time(end)


# ---- slots -----------------------------------------------------------------------------------------------------

class Pool:
    """One attack's batch: at most `capacity` rows under way, and the images that wait for one."""

    def __init__(self, attack: Attack, capacity: int):
        self.attack, self.capacity = attack, capacity
        self.waiting: deque[Job] = deque()
        self.jobs: list[Job] = []
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
        reused, self.free = self.free[:len(new)], self.free[len(new):]
        for row, job in zip(reused, new):
            self.jobs[row] = job
        if reused:
            for name, tensor in self.state.items():
                tensor[reused] = rows[name][:len(reused)]
        if len(new) > len(reused):
            self.jobs += new[len(reused):]
            self.state = {name: torch.cat([self.state[name], t[len(reused):]]) if self.state else t
                          for name, t in rows.items()}
        if self.free:
            keep = [row for row in range(len(self.jobs)) if row not in set(self.free)]
            self.jobs = [self.jobs[row] for row in keep]
            self.state = {name: tensor[keep] for name, tensor in self.state.items()} if keep else {}
            self.free = []

    def evaluate(self, passes: Passes) -> tuple[Tensor, Tensor | None]:
        """Logits of every row's point, and the gradients of the rows that want one (zero elsewhere)."""
        s, want = self.state, self.attack.wants_gradient(self.state)
        for row, job in enumerate(self.jobs):
            job.forwards += 1
            job.backwards += int(want[row])
        if not want.any():
            return passes.logits(s["x_adv"]), None
        if want.all():
            return passes.gradient(s["x_adv"], lambda logits, rows: self.attack.loss(s, logits, rows))
        on, off = (mask.nonzero().squeeze(1).to(s["x_adv"].device) for mask in (want, ~want))
        some, grads = passes.gradient(s["x_adv"][on], lambda logits, rows: self.attack.loss(s, logits, on[rows]))
        logits = some.new_empty(len(want), some.shape[1])
        logits[on], logits[off] = some, passes.logits(s["x_adv"][off])
        grad = torch.zeros_like(s["x_adv"])
        grad[on] = grads
        return logits, grad

    def step(self, passes: Passes, confirm: Callable) -> Iterator[tuple[Job, dict | None]]:
        """One evaluation of every row; yields the images whose run is over, with the finding that ended it or None.

        confirm(jobs, points) is asked about the points that rows claim; a finding it denies is no finding.
        """
        self.fill()
        logits, grad = self.evaluate(passes)
        if not torch.isfinite(logits).all():
            bad = self.jobs[int((~torch.isfinite(logits).all(1)).nonzero()[0])]
            raise AttackError(f"{bad.image_id}: the model gives NaN or infinite logits under {self.attack.name}")
        rows = self.attack.claims(self.state, logits).nonzero().squeeze(1).tolist()
        found: dict[int, dict] = {}
        if rows:
            findings = confirm([self.jobs[row] for row in rows], self.state["x_adv"][rows])
            found = {row: finding | {"by": self.attack.name} for row, finding in zip(rows, findings) if finding}
        over = self.attack.update(self.state, logits, grad)
        for row in sorted({*over.nonzero().squeeze(1).tolist(), *found}):
            self.attack.leave(self.state, row, self.jobs[row])
            self.free.append(row)
            yield self.jobs[row], found.get(row)


def run_stages(source: Iterable, attacks: list[Attack], passes: Passes, confirm: Callable, admit: Callable,
               survived: Callable, found: Callable) -> Iterator[list[dict]]:
    """Drive every image of `source` through `attacks`; yields record rows as they become known.

    admit(batch)          -> (rows of images that need no attack, jobs for stage 0)
    found(job, finding)   -> (rows, stage to go on with or None)        the model was fooled
    survived(job, stage)  -> (rows, stage to go on with or None)        all runs of the stage were in vain
    """
    source = iter(source)
    pools = [Pool(attack, passes.batch_size) for attack in attacks]
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
        yield []    # a moment for the caller to look at the clock
