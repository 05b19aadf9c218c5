"""Scores by timm name from other tables than Brain-Score's: joined, drawn, refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_utilities
from leaderboards import random_scores, write_scores

import plotting
from alignment_security.analysis.brainscore_leaderboard import MERGED_SCORES
from alignment_security.analysis.hoak2025 import benchmark_groups, studies
from alignment_security.analysis.other_scores import OTHER_SCORES, collect_scores, with_other_scores
from alignment_security.analysis.results import load_results
from alignment_security.analysis.scores import read_scores
from alignment_security.common.files import UserError

TIMM_NETS = ["resnet50.a1_in1k", "convnext_tiny.fb_in1k", "vit_base_patch16_224.augreg_in1k"]


def join(folder, *tables) -> int:
    return run_utilities("join", "--results_dir", folder, "--scores", *tables)


def summary_of(models: list[str], weights: str = "timm:timm/{}", seed: int = 0) -> pd.DataFrame:
    """Made-up accuracies under attack at two eps."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "model": model,
            "threat": "Linf",
            "eps": eps,
            "image_set": "mine",
            "protocol": "autoattack",
            "attack": "AutoAttack standard",
            "n": 100,
            "clean_acc": 0.8,
            "robust": (robust := int(rng.integers(0, 50))),
            "robust_acc": robust / 100,
            "weights": weights.format(model),
        }
        for model in models
        for eps in (0.001, 0.004)
    ]
    return pd.DataFrame(rows)


def test_a_table_is_joined_by_timm_name_and_kept(tmp_path, capsys):
    summary_of([*TIMM_NETS, "mine"], "timm:timm/{}").to_csv(
        tmp_path / "evaluation_results.csv", index=False
    )
    table = pd.DataFrame(
        {"model": ["timm/resnet50.a1_in1k", "convnext_tiny.fb_in1k", "other.net"]}
    ).assign(odd_one_out=[0.5, 0.25, 0.75], family=["ResNet", "ConvNeXt", "?"], empty="")
    table.to_csv(tmp_path / "thingsvision.csv", index=False)
    assert join(tmp_path, tmp_path / "thingsvision.csv") == 0
    out = capsys.readouterr().out
    assert "left out family (line 2: 'ResNet' is no number)" in out
    assert "left out empty (no value)" in out and "4 of 8 rows joined (2 models)" in out
    joined = pd.read_csv(tmp_path / "evaluation_results_scores.csv")
    assert joined.groupby("model")["odd_one_out"].first().to_dict() == {
        "resnet50.a1_in1k": 0.5,
        "convnext_tiny.fb_in1k": 0.25,
    }
    unmatched = pd.read_csv(tmp_path / "evaluation_results_unmatched.csv")
    assert set(unmatched["model"]) == {TIMM_NETS[2], "mine", "timm:other.net"}


@pytest.mark.parametrize("content", [None, "{", "[]]", '{"source": "a.csv"}', "[1]"])
def test_scores_whose_sources_are_lost_or_damaged_are_refused_in_a_line(tmp_path, capsys, content):
    summary_of(TIMM_NETS).to_csv(tmp_path / "evaluation_results.csv", index=False)
    pd.DataFrame({"model": TIMM_NETS, "score": 0.5}).to_csv(tmp_path / "s.csv", index=False)
    assert join(tmp_path, tmp_path / "s.csv") == 0
    sources = (tmp_path / OTHER_SCORES).with_suffix(".json")
    if content is None:
        sources.unlink()
    else:
        sources.write_text(content)
    capsys.readouterr()
    command = ["join", "--results_dir", str(tmp_path)]
    assert run_utilities(*command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "other_scores.json: " in line and "join --scores CSV` writes it" in line


def test_a_net_of_ones_own_takes_no_score_of_its_name(tmp_path, capsys):
    summary_of(TIMM_NETS, "python:net.py:made").to_csv(
        tmp_path / "evaluation_results.csv", index=False
    )
    pd.DataFrame({"model": TIMM_NETS, "score": 0.5}).to_csv(tmp_path / "s.csv", index=False)
    assert join(tmp_path, tmp_path / "s.csv") == 2
    assert "none of its 3 models has scores" in capsys.readouterr().err
    assert not (tmp_path / "evaluation_results_scores.csv").exists()


def test_scores_of_a_net_of_brainscore_stand_in_its_row(tmp_path):
    """A plugin with timm's net has both; its averages still name the groups of what follows."""
    brainscore = pd.DataFrame(
        {
            "model_registry_name": ["plugin_a", "plugin_b"],
            "timm_name": ["convnext_tiny.fb_in1k", ""],
            "average_vision": [0.4, 0.3],
            "V1": [0.2, 0.1],
        }
    )
    table = tmp_path / "dreamsim.csv"
    pd.DataFrame({"name": TIMM_NETS, "dreamsim": [0.1, 0.2, 0.3]}).to_csv(table, index=False)
    collect_scores([table], tmp_path)
    merged, source = with_other_scores(brainscore, tmp_path)
    assert source == "dreamsim.csv"
    rows = merged.set_index("model_registry_name")
    assert rows.loc["plugin_a", ["V1", "dreamsim"]].tolist() == [0.2, 0.2]
    assert rows["dreamsim"].isna().to_dict()["plugin_b"] and len(rows) == 4
    assert rows.loc["timm:resnet50.a1_in1k", "dreamsim"] == 0.1
    assert benchmark_groups(list(merged)[2:]) == {
        "dreamsim": "other",
        "average_vision": "average",
        "V1": "average",
    }


@pytest.mark.parametrize("with_brainscore", [False, True])
def test_the_figures_of_hoak_2025_draw_them(tmp_path, with_brainscore):
    rows = summary_of([f"resnet{i}.made" for i in range(14)])
    rows.to_csv(tmp_path / "evaluation_results.csv", index=False)
    models = rows["model"].unique()
    if with_brainscore:
        write_scores(tmp_path, random_scores(14).set_axis([f"plugin_{i}" for i in range(14)]))
        path = tmp_path / "benchmark_scores" / f"{MERGED_SCORES}.csv"
        pd.read_csv(path).assign(timm_name=models).to_csv(path, index=False)
    scores = pd.DataFrame({"model": models, "human_likeness": np.linspace(0, 1, len(models))})
    scores.to_csv(tmp_path / "alignet.csv", index=False)
    assert join(tmp_path, tmp_path / "alignet.csv") == 0
    (study,) = studies(load_results(tmp_path))
    assert "alignet.csv" in study.facts and ("V1" in study.scores) == with_brainscore
    wanted = scores.set_index("model")["human_likeness"]
    assert study.scores["human_likeness"].to_dict() == wanted.to_dict()
    arguments = ["--results_dir", str(tmp_path), "--figures_dir", str(tmp_path / "figures")]
    assert plotting.main([*arguments, "--plots", "robust_only_correlation"]) == 0
    drawn = pd.read_csv(tmp_path / "figures" / "robust_only_correlation.csv")
    drawn = drawn.set_index("benchmark").loc[["human_likeness"]]
    assert (drawn["n"] == 14).all() and len(drawn) >= 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("net,score\na,1\n", "has no column model or timm_name"),
        ("model,score\na,1\na,2\n", "line 3: a is there twice"),
        ("model,score\ntimm/a,1\na,2\n", "line 3: a is there twice"),
        ("model,score\n ,1\n", "line 2: no model"),
        ("model,notes\na,b\n", "has no column of numbers"),
        ("model,clean_acc\na,1\n", "clean_acc is a column of our own results"),
        ("model,score,score\na,1,2\n", "column score is there twice"),
        ("model,score\na,inf\n", "has no column of numbers"),
        (",model\n0,a\n1,b\n", "has no column of numbers"),
        ("model,score\n", "has a header and no rows"),
        ("<html>", "has a header and no rows"),
    ],
)
def test_a_table_that_cannot_be_joined_is_one_line(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        collect_scores([path], tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / OTHER_SCORES).exists()


def test_what_is_no_score_is_left_out_and_named(tmp_path, capsys):
    """pandas' index, infinite values, decimal commas and per cent; the byte order mark is read."""
    path = tmp_path / "scores.csv"
    path.write_text('\ufeffmodel,,a,b,c,d\nx,0,1,-inf,"0,5",5 %\ny,1,NaN,2,"0,6",6 %\n', "utf-8")
    collect_scores([path], tmp_path)
    out = capsys.readouterr().out
    for line in (
        "left out Unnamed: 1 (its header is empty",
        "left out b (line 2: '-inf' is no number)",
        "left out c (line 2: '0,5' is no number)",
        "left out d (line 2: '5 %' is no number)",
    ):
        assert line in out
    assert (tmp_path / OTHER_SCORES).read_text() == "model,a\nx,1.0\ny,\n"


def test_two_tables_with_the_same_score(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(f"model,score,{name[0]},bias\nnet,1,2,3\n")
    with pytest.raises(UserError, match="score, bias: in two of these tables"):
        collect_scores([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path)
    (tmp_path / "b.csv").write_text("model,other\nnet2,2\n")
    collect_scores([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path)
    scores, source = read_scores(load_results(tmp_path))
    assert (
        source == "scores of a.csv, b.csv" and scores[["score", "other"]].notna().sum().sum() == 2
    )


def test_the_docs_name_the_command():
    assert "utilities.py join --scores" in (ROOT / "docs" / "hoak2025.md").read_text()
