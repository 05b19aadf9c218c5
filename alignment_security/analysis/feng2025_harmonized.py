"""Figures 6 and 7 of Feng et al. (2025): harmonized nets against standard ones.

The public numbers have no baselines of the harmonized nets, so that these are compared with public
models of the same architecture. Our own records are compared image by image.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from alignment_security.analysis.feng2025 import (
    FEWEST,
    MEASURES,
    TOLERANCES,
    published_norm_table,
)
from alignment_security.analysis.feng2025_published import paper_tables
from alignment_security.analysis.norm_table import NormTable
from alignment_security.analysis.results import Results, read_finished_rows, runs_of

VALUES = [*MEASURES, *(f"{measure}_sem" for measure in MEASURES)]


# ---- published -----------------------------------------------------------------------------------


def harmonized_pairs(results: Results) -> pd.DataFrame:
    """Each harmonized net of Table 1 with each public standard model of its architecture.

    A net without such a model has one row with empty cells. Empty without the public files.
    """
    published, printed = published_norm_table(results), paper_tables(results)
    if published is None or printed is None:
        return pd.DataFrame()
    harmonized = printed[printed["table"] == 1].drop(columns="table")
    standard = published.standard
    standard = standard.assign(net=standard["model"].str.partition(".")[0])
    return harmonized.rename(columns={"model": "net"}).merge(
        standard[["net", "model", *VALUES]],
        how="left",
        on="net",
        suffixes=("_harmonized", ""),
    )


def paired_test(pairs: pd.DataFrame, measure: str) -> dict[str, float]:
    """Wilcoxon's signed-rank test of harmonized nets against public ones of their architecture.

    Each net is compared with the mean of its public models. Returns the mean `difference`, `p` (nan
    below FEWEST nets) and `n`.
    """
    public = pairs.dropna(subset=["model"])
    means = public.groupby("net")[[f"{measure}_harmonized", measure]].mean()
    return signed_rank_test((means[f"{measure}_harmonized"] - means[measure]).to_numpy())


def signed_rank_test(difference: np.ndarray) -> dict[str, float]:
    """Wilcoxon's test of paired differences (n,): their mean, p (nan below FEWEST), and n."""
    n = len(difference)
    p = stats.wilcoxon(difference).pvalue if n >= FEWEST and difference.any() else np.nan
    return {"difference": difference.mean() if n else np.nan, "p": p, "n": n}


# ---- our records ---------------------------------------------------------------------------------


def own_harmonized_pairs(results: Results, table: NormTable) -> pd.DataFrame:
    """Each harmonized net of a table of ours with each standard model of its architecture.

    The columns of `harmonized_pairs`, `net` being the harmonized net's name, and the test of either
    measure over the images: difference, p and n of `image_test`, as `difference_pt` and so on.
    Harmonized nets without such a model are left out.
    """
    runs = runs_of(results, table.key)
    names = table.rows["model"].map(lambda model: architecture(runs.get(model), model))
    pairs = []
    harmonized = table.rows["group"] == "harmonized"
    for i, net in table.rows[harmonized].iterrows():
        for _, model in table.standard[names[table.standard.index] == names[i]].iterrows():
            pair = {"image_set": table.image_set, "threat": table.threat, "net": net["model"]}
            pair |= {"architecture": names[i], "model": model["model"]}
            pair |= {f"{value}_harmonized": net[value] for value in VALUES}
            pair |= {value: model[value] for value in VALUES}
            both = [runs[row["model"]] for row in (net, model) if row["model"] in runs]
            if len(both) == 2:
                first, second = (read_finished_rows(run) for run in both)
                columns = {"pt": TOLERANCES[table.norm][1], "alignment": "human_alignment"}
                for measure, column in columns.items():
                    test = image_test(first, second, column)
                    pair |= {f"{name}_{measure}": value for name, value in test.items()}
            pairs.append(pair)
    return pd.DataFrame(pairs)


def architecture(run: dict | None, model: str) -> str:
    """timm's name of a network, of its run file or its own name, without the tag of its weights."""
    facts = run["settings"].get("model", {}) if run else {}
    return (facts.get("architecture") or model).removeprefix("timm/").partition(".")[0]


def image_test(first: pd.DataFrame, second: pd.DataFrame, column: str) -> dict[str, float]:
    """Wilcoxon's signed-rank test over the images on which two records both have a value.

    first, second   rows of records
    Returns the mean `difference` (first - second), `p` (nan below FEWEST images) and `n`.
    """
    values = []
    for rows in (first, second):
        good = rows[(rows["clean_correct"] == 1) & (rows["success"] == 1)]
        values.append(good.set_index("image_id")[column].astype(float))
    pair = pd.concat(values, axis=1, join="inner").dropna().to_numpy()
    return signed_rank_test(pair[:, 0] - pair[:, 1])
