"""What the jobs of a sweep are asked, checked before 300 jobs refuse it one by one.

Options and threats are checked by the parser of evaluate_robustness.py, which needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alignment_security.cluster.studies import COMMAND_OPTIONS, Study
from alignment_security.common.files import UserError

# image sets that are in the folder of the first, and all that a tar may be called as
VALIDATION_SETS = frozenset(["imagenet-val", "big12", "robustbench", "attackbench"])
KNOWN_SETS = VALIDATION_SETS | frozenset(
    ["clickme", "imagenet-c", "tiny-imagenet-c", "imagenet-v2", "imagenet-sketch", "imagenet-a"]
    + ["imagenet-r", "objectnet"]
)


class SweepError(UserError):
    """A sweep that cannot be made."""


def check_arguments(arguments: list[str], study: Study | None = None) -> None:
    """Raise SweepError for options that each job sets itself, and for arguments of two lines."""
    for argument in arguments:
        if argument.split("=")[0] in COMMAND_OPTIONS:
            raise SweepError(f"{argument}: each job sets it itself; leave it out")
    if not (arguments or study) or any("\n" in argument for argument in arguments):
        raise SweepError(
            "no arguments for evaluate_robustness.py; put them after --, e.g. -- --dataset big12 "
            "Linf --eps 1/255, or give --study"
        )


def check_images(datasets: Iterable[str], images: str | None, arguments: Sequence[str]) -> None:
    """Raise SweepError for an image set that the jobs would not find, or another one's tar.

    datasets    of the requests; images: the tar that every job gets
    """
    for name in datasets:
        if images and images_of_another_set(images, name):
            raise SweepError(f"--images {images}: not the images of --dataset {name}")
        if not images and name != "sample" and "--data_dir" not in arguments:
            raise SweepError(
                f"--dataset {name}: the jobs need its images; prestage them and give --images TAR, "
                "or, after --, a --data_dir that the workers see"
            )


def images_of_another_set(tar: str, name: str) -> bool:
    """Whether a tar is called as a known set is that lacks images of the set `name`."""
    own = {name, "imagenet-val"} if name in VALIDATION_SETS else {name}
    called = tar.removeprefix("images-").removesuffix(".tar")
    return called in KNOWN_SETS - own or name == "sample"
