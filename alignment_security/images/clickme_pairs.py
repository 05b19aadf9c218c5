"""Big-12 out of ClickMe: pairs of a photograph and its human map, as Feng 2025 used them.

`dataloading.py clickme_big12` draws and writes them.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import torch

from alignment_security.common.files import write_atomic
from alignment_security.common.folders import visible
from alignment_security.images.clickme import (
    PAIR_LIST,
    ClickMeSample,
    clickme_sample,
    clickme_set,
    is_clickme_file,
)
from alignment_security.images.image_sets import DataError, ImageSet, read_image_list
from alignment_security.images.subsets import (
    big12_set,
    check_out,
    draw_subset,
    groupings,
    write_list,
)


def big12_or_pairs(root: Path) -> ImageSet:
    """The set `big12` of a folder: of ImageNet validation (big12_set), or ClickMe's pairs.

    A folder of ClickMe's files, as `clickme_big12` or Feng 2025's code makes it, is taken whole,
    with its human maps. Labels are ImageNet's 1000. Raises DataError.
    """
    if not any(map(is_clickme_file, visible(root))):
        return big12_set(root)
    images = pairs_by_superclass(clickme_set(root))
    check_pair_list(images, root / PAIR_LIST)
    return images


def pairs_by_superclass(images: ImageSet) -> ImageSet:
    """Pairs of ClickMe, all of Big-12's classes, as the set `big12`, by superclass and class.

    Raises DataError for a pair of another class.
    """
    group_of = {label: group for group, labels in groupings()["big_12"].items() for label in labels}
    others = [i for i, label in enumerate(images.labels) if label not in group_of]
    if others:
        raise DataError(
            f"{images.paths[0].parent}: {len(others)} of {len(images)} pairs are of no class of "
            f"Big-12, e.g. {images.ids[others[0]]}; draw the set from it: `python dataloading.py "
            "clickme_big12 --clickme DIR --out DIR2`, and give --data_dir DIR2"
        )
    groups = list(groupings()["big_12"])

    def place(i: int) -> tuple[int, int, str]:
        label = images.labels[i]
        return groups.index(group_of[label]), label, images.ids[i]

    ordered = images.take(sorted(range(len(images)), key=place))
    return replace(ordered, name="big12", groups=tuple(group_of[label] for label in ordered.labels))


def check_pair_list(images: ImageSet, path: Path) -> None:
    """Raise DataError unless the pairs are those of the list that export_pairs wrote, if any."""
    if not path.is_file():
        return
    listed, found = set(read_image_list(path)), set(zip(images.ids, images.labels))
    if listed != found:
        name = min(listed ^ found)[0]
        raise DataError(
            f"{path}: lists {len(listed)} pairs, the folder has {len(found)}; they differ, e.g. in "
            f"{name}; write the set again with `python dataloading.py clickme_big12`"
        )


def draw_pairs(root: Path, per_class: int) -> ImageSet:
    """`per_class` pairs of each class of Big-12 out of ClickMe's files, drawn as by draw_subset.

    Raises DataError, which names every class with too few pairs.
    """
    images = clickme_set(root)
    rows = draw_subset(zip(images.ids, images.labels), per_class=per_class)
    return pairs_by_superclass(images.take(images.position(name) for name, _, _ in rows))


def export_pairs(images: ImageSet, out: Path, source: Path) -> None:
    """Write out/<image_id>.pth for each pair, as Feng 2025's code reads them, and out/big12.txt.

    A .pth is a dict of uint8 `image` (3, H, W), uint8 `heatmap` (1, H, W) and `label`. A heat map
    of real numbers is scaled to its maximum of 255: ranks stay, to the 256 levels. Raises DataError
    for an `out` inside `source`, and for one with other files of ClickMe, which --data_dir would
    read too.
    """
    targets = [out / f"{image_id}.pth" for image_id in images.ids]
    present = filter(is_clickme_file, visible(out)) if out.exists() else []
    check_out(out, source, targets, present, "pairs")
    out.mkdir(parents=True, exist_ok=True)
    for i, target in enumerate(targets):
        file = io.BytesIO()
        torch.save(pair_tensors(clickme_sample(images, i)), file)
        write_atomic(target, file.getvalue())
    write_list(images, out)


def pair_tensors(sample: ClickMeSample) -> dict:
    """What a .pth file of ClickMe holds (clickme.read_pth)."""
    heatmap, highest = sample.heatmap, float(sample.heatmap.max())
    if highest and not (heatmap == heatmap.round()).all():
        heatmap = 255 / highest * heatmap
    return {
        "image": torch.tensor(sample.image).permute(2, 0, 1).contiguous(),
        "heatmap": torch.tensor(heatmap.round().astype("uint8"))[None],
        "label": sample.label,
    }
