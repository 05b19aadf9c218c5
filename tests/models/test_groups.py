"""How a checkpoint was trained goes from training.py's run file, or --group, to the record."""

import json

import matplotlib.pyplot as plt
import pytest
import safetensors.torch
import timm
import torch

import training
from alignment_security.analysis.feng2025 import norm_tables
from alignment_security.analysis.results import load_results
from alignment_security.models.checkpoints import OBJECTIVE_GROUPS
from alignment_security.models.heads import ModelError
from alignment_security.models.loading import load_model
from alignment_security.plots.feng2025 import tradeoff
from alignment_security.records.summary import merge_records, summarise
from alignment_security.trainer.objectives import OBJECTIVES


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    return path


def write_run(checkpoint, objective) -> None:
    run = {"name": "mine", "settings": {"model": {}, "run": {"objective": objective}}}
    checkpoint.with_name("run.json").write_text(json.dumps(run))


def test_every_objective_of_a_training_has_a_group():
    assert set(OBJECTIVE_GROUPS) == set(OBJECTIVES)


@pytest.mark.parametrize(
    "objective, group",
    [
        ("plain", "plain"),
        ("harmonizer", "harmonized"),
        ("adversarial", "robust"),
        ("both", "robust"),
    ],
)
def test_the_run_file_beside_a_checkpoint_says_the_group(checkpoint, objective, group):
    write_run(checkpoint, objective)
    assert load_model("test_resnet", checkpoint).settings["group"] == group
    assert load_model("test_resnet", checkpoint, group="plain").settings["group"] == "plain"


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"settings": {"run": {"objective": 3}}}'])
def test_without_a_run_file_of_training_there_is_no_group(checkpoint, text):
    if text is not None:
        checkpoint.with_name("run.json").write_text(text)
    assert "group" not in load_model("test_resnet", checkpoint).settings


def test_the_recipe_travels_in_the_file_itself(tmp_path):
    """model.safetensors copied away from its run.json still says how it was trained."""
    tensors = timm.create_model("test_resnet").state_dict()
    recipe = {"objective": "adversarial", "norm": "Linf", "eps": 4 / 255}
    path = tmp_path / "copied.safetensors"
    safetensors.torch.save_file(tensors, path, {"training": json.dumps(recipe)})
    settings = load_model("test_resnet", path).settings
    assert settings["group"] == "robust" and settings["training"] == recipe
    settings = load_model("test_resnet", path, group="plain").settings
    assert settings["group"] == "plain" and "training" not in settings
    for text in ("", "[]", "{}", '{"objective": 3}', "{"):
        safetensors.torch.save_file(tensors, path, {"training": text, "other": "x"})
        assert "group" not in load_model("test_resnet", path).settings


def test_public_weights_take_no_group():
    with pytest.raises(ModelError, match="--group robust is of a checkpoint"):
        load_model("tf_efficientnet_lite0", group="robust")


def test_the_group_is_in_the_summary(cli, tiny, tmp_path):
    cli(*tiny.arguments(tmp_path), "--group", "harmonized", "clean")
    assert summarise(tmp_path)["group"].tolist() == ["harmonized"]


def test_a_record_begun_without_a_group_goes_on_without(cli, tiny, tmp_path):
    cli(*tiny.arguments(tmp_path), "--stop_after", "0.001", "clean")
    status, _, _ = cli(*tiny.arguments(tmp_path), "--group", "robust", "clean")
    (run,) = tmp_path.glob("records/mine/clean/*.json")
    assert status == 0 and "group" not in json.loads(run.read_text())["settings"]["model"]


TRAININGS = {
    "plain": (),
    "harmonizer": ("--form", "code", "--lambda_1", "0.01"),
    "adversarial": ("--norm", "Linf", "--eps", "2/255", "--attack_steps", "1"),
}


def test_nets_trained_on_the_sample_are_in_the_figures_and_not_in_the_fits(cli, tmp_path):
    """From training.py to a figure: the weights are moved away from their run file before."""
    for objective, options in TRAININGS.items():
        name = f"net_{objective}"
        common = ["--results_dir", str(tmp_path), "--device", "cpu", "--workers", "0"]
        recipe = ["--batch_size", "10", "--epochs", "1", "--objective", objective, *options]
        model = ["--model_name", "test_resnet", "--name", name, "--dataset", "sample"]
        assert training.main([*model, *recipe, *common]) == 0
        weights = tmp_path / f"{name}.safetensors"
        (tmp_path / "training" / name / "model.safetensors").rename(weights)
        own = ["--model_name", name, "--architecture", "test_resnet", "--checkpoint", str(weights)]
        attack = ["--head", "animate", "L2", "--steps", "2"]
        assert cli(*own, *common, *attack)[0] == 0
    (run,) = tmp_path.glob("records/sample/L2-crossing/net_adversarial.json")
    model = json.loads(run.read_text())["settings"]["model"]
    assert model["group"] == "robust"
    assert model["training"] == {"objective": "adversarial", "norm": "Linf", "eps": 2 / 255}
    merge_records(tmp_path)
    (table,) = norm_tables(load_results(tmp_path))
    groups = table.rows.set_index("model")["group"].to_dict()
    assert groups == {"net_plain": "Other", "net_harmonizer": "harmonized",
                      "net_adversarial": "robust"}  # fmt: skip
    assert table.standard["model"].tolist() == ["net_plain"]  # what fits and fronts are made of
    ((_, figure, drawn, _),) = tradeoff(load_results(tmp_path))
    assert len(figure.axes) == 2 and drawn.loc[drawn["front"], "model"].tolist() == ["net_plain"]
    plt.close(figure)
