"""The command line of training.py: options with their units, and requests to reject."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from alignment_security.common.command_line import (
    Parser,
    default_workers,
    name_of_model,
    non_negative,
    positive_int,
    set_name,
    share,
    whole_number,
    worker_count,
)
from alignment_security.common.eps import parse_radius
from alignment_security.models.fast import PRECISIONS
from alignment_security.trainer.objectives import FORMS, OBJECTIVES
from alignment_security.trainer.option_checks import (
    check_augmentation,
    check_evaluation,
    check_folders,
    check_objective,
    check_optimisation,
)
from alignment_security.trainer.pgd import PGD_NORMS, PGD_STEPS
from alignment_security.trainer.recipe import recipe_options

# ---- parsing -------------------------------------------------------------------------------------


def parse_args(argv: list[str], description: str = "") -> argparse.Namespace:
    """Parse and check a command line; its options override those of its --recipe.

    Exits with status 2 and one line on standard error for a request that makes no sense.
    """
    parser = get_args_parser(description)
    recipe_parser = Parser(add_help=False)
    recipe_parser.add_argument("--recipe")
    try:
        recipe = recipe_parser.parse_known_args(argv)[0].recipe
        options = recipe_options(recipe) if recipe else []
        args = parser.parse_args([*options, *argv])
        check_folders(args)
        check_objective(args)
        check_evaluation(args)
        check_augmentation(args)
        check_optimisation(args)
    except ValueError as error:
        parser.error(str(error))
    return args


# ---- options -------------------------------------------------------------------------------------


def get_args_parser(description: str) -> argparse.ArgumentParser:
    """All options, in groups: objective, images, optimisation, process."""
    parser = Parser(description=description)
    parser.add_argument(
        "--recipe",
        metavar="FILE:NAME",
        help="a line of lists/training/*.txt; options given here override it",
    )
    parser.add_argument("--name", help="folder in results/training; default <model>-<objective>")
    parser.add_argument("--model_name", type=name_of_model, required=True, help="a timm name")
    parser.add_argument(
        "--init",
        default="random",
        help="starting weights: random, pretrained, or a checkpoint FILE",
    )
    parser.add_argument(
        "--num_classes", type=positive_int, default=1000, help="outputs of the network"
    )
    add_objective(parser.add_argument_group("objective"))
    add_images(parser.add_argument_group("images"))
    add_optimisation(parser.add_argument_group("optimisation"))
    add_process(parser.add_argument_group("process"))
    return parser


def add_objective(group: argparse._ArgumentGroup) -> None:
    """Loss and adversarial examples."""
    group.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="plain",
        help="plain: cross-entropy; harmonizer: and human maps; adversarial: on PGD's images; both",
    )
    group.add_argument(
        "--lambda_1",
        type=non_negative,
        help="weight of the harmonizer's loss; no default, since it depends on --form",
    )
    group.add_argument(
        "--form",
        choices=list(FORMS),
        default="equation",
        help="equation: norms summed over levels, which grow with the image's side; code: mean "
        "squares as in the authors' code, where lambda_1 is 1",
    )
    group.add_argument(
        "--lambda_2",
        type=non_negative,
        default=1e-4,
        help="weight decay as the optimiser applies it (sgd: lambda_2 / 2 times the squared "
        "weights); not applied to biases",
    )
    group.add_argument("--norm", choices=PGD_NORMS, help="norm of the adversarial examples")
    group.add_argument(
        "--eps",
        type=parse_radius,
        help="radius of the adversarial examples, in pixel units of [0, 1]: 4/255 or 0.5",
    )
    group.add_argument("--attack_steps", type=positive_int, default=PGD_STEPS, help="steps of PGD")
    group.add_argument(
        "--attack_step",
        type=parse_radius,
        help="length of a PGD step, in the units of --eps; default 2/3 eps",
    )
    group.add_argument(
        "--random_start",
        action="store_true",
        help="start PGD at a random point of the ball, not at the image",
    )
    group.add_argument("--smoothing", type=non_negative, default=0.0, help="label smoothing")


def add_images(group: argparse._ArgumentGroup) -> None:
    """Images, human maps, validation images, augmentation."""
    group.add_argument(
        "--dataset",
        type=set_name,
        default="sample",
        help="as for evaluate_robustness.py; imagenet-train or any other name needs --data_dir "
        "with synset folders, or with --num_classes class folders",
    )
    group.add_argument("--data_dir", help="folder of the images")
    group.add_argument(
        "--class_order", metavar="ORDER", help="of the class folders; as for evaluate_robustness.py"
    )
    group.add_argument(
        "--clickme_dir",
        type=Path,
        help="folder of ClickMe's images and maps, added to the images of --dataset",
    )
    group.add_argument(
        "--map_dir",
        type=Path,
        help="folder of your own maps, found by the images' file names: .png, .npy, .npz or .pth",
    )
    group.add_argument(
        "--blur_maps",
        action="store_true",
        help="resize maps to 64 x 64 and blur them, as Harmonization reads ClickMe",
    )
    group.add_argument(
        "--allow_missing_maps",
        action="store_true",
        help="train classes without any map by cross-entropy alone",
    )
    group.add_argument(
        "--val_dataset", type=set_name, help="report the accuracy on this set after every epoch"
    )
    group.add_argument("--val_dir", help="folder of --val_dataset")
    group.add_argument(
        "--evaluate_every",
        type=positive_int,
        metavar="EPOCHS",
        help="after every so many epochs and after the last, report robust accuracy under a small "
        "attack (apgd-ce, 20 steps), and where --val_dataset has maps, human alignment",
    )
    group.add_argument(
        "--evaluate_eps",
        type=parse_radius,
        metavar="EPS",
        help="radius of that attack, in --norm or Linf; default --eps",
    )
    group.add_argument(
        "--evaluate_images",
        type=positive_int,
        metavar="N",
        help="images of --val_dataset for --evaluate_every, those of -s N; default 100",
    )
    group.add_argument(
        "--scale",
        type=share,
        nargs=2,
        default=[0.08, 1.0],
        metavar=("MIN", "MAX"),
        help="area of the random crop, as a share of the image",
    )
    group.add_argument("--hflip", type=share, default=0.5, help="probability of a horizontal flip")
    group.add_argument(
        "--color_jitter", type=non_negative, default=0.0, help="strength of timm's colour jitter"
    )
    group.add_argument(
        "--auto_augment", help="a policy of timm; with human maps only 3a, which moves no pixel"
    )
    group.add_argument(
        "--no_augmentation", action="store_true", help="use the centre crop of evaluation"
    )


def add_optimisation(group: argparse._ArgumentGroup) -> None:
    """Batches, optimiser, schedule, precision, seed."""
    group.add_argument(
        "--epochs", type=positive_int, default=90, help="passes over the training images"
    )
    group.add_argument(
        "--batch_size", type=positive_int, default=256, help="images per step, over all processes"
    )
    group.add_argument(
        "--pass_size",
        type=positive_int,
        help="images per forward pass, for steps that do not fit in memory; batch normalisation "
        "sees this many (default: all images of a process)",
    )
    group.add_argument(
        "--optimizer", default="sgd", help="timm's: sgd (Nesterov), momentum, adamw, lamb, ..."
    )
    group.add_argument("--lr", type=non_negative, default=0.1, help="learning rate")
    group.add_argument(
        "--momentum", type=share, default=0.9, help="of sgd and the like, from 0 to 1"
    )
    group.add_argument(
        "--schedule",
        choices=["cosine", "step", "constant"],
        default="cosine",
        help="of the learning rate over the epochs",
    )
    group.add_argument(
        "--decay_epochs",
        type=positive_int,
        default=30,
        help="epochs between decays of --schedule step",
    )
    group.add_argument(
        "--decay_rate", type=share, default=0.1, help="factor of a decay of --schedule step"
    )
    group.add_argument(
        "--warmup_epochs",
        type=whole_number,
        default=0,
        help="epochs in which the learning rate rises to --lr",
    )
    group.add_argument(
        "--clip_grad",
        type=non_negative,
        help="largest L2 norm of the gradient; 0 or none: not clipped",
    )
    group.add_argument(
        "--ema",
        type=non_negative,
        default=0.0,
        help="decay of the moving average of the weights; 0: no average",
    )
    group.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of the passes of the training"
    )
    group.add_argument(
        "--seed", type=whole_number, default=0, help="of weights, order and augmentation"
    )


def add_process(group: argparse._ArgumentGroup) -> None:
    """Devices, processes, checkpoints; nothing here changes the weights."""
    group.add_argument(
        "--processes",
        type=positive_int,
        default=1,
        help="processes on this machine, one per GPU, started with torchrun",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:1, ...; several processes use one GPU each",
    )
    group.add_argument(
        "--workers",
        type=worker_count,
        default=default_workers(int(os.environ.get("LOCAL_WORLD_SIZE", 1))),  # of torchrun
        help="processes that decode images, per training process (default: they share half the "
        "CPUs)",
    )
    group.add_argument("--results_dir", default="results", help="folder that gets training/")
    group.add_argument(
        "--log_every", type=positive_int, default=50, help="steps per row of log.csv"
    )
    group.add_argument(
        "--save_every",
        type=non_negative,
        default=600,
        help="seconds between checkpoints within an epoch; each epoch ends with one",
    )
    group.add_argument(
        "--stop_after",
        type=non_negative,
        metavar="SECONDS",
        help="checkpoint and exit with status 85 after this time",
    )
    group.add_argument(
        "--chtc",
        action="store_true",
        help="read a folder of images or maps given as X.tar from X.tar in STAGING_DIR (htcondor/)",
    )
    group.add_argument("--overwrite", action="store_true", help="discard an earlier training")
    group.add_argument("--dry_run", action="store_true", help="print the recipe and write nothing")
