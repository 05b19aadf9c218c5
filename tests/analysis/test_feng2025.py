"""norm_tables: numbers of Feng et al. (2025) and ours, a table per source; errors in its files."""

import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from norm_tables import MODELS, write_published, write_summary

from alignment_security.analysis.both_studies import robust_pairs
from alignment_security.analysis.feng2025 import norm_tables, robust_series
from alignment_security.analysis.norm_table import MULTILABEL, PUBLISHED
from alignment_security.analysis.norms import rank_models
from alignment_security.analysis.results import load_results
from alignment_security.common.files import UserError
from alignment_security.records.summary import SUMMARY_NAME


def of(results_dir, published=None, models=None):
    return norm_tables(load_results(results_dir, models, published))


def test_accuracies_are_measured_or_estimated_from_top1_and_say_which(tmp_path):
    (source,) = of(tmp_path / "none", write_published(tmp_path / "published"))
    rows = source.rows.set_index("model")
    assert rows.loc["vgg11.tv_in1k", "accuracy"] == pytest.approx(
        1e-4 * 70.0**3 + 20
    )  # measured, at the table's own top-1
    assert rows.loc["resnet18.a3_in1k", "accuracy"] == pytest.approx(1e-4 * 68.0**3 + 20)
    assert rows.loc["resnet50.tv_in1k", "accuracy"] == pytest.approx(
        1e-4 * 76.0**3 + 20
    )  # torchvision's has 80.9: other weights
    assert rows["estimated"].to_dict() == dict.fromkeys(rows.index, False) | {
        "resnet50.tv_in1k": True
    }
    assert np.isnan(rows.loc["nobody_knows.it", "accuracy"])


def test_groups_and_harmonized_nets_under_names_that_join_with_nothing(tmp_path):
    (source,) = of(tmp_path / "none", write_published(tmp_path / "published"))
    rows = source.rows.set_index("model")
    assert rows["group"].to_dict() == {
        "vgg11.tv_in1k": "CNN",
        "resnet50.tv_in1k": "CNN",
        "resnet18.a3_in1k": "CNN",
        "nobody_knows.it": "Other",
        "resnet18_l2_eps0.01": "robust",
        "resnet18_linf_eps8.0": "robust",
        "resnet50 (harmonized)": "harmonized",
    }
    assert rows.loc["resnet50 (harmonized)", "alignment"] == 0.4
    assert set(source.standard["model"]) == set(MODELS)


def test_the_published_models_have_the_groups_and_accuracies_of_an_earlier_join_by_hand():
    expected = pd.read_csv(DATA / "feng2025" / "derived_309_models.csv").set_index("model")
    (source,) = of("no_such_results", DATA)
    rows = source.standard.set_index("model")
    assert len(rows) == 309 and source.rows["group"].value_counts()[
        ["robust", "harmonized"]
    ].tolist() == [42, 9]
    pd.testing.assert_series_equal(rows["accuracy"], expected["mla"], check_names=False, rtol=1e-9)
    assert (rows["estimated"] == expected["mla_measured"].isna()).all() and rows[
        "estimated"
    ].sum() == 21
    assert (rows["group"] == expected["group"]).all()
    assert (source.rows.loc[source.rows["group"] == "robust", "estimated"]).all()


def test_protocols_budgets_and_image_sets_are_sources_of_their_own(tmp_path):
    write_summary(
        tmp_path,
        [
            {"model": "a", "l2_mean": 1.0},
            {"model": "a", "l2_mean": 2.0, "threat": "L2-fmn"},
            {"model": "b", "l2_mean": 3.0, "image_set": "yours"},
            {"model": "b", "l2_mean": 4.0, "attack": "more"},
            {"model": "a", "l2_mean": 5.0, "threat": "Linf-fmn"},
            {"model": "a", "robust_acc": 0.1, "threat": "Linf"},
        ],
    )
    found = of(tmp_path)
    assert sorted((source.name, *source.rows["pt"]) for source in found) == [
        ("mine, L2-crossing\ncrossing 9 steps", 1.0),
        ("mine, L2-crossing\nmore", 4.0),
        ("mine, L2-fmn\ncrossing 9 steps", 2.0),
        ("yours, L2-crossing\ncrossing 9 steps", 3.0),
    ]
    assert {source.accuracy_label for source in found} == {
        "clean accuracy on mine (%)",
        "clean accuracy on yours (%)",
    }
    assert found[0].rows["accuracy"].tolist() == [50.0]


def test_our_models_stand_against_multi_label_accuracy_where_it_is_known(tmp_path):
    write_summary(
        tmp_path, [{"model": name, "l2_mean": 1.0} for name in ("vgg11.tv_in1k", "mine_v1")]
    )
    _, source = of(tmp_path, write_published(tmp_path / "published"))
    assert source.accuracy_label == MULTILABEL
    assert (
        source.rows["accuracy"].notna().tolist() == [True, False]
        and "No multi-label accuracy: mine_v1." in source.note
    )


def test_unfinished_records_are_named_and_not_used_and_models_can_be_chosen(tmp_path):
    write_summary(
        tmp_path,
        [
            {"model": "a", "l2_mean": 1.0},
            {"model": "b", "l2_mean": 2.0, "partial": 1},
            {"model": "c", "l2_mean": 3.0},
        ],
    )
    (source,) = of(tmp_path)
    assert (
        source.rows["model"].tolist() == ["a", "c"] and "Unfinished, not drawn: b." in source.note
    )
    assert of(tmp_path, models=["c"])[0].rows["model"].tolist() == ["c"]


def test_nothing_there_is_no_source(tmp_path):
    (tmp_path / "published").mkdir()
    assert of(tmp_path) == of(tmp_path, tmp_path / "published") == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("model,threat\na,L2-fmn\n", "no column image_set"),
        ("", "cut off"),
        ('a,b\n"', "cut off"),
        (
            "model,threat,image_set,protocol,attack,n,clean_acc\na,L2-fmn,s,fmn,x,ten,0.5\n",
            "column n: 'ten' is no ",
        ),
        (
            "model,threat,image_set,protocol,attack,n,clean_acc,l2_mean\n"
            "a,L2-fmn,s,fmn,x,9,0.5,big\n",
            "column l2_mean: 'big' is",
        ),
    ],
)
def test_a_summary_that_is_none_names_the_file_and_the_command(tmp_path, content, says):
    (tmp_path / SUMMARY_NAME).write_text(content)
    with pytest.raises(
        UserError, match=r"evaluation_results\.csv.*python utilities\.py merge"
    ) as error:
        of(tmp_path)
    assert says in str(error.value)


def test_published_numbers_that_are_not_there_or_lack_a_column(tmp_path):
    with pytest.raises(UserError, match="no such folder; --published"):
        of(tmp_path, tmp_path / "elsewhere")
    path = write_published(tmp_path / "published") / "feng2025" / "adversarial_alignment_x.csv"
    pd.read_csv(path).drop(columns="aa_sem").to_csv(path, index=False)
    with pytest.raises(
        UserError, match=r"adversarial_alignment_x\.csv: no column aa_sem; download it again"
    ):
        of(tmp_path, tmp_path / "published")


# ---- nets of one's own ---------------------------------------------------------------------------

OWN = "file:mine.pth"


def test_a_net_of_ones_own_takes_no_number_of_the_public_net_of_its_name(tmp_path):
    """Its name is vgg11.tv_in1k's: multi-label accuracy, group and published norms stay away."""
    public = {"weights": "timm:timm/vgg11.tv_in1k"}
    rows = [{"model": "vgg11.tv_in1k", "l2_mean": 1.0} | public, {"model": "x", "l2_mean": 2.0}]
    published = write_published(tmp_path / "published")
    write_summary(tmp_path / "public", rows)
    write_summary(tmp_path / "own", [rows[0] | {"weights": OWN}, rows[1]])
    theirs, mine = of(tmp_path / "public", published)[1], of(tmp_path / "own", published)[1]
    assert theirs.rows["accuracy"].iat[0] == pytest.approx(1e-4 * 70.0**3 + 20)
    assert theirs.accuracy_label == MULTILABEL and theirs.rows["group"].iat[0] == "CNN"
    assert theirs.rows["public"].tolist() == ["vgg11.tv_in1k", "x"]
    assert mine.accuracy_label == "clean accuracy on mine (%)"
    assert mine.rows["accuracy"].tolist() == [50.0, 50.0] and mine.rows["group"].iat[0] == "Other"
    assert "Counted as standard, their training is not recorded: vgg11.tv_in1k." in mine.note
    for folder, pairs in (("public", 1), ("own", 0)):
        _, ours = of(tmp_path / folder, published)
        (feng2025,) = of(tmp_path / "none", published)
        assert len(rank_models(feng2025, ours)) == pairs
    accuracy = rows[0] | {"threat": "Linf", "eps": 0.1, "robust": 1, "robust_acc": 0.1}
    for weights, sources in ((public["weights"], {PUBLISHED}), (OWN, set())):
        folder = write_summary(tmp_path / weights[:4], [accuracy | {"weights": weights}])
        pairs = robust_pairs(load_results(folder, None, published))
        assert {pair.norms.name for pair in pairs} == sources


def test_own_robust_and_harmonized_nets_are_not_in_the_fits_of_standard_ones(tmp_path):
    listed = "resnet18_l2_eps3"  # the study's list gives this name this file
    rows = [
        {"model": "a", "weights": OWN, "group": "harmonized"},
        {"model": "b", "weights": OWN, "group": "robust"},
        {"model": "c", "weights": OWN, "group": "plain"},
        {"model": listed, "weights": f"file:{listed}.ckpt"},
        {"model": "resnet18.a3_in1k", "weights": "timm:timm/resnet18.a3_in1k", "group": "robust"},
        {"model": "d", "weights": OWN},
    ]
    (source,) = of(write_summary(tmp_path, [row | {"l2_mean": 1.0} for row in rows]))
    groups = ["harmonized", "robust", "Other", "robust", "CNN", "Other"]
    assert source.rows["group"].tolist() == groups
    assert source.standard["model"].tolist() == ["c", "resnet18.a3_in1k", "d"]
    assert source.note.endswith("their training is not recorded: d.")


def test_a_net_of_ones_own_with_a_robust_name_is_on_no_line_of_robust_nets(tmp_path):
    names = ["resnet18_l2_eps1", "resnet18_l2_eps3"]
    files = [f"file:{names[0]}.ckpt", "file:mine.pth"]
    rows = [{"model": name, "weights": file, "l2_mean": 1} for name, file in zip(names, files)]
    (source,) = of(write_summary(tmp_path, rows))
    assert [part["model"].tolist() for _, part in robust_series(source.rows)] == [names[:1]]
