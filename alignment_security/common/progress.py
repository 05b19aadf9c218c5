"""Progress of long work: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from alignment_security.common.files import utc_now
from alignment_security.common.process import print_line

PROGRESS_SECONDS = 60  # between lines where stderr is no terminal


class ProgressMeter:
    """Shows how much is done, the rate, the time left, and a line of text.

    total, begun   units of work in all, and those that earlier sessions finished
    silent         show nothing: other processes of a distributed training
    """

    def __init__(self, name: str, total: int, begun: int, unit: str, silent: bool = False):
        on_terminal = sys.stderr.isatty() and not silent
        self.bar = tqdm(total=total, initial=begun, desc=name, unit=unit, disable=not on_terminal)
        self.prints_lines = not on_terminal and not silent
        self.name, self.unit = name, unit
        self.total, self.begun, self.done = total, begun, begun
        self.started = self.printed = time.monotonic()

    def per_second(self) -> float:
        """Units a second in this process."""
        return (self.done - self.begun) / (time.monotonic() - self.started)

    def update(self, done: int, text: str) -> bool:
        """Show that `done` units are finished; returns whether a line was printed."""
        self.done = done
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(done - self.bar.n)
        if not self.prints_lines or time.monotonic() - self.printed <= PROGRESS_SECONDS:
            return False
        self.printed = time.monotonic()
        print_line(f"{utc_now()} {self.name}: {self._line(text)}", sys.stderr)
        return True

    def _line(self, text: str) -> str:
        return tqdm.format_meter(
            self.done,
            self.total,
            self.printed - self.started,
            ncols=0,
            unit=self.unit,
            initial=self.begun,
            postfix=text,
        )

    def close(self) -> None:
        self.bar.close()
