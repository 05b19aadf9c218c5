"""What the jobs of a sweep are asked, checked before 300 jobs refuse it one by one.

The parser of evaluate_robustness.py checks all options, and needs torch. What is here needs none:
threats, image sets and eps.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from difflib import get_close_matches

from alignment_security.cluster.studies import COMMAND_OPTIONS, Study
from alignment_security.common.command_line import Parser
from alignment_security.common.eps import parse_eps, parse_radius
from alignment_security.common.files import UserError

THREATS = frozenset(["clean", "corruptions", "saliency", "Linf", "L2", "L1"])
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


def check_requests(study: Study | None, arguments: Sequence[str], images: str | None) -> None:
    """Raise SweepError for threats, image sets and eps that every job would refuse.

    arguments   of every job, after the words of a line of the study
    images      the tar that every job gets
    """
    if study is None:
        check_request(arguments, images)
        return
    if threats := known_words(arguments).threats:
        raise SweepError(f"--study and {threats[0]}: a study has its own threats; leave out one")
    for line in study.threats:
        try:
            check_request([*line.words, *arguments], images)
        except SweepError as error:
            raise study.error(line, str(error)) from None


def check_request(words: Sequence[str], images: str | None) -> None:
    """Raise SweepError for other than one threat, an eps that is none, and see check_images."""
    request = known_words(words)
    if len(request.threats) != 1:
        near = [name for word in words for name in get_close_matches(word, THREATS, n=1)]
        hint = f"; {near[0]}?" if near and not request.threats else ""
        raise SweepError(
            f"{' '.join(words)}: has to name one threat of {', '.join(sorted(THREATS))}{hint}"
        )
    try:
        for eps in request.eps:
            (parse_eps if request.threats == ["Linf"] else parse_radius)(eps)
    except ValueError as error:
        raise SweepError(f"--eps: {error}") from None
    check_images(request, images)


def known_words(words: Sequence[str]) -> Namespace:
    """What is checked here, as texts: dataset, data_dir, eps and threats."""
    parser = Parser(prog="evaluate_robustness.py", add_help=False)
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--data_dir")
    parser.add_argument("--eps", nargs="+", default=[])
    request, others = parser.parse_known_args(words)
    # a threat after --eps is no value of it
    request.threats = [word for word in (*request.eps, *others) if word in THREATS]
    request.eps = [word for word in request.eps if word not in THREATS]
    return request


def check_images(request: Namespace, images: str | None) -> None:
    """Raise SweepError for an image set that the jobs would not find, or another one's tar."""
    name = request.dataset
    if images and images_of_another_set(images, name):
        raise SweepError(f"--images {images}: not the images of --dataset {name}")
    if not images and name != "sample" and not request.data_dir:
        raise SweepError(
            f"--dataset {name}: the jobs need its images; prestage them and give --images TAR, "
            "or, after --, a --data_dir that the workers see"
        )


def images_of_another_set(tar: str, name: str) -> bool:
    """Whether a tar is called as a known set is that lacks images of the set `name`."""
    own = {name, "imagenet-val"} if name in VALIDATION_SETS else {name}
    called = tar.removeprefix("images-").removesuffix(".tar")
    return called in KNOWN_SETS - own or name == "sample"
