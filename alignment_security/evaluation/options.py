"""The command line of evaluate_robustness.py, and the threat that it asks for.

A request that makes no sense is refused here, before anything is loaded.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.autoattack import Budget
from alignment_security.attacks.libraries import FOOLBOX
from alignment_security.common.command_line import (
    Parser,
    argument,
    positive_int,
    set_name,
    whole_number,
)
from alignment_security.common.settings import setting
from alignment_security.evaluation.threats.autoattack import AutoAttack, add_autoattack_options
from alignment_security.evaluation.threats.clean import Clean, Corruptions
from alignment_security.evaluation.threats.foolbox import Foolbox
from alignment_security.evaluation.threats.minimum_norm import (
    Crossing,
    FastMinimumNorm,
    add_fmn_options,
)
from alignment_security.evaluation.threats.threat import Threat
from alignment_security.models.fast import PRECISIONS
from alignment_security.models.heads import HEADS
from alignment_security.records.metrics import REDUCTIONS

CLEAN_THREATS: dict[str, type[Threat]] = {"clean": Clean, "corruptions": Corruptions}
PROTOCOLS: dict[str, type[Threat]] = {
    "autoattack": AutoAttack,
    "fmn": FastMinimumNorm,
    "crossing": Crossing,
    **dict.fromkeys(FOOLBOX, Foolbox),
}
# norm -> its protocols, the default first
NORM_PROTOCOLS = {
    "Linf": ("autoattack", "fmn", "crossing"),
    "L2": ("fmn", "crossing", *FOOLBOX, "autoattack"),
    "L1": ("fmn",),
}
DEFAULT_STEPS = {
    "autoattack": Budget().steps,
    "fmn": FastMinimumNorm.steps,
    "crossing": Crossing.steps,
    **{protocol: settings["steps"] for protocol, (_, settings) in FOOLBOX.items()},
}
DEFAULT_WORKERS = min(8, (os.cpu_count() or 2) // 2)


# ---- values --------------------------------------------------------------------------------------


def parse_batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{text!r} is neither a number of images nor `auto`")
    return int(text)


def parse_slice(text: str) -> tuple[int, int | None]:
    """`STOP` or `START:STOP`, as `join_slice` writes it."""
    start, _, stop = text.partition(":")
    if not stop:
        return 0, int(start)
    return int(start), int(stop)


def join_slice(argv: list[str]) -> list[str]:
    """`-s START STOP` as one argument `-s START:STOP`.

    argparse would take the sub-command that follows for a third value of -s.
    """
    if "-s" not in argv:
        return argv
    first = argv.index("-s") + 1
    last = first
    while last < min(first + 2, len(argv)) and argv[last].isdigit():
        last += 1
    if last == first:
        return argv
    return [*argv[:first], ":".join(argv[first:last]), *argv[last:]]


# ---- options -------------------------------------------------------------------------------------


def get_args_parser(description: str) -> argparse.ArgumentParser:
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_image_options(parser)
    add_run_options(parser)
    threats = parser.add_subparsers(dest="threat", required=True, metavar="THREAT")
    threats.add_parser("clean", help="accuracy on the images as they are")
    add_corruptions(threats)
    for norm in NORM_PROTOCOLS:
        add_norm(threats, norm)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_name",
        required=True,
        help="a timm name, a name of lists/models/, or yours with --architecture",
    )
    parser.add_argument(
        "--source",
        choices=["timm", "brainscore"],
        default="timm",
        help="brainscore: a model of the installed brainscore-vision (requirements-brainscore.txt)",
    )
    parser.add_argument(
        "--architecture",
        help="timm name of the net (and its preprocessing), where --model_name is your own",
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="its state dict (.pth, .pth.tar, .safetensors)"
    )
    parser.add_argument(
        "--trust_checkpoint",
        action="store_true",
        help="allow a checkpoint to run code when it is loaded",
    )
    parser.add_argument(
        "--head",
        choices=list(HEADS),
        default="none",
        help="animate: two logits, the maxima over the animate and the inanimate classes",
    )
    parser.add_argument(
        "--published_accuracy",
        type=Path,
        metavar="CSV",
        help="columns model, top1 (percent), maybe img_size, as timm's results-imagenet.csv; a "
        "clean accuracy that is far off is a warning, before an attack and after clean",
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        type=argument(set_name),
        default="sample",
        help="sample, imagenet-val, big12, clickme, imagenet-c, tiny-imagenet-c, or your own with "
        "--data_dir",
    )
    parser.add_argument(
        "--data_dir", help="folder of the images; default IMAGENET_DIR, CLICKME_DIR, ... of .env"
    )
    parser.add_argument(
        "-s",
        dest="slice",
        type=argument(parse_slice),
        metavar="START [STOP]",
        help="that slice of a fixed permutation of the list; one number is STOP",
    )
    parser.add_argument(
        "--multilabel",
        type=Path,
        default=setting("MULTILABEL_FILE"),
        metavar="FILE",
        help="human_accuracy_v3.0.0.json (Shankar 2020; Vasudevan 2022): all labels that people "
        "accept; default MULTILABEL_FILE of .env",
    )
    parser.add_argument(
        "--map_reduce",
        choices=list(REDUCTIONS),
        default="max",
        help="perturbation -> map over channels, for the agreement with human maps",
    )
    parser.add_argument(
        "--workers",
        type=argument(whole_number),
        default=DEFAULT_WORKERS,
        help="processes that decode images",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch_size",
        type=argument(parse_batch_size),
        default="auto",
        help="images a pass, or auto",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the attack; what fools the model is always confirmed in float32",
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the model: pays on long runs"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results_dir", default="results")
    parser.add_argument(
        "--examples",
        type=int,
        default=0,
        help="save the perturbations of the first N images, for figures",
    )
    parser.add_argument(
        "--stop_after",
        type=float,
        metavar="SECONDS",
        help="take no new image after that time, finish those under way, and exit with 85 if "
        "images are left",
    )
    parser.add_argument(
        "--chtc",
        action="store_true",
        help="weights from the model's tar in STAGING_DIR, images too where --data_dir is X.tar "
        "(htcondor/)",
    )
    parser.add_argument("--overwrite", action="store_true", help="start this record anew")
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would run and its cost; write nothing"
    )


def add_corruptions(threats: argparse._SubParsersAction) -> None:
    parser = threats.add_parser(
        "corruptions", help="accuracy on corrupted images (ImageNet-C's; of a folder, or made)"
    )
    parser.add_argument(
        "--corruption_type",
        required=True,
        help="gaussian_noise, fog, ...; an unknown one lists them",
    )
    parser.add_argument(
        "--corruption_severity", required=True, type=argument(positive_int), help="1 to 5"
    )


def add_norm(threats: argparse._SubParsersAction, norm: str) -> None:
    """AutoAttack within eps, or minimal norms. --protocol decides which options are read."""
    protocols = NORM_PROTOCOLS[norm]
    parser = threats.add_parser(norm, help=f"{norm}: {' or '.join(protocols)}")
    parser.add_argument(
        "--protocol",
        choices=protocols,
        default=protocols[0],
        help="crossing: the norms of fmn in a tenth of its passes; feng2025: foolbox's L2 FMN as "
        "published; ddn, cw, deepfool: foolbox's classes",
    )
    defaults = ", ".join(f"{DEFAULT_STEPS[protocol]} ({protocol})" for protocol in protocols)
    parser.add_argument("--steps", type=argument(positive_int), help=f"default: {defaults}")
    if "autoattack" in protocols:
        add_autoattack_options(parser, norm)
    add_fmn_options(parser)


# ---- a request -----------------------------------------------------------------------------------


def parse_args(argv: list[str], description: str) -> argparse.Namespace:
    """Parse a command line; exits with status 2 and one line for a request that makes no sense."""
    parser = get_args_parser(description)
    args = parser.parse_args(join_slice(argv))
    check_model_options(args, parser)
    if args.threat not in CLEAN_THREATS:
        args.steps = args.steps or DEFAULT_STEPS[args.protocol]
        check_attack_options(args, parser)
    return args


def check_model_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    own_net = args.checkpoint or args.architecture
    if args.source == "brainscore" and own_net:
        parser.error(
            "--source brainscore builds the net and its weights itself; leave out --checkpoint and "
            "--architecture"
        )
    if args.architecture and not args.checkpoint:
        parser.error(
            f"--architecture {args.architecture}: a net of your own needs its weights, "
            "--checkpoint FILE"
        )
    if args.chtc and (own_net or args.source != "timm"):
        parser.error(
            "--chtc takes net and weights from STAGING_DIR; leave out --checkpoint, --architecture "
            "and --source"
        )


def check_attack_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if args.protocol == "autoattack" and not args.eps:
        parser.error(f"{args.threat} autoattack needs --eps, e.g. --eps 1/255 2/255")
    if args.protocol == "feng2025" and args.steps != DEFAULT_STEPS["feng2025"]:
        parser.error(
            "--protocol feng2025 is what was published: 1000 steps; for others use --protocol fmn"
        )
    try:
        threat_from_args(args)
    except AttackError as error:
        parser.error(str(error))


def threat_from_args(args: argparse.Namespace) -> Threat:
    """The threat that a command line asks for."""
    threat_class = CLEAN_THREATS.get(args.threat) or PROTOCOLS[args.protocol]
    return threat_class.from_args(args)
