"""The command line of evaluate_robustness.py: its options, their units, and requests refused before anything is loaded."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from alignment_security.attacks.autoattack import AUTOATTACK
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.libraries import FOOLBOX
from alignment_security.common.command_line import (
    Parser,
    argument,
    positive_int,
    set_name,
    whole_number,
)
from alignment_security.common.settings import parse_eps, parse_radius, setting
from alignment_security.models.fast import PRECISIONS
from alignment_security.models.heads import HEADS
from alignment_security.records.metrics import REDUCTIONS

CLEAN_THREATS = ("clean", "corruptions")
ENGINES = ("own", "reference")
DEFAULT_STEPS = {
    "autoattack": 100,
    "fmn": 1000,
    "crossing": 100,
    **{protocol: settings["steps"] for protocol, (_, settings) in FOOLBOX.items()},
}


def parse_batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{text!r} is neither a number of images nor `auto`")
    return int(text)


def parse_corruption(args) -> tuple[str, int] | None:
    return (
        (args.corruption_type, args.corruption_severity) if args.threat == "corruptions" else None
    )


def parse_slice(text: str) -> tuple[int, int | None]:
    start, _, stop = text.partition(":")
    return (0, int(start)) if not stop else (int(start), int(stop))


def join_slice(argv: list[str]) -> list[str]:
    """`-s START STOP` as one argument, so that a sub-command may follow it."""
    if "-s" not in argv:
        return argv
    at = argv.index("-s") + 1
    numbers = 0
    while numbers < 2 and at + numbers < len(argv) and argv[at + numbers].isdigit():
        numbers += 1
    return (
        [*argv[:at], ":".join(argv[at : at + numbers]), *argv[at + numbers :]] if numbers else argv
    )


def minimum_norm_attack(args) -> FMN | BoundaryCrossing:
    if args.protocol == "crossing":
        return BoundaryCrossing(args.threat, args.steps)
    return FMN(args.threat, args.steps, args.step_size, args.final_step_size, args.gamma)


def get_args_parser(description: str) -> argparse.ArgumentParser:
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        "--dataset",
        type=argument(set_name),
        default="sample",
        help="sample, imagenet-val, big12, clickme, imagenet-c, tiny-imagenet-c, or your own with --data_dir",
    )
    parser.add_argument(
        "--data_dir", help="folder of the images; default IMAGENET_DIR, CLICKME_DIR, ... of .env"
    )
    parser.add_argument(
        "--multilabel",
        type=Path,
        default=setting("MULTILABEL_FILE"),
        metavar="FILE",
        help="human_accuracy_v3.0.0.json (Shankar 2020; Vasudevan 2022): all labels that people accept; "
        "default MULTILABEL_FILE of .env",
    )
    parser.add_argument(
        "--published_accuracy",
        type=Path,
        metavar="CSV",
        help="columns model, top1 (percent), maybe img_size, as timm's results/results-imagenet.csv: a clean "
        "accuracy that is far off is a warning, before an attack and after clean",
    )
    parser.add_argument(
        "--map_reduce",
        choices=list(REDUCTIONS),
        default="max",
        help="perturbation -> map over channels, for the agreement with human maps",
    )
    parser.add_argument(
        "--batch_size",
        type=argument(parse_batch_size),
        default="auto",
        help="images a pass, or auto",
    )
    parser.add_argument(
        "-s",
        dest="slice",
        type=argument(parse_slice),
        metavar="START [STOP]",
        help="that slice of a fixed permutation of the list; one number is STOP",
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
    parser.add_argument(
        "--workers",
        type=argument(whole_number),
        default=min(8, (os.cpu_count() or 2) // 2),
        help="processes that decode images",
    )
    parser.add_argument("--results_dir", default="results")
    parser.add_argument(
        "--examples",
        type=int,
        default=0,
        help="keep the perturbations of the first N images, for figures",
    )
    parser.add_argument(
        "--stop_after",
        type=float,
        help="take no new image after so many seconds, finish those under way, and exit 85 if there are more",
    )
    parser.add_argument(
        "--chtc",
        action="store_true",
        help="weights from the model's tar in STAGING_DIR, images too where --data_dir is X.tar (htcondor/)",
    )
    parser.add_argument("--overwrite", action="store_true", help="start this record anew")
    parser.add_argument(
        "--dry_run", action="store_true", help="say what would be run; write nothing"
    )
    threats = parser.add_subparsers(dest="threat", required=True, metavar="THREAT")
    threats.add_parser("clean", help="accuracy on the images as they are")
    corrupted = threats.add_parser(
        "corruptions", help="accuracy on corrupted images (ImageNet-C's; of a folder, or made)"
    )
    corrupted.add_argument(
        "--corruption_type",
        required=True,
        help="gaussian_noise, fog, ...; an unknown one lists them",
    )
    corrupted.add_argument(
        "--corruption_severity", required=True, type=argument(positive_int), help="1 to 5"
    )
    for norm in ("Linf", "L2", "L1"):
        add_norm(threats, norm)
    return parser


def add_norm(threats, norm: str) -> None:
    """AutoAttack in a ball, or the minimal norm. Which options are read depends on --protocol."""
    protocols = {
        "Linf": ["autoattack", "fmn", "crossing"],
        "L2": ["fmn", "crossing", *FOOLBOX, "autoattack"],
        "L1": ["fmn"],
    }[norm]
    parser = threats.add_parser(norm, help=f"{norm}: {' or '.join(protocols)}")
    parser.add_argument(
        "--protocol",
        choices=protocols,
        default=protocols[0],
        help="crossing: the norms of fmn in a tenth of its passes; feng2025: foolbox's L2 FMN as published; "
        "ddn, cw, deepfool: foolbox's classes",
    )
    parser.add_argument(
        "--steps",
        type=argument(positive_int),
        help=f"default: {', '.join(f'{DEFAULT_STEPS[name]} ({name})' for name in protocols)}",
    )
    if "autoattack" in protocols:
        ball = parser.add_argument_group("autoattack")
        ball.add_argument(
            "--eps",
            nargs="+",
            type=argument(parse_eps if norm == "Linf" else parse_radius),
            default=[],
            help="radii in pixel units of [0, 1]: 8/255 or 0.031",
        )
        ball.add_argument(
            "--engine", choices=ENGINES, default="own", help="reference: pyautoattack, unchanged"
        )
        ball.add_argument(
            "--bisect",
            action="store_true",
            help="middle eps first; robust there is taken as robust below (from_eps says so)",
        )
        ball.add_argument("--attacks", nargs="+", choices=AUTOATTACK, default=list(AUTOATTACK))
        ball.add_argument(
            "--targets",
            type=argument(positive_int),
            default=9,
            help="classes that apgd-t and fab-t aim at",
        )
        ball.add_argument(
            "--queries", type=argument(positive_int), default=5000, help="queries of square"
        )
    smallest = parser.add_argument_group("fmn")
    smallest.add_argument(
        "--step_size",
        type=float,
        default=1.0,
        help="first step, L2 length in pixel units of [0, 1]",
    )
    smallest.add_argument("--final_step_size", type=float, default=1e-5, help="last step")
    smallest.add_argument(
        "--gamma", type=float, default=0.05, help="first relative change of eps, in (0, 1)"
    )


def parse_args(argv: list[str], description: str) -> argparse.Namespace:
    parser = get_args_parser(description)
    return complete_args(parser.parse_args(join_slice(argv)), parser)


def complete_args(args, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Defaults that depend on the protocol, and the requests that make no sense, before anything is loaded."""
    if args.source == "brainscore" and (args.checkpoint or args.architecture):
        parser.error(
            "--source brainscore builds the net and its weights itself; leave out --checkpoint and --architecture"
        )
    if args.architecture and not args.checkpoint:
        parser.error(
            f"--architecture {args.architecture}: a net of your own needs its weights, --checkpoint FILE"
        )
    if args.chtc and (args.checkpoint or args.architecture or args.source != "timm"):
        parser.error(
            "--chtc takes net and weights from STAGING_DIR; leave out --checkpoint, --architecture and --source"
        )
    if args.threat in CLEAN_THREATS:
        return args
    ball = args.protocol == "autoattack"
    args.steps = args.steps or DEFAULT_STEPS[args.protocol]
    if ball and not args.eps:
        parser.error(f"{args.threat} autoattack needs --eps, e.g. --eps 1/255 2/255")
    if args.protocol == "feng2025" and args.steps != DEFAULT_STEPS["feng2025"]:
        parser.error(
            "--protocol feng2025 is what was published: 1000 steps; for others use --protocol fmn"
        )
    if args.protocol in ("fmn", "crossing"):
        try:
            minimum_norm_attack(args)
        except ValueError as error:
            parser.error(str(error))
    return args
