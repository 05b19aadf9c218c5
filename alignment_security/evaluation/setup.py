"""From a command line to the objects of an evaluation: the model, the images, staged ones too."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import torch

from alignment_security.cluster.job import (
    StagingError,
    staged_images,
    staged_weights,
    staging_dir,
)
from alignment_security.cluster.plugins import load_staged_plugin
from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.common.settings import setting
from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.evaluation.protocols import threat_class, threat_from_args
from alignment_security.evaluation.run import prepare
from alignment_security.images.class_folders import check_label_names
from alignment_security.images.human_maps import check_maps
from alignment_security.images.image_sets import ImageSet, default_dir
from alignment_security.images.loading import (
    CORRUPTED_SETS,
    NAMED_SETS,
    has_imagenet_order,
    load_image_set,
)
from alignment_security.images.map_files import map_remarks, with_map_files
from alignment_security.images.slices import take_slice
from alignment_security.models.heads import IMAGENET_CLASSES, Model, with_head
from alignment_security.models.lists import PLUGIN
from alignment_security.models.loading import load_model
from alignment_security.models.timm_nets import label_names
from alignment_security.records.ceiling import HUMAN_CEILING

SHORT_WORD = 2  # letters: shorter words of a name tell variants apart, as in imagenet-r
SLIP = 0.6  # similarity of two words of which one is a slip for the other


def requested_model(args: argparse.Namespace, device: torch.device) -> Model:
    """The model called --model_name, without a head; with --chtc from its tar in STAGING_DIR."""
    if args.chtc:
        staging = staging_dir(setting("STAGING_DIR"))
        return load_staged(staging, args.model_name, device, args.source)
    return load_model(
        args.model_name,
        args.checkpoint,
        args.trust_checkpoint,
        device=device,
        architecture=args.architecture,
        source=args.source,
        group=args.group,
        checkpoint_key=args.checkpoint_key,
    )


def load_staged(
    staging: Path, name: str, device: str | torch.device, source: str = "timm"
) -> Model:
    """The model called `name` from its staged weights, or from what its plugin fetched.

    source   "brainscore" accepts a plugin alone

    Raises StagingError where they are not the weights that were staged.
    """
    staged = staged_weights(staging, name)
    if staged.is_plugin:
        model = load_staged_plugin(name, staged.home, staged.facts, device=device)
    elif source == "brainscore":
        raise StagingError(
            f"{name}: is staged with {staged.facts['weights']}, not as a plugin; leave out "
            f"--source brainscore, or stage {PLUGIN}{name}"
        )
    else:
        model = load_model(
            name,
            staged.checkpoint,
            device=device,
            architecture=staged.architecture,
            group=staged.facts.get("group"),
        )
    if model.settings["weights_sha256"] != staged.facts["weights_sha256"]:
        raise StagingError(
            f"{staged.checkpoint}: not the weights that were staged (sha256 differs); run prestage "
            "again"
        )
    settings = model.settings | {"weights": staged.facts["weights"]}
    if staged.facts.get("training"):
        settings["training"] = staged.facts["training"]
    settings.pop("architecture", None)
    if staged.facts["net"] != name.removeprefix("timm/"):
        settings["architecture"] = staged.facts["net"]
    return replace(model, settings=settings)


def requested_evaluation(args: argparse.Namespace, model: Model) -> Evaluation:
    """What a request asks for of a model without a head: checked to fit together (`prepare`)."""
    model = with_head(model, args.head)
    images, remarks = requested_images(args, model)
    return prepare(
        model,
        images,
        threat_from_args(args),
        args.batch_size,
        precision=args.precision,
        compiled=args.compile,
        workers=args.workers,
        examples=args.examples,
        example_names=args.example_names,
        published_accuracy=args.published_accuracy,
        stop_after=args.stop_after,
        remarks=tuple(remarks),
    )


def requested_image_set(args: argparse.Namespace, classes: int = IMAGENET_CLASSES) -> ImageSet:
    """The images of --dataset, corrupted where that is the threat."""
    corruption = None
    if args.threat == "corruptions":
        corruption = (args.corruption_type, args.corruption_severity)
    folder = requested_data_dir(args)
    return load_image_set(args.dataset, folder, classes, corruption, args.seed, args.class_order)


def requested_images(args: argparse.Namespace, model: Model) -> tuple[ImageSet, list[str]]:
    """(images of `requested_image_set`, sliced by -s; remarks on them)."""
    classes = model.n_outputs if args.head == "none" else IMAGENET_CLASSES
    images = requested_image_set(args, classes)
    check_label_names(images, label_names(model.module))
    images = requested_maps(args, images)
    if args.restrict_classes and not images.restrict_to:
        images = replace(images, restrict_to=tuple(sorted(set(images.labels))))
    remarks = [*name_remarks(args), *class_remarks(images)]
    images = requested_slice(args, images)
    notes = [*map_remarks(images), *check_maps(images), *ceiling_remarks(images)]
    return replace(images, notes=(*images.notes, *notes)), remarks


def requested_slice(args: argparse.Namespace, images: ImageSet) -> ImageSet:
    """The images that -s takes; all without it."""
    if not args.slice:
        return images
    start, stop = args.slice
    if stop is not None and start < len(images) < stop:
        raise UserError(f"-s {start} {stop}: {images.name} has only {len(images)} images")
    return take_slice(images, start, stop, args.subset)


def requested_maps(args: argparse.Namespace, images: ImageSet) -> ImageSet:
    """The set with the maps of --map_dir; X.tar with --chtc is a staged folder.

    A threat that compares with no maps reads none, wherever they are.
    """
    if "map_dir" not in threat_class(args.threat, args.protocol).options:
        return images
    if args.map_dir is None:
        if args.blur_maps:
            raise UserError("--blur_maps: of the maps of --map_dir, which is not given")
        return images
    folder = args.map_dir
    if args.chtc:
        folder = Path(staged_images(staging_dir(setting("STAGING_DIR")), str(folder)))
    return with_map_files(images, folder, args.blur_maps)


def requested_data_dir(args: argparse.Namespace) -> str | None:
    """--data_dir, or the folder of the image set in .env; X.tar with --chtc is a staged folder."""
    if args.chtc and args.data_dir:
        return staged_images(staging_dir(setting("STAGING_DIR")), args.data_dir)
    return args.data_dir or default_dir(args.dataset)


# ---- remarks -------------------------------------------------------------------------------------


def name_remarks(args: argparse.Namespace) -> Iterator[str]:
    """A sentence where --dataset may be a slip for a name of ours, or of a set with records."""
    recorded = (path.name for path in glob_visible(Path(args.results_dir, "records"), "*"))
    known = [*NAMED_SETS, *CORRUPTED_SETS, "sample", *recorded]
    if args.dataset in known:
        return
    for name in known:
        if similar(args.dataset, name):
            yield f"--dataset {args.dataset} is a new image set; is {name} meant?"


def similar(name: str, other: str) -> bool:
    """Whether a name is probably a slip for another one: imagnet-val, ImageNet_val, big21.

    imagenet-r is none for imagenet-c: short words name variants.
    """
    words, others = (re.split(r"[-_.]+", text.casefold()) for text in (name, other))
    if "".join(words) == "".join(others):
        return True
    return len(words) == len(others) and all(
        a == b or (min(len(a), len(b)) > SHORT_WORD and ratio(a, b) > SLIP)
        for a, b in zip(words, others)
    )


def ratio(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio()


def ceiling_remarks(images: ImageSet) -> Iterator[str]:
    """A sentence where the human ceiling is not that of the maps in files."""
    if images.maps and not images.maps.blur:
        yield (
            f"{images.maps.folder}: the human ceiling of these maps is not known; human_alignment "
            f"is over {HUMAN_CEILING}, that of ClickMe's maps as --blur_maps reads them, and "
            "human_alignment_raw over none"
        )


def class_remarks(images: ImageSet) -> Iterator[str]:
    """A sentence where images are of a part of the classes, and answers may be of any."""
    classes = len(set(images.labels))
    own = not has_imagenet_order(images.name)
    if own and classes < images.n_classes and not images.restrict_to:
        yield (
            f"{images.name}: {classes} of {images.n_classes} classes have images, and answers are "
            "not restricted to them (--restrict_classes does it)"
        )
