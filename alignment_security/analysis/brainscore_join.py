"""The summary of our results with the Brain-Score scores of each model (brainscore.join_scores).

python utilities.py join            results/evaluation_results.csv + the merged scores -> JOINED and UNMATCHED
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import MERGED_SCORES
from alignment_security.analysis.brainscore_registry import NAME_COLUMNS
from alignment_security.common.files import UserError, write_atomic
from alignment_security.records.summary import SUMMARY_NAME

JOINED, UNMATCHED = "evaluation_results_scores.csv", "evaluation_results_unmatched.csv"
MAX_SHOWN = 20  # models without results that are printed; the file has all


def join_results(results_dir: str | Path = "results") -> pd.DataFrame:
    """The summary of our results with each model's scores: writes JOINED and, beside it, UNMATCHED; prints the latter.

    Returns the joined table. Raises UserError where a table is missing; then nothing is written.
    """
    folder = Path(results_dir)
    results = read_written(
        folder / SUMMARY_NAME, f"python utilities.py merge --results_dir {folder}"
    )
    scores = read_written(
        folder / "benchmark_scores" / f"{MERGED_SCORES}.csv",
        f"python utilities.py setup_scores --results_dir {folder}",
    )
    joined, unmatched = join_scores(scores, results)
    for name, table in ((JOINED, joined), (UNMATCHED, unmatched)):
        write_atomic(folder / name, table.to_csv(index=False, lineterminator="\n"))
    print(
        f"{len(joined)} of {len(results)} rows joined ({joined['model'].nunique()} models): {folder / JOINED}\n"
        f"{len(unmatched)} models without a partner: {folder / UNMATCHED}\n{unmatched_text(unmatched)}"
    )
    return joined


def read_written(path: Path, command: str) -> pd.DataFrame:
    """A table that a command of ours writes; UserError with that command where it is missing or empty."""
    try:
        return pd.read_csv(path)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        raise UserError(f"{path}: no such table; `{command}` makes it") from None


def unmatched_text(unmatched: pd.DataFrame) -> str:
    """Every result without scores; of the models without results, which are many, the first ones and how many more."""
    of_scores = unmatched[unmatched["side"] == "scores"]
    table = pd.concat([unmatched[unmatched["side"] == "results"], of_scores.head(MAX_SHOWN)])
    more = len(of_scores) - MAX_SHOWN
    return (table.to_string(index=False) if len(table) else "") + (
        f"\n... and {more} more of the scores" if more > 0 else ""
    )


OTHER_WEIGHTS = "the scores under this name are of Brain-Score's own net, the result of timm's"


def candidates(name: str, scores: pd.DataFrame, weights: str = "") -> tuple[list[str], str]:
    """Registry names that a result's model name may stand for, and by which rule (or why it may not).

    weights: where the result's weights came from (`timm:...`, `brainscore:...`), "" where that is not known.
    """
    keys, timm = scores["model_registry_name"], scores["timm_name"]
    alike = (timm != "") & (timm.str.partition(".")[0] == name.partition(".")[0])
    untagged = ("." not in name) | ~timm.str.contains(".", regex=False)
    same, own = keys == name, timm == ""
    if weights.startswith(("timm:", "pypi:")) and (same & own).any():
        return [], OTHER_WEIGHTS
    for rule, hit in (
        ("registry name", same),
        ("timm name", alike & (timm == name)),
        ("timm name without tag", alike & untagged),
    ):
        if hit.any():
            return list(keys[hit]), rule
    return [], "no scores under this name"


def join_scores(scores: pd.DataFrame, results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every row of `results` (column `model`: a registry or timm name) with the scores of its model.

    Tried in turn: the registry name; the timm name; the timm name where one of the two has no tag (`.in1k`), if
    only one model on either side fits. Two different tags are different weights and never join; nor does a result with
    timm's weights (column `weights`, where there is one) join a net of that name that is Brain-Score's own.
    Returns (joined: results' columns, `match`, scores' columns; unmatched: `side, model, reason`).
    """
    if (
        "model" not in results
        or not set(NAME_COLUMNS[1:]) <= set(scores)
        or {*scores, "match"} & set(results)
    ):
        raise UserError(
            f"joining needs results with a column model and none of {', '.join(NAME_COLUMNS)}, match or "
            f"the benchmarks, and scores as setup_scores writes them"
        )
    scores = scores.assign(timm_name=scores["timm_name"].fillna("").astype(str))
    weights = (
        dict(zip(results["model"], results["weights"].fillna("").astype(str)))
        if "weights" in results
        else {}
    )
    names = {
        name: candidates(str(name).strip(), scores, weights.get(name, ""))
        for name in results["model"].unique()
    }
    claims = Counter(keys[0] for keys, _ in names.values() if len(keys) == 1)
    matched, unmatched = {}, []
    for name, (keys, rule) in names.items():
        if len(keys) == 1 and (claims[keys[0]] == 1 or rule != "timm name without tag"):
            matched[name] = (keys[0], rule)
        else:
            reason = f"ambiguous {rule}: {', '.join(keys)}" if keys else rule
            unmatched.append(("results", name, reason))
    used = {key for key, _ in matched.values()}
    unmatched += [
        ("scores", key, "no results under this name or its timm name")
        for key in scores["model_registry_name"]
        if key not in used
    ]
    link = pd.DataFrame(
        [(name, *match) for name, match in matched.items()],
        columns=["model", NAME_COLUMNS[1], "match"],
    )
    joined = results.merge(link, on="model").merge(
        scores, on=NAME_COLUMNS[1], validate="many_to_one"
    )
    return joined, pd.DataFrame(unmatched, columns=["side", "model", "reason"])
