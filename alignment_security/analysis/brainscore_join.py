"""Join results with Brain-Score scores by model name: `python utilities.py join`.

Writes the summary with each model's scores (JOINED) and the models that did not join (UNMATCHED).
`join_scores` has the rules.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import MERGED_SCORES, SCORES_FOLDER
from alignment_security.analysis.brainscore_plugins import input_note
from alignment_security.analysis.brainscore_registry import (
    INPUT_COLUMN,
    NAME_COLUMNS,
    REGISTRY_NAME,
    TIMM_NAME,
)
from alignment_security.analysis.other_scores import (
    collect_scores,
    has_other_scores,
    with_other_scores,
)
from alignment_security.common.files import UserError, write_atomic
from alignment_security.common.public_nets import public_net, with_tag
from alignment_security.common.tables import read_table
from alignment_security.common.text import read_text
from alignment_security.records.summary import JOINED_NAME, SUMMARY_NAME

JOINED, UNMATCHED = JOINED_NAME, "evaluation_results_unmatched.csv"
MAX_EXPLAINED = 3  # models of which a message says why they have no scores
MAX_SHOWN = 20  # models without results that are printed; the file has all
OTHER_WEIGHTS = "the scores under this name are of Brain-Score's own net, the result of timm's"


def join_results(
    results_dir: str | Path = "results", other_tables: Sequence[Path] = ()
) -> pd.DataFrame:
    """Write the summary of our results with each model's scores (JOINED), and UNMATCHED.

    other_tables   CSVs of more scores, kept for the figures too (`collect_scores`)

    Prints the models that did not join; returns the joined table. Raises UserError if a table is
    missing or nothing joins; then neither table is written.
    """
    folder = Path(results_dir)
    results = read_own_table(
        folder / SUMMARY_NAME, f"python utilities.py merge --results_dir {folder}"
    )
    if other_tables:
        collect_scores(other_tables, folder)
    path, brainscore = folder / SCORES_FOLDER / f"{MERGED_SCORES}.csv", None
    if path.exists() or not has_other_scores(folder):
        command = f"python utilities.py setup_scores --results_dir {folder}"
        brainscore = read_own_table(path, command)
    scores, _ = with_other_scores(brainscore, folder)
    joined, unmatched = join_scores(scores, results)
    if joined.empty:
        raise UserError(f"{folder / SUMMARY_NAME}: {nothing_joins_text(unmatched, scores)}")
    for name, table in ((JOINED, joined), (UNMATCHED, unmatched)):
        write_atomic(folder / name, table.to_csv(index=False, lineterminator="\n"))
    models = joined["model"].nunique()
    print(f"{len(joined)} of {len(results)} rows joined ({models} models): {folder / JOINED}")
    print(f"{len(unmatched)} models without a partner: {folder / UNMATCHED}")
    print(unmatched_text(unmatched))
    return joined


def nothing_joins_text(unmatched: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Why no result joins, with the names of the scores that are nearest to a result's name."""
    results = unmatched[unmatched["side"] == "results"]
    names = {*scores[REGISTRY_NAME], *scores[TIMM_NAME].fillna("")} - {""}
    shown = []
    for model, reason in results[["model", "reason"]].head(MAX_EXPLAINED).values:
        near = [] if model in names else get_close_matches(model, sorted(map(str, names)))
        shown.append(f"{model}: {reason}" + f" (nearest: {', '.join(near)})" * bool(near))
    more = f"; and {len(results) - len(shown)} more" if len(results) > len(shown) else ""
    return f"none of its {len(results)} models has scores; {'; '.join(shown)}{more}"


def read_own_table(path: Path, command: str) -> pd.DataFrame:
    """A table that `command` writes. Raises UserError with the command if it is missing or bad."""
    fix = f"`{command}` makes it"
    if not path.exists():
        raise UserError(f"{path}: no such table; {fix}")
    read_table(path, [], fix)
    return pd.read_csv(io.StringIO(read_text(path)))


def unmatched_text(unmatched: pd.DataFrame) -> str:
    """All results without scores; the first MAX_SHOWN scores without results, and how many more."""
    results = unmatched[unmatched["side"] == "results"]
    scores = unmatched[unmatched["side"] == "scores"]
    table = pd.concat([results, scores.head(MAX_SHOWN)])
    text = table.to_string(index=False) if len(table) else ""
    if len(scores) > MAX_SHOWN:
        text += f"\n... and {len(scores) - MAX_SHOWN} more of the scores"
    return text


def candidates(name: str, weights: str, sha256: str, scores: pd.DataFrame) -> tuple[list[str], str]:
    """Registry names that a result's model may have, and the rule (or the reason why none).

    name, weights, sha256   of the result's model, as `public_net` takes them
    scores                  with REGISTRY_NAME and TIMM_NAME
    """
    keys = scores[REGISTRY_NAME]
    nets = scores[TIMM_NAME].map(with_tag)
    same_key = keys == name
    if same_key.any() and (not weights or weights.startswith("brainscore:")):
        return list(keys[same_key]), "registry name"
    public = public_net(name, weights, sha256)
    if not public and weights.startswith("file:"):
        return [], f"not a public net: its weights are {weights}"
    if not public:
        return [], "no scores under this name"
    same_net = nets == public
    for rule, hit in (("registry name", same_net & same_key), ("timm name", same_net)):
        if hit.any():
            return list(keys[hit]), rule
    return [], OTHER_WEIGHTS if same_key.any() else f"no scores of {public}"


def join_scores(scores: pd.DataFrame, results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every row of some results with the scores of its model.

    scores    as setup_scores writes them
    results   with a column `model` (a registry or timm name) and perhaps `weights, weights_sha256`
    A model of Brain-Score's own package joins by its registry name, and so does a name without
    weights. Every other model joins only if it is a public net (`public_net`) that a plugin runs
    with the same weights, as the plugin's code says: the same architecture is not enough.
    Returns (joined: the results' columns, `match, input_note`, the scores' columns; unmatched:
    `side, model, reason`). `input_note` says how the plugin's input differs from timm's. Raises
    UserError if a column is missing or in both tables, or if the scores have a model twice.
    """
    check_columns(scores, results)
    twice = scores.loc[scores[REGISTRY_NAME].duplicated(), REGISTRY_NAME]
    if len(twice):
        raise UserError(f"the scores have {twice.iloc[0]} twice; make them again with setup_scores")
    scores = scores.assign(timm_name=scores[TIMM_NAME].fillna("").astype(str))
    columns = ["model", "weights", "weights_sha256"]
    models = results.reindex(columns=columns).fillna("").astype(str).drop_duplicates("model")
    matched, unmatched = [], []
    for name, weights, sha256 in models.itertuples(index=False):
        keys, rule = candidates(name.strip(), weights, sha256, scores)
        if len(keys) == 1:
            matched.append((name, keys[0], rule))
        else:
            reason = f"ambiguous {rule}: {', '.join(keys)}" if keys else rule
            unmatched.append(("results", name, reason))
    used = {key for _, key, _ in matched}
    for key in scores[REGISTRY_NAME]:
        if key not in used:
            unmatched.append(("scores", key, "no results under this name or its timm name"))
    link = pd.DataFrame(matched, columns=["model", REGISTRY_NAME, "match"])
    joined = results.merge(link.merge(input_notes(scores), on=REGISTRY_NAME), on="model")
    scores = scores.drop(columns=INPUT_COLUMN, errors="ignore")
    joined = joined.merge(scores, on=REGISTRY_NAME, validate="many_to_one")
    return joined, pd.DataFrame(unmatched, columns=["side", "model", "reason"])


def input_notes(scores: pd.DataFrame) -> pd.DataFrame:
    """REGISTRY_NAME and `input_note` of each row of scores that is a timm net."""
    seen = scores.reindex(columns=[INPUT_COLUMN], fill_value="")[INPUT_COLUMN].fillna("")
    notes = [
        input_note(with_tag(net), text) if net and INPUT_COLUMN in scores else ""
        for net, text in zip(scores[TIMM_NAME], seen)
    ]
    return pd.DataFrame({REGISTRY_NAME: scores[REGISTRY_NAME], "input_note": notes})


def check_columns(scores: pd.DataFrame, results: pd.DataFrame) -> None:
    """Raise UserError unless `join_scores` can join the two tables."""
    has_names = "model" in results and {REGISTRY_NAME, TIMM_NAME} <= set(scores)
    if not has_names or {*scores, "match", "input_note"} & set(results):
        raise UserError(
            f"joining needs results with a column model and none of {', '.join(NAME_COLUMNS)}, "
            "match or the benchmarks, and scores as setup_scores writes them"
        )
