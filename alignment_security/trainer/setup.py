"""What training.py prepares: image lists, starting weights, the recorded recipe."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alignment_security.cluster.job import staged_images, staging_dir
from alignment_security.common.settings import setting
from alignment_security.images.human_maps import map_source
from alignment_security.images.image_sets import ImageSet, default_dir
from alignment_security.images.loading import load_image_set
from alignment_security.images.map_files import map_remarks, with_map_files
from alignment_security.models.checkpoints import weights_sha256
from alignment_security.models.heads import Model, ModelError, PixelModel
from alignment_security.models.loading import load_model
from alignment_security.models.names import find_entry
from alignment_security.models.timm_nets import (
    create_net,
    data_config,
    preprocessing_of,
    with_classes,
)
from alignment_security.trainer.distributed import world_size
from alignment_security.trainer.images import AugmentedImages, classes_without_map
from alignment_security.trainer.learner import bare_net
from alignment_security.trainer.run import TrainingError

FOLDER_OPTIONS = ("data_dir", "clickme_dir", "map_dir", "val_dir")
# What changes the weights, besides images, maps and augmentation. Resuming compares it.
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
AUGMENTATION_OPTIONS = ("scale", "hflip", "color_jitter", "auto_augment")


# ---- images --------------------------------------------------------------------------------------


def with_staged_folders(args: Namespace) -> Namespace:
    """The arguments with each folder X.tar replaced by the unpacked folder of STAGING_DIR/X.tar."""
    staging = staging_dir(setting("STAGING_DIR"))
    folders = {}
    for name in FOLDER_OPTIONS:
        folder = getattr(args, name)
        if folder:
            folders[name] = type(folder)(staged_images(staging, str(folder)))
    return Namespace(**vars(args) | folders)


def load_training_images(args: Namespace) -> list[ImageSet]:
    """The lists to train on: --dataset, and ClickMe's images with their maps (--clickme_dir)."""
    folder = args.data_dir or default_dir(args.dataset)
    order = args.class_order
    sets = [load_image_set(args.dataset, folder, args.num_classes, class_order=order)]
    if args.map_dir:
        mapped = with_map_files(sets[0], args.map_dir)
        sets = [replace(mapped, notes=(*mapped.notes, *map_remarks(mapped)))]
    if args.clickme_dir:
        sets.append(load_image_set("clickme", str(args.clickme_dir)))
    return sets


def augmentation_of(args: Namespace) -> dict | None:
    """Arguments for timm's create_transform; None for --no_augmentation."""
    if args.no_augmentation:
        return None
    return {name: getattr(args, name) for name in AUGMENTATION_OPTIONS}


def uses_maps(args: Namespace) -> bool:
    return args.objective in ("harmonizer", "both")


def augmented_images(args: Namespace, sets: list[ImageSet], preprocessing: dict) -> AugmentedImages:
    """The lists as one dataset of augmented images and maps."""
    return AugmentedImages(
        sets,
        preprocessing,
        augmentation_of(args),
        args.seed,
        uses_maps(args),
        args.blur_maps,
    )


def check_request(args: Namespace, sets: list[ImageSet]) -> None:
    """Raise TrainingError for a request that cannot be trained."""
    count, name = sum(map(len, sets)), " and ".join(images.name for images in sets)
    if args.batch_size % world_size():
        raise TrainingError(
            f"--batch_size {args.batch_size}: is no multiple of the {world_size()} processes"
        )
    if count < args.batch_size:
        raise TrainingError(
            f"{name}: {count} images, fewer than a batch of {args.batch_size}; "
            f"--batch_size {count} at most"
        )
    if uses_maps(args) and not args.allow_missing_maps:
        missing = classes_without_map(sets)
        if missing:
            raise TrainingError(
                f"{args.map_dir or name}: no human map for any image of class {missing[0]} "
                f"({len(missing)} such classes); add maps (--clickme_dir, --map_dir), or pass "
                "--allow_missing_maps to train those classes by cross-entropy alone"
            )


# ---- the model -----------------------------------------------------------------------------------


def starting_model(name: str, init: str, classes: int, seed: int) -> Model:
    """The model whose training begins, with `classes` outputs and trainable weights.

    init   "random"; "pretrained", as models.loading.load_model loads it; or a checkpoint file
    seed   of random weights, and of a new classifier where `classes` differs
    Raises ModelError for a model or weights that cannot be loaded.
    """
    if init == "random":
        model = random_model(name, seed)
    else:
        model = load_model(name, None if init == "pretrained" else Path(init))
        for fact in ("group", "training"):  # of the training before, not of this one
            model.settings.pop(fact, None)
        model.module.requires_grad_(True)
        torch.manual_seed(seed)
    net = bare_net(model.module)
    if classes != model.n_outputs:
        net = with_classes(net, find_entry(name).net, classes)
        mean, std = model.settings["mean"], model.settings["std"]
        model = replace(model, module=PixelModel(net, mean, std))
    facts = model.settings | {
        "weights": model.settings.get("weights", "random"),
        "classes": classes,
        "weights_sha256": weights_sha256(net),
    }
    return replace(model, settings=facts, n_outputs=classes)


def random_model(name: str, seed: int) -> Model:
    """timm's network of that name with random weights."""
    entry = find_entry(name)
    if not entry.net:
        raise ModelError(entry.note)
    torch.manual_seed(seed)
    net: Any = create_net(entry.net, pretrained=False)
    config = data_config(net, name)
    preprocessing = preprocessing_of(config)
    facts = {
        "name": name,
        "mean": config["mean"],
        "std": config["std"],
        "preprocessing": preprocessing,
    }
    module = PixelModel(net, config["mean"], config["std"])
    return Model(module, facts, preprocessing, net.num_classes)


# ---- settings ------------------------------------------------------------------------------------


def images_per_pass(args: Namespace) -> int:
    """Images that one process runs through the network at once."""
    return args.pass_size or args.batch_size // world_size()


def recipe_settings(args: Namespace, sets: list[ImageSet]) -> dict:
    """The recipe for the run file: everything that changes the weights. Resuming compares it."""
    settings = {name: getattr(args, name) for name in RECIPE_OPTIONS}
    settings["augmentation"] = augmentation_of(args)
    if uses_maps(args):
        sources = [f"folder {args.map_dir.name}"] if args.map_dir else []
        for images in sets:
            source = map_source(replace(images, maps=None))  # hashing many files takes long
            if source:
                sources.append(source)
        settings |= {"human_map": sources, "blur_maps": args.blur_maps}
    return settings | {
        "images_per_pass": images_per_pass(args),
        "image_set": [images.name for images in sets],
        "images": [len(images) for images in sets],
        "list_sha256": [images.list_sha256 for images in sets],
    }
