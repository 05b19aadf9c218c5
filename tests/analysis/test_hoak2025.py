"""Accuracies joined with scores, and their correlations.

Planted correlations are found; those of a single family do not survive.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from leaderboards import (
    KINDS,
    MADE_UP,
    RADII,
    full_scores,
    made_up,
    planted,
    random_scores,
    write_scores,
    write_study,
)
from scipy import stats

from alignment_security.analysis.hoak2025 import Study, benchmark_groups, studies
from alignment_security.analysis.hoak2025_accuracies import CLEAN_OUTCOME, HOAK2025_TABLE
from alignment_security.analysis.hoak2025_statistics import (
    correlate,
    correlation_table,
    ranked_benchmarks,
    survival,
)
from alignment_security.analysis.results import NothingToDraw, load_results
from alignment_security.common.files import UserError

PLUS, MINUS = "Marques2020_B2013-texture_sparseness", "Against2020-top1"


def load(results, models=None) -> list[Study]:
    return studies(load_results(results, models))


@pytest.fixture(scope="module")
def planted_rows(tmp_path_factory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of a summary with planted correlations, and the table of correlations found in it."""
    results = tmp_path_factory.mktemp("planted")
    return write_study(results), correlation_table(*load(results))


def write_summary(results, *tables) -> None:
    pd.concat(tables).to_csv(results / "evaluation_results.csv", index=False)


# ---- what comes back -----------------------------------------------------------------------------


def test_correlation_table_finds_planted_correlations(planted_rows):
    table = planted_rows[1]
    robust = table[(table["accuracy"] == RADII[-1]) & (table["leaf"] == 1)].set_index("benchmark")
    assert robust["rho"].idxmax() == PLUS and robust["rho"].idxmin() == MINUS
    assert set(robust.index[robust["survives"] == 1]) == {PLUS, MINUS}
    assert (
        table[table["accuracy"] == CLEAN_OUTCOME].set_index("benchmark")["rho"].idxmax()
        == "ImageNet-top1"
    )
    assert not table.loc[
        (table["leaf"] == 0) | (table["accuracy"] == CLEAN_OUTCOME), "survives"
    ].any()


def test_intervals_contain_the_size_of_a_planted_correlation(tmp_path):
    """Normal score and accuracy with correlation 0.6.

    Spearman's is 6/pi asin(0.3) = 0.582 (Kruskal 1958).
    """
    scores = random_scores(400)
    noise = np.random.default_rng(5).normal(size=400)
    write_scores(tmp_path, scores)
    write_summary(tmp_path, made_up(scores["ImageNet-top1"], 0.6 * scores[PLUS] + 0.8 * noise))
    row = (
        correlation_table(*load(tmp_path))
        .set_index(["benchmark", "accuracy"])
        .loc[(PLUS, RADII[0])]
    )
    truth = 6 / np.pi * np.arcsin(0.3)
    assert row["rho"] == pytest.approx(truth, abs=0.08)
    assert row["low"] < truth < row["high"] and row["family_low"] < truth < row["family_high"]
    assert row["high"] - row["low"] == pytest.approx(
        4 * np.sqrt((1 + truth**2 / 2) / 397) * (1 - truth**2), rel=0.25
    )


def test_a_correlation_of_one_family_does_not_survive(tmp_path):
    """A quarter of the models are VGGs, high on a benchmark and robust; nothing else is related.

    The correlation vanishes without VGG.
    """
    scores = random_scores().rename(
        index=lambda name: name.replace("alexnet", "vgg").replace("bagnet", "vgg")
    )
    vgg = scores.index.str.startswith("vgg")
    scores.loc[vgg, "Family2021-consistency"] += 8
    write_scores(tmp_path, scores)
    robust = pd.Series(np.random.default_rng(3).normal(size=len(scores)), scores.index) + 8 * vgg
    write_summary(tmp_path, made_up(scores["ImageNet-top1"], robust))
    row = (
        correlation_table(*load(tmp_path))
        .set_index(["benchmark", "accuracy"])
        .loc[("Family2021-consistency", RADII[0])]
    )
    assert row["q"] < 0.05 and row["low"] > 0  # as if thirty models were independent
    assert row["left_family"] == "vgg" and row["survives"] == 0 and row["family_q"] > 0.05


def test_correlation_table_equals_scipy_over_the_models_that_have_both(planted_rows):
    scores, (rows, table) = random_scores(), planted_rows
    assert len(table) == scores.shape[1] * 4
    for cell in table.to_dict("records"):
        at = rows[
            rows["eps"] == (RADII[0] if cell["accuracy"] == CLEAN_OUTCOME else cell["accuracy"])
        ].set_index("model")
        both = pd.concat(
            [
                scores[cell["benchmark"]],
                at["clean_acc" if cell["accuracy"] == CLEAN_OUTCOME else "robust_acc"],
            ],
            axis=1,
        )
        both = both.dropna()
        exact = stats.spearmanr(both)
        assert (cell["n"], cell["rho"], cell["p"]) == pytest.approx(
            (len(both), exact.statistic, exact.pvalue)
        )


def test_q_is_over_the_whole_grid(planted_rows):
    """Against scipy's own Benjamini-Hochberg."""
    table = planted_rows[1]
    given = table[table["partial_p"].notna()]
    assert len(given) == len(table) * 3 / 4
    for rows, kinds in ((table, ("", "family_")), (given, ("partial_", "partial_family_"))):
        for kind in kinds:
            expected = stats.false_discovery_control(rows[f"{kind}p"])
            np.testing.assert_allclose(rows[f"{kind}q"], expected)


def test_one_model_without_clean_accuracy_takes_one_model_from_partial_correlations(tmp_path):
    """And no more: they are those of the other models alone."""
    rows = write_study(tmp_path)
    lacking = rows["model"] == "vit_001"
    write_summary(tmp_path, rows.assign(clean_acc=rows["clean_acc"].mask(lacking)))
    found = correlation_table(*load(tmp_path))
    write_summary(tmp_path, rows[~lacking])
    without = correlation_table(*load(tmp_path))
    robust = found["accuracy"] != CLEAN_OUTCOME
    assert found.loc[robust, "partial_rho"].notna().all()
    assert (found.loc[robust, "partial_n"] >= found.loc[robust, "n"] - 1).all()
    assert (found.loc[robust, "n"] > found.loc[robust, "partial_n"]).any()
    partial = [name for name in found if name.startswith("partial_")]
    pd.testing.assert_frame_equal(found.loc[robust, partial], without.loc[robust, partial])


def test_what_works_through_clean_accuracy_does_not_survive_and_is_counted(tmp_path):
    """Clean accuracy follows two benchmarks, and accuracy under attack follows clean accuracy."""
    scores, rng = random_scores(), np.random.default_rng(8)
    clean = scores["ImageNet-top1"] + scores["V1"] + 0.5 * rng.normal(size=120)
    robust = clean + 2 * scores[PLUS] + rng.normal(size=120)
    write_scores(tmp_path, scores)
    write_summary(tmp_path, made_up(clean, robust))
    (study,) = load(tmp_path)
    table = correlation_table(study)
    last = table[table["accuracy"] == RADII[-1]].set_index("benchmark")
    assert last.loc["ImageNet-top1", ["survives", "through_clean"]].tolist() == [0, 1]
    assert last.loc[PLUS, ["survives", "through_clean"]].tolist() == [1, 0]
    assert last.loc["V1", ["survives", "through_clean"]].tolist() == [0, 0]  # an average
    _, counted = ranked_benchmarks(study)
    assert counted.startswith("1 of 7 benchmarks survive (")
    assert "; 1 more meet all but the last" in counted


@pytest.mark.parametrize(
    ("change", "survives", "through_clean"),
    [
        ({}, 1, 0),
        ({"family_q": 0.06}, 0, 0),  # though q is small
        ({"q": 0.06}, 1, 0),
        ({"left_low": -0.1}, 0, 0),
        ({"left_low": np.nan, "left_high": np.nan}, 0, 0),  # too few families
        ({"partial_family_q": 0.06}, 0, 1),
        ({"partial_q": 0.06}, 1, 0),
        ({"partial_family_q": np.nan}, 1, 0),  # clean accuracy is not known
        ({"leaf": 0}, 0, 0),
        ({"accuracy": CLEAN_OUTCOME}, 0, 0),
    ],
)
def test_survival_condition_by_condition(change, survives, through_clean):
    row = {"leaf": 1, "accuracy": RADII[0], "q": 0.01, "family_q": 0.05}
    row |= {"left_low": 0.1, "left_high": 0.4, "partial_q": 0.01, "partial_family_q": 0.05}
    found = survival(pd.DataFrame([row | change]))
    assert found.loc[0].to_dict() == {"survives": survives, "through_clean": through_clean}


def test_without_any_clean_accuracy_survivors_are_counted_and_the_sentence_says_so(tmp_path):
    write_summary(tmp_path, write_study(tmp_path).assign(clean_acc=np.nan))
    (study,) = load(tmp_path)
    table = correlation_table(study)
    assert table["partial_rho"].isna().all() and not table["through_clean"].any()
    assert set(table.loc[table["survives"] == 1, "benchmark"]) == {PLUS, MINUS}
    assert "clean accuracy is not known" in ranked_benchmarks(study)[1]


def test_accuracies_that_families_share_have_few_false_dots(tmp_path):
    """Twelve worlds of accuracies that have nothing to do with scores of the same families."""
    rng, dots, false = np.random.default_rng(4), 0, 0
    place = np.arange(120) % 10
    for _ in range(12):
        effects = rng.normal(size=(10, 12))
        scores = random_scores()
        scores[:] = effects[place] + rng.normal(size=(120, 12))
        robust, clean = rng.normal(size=(2, 10))[:, place] + 0.5 * rng.normal(size=(2, 120))
        write_scores(tmp_path, scores)
        write_summary(tmp_path, made_up(*(pd.Series(v, scores.index) for v in (clean, robust))))
        cells = [correlate_row(study, name) for study in load(tmp_path) for name in study.scores]
        p = np.array([[cell["p"], cell["family_p"]] for row in cells for cell in row])
        dots += (stats.false_discovery_control(p[:, 0]) <= 0.05).any()
        false += (stats.false_discovery_control(p[:, 1]) <= 0.05).any()
        studies.cache_clear()
    assert dots >= 6 and false <= 2


def correlate_row(study: Study, benchmark: str) -> list[dict]:
    families = study.families
    return correlate(study.scores[benchmark].to_numpy(), study.accuracy.to_numpy(), families)


def test_partial_correlation_takes_clean_accuracy_out(tmp_path):
    """Robust accuracy that is clean accuracy and noise.

    It correlates with ImageNet-top1, but not given clean accuracy.
    """
    scores = random_scores(200)
    clean, _ = planted(scores)
    write_scores(tmp_path, scores)
    write_summary(tmp_path, made_up(clean, clean + np.random.default_rng(4).normal(size=200)))
    row = (
        correlation_table(*load(tmp_path))
        .set_index(["benchmark", "accuracy"])
        .loc[("ImageNet-top1", RADII[0])]
    )
    assert row["q"] < 1e-6 and row["low"] > 0.3
    assert row["partial_low"] < 0 < row["partial_high"] and abs(row["partial_rho"]) < 0.2


def test_models_without_some_accuracy_are_left_out_of_that_cell_alone(tmp_path):
    rows = write_study(tmp_path)
    lacking = rows["model"].str.startswith("vit") & (rows["eps"] == RADII[1])
    write_summary(tmp_path, rows[~lacking])
    n = correlation_table(*load(tmp_path)).set_index(["benchmark", "accuracy"])["n"]
    assert n[PLUS].to_dict() == {CLEAN_OUTCOME: 120, RADII[0]: 120, RADII[1]: 108, RADII[2]: 120}


# ---- tables that are read ------------------------------------------------------------------------


def test_study_facts_and_heading(tmp_path):
    rows = write_study(tmp_path)
    scores = random_scores().drop(index=["vit_001", "vgg_003"]).assign(Empty2020=np.nan)
    write_scores(tmp_path, scores)
    (study,) = load(tmp_path)
    assert (
        study.heading == f"imagenet-val (n = 1000), L∞, autoattack, {MADE_UP}" and study.name == ""
    )
    for fact in (
        study.heading,
        "118 models in 10 families",
        "Brain-Score of 2025-05-07 (leaderboard.csv)",
        "Models without scores: vgg_003, vit_001.",
        "Benchmarks without any score: Empty2020.",
    ):
        assert fact in study.facts
    assert list(study.accuracy) == [CLEAN_OUTCOME, *RADII] and len(rows) == 3 * 120


def test_benchmark_groups_follow_the_order_of_the_leaderboard():
    found = benchmark_groups(
        ["average_vision", "neural_vision", "V1", "a", "behavior_vision", "b", "engineering_vision"]
    )
    assert list(found.values()) == [
        "average",
        "neural",
        "neural",
        "neural",
        "behavioral",
        "behavioral",
        "engineering",
    ]
    assert benchmark_groups(["x"]) == {"x": "other"}


@pytest.mark.parametrize(
    "column, value",
    [
        ("image_set", "big12"),
        ("protocol", "other"),
        ("attack", "reduced"),
        ("threat", "L2-autoattack"),
        ("n", 500),
        ("list_sha256", "abc"),
    ],
)
def test_studies_never_pool_what_was_measured_differently(tmp_path, column, value):
    rows = write_study(tmp_path)
    half = rows["model"] < "m"
    write_summary(
        tmp_path,
        rows[half].assign(list_sha256="l"),
        rows[~half].assign(list_sha256="l").assign(**{column: value}),
    )
    found = load(tmp_path)
    assert len(found) == 2 and len({study.name for study in found}) == 2
    assert {len(study.scores) for study in found} == {
        rows[half]["model"].nunique(),
        rows[~half]["model"].nunique(),
    }
    assert not set(found[0].scores.index) & set(found[1].scores.index)


def test_studies_leave_out_unfinished_rows_and_other_threats(tmp_path):
    rows = write_study(tmp_path)
    unfinished = rows["model"] == "vit_001"
    norms = rows[:5].assign(threat="L2-crossing", eps=np.nan, robust_acc=np.nan)
    write_summary(tmp_path, rows.assign(partial=unfinished.astype(int)), norms)
    (study,) = load(tmp_path)
    assert len(study.scores) == 119 and "vit_001" not in study.scores.index


def test_a_radius_in_l2_may_be_larger_than_one(tmp_path):
    rows = write_study(tmp_path)
    write_summary(tmp_path, rows.assign(threat="L2-autoattack", eps=rows["eps"] * 510))
    (study,) = load(tmp_path)
    assert study.radii == pytest.approx([0.5, 1, 2]) and "L2-autoattack" in study.heading


def test_studies_of_only_the_models_asked_for(tmp_path):
    write_study(tmp_path)
    (study,) = load(tmp_path, [f"{KINDS[i % 10]}_{i:03d}" for i in range(30)])
    assert len(study.scores) == 30


@pytest.mark.parametrize("asked", [{"image_sets": ["big12"]}, {"threats": ["L2-autoattack"]}])
def test_studies_of_only_the_image_set_or_threat_asked_for(tmp_path, asked):
    rows = write_study(tmp_path)
    others = [rows.assign(image_set="big12"), rows.assign(threat="L2-autoattack")]
    write_summary(tmp_path, rows, *others)
    (study,) = studies(load_results(tmp_path, **asked))
    assert [study.heading.startswith("big12"), study.runs["threat"] != "Linf"].count(True) == 1


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_results_that_join_nothing_are_counted_without_a_warning(tmp_path):
    rows = write_study(tmp_path)
    write_summary(tmp_path, rows.assign(model="timm_" + rows["model"]))
    with pytest.raises(NothingToDraw, match=r"n = 1000.*: 0 model"):
        load(tmp_path)


def legacy(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of Hoak 2025's table, in the order in which its script writes them."""
    return pd.DataFrame(
        {
            "Top-1 Accuracy": rows["robust_acc"],
            "Top-5 Accuracy": 1.0,
            "Top-1 Subset Clean Accuracy": rows["clean_acc"],
            "Top-5 Subset Clean Accuracy": 1.0,
            "Model Name": rows["model"],
            "Threat Model": "Linf",
            "Epsilon": rows["eps"],
        }
    )


def test_read_hoak2025_table_reads_it_as_it_is(tmp_path):
    rows = write_study(tmp_path)
    (tmp_path / "evaluation_results.csv").rename(tmp_path / "kept")
    table = legacy(rows)
    pd.concat([table, table[:7]]).to_csv(
        tmp_path / HOAK2025_TABLE, index=False
    )  # rows that were appended twice
    (study,) = load(tmp_path)
    (tmp_path / HOAK2025_TABLE).unlink()
    (tmp_path / "kept").rename(tmp_path / "evaluation_results.csv")
    (ours,) = load(tmp_path)
    pd.testing.assert_frame_equal(study.accuracy, ours.accuracy)
    assert "n not recorded" in study.heading and "torchattacks" in study.heading


def test_read_hoak2025_table_reads_eps_from_column_names(tmp_path):
    rows = write_study(tmp_path)
    wide = rows.assign(eps=rows["eps"].round(5)).pivot(
        index="model", columns="eps", values="robust_acc"
    )
    wide.columns = [f"Top-1 Accuracy Linf {eps}" for eps in wide]
    wide["Top-5 Accuracy Linf 0.00392"] = 1.0
    wide["Top-1 Accuracy Clean"] = rows.groupby("model")["clean_acc"].first()
    wide.rename_axis("model_registry_name").to_csv(tmp_path / HOAK2025_TABLE)
    (tmp_path / "evaluation_results.csv").unlink()
    (study,) = load(tmp_path)
    assert list(study.accuracy) == [CLEAN_OUTCOME, 0.00098, 0.00196, 0.00392]
    ours = rows.pivot(index="model", columns="eps", values="robust_acc")
    np.testing.assert_allclose(study.accuracy[0.00392], ours[RADII[-1]])


@pytest.mark.parametrize(
    "header, lacking",
    [
        ("Model Name,Top-1 Accuracy,Epsilon", "Threat Model, Top-1 Subset Clean Accuracy"),
        ("net,Top-1 Accuracy Linf 0.001", "Model Name or model_registry_name"),
    ],
)
def test_read_hoak2025_table_refuses_other_tables(tmp_path, header, lacking):
    row = "," * header.count(",")
    (tmp_path / HOAK2025_TABLE).write_text(f"{header}\n{row}x\n")
    with pytest.raises(UserError, match=f"no column {lacking}"):
        load(tmp_path)


def test_studies_do_not_pool_hoak2025s_table_with_ours(tmp_path):
    rows = write_study(tmp_path)
    legacy(rows).to_csv(tmp_path / HOAK2025_TABLE, index=False)
    assert [study.name for study in load(tmp_path)] == [
        "_imagenet-val_Linf_autoattack_1",
        "_imagenet-val_Linf_torchattacks_2",
    ]


# ---- bad input -----------------------------------------------------------------------------------


def test_studies_without_accuracies_are_none(tmp_path):
    assert load(tmp_path) == []


def test_studies_without_scores_say_so(tmp_path):
    write_summary(tmp_path, write_study(tmp_path))
    for path in (tmp_path / "benchmark_scores").iterdir():
        path.unlink()
    with pytest.raises(NothingToDraw, match="no .*benchmark_scores_registry_merged.csv"):
        load(tmp_path)


def test_studies_of_one_model_say_that_it_is_not_enough(tmp_path):
    write_summary(tmp_path, write_study(tmp_path).query("model == 'vit_001'"))
    with pytest.raises(NothingToDraw, match=r"too few models have both .*: 1 model\(s\)"):
        load(tmp_path)


def test_empty_constant_and_rare_benchmarks_have_empty_cells_that_say_why(tmp_path):
    write_study(tmp_path)
    scores = random_scores().assign(Empty=np.nan, Constant=0.5)
    scores["Rare"] = scores["V1"].where(np.arange(120) < 9)
    write_scores(tmp_path, scores)
    table = correlation_table(*load(tmp_path)).set_index("benchmark")
    assert (
        table["empty"]["Empty"].unique().tolist()
        == table["empty"]["Rare"].unique().tolist()
        == ["fewer than 10 models"]
    )
    assert table["empty"]["Constant"].unique().tolist() == ["constant score"]
    assert table.loc[["Empty", "Constant", "Rare"], ["rho", "p", "q", "low"]].isna().all(axis=None)
    assert (
        table["n"]["Rare"].unique().tolist() == [9]
        and not table.loc[["Empty", "Constant", "Rare"], "survives"].any()
    )


def test_an_accuracy_that_never_varies_has_no_correlation(tmp_path):
    rows = write_study(tmp_path)
    write_summary(
        tmp_path, rows.assign(robust_acc=rows["robust_acc"].where(rows["eps"] < RADII[2], 0.0))
    )
    table = correlation_table(*load(tmp_path))
    assert set(table.loc[table["accuracy"] == RADII[2], "empty"]) == {"constant accuracy"}
    assert set(table.loc[table["accuracy"] == RADII[1], "empty"]) == {""}


def test_few_families_have_no_interval_over_families(tmp_path):
    rows = write_study(tmp_path)
    write_summary(tmp_path, rows[rows["model"].str.startswith(("vit", "vgg"))])
    table = correlation_table(*load(tmp_path))
    assert (
        table[["family_low", "family_high"]].isna().all(axis=None) and not table["survives"].any()
    )
    assert table.loc[table["benchmark"] == PLUS, "low"].notna().all()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t.assign(robust_acc=100 * t["robust_acc"]),
            "column robust_acc: .* is no number from 0 to 1;",
        ),
        (lambda t: t.assign(eps="1/255"), "line 2, column eps: '1/255' is no number"),
        (lambda t: t.assign(eps=510 * t["eps"]), "column eps: '2.0' is no number from 0 to 1;"),
        (lambda t: t.drop(columns="attack"), "no column attack"),
        (
            lambda t: pd.concat([t, t[:1].assign(robust_acc=0.123)]),
            "two accuracies at eps 0.25/255",
        ),
    ],
)
def test_read_accuracies_refuses_wrong_tables(tmp_path, change, message):
    write_summary(tmp_path, change(write_study(tmp_path)))
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_read_accuracies_refuses_an_empty_file(tmp_path):
    write_study(tmp_path)
    (tmp_path / "evaluation_results.csv").write_text("")
    with pytest.raises(UserError, match="evaluation_results.csv: not a table"):
        load(tmp_path)


def test_correlations_planted_in_a_leaderboard_of_full_size_come_back(tmp_path, leaderboard):
    write_study(tmp_path, full_scores(leaderboard, 351)[::3])
    (study,) = load(tmp_path)
    table = correlation_table(study)
    assert (
        study.scores.shape == (117, 129)  # all but Kar2019-ost
        and (table.drop_duplicates("benchmark")["leaf"].sum()) == 105
    )
    robust = table[(table["accuracy"] == RADII[-1]) & (table["leaf"] == 1)].set_index("benchmark")
    assert robust["rho"].idxmax() == "Marques2020_FreemanZiemba2013-texture_sparseness"
    assert robust["rho"].idxmin() == "Hermann2020cueconflict-shape_bias"
    assert robust["survives"][[robust["rho"].idxmax(), robust["rho"].idxmin()]].tolist() == [1, 1]
