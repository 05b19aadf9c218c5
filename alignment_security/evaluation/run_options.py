"""Options of evaluate_robustness.py that every threat shares: model, images, run."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignment_security.common.command_line import (
    Last,
    default_workers,
    name_of_model,
    non_negative,
    positive_int,
    set_name,
    whole_number,
    worker_count,
)
from alignment_security.common.settings import setting
from alignment_security.images.slices import SUBSETS
from alignment_security.models.checkpoints import GROUPS
from alignment_security.models.fast import PRECISIONS
from alignment_security.models.heads import HEADS
from alignment_security.models.sources import TIMM, model_source
from alignment_security.records.metrics import REDUCTIONS

# ---- values --------------------------------------------------------------------------------------


def parse_batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return positive_int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a number of images nor `auto`") from None


class Slice(argparse.Action):
    """`-s STOP` or `-s START STOP` as (START, STOP)."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if len(values) > 2:
            parser.error(f"{option_string} {' '.join(map(str, values))}: one number or two")
        start, stop = values if len(values) == 2 else (0, values[0])
        setattr(namespace, self.dest, (start, stop))


class Examples(argparse.Action):
    """`--examples 4 a.jpg`: a number of images, and names of others, in `example_names`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        names = list(namespace.example_names)
        for value in values:
            if value.isdecimal():
                namespace.examples = parse_count(value, option_string, parser)
            else:
                names.append(value)
        namespace.example_names = tuple(dict.fromkeys(names))


def parse_count(text: str, option: str | None, parser: argparse.ArgumentParser) -> int:
    try:
        return whole_number(text)
    except ValueError as error:
        parser.error(f"argument {option}: {error}")


# ---- options -------------------------------------------------------------------------------------


def add_model_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--model_name",
        required=True,
        nargs="+",
        type=name_of_model,
        action=Last,
        metavar="NAME",
        help="a timm name, a name of lists/models/, or yours with --architecture; several are "
        "evaluated one after the other",
    )
    parser.add_argument(
        "--source",
        type=model_source,
        default=TIMM,
        metavar="KIND[:PLACE]",
        help="timm; python:FILE.py:FUNCTION, a net of your own; torchvision[:WEIGHTS]; hf, a "
        "classifier of transformers; brainscore, a model of the installed brainscore-vision",
    )
    parser.add_argument(
        "--architecture",
        help="timm name of the net (and its preprocessing), where --model_name is your own",
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="its state dict (.pth, .pth.tar, .safetensors)"
    )
    parser.add_argument(
        "--group",
        choices=GROUPS,
        help="how the checkpoint was trained, so that figures fit plain nets alone; default: as "
        "a checkpoint of training.py says",
    )
    parser.add_argument(
        "--checkpoint_key",
        metavar="KEY",
        help="entry of the checkpoint to take, where it holds several networks (state_dict_ema)",
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


def add_image_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--dataset",
        type=set_name,
        default="sample",
        help="sample, imagenet-val, big12, clickme, robustbench, attackbench, imagenet-v2, "
        "imagenet-sketch, imagenet-a, imagenet-r, objectnet, imagenet-c, tiny-imagenet-c, or your "
        "own with --data_dir",
    )
    parser.add_argument(
        "--data_dir", help="folder of the images; default IMAGENET_DIR, CLICKME_DIR, ... of .env"
    )
    parser.add_argument(
        "--class_order",
        metavar="ORDER",
        help="of class folders without ImageNet's names, where it is not plain: text (torchvision, "
        "Keras), natural (timm: class2 before class10), or a file with a class in each line",
    )
    parser.add_argument(
        "-s",
        dest="slice",
        nargs="+",
        action=Slice,
        type=whole_number,
        metavar="N",
        help="-s STOP or -s START STOP: that slice of a fixed permutation of the list; "
        "default: all",
    )
    parser.add_argument(
        "--subset",
        choices=SUBSETS,
        default="",
        help="hoak2025: -s slices the permutation of that paper's scripts (synset folders)",
    )
    parser.add_argument(
        "--restrict_classes",
        action="store_true",
        help="answers are among the classes that have images, as always with imagenet-a, -r and "
        "objectnet",
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
        help="perturbation or gradient -> map over channels, for the agreement with human maps",
    )
    parser.add_argument(
        "--map_dir",
        type=Path,
        metavar="DIR",
        help="human maps of the images, found by file name: x.png, .npy, .npz or .pth for x.JPEG; "
        "cropped as their images are",
    )
    parser.add_argument(
        "--blur_maps",
        action="store_true",
        help="read the maps of --map_dir as Harmonization reads ClickMe's, blurred; `clickme` and "
        "ClickMe's big12 always are",
    )
    parser.add_argument(
        "--workers",
        type=worker_count,
        default=default_workers(),
        help="processes that decode images",
    )


def add_run_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--batch_size",
        type=parse_batch_size,
        default="auto",
        help="images attacked at once, or auto",
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
    parser.add_argument(
        "--seed", type=whole_number, default=0, help="of the attack's random numbers"
    )
    parser.add_argument(
        "--results_dir", default="results", help="folder that gets records/ and examples/"
    )
    parser.add_argument(
        "--examples",
        nargs="+",
        action=Examples,
        default=0,
        metavar="N|NAME",
        help="save the perturbations of the first N images, and of the images of these names, for "
        "figures",
    )
    parser.set_defaults(example_names=())
    parser.add_argument(
        "--study",
        metavar="FILE",
        help="in place of THREAT: every threat of a study (lists/studies/), the model loaded once; "
        "without --model_name, of all its models in turn",
    )
    parser.add_argument(
        "--stop_after",
        type=non_negative,
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
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start this record anew; those of other settings stay",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would run and its cost; write nothing"
    )
