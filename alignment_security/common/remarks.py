"""Tell the remarks of a run from its warnings.

A run file holds both among its `warnings`. A remark says what was done and leaves nothing to mend:
which entry of a checkpoint was taken, which files are no photographs. A warning says that the rows
may be wrong, and is a finding of the audit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from alignment_security.common.folders import LEFT_BY_TOOLS

REMARKS = re.compile(
    "|".join(
        (
            # how a network was loaded and run
            r".*: its weights are the entry ['\"].*",
            r".*: \d+ tensors are stored in \S+( and \S+)? and run in float32; .*",
            r".*: \S+ returns a network in train mode, put into eval mode",
            r".*: timm calls it \S+ now",
            r"out of device memory: batch size is now \d+",
            # what is no photograph of the set, or no map of one
            rf".*: \d+ {LEFT_BY_TOOLS} \(.*\)",
            r".*: \d+ files are left out, since no .* has such an ending \(.*\)",
            r".*: \d+ images of classes that ImageNet does not have are left out",
            r"\d+ of \d+ images of .* have a map in .*; human alignment is over these\. .*",
            r".*: maps without an image of .* \(\d+\): .*",
            r".*: the human ceiling of these maps is not known; .*",
            # what few steps, which were asked for, can find
            r"crossing with \d+ steps: .*",
            r"the interval at eps \S+ is \d+ points wide, .*",
            r"ddn with \d+ steps finds no L2 norm below .*",
            # a comparison with published accuracies that could not be made
            r"no published accuracy of .*",
            r"the accuracy of .* is published at .* pixels, not at \d+",
            r"the published accuracy is of 1000 classes, these answers are not",
        )
    ),
    re.DOTALL,
)


def is_remark(text: str) -> bool:
    """Whether a sentence among a run's warnings is a remark."""
    return REMARKS.fullmatch(text) is not None


def warning_lines(texts: Iterable[str]) -> list[str]:
    """The warnings of a run as indented lines, each called what it is: a note or a warning."""
    return [f"  {'note' if is_remark(text) else 'warning'}: {text}" for text in texts]
