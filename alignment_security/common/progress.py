"""Progress of long work: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from alignment_security.common.files import utc_now
from alignment_security.common.process import print_line

FIRST_SECONDS = 15  # from the start to the first line where stderr is no terminal
PROGRESS_SECONDS = 60  # between the lines after it
BAR = "{percentage:3.0f}%|{bar:6}| {desc}"


class ProgressMeter:
    """Shows how much is done, the time gone and left, and a line of text.

    total, begun   units of work in all, and those that earlier sessions finished
    silent         show nothing: other processes of a distributed training
    """

    def __init__(self, name: str, total: int, begun: int, unit: str, silent: bool = False):
        on_terminal = sys.stderr.isatty() and not silent
        self.bar = tqdm(total=1.0, bar_format=BAR, dynamic_ncols=True, disable=not on_terminal)
        self.prints_lines = not on_terminal and not silent
        self.name, self.unit = name, unit
        self.total, self.begun, self.done = total, begun, begun
        self.started = time.monotonic()
        self.next_line = self.started + min(FIRST_SECONDS, PROGRESS_SECONDS)

    def per_second(self) -> float:
        """Units a second in this process."""
        return (self.done - self.begun) / (time.monotonic() - self.started)

    def update(
        self,
        done: int,
        text: str,
        share: float | None = None,
        seconds_left: float | None = None,
    ) -> bool:
        """Show that `done` units are finished; returns whether a line was printed.

        share          of all the work that is done, where it is more than whole units
        seconds_left   where it does not follow from the units done
        """
        self.done = done
        if share is None:
            share = done / max(self.total, 1)
        if seconds_left is None and self.done > self.begun:
            seconds_left = (self.total - done) / self.per_second()
        line = self._line(text, seconds_left)
        self.bar.set_description_str(line, refresh=False)
        self.bar.update(share - self.bar.n)
        if not self.prints_lines or time.monotonic() < self.next_line:
            return False
        self.next_line = time.monotonic() + PROGRESS_SECONDS
        print_line(f"{utc_now()} {self.name}: {line}", sys.stderr)
        return True

    def _line(self, text: str, seconds_left: float | None) -> str:
        gone = tqdm.format_interval(time.monotonic() - self.started)
        left = "?" if seconds_left is None else tqdm.format_interval(seconds_left)
        return f"{self.done}/{self.total} {self.unit}s [{gone}<{left}] {text}".rstrip()

    def close(self) -> None:
        self.bar.close()
