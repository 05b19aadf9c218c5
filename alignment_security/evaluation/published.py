"""Compare clean accuracy with the published one: finds a wrong class order, crop or file early."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, sha256_file
from alignment_security.common.process import print_line
from alignment_security.common.text import read_text
from alignment_security.evaluation.checks import LOOK, clean_rows, fair_sample
from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.models.heads import IMAGENET_CLASSES
from alignment_security.models.names import published_names
from alignment_security.records.metrics import accuracy_interval
from alignment_security.records.run import Run

CONFIDENCE = 0.999  # of the interval: with nothing wrong, one model in a thousand falls outside
MAX_CHECKED = 500  # images that are classified before an attack, a fair sample: seconds
TIMM_TABLES = "give one of timm's results/results-imagenet*.csv"


def compare_with_published(evaluation: Evaluation, run: Run) -> None:
    """Compare clean accuracy with a table of published ones; does nothing without a table.

    Takes the rows of a finished run, before an attack a fair sample of the images. The comparison
    goes into the run file. A warning goes there, and before an attack to stderr, when the
    accuracies differ, or when they cannot be compared.
    """
    model, images, table = evaluation.model, evaluation.images, evaluation.published_accuracy
    if not table or "published" in run.info:
        return
    names = published_names(model.settings["name"], model.settings["weights"])
    size = model.preprocessing["input_size"][-1]
    published, problem = find_published(read_published(table), names, size)
    if model.n_outputs != IMAGENET_CLASSES or images.restrict_to:
        problem = "the published accuracy is of 1000 classes, these answers are not"
    if not problem:
        if run.done:
            correct = list(run.rows["clean_correct"])
        else:
            rows = clean_rows(evaluation, fair_sample(evaluation, MAX_CHECKED))
            correct = [row["clean_correct"] for row in rows]
        comparison = compare_accuracy(published, sum(correct), len(correct))
        run.save(
            published=comparison | {"file": Path(table).name, "sha256": sha256_file(Path(table))}
        )
        if comparison["far_off"]:
            problem = comparison_warning(comparison, images.name)
    if problem:
        run.warn(problem)
        if not run.done:  # else the report, which follows, says it
            print_line(f"warning: {problem}", sys.stderr)


# ---- the table -----------------------------------------------------------------------------------


def read_published(path: str | Path) -> pd.DataFrame:
    """Published accuracies from a CSV such as timm's results/results-imagenet.csv.

    Reads columns `model`, `top1` (percent) and, where a table has a row per test size, `img_size`.
    Returns model, img_size (0 where not given) and top1 in [0, 1]. Raises UserError naming the file
    and the cell.
    """
    try:
        table = pd.read_csv(io.StringIO(read_text(path)), dtype=str, keep_default_na=False)
    except (OSError, UserError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path}: not a CSV ({str(error).strip()}); {TIMM_TABLES}") from None
    missing = {"model", "top1"} - set(table)
    if missing:
        raise UserError(f"{path}: no column {' or '.join(sorted(missing))}; {TIMM_TABLES}")
    top1 = published_numbers(path, table, "top1", largest=100)
    sizes = 0
    if "img_size" in table:
        sizes = published_numbers(path, table, "img_size", largest=float("inf")).astype(int)
    names = table["model"].str.strip()
    return pd.DataFrame({"model": names, "img_size": sizes, "top1": top1 / 100})


def published_numbers(
    path: str | Path, table: pd.DataFrame, column: str, largest: float
) -> pd.Series:
    """A column as numbers from 0 to `largest`; timm writes thousands with commas."""
    values = pd.to_numeric(table[column].str.replace(",", ""), errors="coerce")
    wrong = values.isna() | (values < 0) | (values > largest)
    if wrong.any():
        row = wrong.idxmax()
        raise UserError(
            f"{path}, line {row + 2}, column {column}: {table[column][row]!r}; write top1 in "
            "percent, img_size in pixels"
        )
    return values


def find_published(table: pd.DataFrame, names: list[str], size: int) -> tuple[dict, str]:
    """The row of the first name that the table has at this test size, and why there is none.

    Returns ({model, img_size, top1}, "") or ({}, reason).
    """
    known = [name for name in names if name in set(table["model"])]
    if not known:
        return {}, f"no published accuracy of {' or '.join(names)}"
    rows = table[table["model"] == known[0]]
    fits = rows[rows["img_size"].isin([0, size])]
    if fits.empty:
        sizes = ", ".join(map(str, sorted(rows["img_size"])))
        return {}, f"the accuracy of {known[0]} is published at {sizes} pixels, not at {size}"
    return fits.iloc[0].to_dict(), ""


# ---- the comparison ------------------------------------------------------------------------------


def compare_accuracy(published: dict, correct: int, n: int) -> dict:
    """The comparison that a run file keeps.

    `far_off` says that the published accuracy is outside Wilson's interval at CONFIDENCE, as if the
    n images were a random sample of those behind the published accuracy.
    """
    low, high = accuracy_interval(correct, n, CONFIDENCE)
    far_off = not low <= published["top1"] <= high
    return published | {"correct": correct, "n": n, "low": low, "high": high, "far_off": far_off}


def comparison_warning(found: dict, image_set: str) -> str:
    ours = f"{found['correct'] / found['n']:.1%} on {found['n']} images of {image_set}"
    interval = f"{CONFIDENCE:.1%} interval {found['low']:.1%} to {found['high']:.1%}"
    above = found["low"] > found["top1"]
    cause = "easier images, or images of its training" if above else LOOK
    return (
        f"clean accuracy {ours}, but {found['top1']:.1%} is published for {found['model']}, "
        f"outside the {interval}: {cause}"
    )
