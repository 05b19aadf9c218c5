"""t-SNE map of models by their Brain-Score benchmarks, without filling in missing scores.

Hoak 2025 sets missing scores to 0; here two models are as far apart as on the benchmarks of both.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE
from sklearn.metrics import nan_euclidean_distances

from alignment_security.analysis.brainscore_leaderboard import leaf_benchmarks
from alignment_security.analysis.hoak2025 import COMPARABLE, Study
from alignment_security.models.families import family

MAX_PERPLEXITY, SEED = 20, 42  # as in Hoak 2025


def comparable_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Standardised scores of the benchmarks and models of which enough is known.

    scores   (models, benchmarks)
    First benchmarks known of the share COMPARABLE of the models, without averages and constants;
    then models with that share of these benchmarks.
    """
    leaves = scores[leaf_benchmarks(scores.columns)]
    leaves = leaves.loc[:, (leaves.notna().mean() >= COMPARABLE) & (leaves.std() > 0)]
    leaves = leaves[leaves.notna().mean(axis=1) >= COMPARABLE]
    return (leaves - leaves.mean()) / leaves.std()


def score_distances(standardised: pd.DataFrame) -> np.ndarray:
    """(models, models) Euclidean distances over the benchmarks that both models have.

    Scaled up to all benchmarks (Dixon 1979; scikit-learn). Two models without a benchmark in common
    are as far apart as the farthest pair.
    """
    distances = nan_euclidean_distances(standardised)
    return np.nan_to_num(distances, nan=np.nanmax(distances))


def tsne_perplexity(n: int) -> float:
    """Hoak 2025's perplexity, or less for fewer models, as t-SNE requires."""
    return min(MAX_PERPLEXITY, (n - 1) / 3)


def tsne_map(study: Study, standardised: pd.DataFrame) -> pd.DataFrame:
    """Places `x, y` of the models of `comparable_scores`, their family and each accuracy."""
    tsne = TSNE(
        perplexity=tsne_perplexity(len(standardised)),
        metric="precomputed",
        init="random",
        random_state=SEED,
    )
    places = tsne.fit_transform(score_distances(standardised))
    table = pd.DataFrame(places, standardised.index, ["x", "y"])
    table["family"] = [family(model) for model in standardised.index]
    names = {eps: f"accuracy at {study.label(eps)}" for eps in study.radii}
    return table.join(study.accuracy).rename(columns=names)
