"""Check or build a subset of the ImageNet validation set.

    python dataloading.py big12 --imagenet DIR                      are all 960 images there?
    python dataloading.py big12 --imagenet DIR --out DIR2 [--copy]  the same as a folder of links (or copies)
    python dataloading.py big12 --imagenet DIR --out DIR2 --grouping mid_12 --per_class 2

The source is never altered. What --out made is an image set: --dataset NAME --data_dir DIR2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alignment_security.common.files import UserError
from alignment_security.images.image_sets import existing_folder
from alignment_security.images.subsets import BIG12_PER_CLASS, export_subset, groupings, load_subset


def big12_command(args) -> None:
    images = load_subset(existing_folder("big12", args.imagenet), args.grouping, args.per_class)
    if args.out:
        export_subset(images, args.out, args.imagenet, args.copy)
    groups = len(set(images.groups))
    print(
        f"{images.name}: all {len(images)} images are there, {groups} superclasses x {len(set(images.labels)) // groups} "
        f"classes x {args.per_class}\n  sha256 of the list   {images.list_sha256}\n"
        f"  sha256 of the images {images.contents_sha256()}"
        + (f"\n  {args.out}" if args.out else "")
    )


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "big12", help="verify the 960 images in an ImageNet validation folder, or build them"
    )
    build.add_argument(
        "--imagenet",
        type=Path,
        required=True,
        help="ImageNet validation: 1000 synset folders, or flat",
    )
    build.add_argument(
        "--out", type=Path, help="make this folder of synset folders, of symbolic links"
    )
    build.add_argument("--copy", action="store_true", help="copies instead of links")
    build.add_argument(
        "--per_class", type=int, default=BIG12_PER_CLASS, help="images of each class"
    )
    build.add_argument(
        "--grouping", choices=list(groupings()), default="big_12", help="superclasses"
    )
    build.set_defaults(run=big12_command)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_args_parser().parse_args(argv)
    try:
        args.run(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
