"""merge --format hoak2025: the table that the plotting script of Hoak 2025 reads."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import run_utilities
from leaderboards import random_scores, write_scores

from alignment_security.analysis.brainscore_leaderboard import MERGED_SCORES
from alignment_security.analysis.hoak2025_accuracies import read_hoak2025_table
from alignment_security.analysis.hoak2025_export import write_hoak2025
from alignment_security.common.files import UserError

PLUGIN, LISTED = "alexnet", "inception_v3"  # Brain-Score's own net; timm's inception_v3.tv_in1k
MODELS = {
    PLUGIN: "brainscore:alexnet",
    "inception_v3.tv_in1k": "timm:timm/inception_v3.tv_in1k",
    "resnet50.a1_in1k": "timm:timm/resnet50.a1_in1k",  # no plugin has these weights
    "resnet50": "file:mine.pth",  # a network of one's own under a name of the registry
}
RADII = [0.001, 0.5 / 255, 1 / 255]


def summary_of(models: dict[str, str] = MODELS, **columns) -> pd.DataFrame:
    """A row per model and eps, as `merge` makes it; accuracies fall with eps."""
    rows = [
        {
            "model": model,
            "threat": "Linf",
            "eps": eps,
            "image_set": "imagenet-val",
            "protocol": "autoattack",
            "attack": "standard",
            "n": 100,
            "clean_acc": 0.8,
            "robust_acc": 0.4 - 0.1 * i,
            "list_sha256": "l",
            "partial": 0,
            "weights": weights,
            "weights_sha256": "",
        }
        for model, weights in models.items()
        for i, eps in enumerate(RADII)
    ]
    return pd.DataFrame(rows).assign(**columns)


def as_the_script_reads_it(path, registry_names: list[str]) -> pd.DataFrame:
    """What plotting.py of kyangl/alignment-security@3bafa26 makes of the table, step by step."""
    table = pd.read_csv(path)
    dropped = ["Epsilon", "Threat Model"]
    dropped += [f"Top-{k} Subset Clean Accuracy" for k in (1, 5)]
    parts = []
    for eps in sorted(table["Epsilon"].unique()):
        part = table[table["Epsilon"] == eps].drop(columns=dropped).set_index("Model Name")
        parts.append(part.add_suffix(f" Linf {round(eps, 5)}"))
    scores = pd.DataFrame({"V1": 0.5}, registry_names)
    joined = scores.join(pd.concat(parts, axis=1), how="inner")
    return joined.dropna(axis=1, how="all").astype(float)


def test_hoak2025_table_is_read_by_the_papers_script(tmp_path):
    path = write_hoak2025(summary_of(), tmp_path)
    read = as_the_script_reads_it(path, [PLUGIN, LISTED, "resnet50", "vgg_16"])
    assert sorted(read.index) == [PLUGIN, LISTED]
    for i, eps in enumerate(("0.001", "0.00196", "0.00392")):  # the columns that its t-SNE drops
        assert np.allclose(read[f"Top-1 Accuracy Linf {eps}"], 0.4 - 0.1 * i)
        assert (read[f"Top-5 Accuracy Linf {eps}"] < 0).all()  # not measured: no accuracy
    assert set(read) == {"V1", *read.filter(regex=r"^Top-[15] Accuracy Linf 0\.0").columns}


def test_hoak2025_table_comes_back_as_it_went_out(tmp_path, capsys):
    summary = summary_of()
    rows = read_hoak2025_table(write_hoak2025(summary, tmp_path))
    plugin = summary[summary["model"] == PLUGIN]
    back = rows[rows["model"] == PLUGIN]
    for column in ("eps", "robust_acc", "clean_acc"):
        assert back[column].tolist() == plugin[column].tolist()
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and "resnet50.a1_in1k" in note and "file:mine.pth" in note


def test_hoak2025_scores_are_numbers_but_for_the_columns_that_the_script_drops(tmp_path):
    write_scores(tmp_path, random_scores(5))
    write_hoak2025(summary_of(), tmp_path)
    scores = pd.read_csv(tmp_path / f"hoak2025/benchmark_scores/{MERGED_SCORES}.csv")
    dropped = ["model_name", "og_model_name", "layers"]
    scores = scores.drop(columns=dropped).set_index("model_registry_name")
    pd.testing.assert_frame_equal(scores.astype(float), random_scores(5), check_names=False)


REFUSED = {
    "none attacked": (summary_of(threat="L2"), "no finished accuracy under AutoAttack"),
    "unfinished": (summary_of(partial=1), "no finished accuracy"),
    "none of Brain-Score": (
        summary_of({"resnet50": "file:mine.pth"}),
        r"none of its 1 models is Brain-Score's \(resnet50 \(not a public net",
    ),
    "two budgets": (
        pd.concat([summary_of(), summary_of({"vgg_16": "brainscore:vgg_16"}, attack="reduced")]),
        r"2 studies that are not comparable \(their attack differ\)",
    ),
    "one net twice": (
        summary_of(
            {LISTED: f"brainscore:{LISTED}", "inception_v3.tv_in1k": MODELS["inception_v3.tv_in1k"]}
        ),
        "inception_v3 and inception_v3.tv_in1k: one model of Brain-Score",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hoak2025_table_is_refused_and_nothing_is_written(tmp_path, case):
    summary, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as error:
        write_hoak2025(summary, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_merge_writes_a_format_apart_from_a_table_of_the_papers_scripts(
    tmp_path, tiny_record, capsys
):
    theirs = tmp_path / "evaluation_results_merged_robust.csv"
    theirs.write_text("the paper's own\n")
    row = {"image_id": "a", "label": 1, "clean_pred": 1, "clean_correct": 1}
    tiny_record(
        [row | {"eps": 1 / 255, "robust": 1}],
        eps=[1 / 255],
        kind="ball",
        threat="Linf",
        model=PLUGIN,
        protocol="autoattack",
    )
    run = tmp_path / "records/sample/Linf/alexnet.json"
    run.write_text(
        run.read_text().replace(
            '"weights_sha256"', '"weights": "brainscore:alexnet", "weights_sha256"'
        )
    )
    arguments = ["merge", "--results_dir", str(tmp_path), "--format", "hoak2025"]
    assert run_utilities(*arguments) == 0
    path = tmp_path / "hoak2025/evaluation_results_merged_robust.csv"
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    assert pd.read_csv(path)["Model Name"].tolist() == [PLUGIN]
    assert theirs.read_text() == "the paper's own\n"
