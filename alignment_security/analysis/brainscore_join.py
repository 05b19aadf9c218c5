"""Join results with Brain-Score scores by model name: `python utilities.py join`.

Writes the summary with each model's scores (JOINED) and the models that did not join (UNMATCHED).
`join_scores` has the rules.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import MERGED_SCORES, SCORES_FOLDER
from alignment_security.analysis.brainscore_registry import NAME_COLUMNS
from alignment_security.common.files import UserError, write_atomic
from alignment_security.records.summary import SUMMARY_NAME

JOINED, UNMATCHED = "evaluation_results_scores.csv", "evaluation_results_unmatched.csv"
REGISTRY_NAME, TIMM_NAME = NAME_COLUMNS[1:]
MAX_SHOWN = 20  # models without results that are printed; the file has all
BY_BARE_NAME = "timm name without tag"
OTHER_WEIGHTS = "the scores under this name are of Brain-Score's own net, the result of timm's"


def join_results(results_dir: str | Path = "results") -> pd.DataFrame:
    """Write the summary of our results with each model's scores (JOINED), and UNMATCHED.

    Prints the models that did not join; returns the joined table. Raises UserError if a table is
    missing; then nothing is written.
    """
    folder = Path(results_dir)
    results = read_own_table(
        folder / SUMMARY_NAME, f"python utilities.py merge --results_dir {folder}"
    )
    scores = read_own_table(
        folder / SCORES_FOLDER / f"{MERGED_SCORES}.csv",
        f"python utilities.py setup_scores --results_dir {folder}",
    )
    joined, unmatched = join_scores(scores, results)
    for name, table in ((JOINED, joined), (UNMATCHED, unmatched)):
        write_atomic(folder / name, table.to_csv(index=False, lineterminator="\n"))
    models = joined["model"].nunique()
    print(f"{len(joined)} of {len(results)} rows joined ({models} models): {folder / JOINED}")
    print(f"{len(unmatched)} models without a partner: {folder / UNMATCHED}")
    print(unmatched_text(unmatched))
    return joined


def read_own_table(path: Path, command: str) -> pd.DataFrame:
    """A table that `command` writes. Raises UserError with the command if it is missing."""
    try:
        return pd.read_csv(path)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        raise UserError(f"{path}: no such table; `{command}` makes it") from None


def unmatched_text(unmatched: pd.DataFrame) -> str:
    """All results without scores; the first MAX_SHOWN scores without results, and how many more."""
    results = unmatched[unmatched["side"] == "results"]
    scores = unmatched[unmatched["side"] == "scores"]
    table = pd.concat([results, scores.head(MAX_SHOWN)])
    text = table.to_string(index=False) if len(table) else ""
    if len(scores) > MAX_SHOWN:
        text += f"\n... and {len(scores) - MAX_SHOWN} more of the scores"
    return text


def candidates(name: str, scores: pd.DataFrame, weights: str = "") -> tuple[list[str], str]:
    """Registry names that a result's model may have, and the rule (or the reason why none).

    name      registry or timm name of the result's model
    scores    with REGISTRY_NAME and TIMM_NAME
    weights   where the result's weights are from (`timm:...`, `brainscore:...`); "" if unknown
    """
    keys, timm = scores[REGISTRY_NAME], scores[TIMM_NAME]
    same_key = keys == name
    brainscores_own = timm == ""
    if weights.startswith(("timm:", "pypi:")) and (same_key & brainscores_own).any():
        return [], OTHER_WEIGHTS
    same_bare_name = (timm != "") & (timm.str.partition(".")[0] == name.partition(".")[0])
    one_untagged = ("." not in name) | ~timm.str.contains(".", regex=False)
    rules = [
        ("registry name", same_key),
        ("timm name", same_bare_name & (timm == name)),
        (BY_BARE_NAME, same_bare_name & one_untagged),
    ]
    for rule, hit in rules:
        if hit.any():
            return list(keys[hit]), rule
    return [], "no scores under this name"


def join_scores(scores: pd.DataFrame, results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every row of some results with the scores of its model.

    scores    as setup_scores writes them
    results   with a column `model` (a registry or timm name) and perhaps `weights`
    Tried in turn: the registry name; the timm name; the timm name if one of the two has no tag
    (`.in1k`) and only one model on either side fits. Two different tags are different weights and
    never join; nor do timm's weights with a net of that name that is Brain-Score's own.
    Returns (joined: the results' columns, `match`, the scores' columns; unmatched: `side, model,
    reason`). Raises UserError if a column is missing or in both tables.
    """
    check_columns(scores, results)
    scores = scores.assign(timm_name=scores[TIMM_NAME].fillna("").astype(str))
    weights = {}
    if "weights" in results:
        weights = dict(zip(results["model"], results["weights"].fillna("").astype(str)))
    found = {
        name: candidates(str(name).strip(), scores, weights.get(name, ""))
        for name in results["model"].unique()
    }
    claims = Counter(keys[0] for keys, _ in found.values() if len(keys) == 1)
    matched, unmatched = [], []
    for name, (keys, rule) in found.items():
        if len(keys) == 1 and (claims[keys[0]] == 1 or rule != BY_BARE_NAME):
            matched.append((name, keys[0], rule))
        else:
            reason = f"ambiguous {rule}: {', '.join(keys)}" if keys else rule
            unmatched.append(("results", name, reason))
    used = {key for _, key, _ in matched}
    for key in scores[REGISTRY_NAME]:
        if key not in used:
            unmatched.append(("scores", key, "no results under this name or its timm name"))
    link = pd.DataFrame(matched, columns=["model", REGISTRY_NAME, "match"])
    joined = results.merge(link, on="model")
    joined = joined.merge(scores, on=REGISTRY_NAME, validate="many_to_one")
    return joined, pd.DataFrame(unmatched, columns=["side", "model", "reason"])


def check_columns(scores: pd.DataFrame, results: pd.DataFrame) -> None:
    """Raise UserError unless `join_scores` can join the two tables."""
    has_names = "model" in results and {REGISTRY_NAME, TIMM_NAME} <= set(scores)
    if not has_names or {*scores, "match"} & set(results):
        raise UserError(
            f"joining needs results with a column model and none of {', '.join(NAME_COLUMNS)}, "
            "match or the benchmarks, and scores as setup_scores writes them"
        )
