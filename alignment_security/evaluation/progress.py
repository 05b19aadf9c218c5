"""Progress of an evaluation: what will run, passes and verdicts so far, on the screen and HTCondor.

The time left is counted in passes. An image under attack is charged what it costs if nothing fools
it, an image that waits the mean of those that were begun. The time left therefore rather falls
than rises.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from alignment_security.attacks.clean import ImageStream
from alignment_security.cluster.job import report_progress
from alignment_security.common.eps import format_eps
from alignment_security.common.progress import ProgressMeter
from alignment_security.evaluation.threats.threat import Cost, Threat
from alignment_security.records.norm_summary import NORM_COLUMNS, format_norm, minimised_norm

BACKWARD = 2  # a backward pass takes about twice the time of a forward pass
SHOWN_EVERY = 0.2  # seconds
MOST_EPS = 3  # verdicts on one line


def work_of(cost: Cost) -> float:
    """Passes in units of a forward pass."""
    forwards, backwards = cost
    return forwards + BACKWARD * backwards


def work_of_row(row: dict, most: Cost) -> float:
    """Passes of a record row in units of a forward pass; rows without passes cost the most."""
    forwards, backwards = most
    return work_of((row.get("forwards", forwards), row.get("backwards", backwards)))


class EvaluationProgress:
    """Work and verdicts so far: on the screen, and in the job's ad on HTCondor.

    sums, counts   of the verdicts and norms of this session, by name
    taken          images that this session began
    begun_at       work before each image under way was begun, by image id
    work, settled  passes so far in units of a forward pass, idle rows of batches included, and
                   those that the images of the rows written asked for
    """

    def __init__(self, threat: Threat, total: int, begun: int, name: str):
        self.meter = ProgressMeter(name, total, begun, unit="image")
        self.threat, self.most = threat, work_of(threat.cost()[1])
        self.norm = minimised_norm(threat.name)
        self.sums: dict[str, float] = defaultdict(int)
        self.counts: dict[str, int] = defaultdict(int)
        self.begun_at: dict[str, float] = {}
        self.taken, self.work, self.settled = 0, 0.0, 0.0
        self.shown = 0.0
        report_progress(begun, total, 0)

    def count_images(self, source: ImageStream) -> Iterator[tuple[str, Tensor, int]]:
        """Pass images on, and count them."""
        for item in source:
            self.taken += 1
            self.begun_at[item[0]] = self.work
            yield item

    def on_pass(self, rows: int, backward: bool) -> None:
        """`rows` images went forward through the attacked model, perhaps also backward."""
        self.work += rows * work_of((1, int(backward)))
        if time.monotonic() - self.shown > SHOWN_EVERY:
            self._show()

    def on_rows(self, finished: int, rows: list[dict]) -> None:
        """Rows are written, which finish so many images."""
        _, most = self.threat.cost()
        for row in rows:
            self.settled += work_of_row(row, most)
            self.begun_at.pop(row["image_id"], None)
            self._count_verdict(row)
        self.meter.done += finished
        if rows:
            self._show()

    def _count_verdict(self, row: dict) -> None:
        name = format_eps(row["eps"], self.threat.name) if "eps" in row else "correct"
        self._count(name, row.get("robust", row["clean_correct"]))
        if row.get("success"):
            self._count(f"mean {self.norm}", row[NORM_COLUMNS[self.norm]])

    def _count(self, name: str, value: float) -> None:
        self.sums[name] += value
        self.counts[name] += 1

    def verdict(self) -> str:
        """Counts, not shares: easily fooled images finish first."""
        if self.threat.eps:
            return self._robust()
        parts = []
        for name, total in self.sums.items():
            if name == f"mean {self.norm}":
                parts.append(f"{name} {format_norm(total / self.counts[name], self.norm)}")
            else:
                parts.append(f"{name} {total}/{self.counts[name]}")
        return ", ".join(parts)

    def _robust(self) -> str:
        """`robust 2/8, 1/8 at 0.5, 1/255` for the first MOST_EPS eps; `standing` in a screen."""
        radii = list(self.sums)[:MOST_EPS]
        if not radii:
            return ""
        counts = ", ".join(f"{self.sums[radius]}/{self.counts[radius]}" for radius in radii)
        *first, last = radii
        if all(radius.endswith("/255") for radius in radii):
            first = [radius.removesuffix("/255") for radius in first]
        return f"{self.threat.survivors} {counts} at {', '.join([*first, last])}"

    def work_left(self) -> float:
        """An estimate of the work that is left, in units of a forward pass."""
        done = self.meter.done - self.meter.begun
        under_way = max(0, self.taken - done)
        begun = self.settled + under_way * self.most
        waiting = self.meter.total - self.meter.done - under_way
        mean = begun / self.taken if self.taken else self.most
        return max(0.0, under_way * self.most - self._spent_under_way()) + waiting * mean

    def _spent_under_way(self) -> float:
        """At most the work on the images under way, which share the batches since they were begun.

        Finished images asked for a part of it, and images may wait before their first batch.
        """
        shares = sum(self.work - before for before in self.begun_at.values())
        shares /= max(1, len(self.begun_at))
        return max(0.0, min(shares, self.work - self.settled))

    def _show(self) -> None:
        self.shown = time.monotonic()
        left, meter = self.work_left(), self.meter
        share = self.work / (self.work + left) if self.work else 0.0
        if not left:
            share = 1.0
        seconds = None
        if self.work:
            seconds = left * (self.shown - meter.started) / self.work
        share = (meter.begun + share * (meter.total - meter.begun)) / max(meter.total, 1)
        if meter.update(meter.done, self.verdict(), share, seconds):
            self._report()

    def _report(self) -> None:
        report_progress(self.meter.done, self.meter.total, 3600 * self.meter.per_second())

    def close(self) -> None:
        self._show()
        self.meter.close()
        self._report()


def expected_time(threat: Threat, images: int, seconds: float | None) -> str:
    """`about 01:10 to 2:03:00`, from the time of a forward pass of an image; "" if that is None."""
    if seconds is None:
        return ""
    shortest, longest = (
        tqdm.format_interval(images * seconds * work_of(cost)) for cost in threat.cost()
    )
    return f"about {longest}" if shortest == longest else f"about {shortest} to {longest}"
