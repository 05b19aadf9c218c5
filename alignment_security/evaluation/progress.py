"""Progress of an evaluation: images done and verdicts so far, on the screen and on HTCondor."""

from __future__ import annotations

from collections import defaultdict

from alignment_security.cluster.job import report_progress
from alignment_security.common.eps import format_eps
from alignment_security.common.progress import ProgressMeter


class EvaluationProgress:
    """Images done and verdicts so far: on the screen, and in the job's ad on HTCondor.

    sums, counts   of the verdicts and norms of this session, by name
    """

    def __init__(self, total: int, begun: int, name: str):
        self.meter = ProgressMeter(name, total, begun, unit="image")
        self.sums: dict[str, float] = defaultdict(int)
        self.counts: dict[str, int] = defaultdict(int)
        report_progress(begun, total, 0)

    def show(self, finished: int, rows: list[dict]) -> None:
        for row in rows:
            name = f"robust at {format_eps(row['eps'])}" if "eps" in row else "correct"
            self._count(name, row.get("robust", row["clean_correct"]))
            if row.get("success"):
                self._count("mean L2", row["l2"])
        if self.meter.update(self.meter.done + finished, self.verdict()):
            self._report()

    def _count(self, name: str, value: float) -> None:
        self.sums[name] += value
        self.counts[name] += 1

    def verdict(self) -> str:
        """Counts, not shares: easily fooled images finish first."""
        parts = []
        for name, total in self.sums.items():
            if name == "mean L2":
                parts.append(f"{name} {total / self.counts[name]:.3f}")
            else:
                parts.append(f"{name} {total} of {self.counts[name]}")
        return ", ".join(parts)

    def _report(self) -> None:
        report_progress(self.meter.done, self.meter.total, 3600 * self.meter.per_second())

    def close(self) -> None:
        self.meter.close()
        self._report()
