"""alignment_security.trainer.setup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.data import resolve_model_data_config
from torch import nn

from alignment_security.attacks.clean import run_clean
from alignment_security.cluster.job import staged_images, staging_dir
from alignment_security.common.settings import setting
from alignment_security.images.human_maps import map_source
from alignment_security.images.image_sets import ImageSet, default_dir
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.models.checkpoints import weights_sha256
from alignment_security.models.heads import Model, ModelError, PixelModel
from alignment_security.models.loading import create_net, load_model
from alignment_security.models.names import find_entry
from alignment_security.trainer.images import classes_without_map
from alignment_security.trainer.loop import rank, world_size
from alignment_security.trainer.options import RECIPE_OPTIONS
from alignment_security.trainer.run import TrainingError

# ---- what is trained -------------------------------------------------------------------------------------------


def starting_model(args, classes: int) -> Model:
    """The net that training begins with, as models.load_model gives it, but of random weights for --init random."""
    if args.init == "random":
        entry = find_entry(args.model_name)
        if not entry.net:
            raise ModelError(entry.note)
        torch.manual_seed(args.seed)
        net: Any = create_net(entry.net, pretrained=False)
        if classes != net.num_classes:
            net.reset_classifier(classes)
        config = resolve_model_data_config(net)
        module: nn.Module = PixelModel(net, config["mean"], config["std"])
        preprocessing = {
            key: config[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode")
        }
        facts = {
            "name": args.model_name,
            "mean": config["mean"],
            "std": config["std"],
            "preprocessing": preprocessing,
        }
        model = Model(module, facts, preprocessing, classes)
    else:
        model = load_model(args.model_name, None if args.init == "pretrained" else Path(args.init))
        net = model.module.requires_grad_(True).net
        if classes != model.n_outputs:
            torch.manual_seed(args.seed)
            net.reset_classifier(classes)
    facts = model.settings | {
        "weights": model.settings.get("weights", "random"),
        "classes": classes,
        "weights_sha256": weights_sha256(net),
    }
    return replace(model, settings=facts, n_outputs=classes)


# ---- a run -----------------------------------------------------------------------------------------------------


def unpack_staged(args) -> None:
    """Where a folder is given as X.tar, put the folder inside that tar of STAGING_DIR in its place."""
    staging = staging_dir(setting("STAGING_DIR"))
    for name in ("data_dir", "clickme_dir", "map_dir", "val_dir"):
        if given := getattr(args, name):
            setattr(args, name, type(given)(staged_images(staging, str(given))))


def load_training_images(args) -> list[ImageSet]:
    """The lists to train on; --clickme_dir adds ClickMe's images, which bring maps."""
    folder = args.data_dir or default_dir(args.dataset)
    extra = [load_image_set("clickme", str(args.clickme_dir))] if args.clickme_dir else []
    return [load_image_set(args.dataset, folder, args.num_classes), *extra]


def recipe_settings(args, sets: list[ImageSet]) -> dict:
    """The recipe: everything that changes the weights; compared on resume."""
    maps = [f"folder {args.map_dir.name}"] if args.map_dir else []
    maps += [source for images in sets if (source := map_source(images))]
    return {
        **{name: getattr(args, name) for name in RECIPE_OPTIONS},
        "augmentation": args.augmentation,
        **(
            {"human_map": maps, "blur_maps": args.blur_maps}
            if args.objective in ("harmonizer", "both")
            else {}
        ),
        "images_per_pass": args.pass_size or args.batch_size // world_size(),
        "image_set": [s.name for s in sets],
        "images": [len(s) for s in sets],
        "list_sha256": [s.list_sha256 for s in sets],
    }


def check_request(args, sets: list[ImageSet]) -> None:
    """Raise TrainingError for a request that cannot be trained, before anything is written."""
    count, name = sum(map(len, sets)), " and ".join(images.name for images in sets)
    if args.batch_size % world_size():
        raise TrainingError(
            f"--batch_size {args.batch_size}: cannot be shared by {world_size()} processes"
        )
    if count < args.batch_size:
        raise TrainingError(
            f"{name}: {count} images, fewer than a batch of {args.batch_size}; --batch_size {count} at most"
        )
    if args.map_dir and not args.map_dir.is_dir():
        raise TrainingError(f"--map_dir {args.map_dir}: no such folder")
    if args.objective in ("harmonizer", "both") and not args.allow_missing_maps:
        if missing := classes_without_map(sets, args.map_dir):
            raise TrainingError(
                f"{args.map_dir or name}: no human map for any image of class {missing[0]} ({len(missing)} such "
                "classes); bring maps (--clickme_dir, --map_dir), or pass --allow_missing_maps to train those "
                "classes by cross-entropy alone"
            )


def validation(args, model: Model, device: torch.device) -> Callable[[nn.Module], float] | None:
    """Accuracy on the images of --val_dataset, shared by the processes."""
    if not args.val_dataset:
        return None
    images = load_image_set(
        args.val_dataset, args.val_dir or default_dir(args.val_dataset), model.n_outputs
    )
    share = images.take(range(rank(), len(images), world_size()))

    def accuracy(net: nn.Module) -> float:
        training, source = net.training, stream_images(share, model.preprocessing, args.workers)
        rows = run_clean(
            net.eval(), source, model.n_outputs, args.pass_size or args.batch_size // world_size()
        )
        right = torch.tensor(
            float(sum(row["clean_correct"] for some in rows for row in some)), device=device
        )
        net.train(training)
        if world_size() > 1:
            dist.all_reduce(right)
        return right.item() / len(images)

    return accuracy
