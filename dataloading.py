"""Check or build Big-12, of ImageNet validation images or of ClickMe's pairs of image and map.

    python dataloading.py big12 --imagenet DIR                      check that all 960 images exist
    python dataloading.py big12 --imagenet DIR --out DIR2 [--copy]  export them as links or copies
    python dataloading.py big12 --imagenet DIR --out DIR2 --grouping mid_12 --per_class 2
    python dataloading.py clickme_big12 --clickme DIR --out DIR2    960 photographs with human maps

The source is never altered. The exported folder is an image set: --dataset NAME --data_dir DIR2;
of ClickMe's pairs --dataset big12 --data_dir DIR2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alignment_security.common.command_line import Parser, new_folder, positive_int
from alignment_security.common.process import run_command, run_script
from alignment_security.images.clickme_pairs import big12_or_pairs, draw_pairs, export_pairs
from alignment_security.images.image_sets import ImageSet, existing_folder
from alignment_security.images.subsets import BIG12_PER_CLASS, export_subset, groupings, load_subset


def big12_command(args: argparse.Namespace) -> None:
    """Check the images of a subset, export them if asked to, and print what was found."""
    images = load_subset(existing_folder("big12", args.imagenet), args.grouping, args.per_class)
    if args.out:
        export_subset(images, args.out, args.imagenet, args.copy)
    print(f"{images.name}: all {len(images)} images are there, {shape(images, args.per_class)}")
    print(f"  sha256 of the list   {images.list_sha256}")
    print(f"  sha256 of the images {images.contents_sha256()}")
    if args.out:
        print(f"  {args.out}")


def clickme_big12_command(args: argparse.Namespace) -> None:
    """Draw pairs of ClickMe, write them if asked to, and print what was drawn."""
    folder = existing_folder("clickme_big12", args.clickme)
    images = draw_pairs(folder, args.per_class)
    if args.out:
        export_pairs(images, args.out, folder)
        images = big12_or_pairs(args.out)  # as --dataset big12 reads it
    print(f"{len(images)} pairs of image and map, {shape(images, args.per_class)}")
    print(f"  sha256 of the list  {images.list_sha256}")
    if args.out:
        print(f"  sha256 of the pairs {images.contents_sha256()}")
        print(f"  {args.out}: --dataset big12 --data_dir {args.out}")


def shape(images: ImageSet, per_class: int) -> str:
    superclasses = len(set(images.groups))
    classes = len(set(images.labels)) // superclasses
    return f"{superclasses} superclasses x {classes} classes x {per_class}"


def add_per_class(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--per_class",
        type=positive_int,
        default=BIG12_PER_CLASS,
        help=f"{what} per class (default: %(default)s)",
    )


def get_args_parser() -> argparse.ArgumentParser:
    """The command line: the sub-commands big12 and clickme_big12."""
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    big12 = commands.add_parser(
        "big12", help="check the 960 images in an ImageNet validation folder, or export them"
    )
    big12.add_argument(
        "--imagenet",
        type=Path,
        required=True,
        help="folder of ImageNet validation: 1000 synset folders, or flat",
    )
    big12.add_argument(
        "--out", type=new_folder, help="export to this folder: synset folders of symbolic links"
    )
    big12.add_argument("--copy", action="store_true", help="export copies instead of links")
    add_per_class(big12, "images")
    big12.add_argument(
        "--grouping",
        choices=list(groupings()),
        default="big_12",
        help="which superclasses (default: %(default)s)",
    )
    big12.set_defaults(run=big12_command)

    pairs = commands.add_parser(
        "clickme_big12", help="draw Feng 2025's 960 pairs of image and human map out of ClickMe"
    )
    pairs.add_argument(
        "--clickme",
        type=Path,
        required=True,
        help="folder of one split of ClickMe: .tfrecords or .pth files",
    )
    pairs.add_argument("--out", type=new_folder, help="write the pairs to this folder, a .pth each")
    add_per_class(pairs, "pairs")
    pairs.set_defaults(run=clickme_big12_command)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 after an error in one line."""
    args = get_args_parser().parse_args(argv)
    return run_command(lambda: args.run(args))


if __name__ == "__main__":
    run_script(main)
