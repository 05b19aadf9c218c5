"""Networks from outside timm: a function in a file, torchvision, transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from timm.data import ImageNetInfo

from alignment_security.common.files import sha256_text_file
from alignment_security.common.remarks import is_remark
from alignment_security.evaluation.reattack import confirm_examples
from alignment_security.images.image_sets import synsets
from alignment_security.images.loading import stream_images
from alignment_security.models.heads import ModelError
from alignment_security.models.loading import load_model
from alignment_security.records.audit import audit
from alignment_security.records.record import read_record, read_run_file
from alignment_security.records.summary import merge_records, notes_on

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=1000):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Flatten())
        self.classifier = nn.Linear(8 * 7 * 7, classes)

    def forward(self, x):
        return self.classifier(self.features(x))


PREPROCESSING = {
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
    "crop_pct": 0.8,
}


def made(checkpoint=None):
    torch.manual_seed(1)
    net = Net()
    if checkpoint:
        net.load_state_dict(torch.load(checkpoint))
    return net, PREPROCESSING
"""


@pytest.fixture
def net_file(tmp_path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture
def squeezenet(tmp_path, monkeypatch) -> str:
    """torchvision's SqueezeNet with made weights, in the place of those it would download."""
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(num_classes=1000).state_dict(), file)
    return "torchvision:squeezenet1_1"


def save_vit(folder: Path, labels: dict[int, str] | None = None, head: bool = True) -> str:
    """A small vision transformer of transformers with made weights."""
    transformers = pytest.importorskip("transformers")
    labels = labels or dict(enumerate(ImageNetInfo("imagenet-1k").label_descriptions()))
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        id2label=labels,
        label2id={label: i for i, label in labels.items()},
    )
    net = transformers.ViTForImageClassification(config)
    (net if head else net.vit).save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64}, resample=3)
    processor.save_pretrained(folder)
    return f"hf:{folder}"


SOURCES = {
    "python": lambda request: f"python:{request.getfixturevalue('net_file')}:made",
    "torchvision": lambda request: request.getfixturevalue("squeezenet"),
    "transformers": lambda request: save_vit(request.getfixturevalue("tmp_path") / "vit"),
}


@pytest.fixture(params=SOURCES)
def source(request) -> str:
    return SOURCES[request.param](request)


def folders_by_prediction(model, images, root: Path) -> Path:
    """Photographs in folders of the classes that a model gives them."""
    for (_, x, _), path in zip(stream_images(images, model.preprocessing), images.paths):
        folder = root / synsets()[int(model.module(x[None]).argmax())]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return root


# ---- from a source to a record -------------------------------------------------------------------


def test_a_net_from_outside_timm_is_evaluated(source, cli, tmp_path, sample):
    """Clean, Linf and L2: records that name the weights, pass the audit and can be re-attacked."""
    model = load_model("mine", source=source)
    data = folders_by_prediction(model, sample.take(range(6)), tmp_path / "data")
    results = tmp_path / "results"
    request = ["--model_name", "mine", "--source", source, "--dataset", "own", "--data_dir", data]
    request += ["--device", "cpu", "--batch_size", "6", "--results_dir", results]
    linf = ["Linf", "--eps", "1/255", "32/255", "--attacks", "apgd-ce", "--steps", "4"]
    for threat in (["clean"], linf, ["L2", "--steps", "8", "--examples", "2"]):
        status, _, err = cli(*request, *threat)
        assert status == 0, err
    records = {path.parent.name: read_record(path) for path in results.glob("records/own/*/*.csv")}
    assert records["clean"].clean_correct.mean() == 1
    assert records["Linf"].groupby("eps").robust.mean().iloc[-1] < 1
    assert records["L2-crossing"].l2.gt(0).all()
    run = read_run_file(results / "records/own/clean/mine.json")["settings"]["model"]
    assert run == json.loads(json.dumps(model.settings))
    assert run["weights"].startswith(source.partition(":")[0])
    findings = [line for line in audit(results) if "git" not in line and "summary" not in line]
    assert [line for line in findings if "evaluation_results" not in line] == []
    findings, sentence = confirm_examples(results, 2, checkpoint_dir=tmp_path)
    assert findings == [] and sentence.startswith("2 of 2 examples confirmed"), sentence


# ---- a function in a file ------------------------------------------------------------------------


def test_a_python_net_is_normalised_and_traceable(net_file):
    model = load_model("mine", source=f"python:{net_file}:made")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.module(x), model.module.net((x - 0.5) / 0.25))
    assert model.settings["weights"] == "python:net.py:made"
    assert model.settings["source_sha256"] == sha256_text_file(net_file)
    assert model.preprocessing["crop_mode"] == "center" and model.n_outputs == 1000


def test_a_preprocessing_of_numpys_numbers_is_recorded(cli, net_file, tmp_path):
    net_file.write_text(
        f"{NET}\nimport numpy as np\nPREPROCESSING |= {{'mean': list(np.float32([0.5] * 3)), "
        "'input_size': tuple(np.array([3, 32, 32])), 'crop_pct': np.float64(1)}\n"
    )
    request = ["--model_name", "mine", "--source", f"python:{net_file}:made", "-s", "2", "clean"]
    assert cli(*request, "--results_dir", tmp_path)[0] == 0
    run = read_run_file(tmp_path / "records/sample/clean/mine.json")["settings"]["model"]
    assert run["mean"] == [0.5, 0.5, 0.5] and run["preprocessing"]["input_size"] == [3, 32, 32]


def test_a_python_net_may_draw_random_numbers_in_its_forward_pass(net_file):
    """`--budget rand` takes it; its outputs differ without its being another network."""
    noise = (
        "class Noisy(Net):\n    def forward(self, x): return super().forward(x + torch.randn(()))"
    )
    made = "def noisy(): torch.manual_seed(1); return Noisy(), PREPROCESSING"
    net_file.write_text(f"{NET}\n\n{noise}\n\n\n{made}\n")
    assert load_model("mine", source=f"python:{net_file}:noisy").n_outputs == 1000


def test_a_python_net_in_train_mode_is_put_into_eval_mode_with_a_note(net_file):
    made = "def train(): net, how = made(); return net.train(), how\ndef still(): "
    made += "net, how = made(); return net.eval(), how\n"
    net_file.write_text(f"{net_file.read_text()}\n{made}")
    model = load_model("mine", source=f"python:{net_file}:train")
    assert not model.module.training and "train returns a network in train mode" in model.notes[0]
    assert all(map(is_remark, model.notes))
    assert load_model("mine", source=f"python:{net_file}:still").notes == []


def test_a_python_net_takes_a_checkpoint(net_file, tmp_path):
    plain = load_model("mine", source=f"python:{net_file}:made")
    state = {name: tensor + 1 for name, tensor in plain.module.net.state_dict().items()}
    torch.save(state, tmp_path / "other.pth")
    model = load_model("mine", tmp_path / "other.pth", source=f"python:{net_file}:made")
    torch.testing.assert_close(model.module.net.state_dict(), state)
    assert model.settings["checkpoint"] == "other.pth"
    assert model.settings["weights_sha256"] != plain.settings["weights_sha256"]


WRONG_FILES = {  # id -> (what is appended to the file, what is said)
    "no return": ("def made(): Net()", r"made returns \(NoneType\), not a network and its"),
    "the net alone": ("def made(): return Net()", r"made returns \(Net\), not a network and its"),
    "no preprocessing": (
        "def made(): return Net(), None",
        r"made returns \(Net, NoneType\), not .* `return net, \{...\}`, .* dict of mean, std, ",
    ),
    "swapped": ("def made(): return PREPROCESSING, Net()", r"returns \(dict, Net\), not"),
    "no mean": (
        "def made(): return Net(), {k: v for k, v in PREPROCESSING.items() if k != 'mean'}",
        "made: its preprocessing lacks mean",
    ),
    "nothing": ("def made(): return Net(), {}", "lacks mean, std, input_size, interpolation, crop"),
    "a slip": (
        "def made(): return Net(), PREPROCESSING | {'crop': 1}",
        "its preprocessing has crop; the keys are mean, std",
    ),
    "levels of 255": (
        "def made(): torch.manual_seed(0); return Net(), PREPROCESSING | {'mean': (127, 127, 127)}",
        "in levels of 255",
    ),
    "random": ("def made(): return Net(), PREPROCESSING", "other weights when it is called again"),
    "random, beside the weights": (
        "class Shifted(Net):\n"
        "    def __init__(self): super().__init__(); self.shift = torch.randn(1000)\n"
        "    def forward(self, x): return super().forward(x) + self.shift\n"
        "def made():\n"
        "    net = Shifted()\n"
        "    net.load_state_dict(Net.made.state_dict())\n"
        "    return net, PREPROCESSING\n"
        "Net.made = Net()",
        "other outputs when it is called again",
    ),
    "a random crop": (
        "import random\n"
        "def made():\n"
        "    torch.manual_seed(0)\n"
        "    return Net(), PREPROCESSING | {'crop_pct': random.random()}",
        "another preprocessing when it is called again",
    ),
    "another size": (
        "def made(): torch.manual_seed(0); return Net(), PREPROCESSING | {'input_size': (3, 8, 8)}",
        "its forward pass fails on pixels .1, 3, 8, 8.: RuntimeError",
    ),
    "a map": (
        "def made(): return nn.Conv2d(3, 9, 1).requires_grad_(False).zero_(), PREPROCESSING",
        r"net.py:\d+: made: AttributeError",
    ),
    "features": (
        "def made(): torch.manual_seed(0); return Net().features[0], PREPROCESSING",
        r"gives \(1, 8, 7, 7\) for one image, not \(1, classes\)",
    ),
    "a pair": (
        "class Two(Net):\n    def forward(self, x): return super().forward(x), x\n"
        "def made(): torch.manual_seed(0); return Two(), PREPROCESSING",
        "gives tuple, not a tensor of logits",
    ),
    "half precision": (
        "def made(): torch.manual_seed(0); return Net().half(), PREPROCESSING",
        r"weights are torch.float16; attacks need float32: .* \.float\(\) on the network",
    ),
    "a missing file": (
        "def made(): return Net().load_state_dict(torch.load('gone.pth')), PREPROCESSING",
        r"net.py:\d+: made: FileNotFoundError: .*gone.pth",
    ),
    "a script": ("raise SystemExit(3)", r"net.py:\d+: SystemExit: 3"),
    "no Python": ("def made(:", r"net.py:\d+: SyntaxError"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_python_net_that_cannot_be_evaluated_is_one_line(net_file, case):
    appended, message = WRONG_FILES[case]
    net_file.write_text(f"{NET}\n\n{appended}\n")
    with pytest.raises(ModelError, match=message) as error:
        load_model("mine", source=f"python:{net_file}:made")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "place, message",
    [
        ("gone.py:made", "gone.py: no such file"),
        ("net.py:mode", "net.py: no function mode; it has made"),
        ("net.py:PREPROCESSING", "no function PREPROCESSING; it has"),
        ("net.py", "write python:FILE.py:FUNCTION"),
        ("", "write python:FILE.py:FUNCTION"),
    ],
)
def test_a_python_source_that_is_not_there_is_one_line(net_file, monkeypatch, place, message):
    monkeypatch.chdir(net_file.parent)
    with pytest.raises(ModelError, match=message):
        load_model("mine", source=f"python:{place}")


def test_an_edited_file_is_another_model(cli, net_file, tmp_path):
    """Its record is not taken up again, even where the weights are the same."""
    request = ["--model_name", "mine", "--source", f"python:{net_file}:made", "--results_dir"]
    request += [tmp_path / "results", "-s", "3", "clean"]
    assert cli(*request)[0] == 0
    net_file.write_text(f"{NET}\n# edited\n")
    status, _, err = cli(*request)
    assert status == 2 and "source_sha256" in err and err.count("\n") == 1


def test_two_functions_of_a_file_are_two_networks_whatever_their_weights(cli, net_file, tmp_path):
    """A defence in front of fixed weights: it takes no record, no name and no public numbers."""
    defended = "class Defended(Net):\n    def forward(self, x): return super().forward(x.round())"
    again = "def same(): return made()\n\n\ndef defended():\n    net, how = made()\n"
    net_file.write_text(
        f"{NET}\n\n{defended}\n\n\n{again}    net.__class__ = Defended\n    return net, how"
    )
    shutil.copy(net_file, copy := tmp_path / "copy.py")
    results = ["--results_dir", tmp_path / "results", "-s", "2"]

    def evaluated(name: str, file: Path, function: str, *more) -> tuple[int, str, str]:
        return cli("--model_name", name, "--source", f"python:{file}:{function}", *results, *more)

    for name, file, function in (
        ("mine", net_file, "made"),
        ("defended", net_file, "defended"),
        ("copied", copy, "made"),
    ):
        assert evaluated(name, file, function, "clean")[0] == 0
    assert evaluated("mine", copy, "made", "clean")[0] == 0  # the same network
    status, _, err = evaluated("mine", net_file, "defended", "clean")
    assert status == 2 and "python:net.py:made' -> 'python:net.py:defended'" in err
    summary = merge_records(tmp_path / "results")
    assert summary["weights_sha256"].nunique() == 1
    (note,) = notes_on(tmp_path / "results", summary)
    assert note.startswith("2 names have the same weights") and ": copied, mine; fig" in note


# ---- torchvision ---------------------------------------------------------------------------------


def test_a_torchvision_net_has_its_own_outputs_and_transforms(squeezenet, sample):
    model = load_model("mine", source=squeezenet)
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    net = torchvision.models.squeezenet1_1(weights=weights).eval()
    image = torchvision.io.read_image(str(sample.paths[0]))
    wanted = net(weights.transforms()(torchvision.transforms.functional.to_pil_image(image))[None])
    x = next(stream_images(sample.take([0]), model.preprocessing))[1][None]
    torch.testing.assert_close(model.module(x), wanted, atol=1e-4, rtol=1e-4)
    assert model.settings["weights"] == "torchvision:squeezenet1_1:IMAGENET1K_V1"


@pytest.mark.parametrize("source", ["torchvision", "torchvision:IMAGENET1K_V1"])
def test_the_name_of_the_model_is_that_of_torchvisions_net(squeezenet, source):
    settings = load_model("squeezenet1_1", source=source).settings
    assert settings["weights"] == "torchvision:squeezenet1_1:IMAGENET1K_V1"


@pytest.mark.parametrize(
    "source, message",
    [
        ("torchvision:resnet5O", "resnet5O: torchvision .* has no such classifier.* resnet50"),
        ("torchvision:squeezenet1_1:V3", "squeezenet1_1: .* no weights V3; it has IMAGENET1K_V1"),
        ("torchvision:fcn_resnet50", "no such classifier"),
    ],
)
def test_a_torchvision_name_that_is_unknown_is_one_line(source, message):
    with pytest.raises(ModelError, match=message):
        load_model("mine", source=source)


def test_torchvision_weights_that_are_not_there_or_damaged(squeezenet, monkeypatch):
    (file,) = Path(torch.hub.get_dir(), "checkpoints").iterdir()
    file.write_bytes(file.read_bytes()[:10_000])
    with pytest.raises(ModelError, match=f"{file.name}: cannot be loaded .* remove it"):
        load_model("mine", source=squeezenet)
    file.unlink()
    monkeypatch.setattr("torch.hub.urlopen", lambda *_: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(ModelError, match=f"no route.; copy it to .*{file.name}"):
        load_model("mine", source=squeezenet)


# ---- transformers --------------------------------------------------------------------------------


def test_a_transformers_net_has_its_own_logits(tmp_path, sample):
    source = save_vit(tmp_path / "vit")
    from PIL import Image
    from transformers import AutoImageProcessor, ViTForImageClassification

    model = load_model("mine", source=source)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "vit", backend="pil")
    net = ViTForImageClassification.from_pretrained(tmp_path / "vit").eval()
    pixels = processor([Image.open(sample.paths[0])], return_tensors="pt")["pixel_values"]
    x = next(stream_images(sample.take([0]), model.preprocessing))[1][None]
    torch.testing.assert_close(model.module(x), net(pixels).logits, atol=1e-4, rtol=1e-4)


def labels_of(words: list[str]) -> dict[int, str]:
    return dict(enumerate(words))


DESCRIPTIONS = [str(words) for words in ImageNetInfo("imagenet-1k").label_descriptions()]


@pytest.mark.parametrize(
    "labels",
    [
        labels_of(synsets()),
        labels_of([words.split(",")[0] for words in DESCRIPTIONS]),
        labels_of([words.split(",")[-1].strip().upper() for words in DESCRIPTIONS]),
    ],
    ids=["synsets", "first words", "other words"],
)
def test_imagenets_classes_in_other_words(labels, tmp_path):
    assert load_model("mine", source=save_vit(tmp_path, labels)).n_outputs == 1000


@pytest.mark.parametrize(
    "labels, message",
    [
        (labels_of(sorted(DESCRIPTIONS)), "its output 0 is .*, ImageNet's class 0 is 'tench"),
        (labels_of([f"LABEL_{i}" for i in range(1000)]), "its output 0 is 'LABEL_0'"),
        (labels_of(["background", *DESCRIPTIONS]), "has 1001 outputs, not the 1000 classes"),
        (labels_of(DESCRIPTIONS[:10]), "has 10 outputs"),
        (
            labels_of([*DESCRIPTIONS[:-2], *DESCRIPTIONS[:-3:-1]]),
            "its output 998 is 'toilet tissue",
        ),
    ],
    ids=["sorted", "unnamed", "background", "ten", "two swapped"],
)
def test_other_classes_than_imagenets_are_one_line(labels, message, tmp_path):
    with pytest.raises(ModelError, match=message) as error:
        load_model("mine", source=save_vit(tmp_path, labels))
    assert "\n" not in str(error.value)


def test_a_transformers_net_without_a_classifier_is_refused(tmp_path):
    with pytest.raises(ModelError, match="has no weights for classifier"):
        load_model("mine", source=save_vit(tmp_path, head=False))


def test_a_repository_that_is_not_there_is_one_line(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match="nobody/nothing") as error:
        load_model("mine", source="hf:nobody/nothing")
    assert "there is no folder nobody/nothing" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["/nowhere/vit", "./vit", "../vit", "~/no-such-vit", "a/b/vit"])
def test_a_folder_of_transformers_that_is_not_there_is_no_repository(place):
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=f"^--source hf:.*{place[1:]}: no such folder$"):
        load_model("mine", source=f"hf:{place}")


def test_a_file_in_place_of_a_folder_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="model.safetensors: a file; give its folder$"):
        load_model("mine", source=f"hf:{tmp_path}/model.safetensors")


def test_a_folder_without_an_image_processor_is_one_line(tmp_path):
    source = save_vit(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot load .*image processor") as error:
        load_model("mine", source=source)
    assert "\n" not in str(error.value) and "network" not in str(error.value)


def test_transformers_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModelError, match="pip install 'transformers>=5'"):
        load_model("mine", source="hf:google/vit-base-patch16-224")
