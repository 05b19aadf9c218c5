"""The scores that figures and claims read: Brain-Score's, and those of other tables.

The table of `setup_scores` (brainscore_scores) comes first, then the leaderboard in the folder of
--published; the table of `join --scores` (other_scores) is added to either.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import (
    FAILED_CELLS,
    LEFT_OUT,
    MERGED_SCORES,
    NOT_RUN_CELLS,
    SCORES_FOLDER,
    benchmark_columns,
    drop_repeats,
    read_leaderboard,
    score_numbers,
)
from alignment_security.analysis.brainscore_plugins import listed_nets
from alignment_security.analysis.brainscore_registry import INPUT_COLUMN
from alignment_security.analysis.other_scores import has_other_scores, with_other_scores
from alignment_security.analysis.results import NothingToDraw, Results
from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.common.tables import read_table, to_numbers
from alignment_security.common.text import read_text


def read_scores(results: Results) -> tuple[pd.DataFrame, str]:
    """The scores of models, without the benchmark LEFT_OUT, and a phrase on their sources.

    Columns model_registry_name, timm_name ("" if unknown), plugin_input, benchmarks (floats).
    Raises NothingToDraw if there is no table, UserError if one is damaged.
    """
    path = results.folder / SCORES_FOLDER / f"{MERGED_SCORES}.csv"
    published = results.published and glob_visible(results.published, "brainscore/*leaderboard*")
    brainscore, phrase = None, ""
    if path.exists():
        brainscore, phrase = read_brainscore(path)
    elif published:
        brainscore, phrase = read_published_leaderboard(published[0])
    elif not has_other_scores(results.folder):
        raise NothingToDraw(
            f"no {path} and no published leaderboard (--published DIR, brainscore/)"
        )
    if brainscore is not None and LEFT_OUT in brainscore:
        brainscore = brainscore.drop(columns=LEFT_OUT)
        phrase += f" without {LEFT_OUT}, which Hoak 2025's code leaves out"
    scores, others = with_other_scores(brainscore, results.folder)
    scores[INPUT_COLUMN] = scores.get(INPUT_COLUMN, pd.Series(dtype=str)).fillna("")
    return scores, " and ".join(filter(None, [phrase, others and f"scores of {others}"]))


def read_published_leaderboard(path: Path) -> tuple[pd.DataFrame, str]:
    """A leaderboard as it was downloaded, with the nets of lists/models/, and a phrase on it."""
    scores, facts = read_leaderboard(path)
    scores, _ = drop_repeats(scores)
    nets = listed_nets().reindex(scores["model_name"], columns=["timm_name", INPUT_COLUMN])
    names = nets.fillna("").rename_axis("model_registry_name").reset_index().set_index(scores.index)
    numbers = score_numbers(scores[benchmark_columns(scores)])
    source = f"Brain-Score leaderboard {path.name} ({facts['date'] or 'undated'})"
    return pd.concat([names, numbers], axis=1), source


def read_brainscore(path: Path) -> tuple[pd.DataFrame, str]:
    """The table that `setup_scores` wrote, and a phrase on its source and date."""
    fix = "make it again with setup_scores"
    table = read_table(path, ["model_registry_name"], fix)
    if table["model_registry_name"].duplicated().any():
        raise UserError(f"{path}: has a model twice; {fix}")
    benchmarks = benchmark_columns(table)
    cells = table[benchmarks]
    numbers = to_numbers(
        path, cells.mask(cells.isin(FAILED_CELLS + NOT_RUN_CELLS), ""), benchmarks, fix
    )
    names = table.reindex(columns=["model_registry_name", "timm_name"], fill_value="")
    try:
        facts = json.loads(read_text(path.with_suffix(".json")))
    except (OSError, ValueError):
        facts = {}
    seen = facts.get("plugin_inputs") or listed_nets()[INPUT_COLUMN].to_dict()
    names[INPUT_COLUMN] = names["model_registry_name"].map(seen).fillna("")
    date, source = facts.get("date") or "a date not recorded", facts.get("source", path.name)
    return pd.concat([names, numbers.astype(float)], axis=1), f"Brain-Score of {date} ({source})"
