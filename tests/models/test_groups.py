"""How a checkpoint was trained goes from training.py's run file, or --group, to the record."""

import json

import pytest
import timm
import torch

from alignment_security.models.checkpoints import OBJECTIVE_GROUPS
from alignment_security.models.heads import ModelError
from alignment_security.models.loading import load_model
from alignment_security.records.summary import summarise
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
