"""Checks across finished records (models, image lists, code) and of the summary table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.records.audit_record import EVALUATE_AGAIN, Record
from alignment_security.records.record import first_difference, network_of
from alignment_security.records.summary import (
    SUMMARY_KEY,
    SUMMARY_NAME,
    read_summary_table,
    summarise,
)

MERGE_AGAIN = "run `python utilities.py merge` again"
NO_EPS = -1.0  # in place of a missing eps, which would equal no other
SUMMARY_RTOL = 1e-12  # of a number in the summary against its records
FEWEST_NORMS = 2  # different ones, that no two networks share by chance
# settings that decide the pixels that a model sees, and its answers to them
OF_PIXELS = ("head", "precision", "pixels", "geometry", "corruption")
SHORT_FACT = 12  # characters of a commit or version in a message

Fact = tuple[tuple[str, str], ...]  # ((name, value), ...): a commit, or versions of packages


# ---- records together ----------------------------------------------------------------------------


def check_models(records: list[Record]) -> Iterator[str]:
    """One name means one model, under every threat."""
    yield from check_same_weights(records)
    yield from check_same_predictions(records)


def check_same_weights(records: list[Record]) -> Iterator[str]:
    """Records of one model name have the same weights and preprocessing; heads may differ.

    So may the group: records made before groups were recorded have none. The place of weights
    counts only where their sha256 is unknown; of a Python file, its function and content do.
    """
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(record.run["model"], record)
        difference = first_difference(_network(other.model), _network(record.model))
        if difference:
            yield (
                f"{record.path}: not the model of {other.path} though it has the same name "
                f"({difference}); evaluate one of them again"
            )


def _network(model: dict) -> dict:
    left_out = {"head", "group", "weights"}
    known = {name: value for name, value in model.items() if name not in left_out}
    return known | {"network": network_of(model) or (model.get("weights"),)}


def check_same_predictions(records: list[Record]) -> Iterator[str]:
    """Records of one model on the same pixels have the same clean predictions."""
    first: dict[tuple, tuple[Record, pd.Series]] = {}
    for record in records:
        pixels = [str(record.settings.get(name)) for name in OF_PIXELS]
        model_and_pixels = record.run["model"], record.run["image_set"], *pixels
        images = record.rows.drop_duplicates("image_id").set_index("image_id")
        other, predicted = first.setdefault(model_and_pixels, (record, images["clean_pred"]))
        predicted, again = predicted.align(images["clean_pred"], join="inner")
        differ = again.index[predicted != again]
        if len(differ):
            yield (
                f"{record.path}: {len(differ)} of {len(again)} clean predictions differ from those "
                f"of {other.path}, e.g. {differ[0]}; evaluate both again on one machine"
            )


def check_copies(records: list[Record]) -> Iterator[str]:
    """No two networks have the same norms to the last digit under one threat."""
    first: dict[tuple, Record] = {}
    for record in records:
        norms = record.rows["l2"] if "l2" in record.rows else pd.Series(dtype=float)
        if norms.nunique() < FEWEST_NORMS:
            continue
        other = first.setdefault((record.path.parent, norms.to_numpy().tobytes()), record)
        if network_of(record.model) != network_of(other.model):
            yield (
                f"{record.path}: its norms are those of {other.path} to the last digit, and the "
                "networks are two; evaluate both again"
            )


def check_lists(records: list[Record]) -> Iterator[str]:
    """Records of one image set and slice have the same image list, whatever their threat.

    Within a threat, `comparable.comparable_runs` compares the models.
    """
    first: dict[tuple, Record] = {}
    for record in records:
        images = [str(record.settings.get(name)) for name in ("slice", "subset", "corruption")]
        other = first.setdefault((record.run["image_set"], *images), record)
        same_list = record.settings.get("list_sha256") == other.settings.get("list_sha256")
        if not same_list and record.path.parent != other.path.parent:
            yield (
                f"{record.path}: another image list than {other.path}, of the same set and slice; "
                "evaluate one of them again"
            )


def check_code(root: Path, records: list[Record]) -> Iterator[str]:
    """Every session ran committed code; models of one threat share a commit, all share versions."""
    first: dict[Path, dict[Fact, Path]] = {}  # folder -> fact -> first record with it
    for record in records:
        for session in record.run["sessions"]:
            git = session.get("git") or "unknown"
            if git == "unknown" or git.endswith("-dirty"):
                yield (
                    f"{record.path}: made by code that no commit holds (git {git}); commit (or set "
                    f"GIT_COMMIT) and {EVALUATE_AGAIN}"
                )
            commit: Fact = (("git", git.removesuffix("-dirty")),)
            versions: Fact = tuple(
                (name, str(version)) for name, version in session.get("versions", {}).items()
            )
            first.setdefault(record.path.parent, {}).setdefault(commit, record.path)
            first.setdefault(root, {}).setdefault(
                versions or (("versions", "unknown"),), record.path
            )
    for folder, paths in first.items():
        (fact, path), *others = paths.items()
        for other_fact, other_path in others:
            this, other = differing_values(fact, other_fact)
            yield (
                f"{folder}: {path.name} was made with {this}, {other_path.name} with {other}; name "
                "both in the paper, or evaluate one of them again"
            )


def differing_values(a: Fact, b: Fact) -> tuple[str, str]:
    """The `name value` pairs of two facts that are not in both, as text."""
    values_a, values_b = dict(a), dict(b)
    names = [name for name in {**values_a, **values_b} if values_a.get(name) != values_b.get(name)]

    def text(values: dict[str, str]) -> str:
        return ", ".join(
            f"{name} {values.get(name, 'not recorded')[:SHORT_FACT]}" for name in names
        )

    return text(values_a), text(values_b)


# ---- the summary ---------------------------------------------------------------------------------


def check_summary(results_dir: Path) -> Iterator[str]:
    """The summary on disk is what the records give today.

    Skipped where a record cannot be summarised; other checks report it.
    """
    path = results_dir / SUMMARY_NAME
    try:
        written = read_summary_table(path, MERGE_AGAIN, SUMMARY_KEY)
    except FileNotFoundError:
        yield f"{path}: missing; `python utilities.py merge` makes it"
        return
    except UserError as error:
        yield str(error)
        return
    try:
        left_out: list[str] = []
        fresh = summarise(results_dir, allow_partial=True, log=left_out.append)
    except UserError:
        return
    if left_out:
        return
    if "partial" not in written or not written["partial"].eq(1).any():
        fresh = fresh[fresh["partial"] != 1]  # merged without --allow_partial
    yield from summary_differences(path, written, fresh)


def summary_differences(path: Path, written: pd.DataFrame, fresh: pd.DataFrame) -> Iterator[str]:
    """Rows and cells in which the summary at `path` is not what its records give."""
    written, fresh = _by_key(written), _by_key(fresh)
    yield from missing_row(path, written, fresh, "a row that no record gives")
    yield from missing_row(path, fresh, written, "no row for a record")
    yield from changed_cells(path, written, fresh)


def _by_key(table: pd.DataFrame) -> pd.DataFrame:
    filled = table.astype({"eps": float}).fillna({"eps": NO_EPS, "attack": ""})
    return filled.set_index(SUMMARY_KEY)


def missing_row(
    path: Path, table: pd.DataFrame, other: pd.DataFrame, problem: str
) -> Iterator[str]:
    """A sentence about the first row of `table` that `other` lacks, if there is one."""
    keys = table.index.difference(other.index)
    if len(keys):
        yield f"{path}: {problem} ({_model_and_threat(keys[0])}); {MERGE_AGAIN}"


def _model_and_threat(key: tuple) -> str:
    return " ".join(map(str, key[:2]))


def changed_cells(path: Path, written: pd.DataFrame, fresh: pd.DataFrame) -> Iterator[str]:
    """A sentence per column of the summary in which a cell is not what its record gives."""
    keys = written.index.intersection(fresh.index)
    written = written[~written.index.duplicated()].loc[keys]
    fresh = fresh[~fresh.index.duplicated()].loc[keys]
    for column in written:
        if column not in fresh:
            continue
        a, b = written[column], fresh[column]
        if pd.api.types.is_numeric_dtype(a) and pd.api.types.is_numeric_dtype(b):
            same = np.isclose(
                a.astype(float), b.astype(float), rtol=SUMMARY_RTOL, atol=0, equal_nan=True
            )
        else:
            same = (a.astype(str) == b.astype(str)) | (a.isna() & b.isna())
        if not same.all():
            at = int(np.argmin(same))
            yield (
                f"{path}: {column} of {_model_and_threat(keys[at])} is {a.iloc[at]}, its record "
                f"gives {b.iloc[at]}; {MERGE_AGAIN}"
            )
