"""The command line of training.py: its options, their units, recipes, and requests refused before anything is loaded."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from timm.optim import list_optimizers

from alignment_security.common.command_line import (
    Parser,
    argument,
    non_negative,
    positive_int,
    set_name,
    whole_number,
)
from alignment_security.common.settings import parse_radius
from alignment_security.models.fast import PRECISIONS
from alignment_security.trainer.objectives import FORMS, OBJECTIVES, PGD_NORMS, PGD_STEPS

# what changes the weights, besides images, maps and augmentation: compared when a training is taken up again
RECIPE_OPTIONS = (
    "objective",
    "form",
    "lambda_1",
    "lambda_2",
    "norm",
    "eps",
    "attack_steps",
    "attack_step",
    "random_start",
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "momentum",
    "schedule",
    "decay_epochs",
    "decay_rate",
    "warmup_epochs",
    "clip_grad",
    "smoothing",
    "ema",
    "precision",
    "seed",
    "log_every",
    "allow_missing_maps",
)
GEOMETRIC = (
    "rand",
    "augmix",
    "v0",
    "original",
)  # timm's policies that move an image, and would leave its map behind


def recipe_options(reference: str) -> list[str]:
    """The options of one recipe, FILE:NAME: the line of the file with `--name NAME`. Raises ValueError."""
    file, _, name = reference.rpartition(":")
    if not file or not Path(file).is_file():
        raise ValueError(
            f"--recipe {reference}: has to be FILE:NAME, e.g. lists/training/robust.txt:resnet50_l2_eps0.5"
        )
    lines = [shlex.split(line, comments=True) for line in Path(file).read_text().splitlines()]
    recipes = {line[line.index("--name") + 1]: line for line in lines if "--name" in line}
    if name not in recipes:
        raise ValueError(f"{file}: no recipe {name!r}; there are {', '.join(recipes)}")
    return recipes[name]


def get_args_parser(description: str) -> argparse.ArgumentParser:
    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        metavar="FILE:NAME",
        help="a line of lists/training/*.txt; options beside it win",
    )
    parser.add_argument("--name", help="folder of results/training; default <model>-<objective>")
    parser.add_argument("--model_name", required=True, help="a timm name")
    parser.add_argument(
        "--init", default="random", help="random, pretrained, or a checkpoint FILE to begin with"
    )
    parser.add_argument(
        "--num_classes", type=argument(positive_int), default=1000, help="outputs of the net"
    )
    add_objective(parser.add_argument_group("objective"))
    add_images(parser.add_argument_group("images"))
    add_optimisation(parser.add_argument_group("optimisation"))
    add_process(parser.add_argument_group("process"))
    return parser


def add_objective(group) -> None:
    group.add_argument("--objective", choices=OBJECTIVES, default="plain")
    group.add_argument(
        "--lambda_1",
        type=argument(non_negative),
        help="weight of the harmonizer's loss; no default: see --form",
    )
    group.add_argument(
        "--form",
        choices=list(FORMS),
        default="equation",
        help="equation: norms summed over levels, growing with the image's side; code: the authors' mean squares, "
        "whose lambda_1 is 1",
    )
    group.add_argument(
        "--lambda_2",
        type=argument(non_negative),
        default=1e-4,
        help="weight decay as the optimiser has it (sgd: lambda_2 / 2 of the squared weights); none on biases",
    )
    group.add_argument("--norm", choices=PGD_NORMS, help="of the adversarial examples")
    group.add_argument(
        "--eps",
        type=argument(parse_radius),
        help="their radius in pixel units of [0, 1]: 4/255 or 0.5",
    )
    group.add_argument(
        "--attack_steps", type=argument(positive_int), default=PGD_STEPS, help="of PGD"
    )
    group.add_argument(
        "--attack_step", type=argument(parse_radius), help="length of a step; default 2/3 eps"
    )
    group.add_argument(
        "--random_start",
        action="store_true",
        help="PGD begins at a random point of the ball, not at the image",
    )
    group.add_argument(
        "--smoothing", type=argument(non_negative), default=0.0, help="label smoothing"
    )


def add_images(group) -> None:
    group.add_argument(
        "--dataset",
        type=argument(set_name),
        default="sample",
        help="as evaluate_robustness.py; imagenet-train or "
        "any other name takes --data_dir with synset folders, or --num_classes class folders",
    )
    group.add_argument("--data_dir", help="folder of the images")
    group.add_argument(
        "--clickme_dir",
        type=Path,
        help="ClickMe's images with their maps, besides those of --dataset",
    )
    group.add_argument(
        "--map_dir",
        type=Path,
        help="maps of your own: <image id>.png, grey, as large as the photograph",
    )
    group.add_argument(
        "--blur_maps",
        action="store_true",
        help="Harmonization's reading of ClickMe: 64 x 64, blurred",
    )
    group.add_argument(
        "--allow_missing_maps",
        action="store_true",
        help="train classes without any map by cross-entropy alone",
    )
    group.add_argument(
        "--val_dataset", type=argument(set_name), help="accuracy on this set after every epoch"
    )
    group.add_argument("--val_dir", help="its folder")
    group.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=[0.08, 1.0],
        metavar=("MIN", "MAX"),
        help="random crop, share of the area",
    )
    group.add_argument("--hflip", type=float, default=0.5, help="probability of a horizontal flip")
    group.add_argument("--color_jitter", type=float, default=0.0)
    group.add_argument(
        "--auto_augment", help="a policy of timm; with human maps only one that moves no pixel (3a)"
    )
    group.add_argument("--no_augmentation", action="store_true", help="the crop of evaluation")


def add_optimisation(group) -> None:
    group.add_argument("--epochs", type=argument(positive_int), default=90)
    group.add_argument(
        "--batch_size",
        type=argument(positive_int),
        default=256,
        help="images of a step, over all processes",
    )
    group.add_argument(
        "--pass_size",
        type=argument(positive_int),
        help="images through the net at once, where a step does not fit; "
        "batch normalisation sees these (default: all of this process)",
    )
    group.add_argument(
        "--optimizer", default="sgd", help="of timm: sgd (Nesterov), momentum, adamw, lamb, ..."
    )
    group.add_argument("--lr", type=argument(non_negative), default=0.1)
    group.add_argument("--momentum", type=float, default=0.9)
    group.add_argument("--schedule", choices=["cosine", "step", "constant"], default="cosine")
    group.add_argument(
        "--decay_epochs",
        type=argument(positive_int),
        default=30,
        help="step: epochs between decays",
    )
    group.add_argument("--decay_rate", type=float, default=0.1)
    group.add_argument("--warmup_epochs", type=argument(whole_number), default=0)
    group.add_argument(
        "--clip_grad",
        type=argument(non_negative),
        help="largest norm of the gradient; 0 or none: not clipped",
    )
    group.add_argument(
        "--ema",
        type=argument(non_negative),
        default=0.0,
        help="decay of the average of weights; 0: no average",
    )
    group.add_argument("--precision", choices=PRECISIONS, default="float32")
    group.add_argument("--seed", type=int, default=0)


def add_process(group) -> None:
    group.add_argument(
        "--processes",
        type=argument(positive_int),
        default=1,
        help="GPUs of this machine, a process each (torchrun)",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:1, ...; several processes take the GPUs there are",
    )
    group.add_argument(
        "--workers",
        type=argument(whole_number),
        default=min(8, (os.cpu_count() or 2) // 2),
        help="processes that decode images, for each process",
    )
    group.add_argument("--results_dir", default="results")
    group.add_argument(
        "--log_every",
        type=argument(positive_int),
        default=50,
        help="steps a row of log.csv stands for",
    )
    group.add_argument(
        "--save_every",
        type=float,
        default=600,
        help="seconds between checkpoints, besides those of each epoch",
    )
    group.add_argument(
        "--stop_after", type=float, help="checkpoint and exit 85 after so many seconds"
    )
    group.add_argument(
        "--chtc",
        action="store_true",
        help="a folder of images or maps given as X.tar is the one in that tar of STAGING_DIR (htcondor/)",
    )
    group.add_argument("--overwrite", action="store_true", help="start this training anew")
    group.add_argument("--dry_run", action="store_true", help="print the recipe; write nothing")


def parse_args(argv: list[str], description: str = "") -> argparse.Namespace:
    parser = get_args_parser(description)
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only.add_argument("--recipe")
    try:
        recipe = only.parse_known_args(argv)[0].recipe
        args = parser.parse_args([*(recipe_options(recipe) if recipe else []), *argv])
    except ValueError as error:
        parser.error(str(error))
    check_args(args, parser)
    args.name = args.name or f"{args.model_name}-{args.objective}"
    args.augmentation = (
        None
        if args.no_augmentation
        else {
            name: getattr(args, name) for name in ("scale", "hflip", "color_jitter", "auto_augment")
        }
    )
    return args


def check_args(args, parser: argparse.ArgumentParser) -> None:
    """Requests that make no sense, before anything is loaded."""
    mapped, attacked = (
        args.objective in ("harmonizer", "both"),
        args.objective in ("adversarial", "both"),
    )
    if mapped and args.lambda_1 is None:
        parser.error(
            f"--objective {args.objective} needs --lambda_1, e.g. --form code --lambda_1 1 as its authors' code has it"
        )
    if attacked and (args.norm is None or args.eps is None):
        parser.error(
            f"--objective {args.objective} needs --norm and --eps, e.g. --norm Linf --eps 4/255"
        )
    if attacked and args.norm == "Linf" and args.eps > 1:
        parser.error(
            f"--eps {args.eps:g} is above 1 in Linf; write {args.eps:g}/255 if you mean {args.eps:g} of 255 levels"
        )
    if not mapped and args.lambda_1 is not None or not attacked and args.eps is not None:
        parser.error(
            f"--objective {args.objective} takes no {'--eps' if args.eps is not None and not attacked else '--lambda_1'}"
        )
    if mapped and args.auto_augment and args.auto_augment.startswith(GEOMETRIC):
        parser.error(
            f"--auto_augment {args.auto_augment} moves an image, and would leave its human map behind; use 3a"
        )
    if args.optimizer not in list_optimizers():
        parser.error(
            f"--optimizer {args.optimizer}: timm has none of that name; e.g. sgd, momentum, adamw, lamb"
        )
    if args.auto_augment and not args.auto_augment.startswith((*GEOMETRIC, "3a")):
        parser.error(
            f"--auto_augment {args.auto_augment}: timm has no such policy; e.g. 3a, rand-m9-mstd0.5, original"
        )
    if not 0 < args.scale[0] <= args.scale[1] <= 1:
        parser.error(
            f"--scale {args.scale[0]:g} {args.scale[1]:g}: shares of the area, 0 < MIN <= MAX <= 1"
        )
    if not args.ema < 1 or not args.smoothing < 1:
        parser.error("--ema and --smoothing have to be in [0, 1)")
