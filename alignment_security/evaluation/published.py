"""Clean accuracy against the one that is published for a model: a wrong class order, crop or file shows before an attack."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from alignment_security.attacks.clean import run_clean
from alignment_security.common.files import UserError, sha256_file
from alignment_security.images.image_sets import ImageSet, take_slice
from alignment_security.images.loading import stream_images
from alignment_security.models.heads import IMAGENET_CLASSES, Model
from alignment_security.models.names import published_names
from alignment_security.records.metrics import accuracy_interval
from alignment_security.records.run import Run

# ---- published accuracy ----------------------------------------------------------------------------------------


def compare_with_published(
    table, model: Model, images: ImageSet, batch_size: int, run: Run
) -> None:
    """Clean accuracy against that of a table (or none): of a finished run's rows, before an attack of a fair sample.

    What was compared goes into the run file; far off, or not to be compared, is a warning there and on the screen.
    """
    if not table or "published" in run.info:
        return
    names = published_names(model.settings["name"], model.settings["weights"])
    found, why = find_published(read_published(table), names, model.preprocessing["input_size"][-1])
    if model.n_outputs != IMAGENET_CLASSES or images.restrict_to:
        why = "the published accuracy is of 1000 classes, these answers are not"
    if not why:
        correct = (
            list(run.rows["clean_correct"])
            if run.done
            else clean_answers(model, images, batch_size)
        )
        found = compare_accuracy(found, sum(correct), len(correct)) | table_facts(table)
        run.save(published=found)
        why = comparison_warning(found, images.name) if found["far_off"] else ""
    if why:
        run.warn(why)
        print(f"warning: {why}", file=sys.stderr)


def clean_answers(model: Model, images: ImageSet, batch_size: int) -> list[int]:
    """Right (1) or wrong (0) for a fair sample of the images, at most published.CHECKED."""
    sample = take_slice(images, 0, CHECKED)
    source = stream_images(sample, model.preprocessing)
    return [
        row["clean_correct"]
        for rows in run_clean(model.module, source, model.n_outputs, batch_size)
        for row in rows
    ]


CONFIDENCE = 0.999  # of the interval: with nothing wrong, one model in a thousand falls outside
CHECKED = 500  # images that are classified before an attack, a fair sample of the set: seconds


def read_published(path: str | Path) -> pd.DataFrame:
    """Accuracies from a CSV with columns `model` and `top1` (percent) and, where a model stands there once per test size,
    `img_size`: timm's results/results-imagenet.csv, or a table of one's own. Other columns are ignored.

    Returns model, img_size (0 where not given), top1 in [0, 1]. Raises UserError naming the file and the cell.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(
            f"{path}: not a CSV ({str(error).strip()}); give one of timm's results/results-imagenet*.csv"
        ) from None
    if lacking := {"model", "top1"} - set(table):
        raise UserError(
            f"{path}: no column {' or '.join(sorted(lacking))}; give one of timm's results/results-imagenet*.csv"
        )
    numbers = {
        column: pd.to_numeric(table[column].str.replace(",", ""), errors="coerce")
        for column in ("top1", "img_size")
        if column in table
    }
    for column, values in numbers.items():
        wrong = values.isna() | (values < 0) | ((values > 100) & (column == "top1"))
        if wrong.any():
            at = wrong.idxmax()
            raise UserError(
                f"{path}, line {at + 2}, column {column}: {table[column][at]!r}; write top1 in percent, "
                "img_size in pixels"
            )
    sizes = numbers.get("img_size", pd.Series(0, index=table.index))
    return pd.DataFrame(
        {
            "model": table["model"].str.strip(),
            "img_size": sizes.astype(int),
            "top1": numbers["top1"] / 100,
        }
    )


def find_published(table: pd.DataFrame, names: list[str], size: int) -> tuple[dict, str]:
    """({model, img_size, top1} of the first of some names that the table has at this test size, or {}; why there is none)."""
    rows = table[
        table["model"] == next((name for name in names if name in set(table["model"])), None)
    ]
    if rows.empty:
        return {}, f"no published accuracy of {' or '.join(names)}"
    fits = rows[rows["img_size"].isin([0, size])]
    if fits.empty:
        sizes = ", ".join(map(str, sorted(rows["img_size"])))
        return (
            {},
            f"the accuracy of {rows['model'].iloc[0]} is published at {sizes} pixels, not at {size}",
        )
    return fits.iloc[0].to_dict(), ""


def compare_accuracy(published: dict, correct: int, n: int) -> dict:
    """What a run file keeps of a comparison; `far_off` when the published accuracy lies outside the interval of ours.

    Wilson's interval at CONFIDENCE, as if the n images were drawn at random from those that were published on.
    """
    low, high = accuracy_interval(correct, n, CONFIDENCE)
    return published | {
        "correct": correct,
        "n": n,
        "low": low,
        "high": high,
        "far_off": not low <= published["top1"] <= high,
    }


def comparison_warning(found: dict, image_set: str) -> str:
    """The comparison as a warning to read."""
    return (
        f"clean accuracy {found['correct'] / found['n']:.1%} on {found['n']} images of {image_set}, but {found['top1']:.1%} "
        f"is published for {found['model']}, outside the {CONFIDENCE:.1%} interval {found['low']:.1%} to "
        f"{found['high']:.1%}: check the class order of the images, the preprocessing and the weights"
    )


def table_facts(path: str | Path) -> dict:
    """The table's name and hash, for the run file."""
    return {"file": Path(path).name, "sha256": sha256_file(Path(path))}
