"""export_plugin: the plugin gives the logits and the preprocessing of the network it was made from.

In the environment of requirements-brainscore.txt the plugin is loaded by Brain-Score's package;
elsewhere by stubs of the three names that it imports from it.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import run_utilities

from alignment_security.models.heads import ModelError
from alignment_security.models.loading import load_model
from alignment_security.models.plugin_export import export_plugin, layer_names

INSTALLED = importlib.util.find_spec("brainscore_vision") is not None


def stub_modules() -> dict[str, types.ModuleType]:
    """brainscore_vision as far as a plugin imports it: a registry, a wrapper, a commitment."""

    def wrapper(identifier, model, preprocessing):
        extractor = types.SimpleNamespace(preprocess=preprocessing)
        return types.SimpleNamespace(identifier=identifier, _model=model, _extractor=extractor)

    package = types.ModuleType("brainscore_vision")
    pytorch = types.ModuleType("brainscore_vision.model_helpers.activations.pytorch")
    commitment = types.ModuleType("brainscore_vision.model_helpers.brain_transformation")
    vars(package).update(model_registry={}, load_model=lambda name: package.model_registry[name]())
    vars(pytorch).update(PytorchWrapper=wrapper)
    vars(commitment).update(ModelCommitment=types.SimpleNamespace)
    return {module.__name__: module for module in (package, pytorch, commitment)}


@pytest.fixture
def register(monkeypatch):
    """Imports the folder of a plugin, which registers it."""
    if not INSTALLED:
        for name, module in stub_modules().items():
            monkeypatch.setitem(sys.modules, name, module)

    def call(folder):
        spec = importlib.util.spec_from_file_location(folder.name, folder / "__init__.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, folder.name, module)
        spec.loader.exec_module(module)

    return call


def export(*arguments) -> int:
    command = ["export_plugin", *map(str, arguments)]
    return run_utilities(*command)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "my.net-1"])
def test_a_plugin_is_the_network_it_was_made_from(
    register, tiny, tmp_path, name, capsys, monkeypatch
):
    """Logits to 1e-5 and the same measured preprocessing; the plugin's own test passes."""
    own = {} if name != "my.net-1" else {"architecture": tiny.name, "checkpoint": tiny.checkpoint}
    options = [word for key, value in own.items() for word in (f"--{key}", value)]
    assert export(name, *options, "--out", tmp_path) == 0
    (folder,) = tmp_path.iterdir()
    assert capsys.readouterr().out == f"{folder}\n"
    assert {path.name for path in folder.iterdir()} == {
        "__init__.py",
        "model.py",
        "test.py",
        "metadata.yaml",
        "weights.safetensors",
    }
    register(folder)
    ours, plugin = load_model(name, **own), load_model(name, source="brainscore")
    x = torch.rand(2, *ours.preprocessing["input_size"])
    torch.testing.assert_close(plugin.module(x), ours.module(x), atol=1e-5, rtol=0)
    assert plugin.settings["weights_sha256"] == ours.settings["weights_sha256"]
    crop = plugin.preprocessing["crop_pct"]
    assert plugin.preprocessing | {"crop_pct": 0} == ours.preprocessing | {"crop_pct": 0}
    assert crop == pytest.approx(ours.preprocessing["crop_pct"], abs=0.003)
    for kind in ("mean", "std"):
        assert plugin.settings[kind] == pytest.approx(ours.settings[kind], abs=1e-6)

    import brainscore_vision

    model = brainscore_vision.model_registry[name]()
    assert set(model.layers) <= set(dict(ours.module.net.named_modules())) and model.layers
    names: dict = {}
    exec((folder / "test.py").read_text().replace("@pytest.mark.travis_slow\n", ""), names)
    registry = brainscore_vision.model_registry
    monkeypatch.setattr(brainscore_vision, "load_model", lambda name: registry[name]())
    names["test_has_identifier_and_logits"]()
    entry = yaml.safe_load((folder / "metadata.yaml").read_text())["models"][name]
    parameters = sum(parameter.numel() for parameter in ours.module.parameters())
    assert entry["model"]["parameter_count"] == parameters
    if INSTALLED:
        from brainscore_core.plugin_management.handle_metadata import validate_metadata_file

        assert validate_metadata_file(folder / "metadata.yaml")[0] == []


def test_public_weights_are_named_and_not_copied(tmp_path, monkeypatch, lite0):
    """timm's weights come from its hub, by name."""
    public = replace(lite0, settings=lite0.settings | {"weights": "timm:timm/lite0"})
    monkeypatch.setattr(
        "alignment_security.models.plugin_export.load_model", lambda *_, **__: public
    )
    folder = export_plugin("tf_efficientnet_lite0", tmp_path)
    assert not (folder / "weights.safetensors").exists()
    text = (folder / "model.py").read_text()
    assert "timm.create_model('tf_efficientnet_lite0', pretrained=True)" in text


def test_what_is_no_plugin_is_one_line(tmp_path, tiny, monkeypatch):
    export_plugin("mine", tmp_path, tiny.name, tiny.checkpoint)
    with pytest.raises(ModelError, match="mine: is there already"):
        export_plugin("mine", tmp_path, tiny.name, tiny.checkpoint)
    ten = torch.load(tiny.checkpoint)
    ten["fc.weight"], ten["fc.bias"] = ten["fc.weight"][:10], ten["fc.bias"][:10]
    torch.save(ten, tmp_path / "ten.pth")
    with pytest.raises(ModelError, match="ten: a plugin is of a network .* 1000 ImageNet logits"):
        export_plugin("ten", tmp_path, tiny.name, tmp_path / "ten.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "ten.pth"]


def test_layers_of_a_network_without_stages_are_its_children():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Flatten())
    assert layer_names(net) == ["0", "1"]
