"""Brain-Score models: preprocessings that are measured, plugins that are refused, the package.

The tests of the package run in the environment of requirements-brainscore.txt; elsewhere they skip.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import shutil
import sys
import types

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from alignment_security.images.image_sets import synsets
from alignment_security.images.loading import stream_images
from alignment_security.models.checkpoints import weights_sha256
from alignment_security.models.heads import ModelError, PixelModel
from alignment_security.models.loading import check_model, load_model
from alignment_security.models.preprocessing import measured_preprocessing
from alignment_security.records.audit import audit
from alignment_security.records.record import read_record
from alignment_security.records.summary import merge_records

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
installed = pytest.mark.skipif(
    importlib.util.find_spec("brainscore_vision") is None,
    reason="brainscore-vision is not installed",
)


def preprocessing(*steps, mean=IMAGENET["mean"], std=IMAGENET["std"], out=np.stack):
    """File names -> arrays, as plugins do it: PIL, torchvision's transforms, a normalisation."""
    pipeline = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
    return lambda paths: out([pipeline(Image.open(path).convert("RGB")).numpy() for path in paths])


# ---- preprocessings that are measured ------------------------------------------------------------

BICUBIC = transforms.InterpolationMode.BICUBIC
RESIZINGS = {  # id -> (torchvision's steps, what timm calls them)
    "squash": ([transforms.Resize((224, 224))], ((3, 224, 224), "bilinear", "squash", 1.0)),
    "crop": (
        [transforms.Resize(256), transforms.CenterCrop(224)],
        ((3, 224, 224), "bilinear", "center", 0.875),
    ),
    "inception": (
        [transforms.Resize(341), transforms.CenterCrop(299)],
        ((3, 299, 299), "bilinear", "center", 299 / 341),
    ),
    "bicubic": (
        [transforms.Resize(128, BICUBIC), transforms.CenterCrop(112)],
        ((3, 112, 112), "bicubic", "center", 0.875),
    ),
    "whole": (
        [transforms.Resize(160, BICUBIC), transforms.CenterCrop(160)],
        ((3, 160, 160), "bicubic", "center", 1.0),
    ),
    "bicubic squash": (
        [transforms.Resize((64, 64), BICUBIC)],
        ((3, 64, 64), "bicubic", "squash", 1.0),
    ),
}


@pytest.mark.parametrize("case", RESIZINGS)
@pytest.mark.parametrize(
    "mean, std", [(IMAGENET["mean"], IMAGENET["std"]), ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))]
)
def test_measured_preprocessing_finds_normalisation_and_geometry(case, mean, std):
    steps, (size, interpolation, mode, share) = RESIZINGS[case]
    found = measured_preprocessing(preprocessing(*steps, mean=mean, std=std), "net")
    assert (found["input_size"], found["interpolation"], found["crop_mode"]) == (
        size,
        interpolation,
        mode,
    )
    assert found["mean"] == pytest.approx(mean, abs=1e-6) and found["std"] == pytest.approx(
        std, abs=1e-6
    )
    assert found["crop_pct"] == pytest.approx(share, abs=0.0002)


@pytest.mark.parametrize(
    "out",
    [
        list,
        np.stack,
        lambda parts: torch.tensor(np.stack(parts)),
        lambda parts: [torch.tensor(part) for part in parts],
    ],
    ids=["list", "array", "tensor", "tensors"],
)
def test_measured_preprocessing_takes_lists_arrays_and_tensors(out):
    found = measured_preprocessing(preprocessing(transforms.Resize((64, 64)), out=out), "net")
    assert found["mean"] == pytest.approx(IMAGENET["mean"], abs=1e-6)


def test_measured_preprocessing_of_pixels_without_normalisation():
    """A network that normalises its input itself, and one that expects 0 to 255."""
    unit = measured_preprocessing(
        preprocessing(transforms.Resize((64, 64)), mean=(0, 0, 0), std=(1, 1, 1)), "net"
    )
    assert unit["mean"] == (0, 0, 0) and unit["std"] == (1, 1, 1)

    def levels(paths):
        return [
            np.asarray(Image.open(path).resize((64, 64), Image.Resampling.BILINEAR)).transpose(
                2, 0, 1
            )
            for path in paths
        ]

    raw = measured_preprocessing(levels, "net")
    assert raw["mean"] == (0, 0, 0) and raw["std"] == pytest.approx([1 / 255] * 3, abs=1e-6)


# ---- preprocessings that are refused -------------------------------------------------------------

SQUASH = transforms.Resize((64, 64))
REFUSED = {
    "channels swapped": (
        lambda p: [x[::-1].copy() for x in preprocessing(SQUASH)(p)],
        "no mean and std",
    ),
    "grey": (preprocessing(SQUASH, transforms.Grayscale(3)), "no mean and std"),
    "gamma": (
        lambda p: [
            np.sqrt(np.abs(x)) for x in preprocessing(SQUASH, mean=(0, 0, 0), std=(1, 1, 1))(p)
        ],
        "no mean and std",
    ),
    "constant": (lambda p: [np.zeros((3, 8, 8)) for _ in p], "no mean and std"),
    "negative": (lambda p: [-x for x in preprocessing(SQUASH)(p)], "no mean and std"),
    "each image by its own mean": (
        lambda p: [x - x.mean() for x in preprocessing(SQUASH)(p)],
        "no mean and std",
    ),
    "padded": (preprocessing(transforms.Resize(48), transforms.CenterCrop(64)), "no mean and std"),
    "a crop alone": (
        preprocessing(transforms.CenterCrop(64)),
        "neither a squash nor a central crop",
    ),
    "nearest": (
        preprocessing(transforms.Resize((64, 64), transforms.InterpolationMode.NEAREST)),
        "neither a squash nor",
    ),
    "blurred": (
        preprocessing(SQUASH, transforms.GaussianBlur(7, 2.0)),
        "neither a squash nor a central crop",
    ),
    "a corner": (
        preprocessing(transforms.Resize(96), transforms.Lambda(lambda i: i.crop((0, 0, 64, 64)))),
        "neither a squash",
    ),
    "random": (preprocessing(transforms.RandomCrop(64)), "neither a squash"),
    "not square": (
        preprocessing(transforms.Resize((48, 64)), transforms.CenterCrop((40, 64))),
        "neither a squash",
    ),
    "no resizing": (preprocessing(), "fails on a PNG .*same shape"),
    "paths": (lambda p: p, "fails on a PNG"),
    "nothing": (lambda p: None, "fails on a PNG"),
    "fails": (lambda p: 1 / 0, "fails on a PNG .ZeroDivisionError"),
    "fails in two lines": (
        lambda p: exec("raise ValueError('one\\ntwo')"),
        "fails on a PNG .ValueError: one two",
    ),
    "one channel": (
        lambda p: [x[:1] for x in preprocessing(SQUASH)(p)],
        r"gives \(6, 1, 64, 64\), not an image",
    ),
    "another count": (lambda p: preprocessing(SQUASH)(p[:2]), r"gives \(2, 3, 64, 64\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_measured_preprocessing_refuses_other_pipelines(case):
    torch.manual_seed(0)
    preprocess, message = REFUSED[case]
    with pytest.raises(ModelError, match=f"^net: .*{message}") as error:
        measured_preprocessing(preprocess, "net")
    assert "\n" not in str(error.value)


class Net(nn.Module):
    """(B, 3, 8, 8) -> f(scores of `outputs` classes)."""

    def __init__(self, f=lambda z: z, outputs=1000):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.f = nn.Linear(192, outputs), f

    def forward(self, x):
        return self.f(self.linear(x.flatten(1)))


@pytest.fixture
def plugin(monkeypatch):
    """Registers a model with a fake brainscore_vision; tests below use the real package."""
    package = types.ModuleType("brainscore_vision")
    package.model_registry = {}

    def load_model(name):
        raise AssertionError(f"No registrations found for {name}")

    package.load_model = load_model
    monkeypatch.setitem(sys.modules, "brainscore_vision", package)

    def register(net, **options):
        extractor = types.SimpleNamespace(preprocess=preprocessing(transforms.Resize((8, 8))))
        wrapper = types.SimpleNamespace(_model=net, _extractor=extractor, **options)
        package.model_registry["mine"] = lambda: types.SimpleNamespace(activations_model=wrapper)

    return register


def test_load_model_of_a_registered_plugin(plugin):
    net = Net()
    plugin(net.train())
    model, x = load_model("mine", source="brainscore"), torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(model.module(x), net((x - mean) / std), atol=1e-5, rtol=1e-5)
    assert (
        model.settings["weights"] == "brainscore:mine"
        and model.n_outputs == 1000
        and "architecture" not in model.settings
    )
    assert model.settings["weights_sha256"] == weights_sha256(net) and json.dumps(model.settings)
    assert check_model(model.module, x, 1000, "mine") == []
    two = load_model("mine", source="brainscore", head="animate")
    assert two.n_outputs == 2 and two.module(x).shape == (2, 2)


def test_load_model_unwraps_data_parallel(plugin):
    net = Net()
    plugin(nn.DataParallel(net))
    assert load_model("mine", source="brainscore").module.net is net


Named = collections.namedtuple("Named", ["features", "logits"])
STRUCTURES = {
    "an object": lambda z: types.SimpleNamespace(logits=z, hidden_states=None),
    "a dict": lambda z: {"features": z[:, :7], "logits": z, "auxiliary": 2 * z},
    "a dict of one": lambda z: {"out": z},
    "a tuple": lambda z: (z, z[:, :7], None),
    "a list": lambda z: [z[:, :7], z],
    "a named tuple": lambda z: Named(2 * z, z),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_load_model_reads_the_logits_out_of_a_structure(plugin, case):
    plugin(Net(STRUCTURES[case]))
    model, x = load_model("mine", source="brainscore"), torch.rand(3, 3, 8, 8)
    plugin(Net())
    plain = load_model("mine", source="brainscore")
    assert model.module(x).equal(plain.module(x)) and model.n_outputs == 1000


NETS = {
    "ten classes": (Net(outputs=10), {}, r"gives 10 logits, not the 1000"),
    "two outputs": (Net(lambda z: (z, z)), {}, r"gives 2 outputs of 1000 classes \(0, 1\)"),
    "a dict of others": (Net(lambda z: {"logits": z[:, :9]}), {}, "gives dict, not a tensor"),
    "half precision": (Net().half(), {}, r"weights are torch.float16; attacks need .* \.float\(\)"),
    "options": (Net(), {"_forward_kwargs": {"input_type": "image"}}, "takes options .input_type"),
    "no net": ("pixels", {}, "is no PyTorch net"),
}


@pytest.mark.parametrize("case", NETS)
def test_load_model_refuses_plugins_that_cannot_be_attacked(plugin, case):
    net, options, message = NETS[case]
    plugin(net, **options)
    with pytest.raises(ModelError, match=f"^mine: .*{message}") as error:
        load_model("mine", source="brainscore")
    assert "\n" not in str(error.value)


def test_load_model_of_an_unknown_plugin_is_one_line(plugin):
    with pytest.raises(
        ModelError,
        match="^nobody: brainscore-vision cannot load it .AssertionError: No registrations found",
    ):
        load_model("nobody", source="brainscore")


def test_load_model_without_the_package_names_the_environment(monkeypatch):
    monkeypatch.setitem(sys.modules, "brainscore_vision", None)
    with pytest.raises(ModelError, match="^alexnet: .*pip install -r requirements-brainscore.txt"):
        load_model("alexnet", source="brainscore")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--source brainscore --checkpoint x.pth", "leave out --checkpoint"),
        ("--source brainscore --architecture resnet18", "leave out --architecture"),
        ("--architecture resnet18", "needs its weights, --checkpoint FILE"),
        ("--source hub", "begins with none of timm, brainscore, python, torchvision, hf"),
        ("--source timm:resnet18", "begins with none of"),
        ("--model_name a b --source python:net.py:net", "is of one model"),
    ],
)
def test_source_options_that_contradict_each_other_are_refused(cli, tmp_path, arguments, message):
    status, out, err = cli(
        "--model_name", "alexnet", "--results_dir", tmp_path, *arguments.split(), "clean"
    )
    assert (
        (status, out) == (2, "")
        and err.count("\n") == 1
        and message in err
        and not list(tmp_path.iterdir())
    )


# ---- random networks -----------------------------------------------------------------------------


class V1Block(nn.Module):
    """A made V1 block in front of a readout: Gabor filters, and Poisson-like noise.

    As in VOneNets, the variance of a response is its mean. (B, 3, 8, 8) -> (B, 1000).
    """

    def __init__(self, noise=0.02):
        super().__init__()
        torch.manual_seed(0)
        grid = torch.linspace(-1, 1, 5)
        y, x = torch.meshgrid(grid, grid, indexing="ij")
        angles = torch.arange(8)[:, None, None] * torch.pi / 8
        waves = torch.cos(6 * (x * angles.cos() + y * angles.sin()))
        gabor = waves * torch.exp(-(x**2 + y**2) / 0.5)
        self.register_buffer("filters", gabor[:, None].repeat(1, 3, 1, 1) / 3)
        self.readout, self.noise = nn.Linear(8 * 64, 1000), noise

    def forward(self, x):
        rates = nn.functional.conv2d(x, self.filters, padding=2).relu()
        responses = rates + self.noise * (rates + 1e-4).sqrt() * torch.randn_like(rates)
        return self.readout(responses.relu().flatten(1))


def folders_by_prediction(model, sample, root):
    """The sample's photographs in folders of the classes that a model gives them."""
    for (_, x, _), path in zip(stream_images(sample, model.preprocessing), sample.paths):
        folder = root / synsets()[int(model.module(x[None]).argmax())]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return root


def test_a_random_plugin_is_attacked_by_the_rand_budget_alone(plugin, cli, tmp_path, sample):
    plugin(V1Block())
    model = load_model("mine", source="brainscore")
    data = folders_by_prediction(model, sample, tmp_path / "data")
    results = tmp_path / "results"
    request = ["--model_name", "mine", "--source", "brainscore", "--dataset", "own", "--data_dir"]
    request += [data, "--device", "cpu", "--batch_size", "4", "--results_dir", results, "-s", "8"]
    for threat in (["clean"], ["Linf", "--eps", "1/255"], ["L2", "--steps", "5"]):
        status, _, err = cli(*request, *threat)
        assert status == 2 and "mine: gives other logits" in err and "--budget rand" in err
    assert not list(results.rglob("*.csv"))
    threat = ["Linf", "--eps", "0.01", "0.3", "--budget", "rand", "--steps", "5", "--targets", "1"]
    status, out, err = cli(*request, *threat)
    assert status == 0, err
    path = results / "records/own/Linf-rand/mine.csv"
    rows = read_record(path)
    run = json.loads(path.with_suffix(".json").read_text())["settings"]["run"]
    assert run["draws"] == 20 and run["attack"].startswith("rand: apgd-ce(5) + apgd-t(1x5)")
    assert len(rows) == 16 and rows.robust[rows.eps == 0.3].mean() < rows.clean_correct.mean()
    broken = rows[rows.robust == 0]
    assert len(broken) and (broken.wrong_low > 0.5).all() and (broken.draws >= 20).all()
    assert rows.wrong_low[rows.robust == 1].isna().all()
    expected = ("git", "evaluation_results", "requirements.txt pins")  # of this environment
    findings = audit(results)
    assert not [line for line in findings if not any(word in line for word in expected)]
    assert merge_records(results).threat.unique().tolist() == ["Linf-rand"]


def test_a_deterministic_plugin_is_warned_of_under_the_rand_budget(plugin):
    plugin(Net())
    model, x = load_model("mine", source="brainscore"), torch.rand(1, 3, 8, 8)
    (warning,) = check_model(model.module, x, 1000, "mine", random=True)
    assert "the same logits in the passes looked at" in warning and "--budget standard" in warning


class WithGenerator(V1Block):
    """Draws from a generator of its own."""

    def forward(self, x):
        self.generator = getattr(self, "generator", torch.Generator().manual_seed(0))
        return super().forward(x) + 0.1 * torch.randn(1000, generator=self.generator)


class Centred(V1Block):
    """Subtracts the mean of the batch."""

    def forward(self, x):
        z = super().forward(x)
        return z - 0.5 * z.mean(0, keepdim=True)


@pytest.mark.parametrize(
    "net, message",
    [(WithGenerator(), "generator of its own"), (Centred(), "other logits among other images")],
)
def test_random_plugins_that_cannot_be_repeated_are_refused(plugin, net, message):
    plugin(net)
    model, x = load_model("mine", source="brainscore"), torch.rand(1, 3, 8, 8)
    assert check_model(V1Block().eval().requires_grad_(False), x, 1000, "mine", random=True) == []
    with pytest.raises(ModelError, match=f"^mine: .*{message}"):
        check_model(model.module, x, 1000, "mine", random=True)


# ---- the package ---------------------------------------------------------------------------------


@installed
def test_a_small_model_registered_with_the_package(cli, tmp_path):
    """timm's test_resnet as a plugin: the logits of its timm name, and a record from the script."""
    import functools

    import brainscore_vision
    from brainscore_vision.model_helpers.activations.pytorch import (
        PytorchWrapper,
        load_preprocess_images,
    )
    from brainscore_vision.model_helpers.brain_transformation import ModelCommitment

    net = timm.create_model("test_resnet")
    preprocess = functools.partial(load_preprocess_images, image_size=160)
    brainscore_vision.model_registry["small"] = lambda: ModelCommitment(
        identifier="small",
        activations_model=PytorchWrapper(identifier="small", model=net, preprocessing=preprocess),
        layers=["conv1.0"],
        region_layer_map={},
    )
    model, x = load_model("small", source="brainscore"), torch.rand(2, 3, 160, 160)
    assert model.preprocessing == {
        "input_size": (3, 160, 160),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    torch.testing.assert_close(
        model.module(x), PixelModel(net, **IMAGENET).eval()(x), atol=1e-5, rtol=1e-5
    )
    status, out, _ = cli(
        "--model_name",
        "small",
        "--source",
        "brainscore",
        "-s",
        "4",
        "--device",
        "cpu",
        "--batch_size",
        "4",
        "--results_dir",
        tmp_path,
        "Linf",
        "--eps",
        "1/255",
        "--attacks",
        "apgd-ce",
        "--steps",
        "3",
    )
    (path,) = tmp_path.glob("records/sample/Linf/small.json")
    assert (
        status == 0
        and json.loads(path.read_text())["settings"]["model"]["weights"] == "brainscore:small"
    )


@installed
def test_alexnet_through_its_plugin(tmp_path, monkeypatch):
    """The real plugin, with a state dict in torch's hub cache: logits are torchvision's."""
    from torchvision.models import AlexNet_Weights, alexnet

    torch.manual_seed(0)
    net = alexnet().eval()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.split("/")[-1]
    file.parent.mkdir(parents=True)
    torch.save(net.state_dict(), file)
    model = load_model("alexnet", source="brainscore")
    assert model.preprocessing == {
        "input_size": (3, 224, 224),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    assert model.settings["mean"] == pytest.approx(IMAGENET["mean"], abs=1e-6)
    assert model.settings["weights_sha256"] == weights_sha256(net)
    x = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(
        model.module(x), PixelModel(net, **IMAGENET)(x), atol=1e-5, rtol=1e-5
    )


@installed
@pytest.mark.parametrize(
    "name, message", [("pixels", "is no PyTorch net"), ("no_such_model", "No registrations found")]
)
def test_load_model_refuses_models_of_the_package(name, message):
    with pytest.raises(ModelError, match=f"^{name}: .*{message}"):
        load_model(name, source="brainscore")
