"""The choice and the estimate of screened records, against every sample of small populations."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from alignment_security.records.screened import (
    CONFIDENCE,
    MOST_SHARE,
    SAMPLE,
    SCREENED,
    TOP,
    WIDTH,
    broken_interval,
    choice_of,
    choose,
    robust_estimates,
    settled,
    sizes,
)

SEEDS = 300


def rows_at(eps: float, standing: int, screened: int, top=(), sample=()) -> pd.DataFrame:
    """Settled rows: images that stand, those that the screen broke, verdicts of the chosen ones.

    top, sample   1 robust, 0 broken, of as many of the standing images
    """
    stages = [TOP] * len(top) + [SAMPLE] * len(sample)
    robust = [*top, *sample]
    left = standing - len(robust)
    stages += [SCREENED] * (left + screened)
    robust += [1] * left + [0] * screened
    names = [f"{k}.jpg" for k in range(standing + screened)]
    return pd.DataFrame({"image_id": names, "eps": eps, "stage": stages, "robust": robust})


def screened_rows(norms: dict[float, list[float]]) -> pd.DataFrame:
    """Rows of phase one: eps -> screen_norm of each image, which stands where it is above eps."""
    rows = [
        {"image_id": f"{k:03}.jpg", "eps": eps, "robust": int(norm > eps), "screen_norm": norm}
        for eps, of_eps in norms.items()
        for k, norm in enumerate(of_eps)
    ]
    return pd.DataFrame(rows)


# ---- the interval --------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [1, 2, 7, 20])
def test_the_interval_holds_the_truth_in_95_of_100_samples_of_any_population(rest):
    """Exactly: for every number of images that break, over the chances of all samples."""
    for sampled in range(1, rest + 1):
        ends = [broken_interval(rest, sampled, broken) for broken in range(sampled + 1)]
        for truth in range(rest + 1):
            held = [low <= truth <= high for low, high in ends]
            chances = hypergeom.pmf(range(sampled + 1), rest, truth, sampled)
            assert chances[held].sum() >= CONFIDENCE - 1e-12


@pytest.mark.parametrize("breaking", [0, 1, 4, 9])
def test_the_estimate_of_all_samples_is_right_on_average_and_its_interval_holds_it(breaking):
    """All samples of 4 of 9 images, of which `breaking` would break; two others are attacked."""
    truth = (10 - breaking) / 20
    verdicts = np.array([0] * breaking + [1] * (9 - breaking))
    estimates, held = [], []
    for sample in combinations(range(9), 4):
        rows = rows_at(0.1, 11, 9, top=(1, 0), sample=verdicts[list(sample)])
        found = robust_estimates(rows).loc[0.1]
        estimates.append(found["robust_estimate"])
        held.append(found["robust_low"] <= truth + 1e-12 and truth - 1e-12 <= found["robust_high"])
        assert found["robust_low"] <= found["robust_estimate"] <= found["robust_high"]
    assert np.mean(estimates) == pytest.approx(truth) and np.mean(held) >= CONFIDENCE


def test_nothing_is_left_to_chance_where_all_are_attacked_or_none_stands():
    for rows, robust in (
        (rows_at(0.1, 3, 1, top=(1,), sample=(0, 1)), 0.5),
        (rows_at(0.1, 0, 4), 0.0),
        (rows_at(0.1, 1, 0, top=(1,)), 1.0),
        (rows_at(0.1, 1, 0, top=(0,)), 0.0),
    ):
        found = robust_estimates(rows).loc[0.1]
        assert found[["robust_estimate", "robust_low", "robust_high"]].tolist() == [robust] * 3


def test_no_estimate_rises_with_eps_and_every_interval_stays_inside_the_reported_one():
    """The sample of the smaller eps breaks an image that the one of the larger eps has not."""
    small = rows_at(0.1, 50, 10, top=(1, 1), sample=[0, 0, *[1] * 6])
    large = rows_at(0.2, 49, 11, top=(1, 1), sample=[1] * 8)
    alone = pd.concat([robust_estimates(small), robust_estimates(large)])
    assert alone["robust_estimate"].is_monotonic_increasing  # or there is nothing to test
    both = robust_estimates(pd.concat([large, small]))
    assert both.index.tolist() == [0.1, 0.2]
    for column in ("robust_estimate", "robust_low", "robust_high"):
        assert both[column].is_monotonic_decreasing
    assert (both["robust_low"] <= alone["robust_low"]).all()
    assert (both["robust_high"] >= alone["robust_high"]).all()
    assert both["robust_estimate"].between(both["robust_low"], both["robust_high"]).all()


# ---- the choice ----------------------------------------------------------------------------------


def test_the_nearest_images_come_first_and_the_rest_by_chance():
    norms = np.linspace(0.2, 1.1, 100)[np.random.default_rng(0).permutation(100)].tolist()
    rows = screened_rows({0.1: norms, 0.5: norms})
    chosen = choose(rows, 0)
    for eps in (0.1, 0.5):
        of_eps = rows[rows["eps"] == eps]
        standing = of_eps[of_eps["robust"] == 1].sort_values("screen_norm")["image_id"].tolist()
        stages = {name: stage for (name, level), stage in chosen.items() if level == eps}
        top, size = sizes(len(standing), 100)
        nearest = standing[:top]
        assert [name for name, stage in stages.items() if stage == TOP] == nearest
        sampled = [name for name, stage in stages.items() if stage == SAMPLE]
        assert len(sampled) == size
        assert set(sampled) <= set(standing[len(nearest) :])
    assert choose(rows.sample(frac=1, random_state=1), 0) == chosen  # in any order of the rows
    assert choose(rows, 1) != chosen


def test_every_image_of_the_rest_is_as_likely_to_be_sampled():
    rows = screened_rows({0.1: np.linspace(0.2, 1, 40).tolist()})
    counts = pd.Series(
        [
            name
            for seed in range(SEEDS)
            for (name, _), s in choose(rows, seed).items()
            if s == SAMPLE
        ]
    ).value_counts()
    share = sizes(40, 40)[1] / 38
    assert len(counts) == 38
    assert np.abs(counts / SEEDS - share).max() < 4.5 * np.sqrt(share * (1 - share) / SEEDS)


def test_images_whose_walk_found_nothing_are_not_the_nearest():
    rows = screened_rows({0.1: [0.5, 0.4, 0.6]})
    rows.loc[1, "screen_norm"] = np.nan
    assert [name for (name, _), stage in choose(rows, 0).items() if stage == TOP] == ["000.jpg"]


@pytest.mark.parametrize("standing", [60, 240, 480, 700, 960])
def test_the_sample_is_as_small_as_two_points_of_960_allow(standing):
    top, size = sizes(standing, 960)
    rest = standing - top
    assert broken_interval(rest, size, 0)[1] <= WIDTH * 960 < broken_interval(rest, size - 1, 0)[1]
    assert top + size <= MOST_SHARE * standing


@pytest.mark.parametrize("standing", range(100))
def test_no_more_than_a_fifth_is_chosen_but_for_one_image_of_each_kind(standing):
    top, size = sizes(standing, standing + 1)
    assert min(1, standing) <= top and min(1, standing - top) <= size <= standing - top
    assert top + size <= max(2, MOST_SHARE * standing)
    assert sizes(standing, 10**6)[1] == min(1, standing - top)  # where one image is nothing


# ---- settled rows --------------------------------------------------------------------------------


def test_the_later_row_of_an_image_counts_with_the_passes_of_both():
    first = screened_rows({0.1: [0.05, 0.2, 0.3]}).assign(stage=SCREENED, forwards=10, backwards=5)
    second = first.iloc[[2]].assign(stage=TOP, robust=0, forwards=100, backwards=50)
    for rows in ([first, second], [second, first]):
        found = settled(pd.concat(rows, ignore_index=True)).sort_values("image_id")
        assert found["robust"].tolist() == [0, 1, 0]
        assert found["forwards"].tolist() == [10, 10, 110]
        assert found["backwards"].tolist() == [5, 5, 55]


def test_the_choice_is_read_from_settled_rows():
    norms = np.random.default_rng(0).uniform(0, 1, 60).tolist()
    rows = screened_rows({0.2: norms, 0.4: norms}).assign(stage=SCREENED, forwards=1, backwards=1)
    chosen = choose(rows, 3)
    keys = list(zip(rows["image_id"], rows["eps"]))
    second = rows.assign(stage=[chosen.get(key, "") for key in keys], robust=0)
    both = settled(pd.concat([rows, second[second["stage"] != ""]], ignore_index=True))
    assert choice_of(both, 3) == chosen
