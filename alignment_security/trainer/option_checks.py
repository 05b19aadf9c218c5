"""Requests to train that make no sense, refused before anything is loaded."""

from __future__ import annotations

import argparse

from timm.optim import list_optimizers

from alignment_security.images.image_sets import DataError, check_folder_is_read

# timm's policies that move an image, and would leave its map behind
GEOMETRIC_POLICIES = ("rand", "augmix", "v0", "original")
POLICIES = (*GEOMETRIC_POLICIES, "3a")


def check_objective(args: argparse.Namespace) -> None:
    """Raise ValueError for an objective that lacks an option, or has one that it does not use."""
    wanted = f"--objective {args.objective}"
    harmonizes = args.objective in ("harmonizer", "both")
    attacks = args.objective in ("adversarial", "both")
    if harmonizes and args.lambda_1 is None:
        raise ValueError(
            f"{wanted} needs --lambda_1, e.g. --form code --lambda_1 1 as in its authors' code"
        )
    if attacks and (args.norm is None or args.eps is None):
        raise ValueError(f"{wanted} needs --norm and --eps, e.g. --norm Linf --eps 4/255")
    if attacks:
        check_radius("--eps", args.eps, args.norm)
    if not attacks and args.eps is not None:
        raise ValueError(f"{wanted} takes no --eps")
    if not harmonizes and args.lambda_1 is not None:
        raise ValueError(f"{wanted} takes no --lambda_1")


def check_radius(option: str, eps: float, norm: str | None) -> None:
    """Raise ValueError for a radius above 1 in Linf, the norm where none is given."""
    if eps > 1 and norm in (None, "Linf"):
        raise ValueError(
            f"{option} {eps:g} is above 1 in Linf; write {eps:g}/255 if you mean {eps:g} of 255 "
            "levels"
        )


def check_folders(args: argparse.Namespace) -> None:
    """Raise ValueError for a folder of images that no option names the set of."""
    try:
        check_folder_is_read(args.dataset, args.data_dir)
        check_folder_is_read(args.val_dataset or "sample", args.val_dir, "val_")
    except DataError as error:
        raise ValueError(str(error)) from None


def check_evaluation(args: argparse.Namespace) -> None:
    """Raise ValueError for an evaluation without images or radius, or options of none."""
    if args.evaluate_every is None:
        for option in ("evaluate_eps", "evaluate_images"):
            if getattr(args, option) is not None:
                raise ValueError(f"--{option}: is of --evaluate_every EPOCHS, which is not given")
        return
    wanted = f"--evaluate_every {args.evaluate_every}"
    if not args.val_dataset:
        raise ValueError(f"{wanted} needs --val_dataset, e.g. clickme, whose images have maps")
    if args.evaluate_eps is None and args.eps is None:
        raise ValueError(
            f"{wanted} needs --evaluate_eps, e.g. 1/255: --objective {args.objective} has no --eps"
        )
    if args.evaluate_eps is not None:
        check_radius("--evaluate_eps", args.evaluate_eps, args.norm)


def check_augmentation(args: argparse.Namespace) -> None:
    """Raise ValueError for a policy that timm lacks or that loses the maps, and for a bad crop."""
    policy = args.auto_augment
    harmonizes = args.objective in ("harmonizer", "both")
    if harmonizes and policy and policy.startswith(GEOMETRIC_POLICIES):
        raise ValueError(
            f"--auto_augment {policy} moves an image, and would leave its human map behind; use 3a"
        )
    if policy and not policy.startswith(POLICIES):
        raise ValueError(
            f"--auto_augment {policy}: timm has no such policy; e.g. 3a, rand-m9-mstd0.5, original"
        )
    smallest, largest = args.scale
    if not 0 < smallest <= largest <= 1:
        raise ValueError(
            f"--scale {smallest:g} {largest:g}: shares of the area, 0 < MIN <= MAX <= 1"
        )


def check_optimisation(args: argparse.Namespace) -> None:
    """Raise ValueError for an optimiser that timm lacks, and for shares of 1 and more."""
    if args.optimizer not in list_optimizers():
        raise ValueError(
            f"--optimizer {args.optimizer}: timm has none of that name; "
            "e.g. sgd, momentum, adamw, lamb"
        )
    if not args.ema < 1 or not args.smoothing < 1:
        raise ValueError("--ema and --smoothing must be in [0, 1)")
