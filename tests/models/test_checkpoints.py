"""Checkpoints as others pack them: wrappers, containers, several networks, kinds of numbers."""

from __future__ import annotations

import json
import zipfile
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from alignment_security.common.files import TryAgain
from alignment_security.common.remarks import is_remark
from alignment_security.images.loading import stream_images
from alignment_security.models import torchvision_source
from alignment_security.models.checkpoint_files import read_checkpoint
from alignment_security.models.checkpoint_fit import count_classes, find_misfit, rename_for_timm
from alignment_security.models.checkpoints import weights_sha256
from alignment_security.models.heads import ModelError
from alignment_security.models.loading import load_model
from alignment_security.models.timm_nets import create_net


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("test_resnet").eval()


@pytest.fixture
def state(net) -> dict[str, torch.Tensor]:
    return dict(net.state_dict())


def other(state: dict) -> dict:
    """Another network of the same architecture."""
    return {name: x * 1.5 if x.ndim == 4 else x for name, x in state.items()}


def under(prefix: str, state: dict) -> dict:
    return {prefix + name: x for name, x in state.items()}


def load(tmp_path, content, name="net.pth", **how):
    torch.save(content, tmp_path / name)
    return load_model("test_resnet", tmp_path / name, **how)


# ---- wrappers and containers ---------------------------------------------------------------------

PACKED = {
    "compiled": lambda s: under("_orig_mod.", s),
    "compiled, DataParallel": lambda s: {"model": under("module._orig_mod.", s)},
    "DataParallel, compiled": lambda s: {"state_dict": under("_orig_mod.module.", s)},
    "FSDP in the middle": lambda s: {
        "_fsdp_wrapped_module." + name.replace("layer1.", "layer1._fsdp_wrapped_module."): x
        for name, x in s.items()
    },
    "activation checkpointing": lambda s: {
        name.replace("layer2.0.", "layer2.0._checkpoint_wrapped_module."): x
        for name, x in s.items()
    },
    "Lightning": lambda s: {"state_dict": under("net.", s), "global_step": 3, "loops": {"a": {}}},
    "a name of the author's": lambda s: {"weights": {"best": under("classifier_net.backbone.", s)}},
    "AveragedModel": lambda s: under("module.", s) | {"n_averaged": torch.tensor(7)},
    "params": lambda s: {"params": s, "iter": 4},
    "teacher alone": lambda s: {"teacher": under("module.", s), "args": {"lr": 0.1}},
    "deep": lambda s: {"a": {"b": {"c": under("module.model.net.", s)}}},
    "optimiser": lambda s: {
        "model": s,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}, "param_groups": [{"lr": 1}]},
    },
}


@pytest.mark.parametrize("packed", PACKED)
def test_a_network_is_found_however_it_is_packed(tmp_path, net, state, packed):
    model = load(tmp_path, PACKED[packed](state))
    assert model.settings["weights_sha256"] == weights_sha256(net)
    is_plain = packed in ("compiled", "FSDP in the middle", "activation checkpointing")
    assert len(model.notes) == (0 if is_plain else 1)
    assert all("its weights are the entry" in note for note in model.notes)
    assert all(map(is_remark, model.notes))


def test_a_whole_module_needs_trust(tmp_path, net):
    torch.save({"model": net}, tmp_path / "net.pth")
    with pytest.raises(ModelError, match="--trust_checkpoint"):
        load_model("test_resnet", tmp_path / "net.pth")
    model = load_model("test_resnet", tmp_path / "net.pth", trust_checkpoint=True)
    assert model.settings["weights_sha256"] == weights_sha256(net)


SEVERAL = {
    "timm's train.py": lambda a, b: {"state_dict": a, "state_dict_ema": b, "metric": 71.0},
    "model_ema": lambda a, b: {"model": a, "model_ema": under("module.", b)},
    "params_ema": lambda a, b: {"params": a, "params_ema": b},
    "DINO": lambda a, b: {"student": under("module.", a), "teacher": under("module.", b)},
    "in one dict": lambda a, b: under("online_model.", a) | under("ema_model.", b),
    "Lightning": lambda a, b: {"state_dict": under("net.", a) | under("net_ema.", b)},
}
AVERAGED = {
    "timm's train.py": "state_dict_ema",
    "model_ema": "model_ema.module",
    "params_ema": "params_ema",
    "DINO": "teacher.module",
    "in one dict": "ema_model",
    "Lightning": "state_dict.net_ema",
}


@pytest.mark.parametrize("packed", SEVERAL)
def test_of_several_networks_none_is_guessed(tmp_path, net, state, packed):
    content = SEVERAL[packed](other(state), state)
    with pytest.raises(ModelError, match="holds 2 networks that fit.*--checkpoint_key") as error:
        load(tmp_path, content)
    assert AVERAGED[packed] in str(error.value)
    model = load(tmp_path, content, checkpoint_key=AVERAGED[packed])
    assert model.settings["weights_sha256"] == weights_sha256(net)
    assert "other tensors are left out" in model.notes[0]
    with pytest.raises(ModelError, match="--checkpoint_key nothing: no such entry that fits"):
        load(tmp_path, content, checkpoint_key="nothing")


def test_a_second_network_that_does_not_fit_is_said(tmp_path, net, state):
    model = load(tmp_path, {"model": state, "discriminator": nn.Linear(3, 3).state_dict()})
    assert model.settings["weights_sha256"] == weights_sha256(net)
    assert "2 other tensors are left out (discriminator.weight, ...)" in model.notes[0]
    assert is_remark(model.notes[0])


def test_tensors_of_unknown_use_beside_a_network_are_asked_about(tmp_path, net, state):
    content = under("1.", state) | {"criterion.weight": torch.ones(9)}
    with pytest.raises(ModelError, match="'1' fits, with . other tensors.*--checkpoint_key 1"):
        load(tmp_path, content)
    model = load(tmp_path, content, checkpoint_key="1")
    assert model.settings["weights_sha256"] == weights_sha256(net)


MEAN, STD = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])


NORMALISED = {  # entry of the network -> what is around it
    "1": lambda s: under("1.", s) | {"0.mean": MEAN, "0.std": STD},
    "model": lambda s: under("model.", s) | {"mean": MEAN.view(1, 3, 1, 1), "std": STD},
    "state_dict.net": lambda s: {
        "state_dict": under("net.", s) | {"preprocess.mean": MEAN, "preprocess.std": STD}
    },
    "backbone": lambda s: under("backbone.", s) | {"mu": MEAN.view(3, 1, 1), "sigma": STD},
    "": lambda s: s | {"mean": MEAN, "std": STD},
    "weights": lambda s: {"weights": s, "mean": MEAN.tolist(), "std": tuple(STD.tolist())},
    "params": lambda s: {"params": s, "normalisation": {"mean": MEAN, "std": STD}},
}


@pytest.mark.parametrize("entry", NORMALISED)
@pytest.mark.parametrize("is_named", [False, True])
def test_a_normaliser_under_any_name_is_the_networks(tmp_path, net, state, entry, is_named):
    """Without it every prediction is another, also where the entry of the network is named."""
    how = {"checkpoint_key": entry} if is_named else {}
    model = load(tmp_path, NORMALISED[entry](state), **how)
    assert model.settings["weights_sha256"] == weights_sha256(net)
    assert model.settings["mean"] == pytest.approx(MEAN.tolist())
    assert model.settings["std"] == pytest.approx(STD.tolist())
    assert all(map(is_remark, model.notes))


def test_of_two_normalisers_none_is_guessed(tmp_path, state):
    beside = {f"{module}.{kind}": MEAN for module in ("0", "2") for kind in ("mean", "std")}
    with pytest.raises(ModelError, match="'1' fits, with 4 other tensors"):
        load(tmp_path, under("1.", state) | beside)


def test_a_name_that_does_not_fit_is_named_without_the_common_beginning(tmp_path, state):
    state.pop("fc.bias")
    with pytest.raises(ModelError, match="lacks 'fc.bias'"):
        load(tmp_path, under("encoder.", state))
    others = {f"_{name}": x for name, x in state.items()}
    instead = f"lacks '{next(iter(state))}' .* and has '_{next(iter(state))}'"
    with pytest.raises(ModelError, match=f"{instead}; check --architecture"):
        load(tmp_path, others)
    with pytest.raises(ModelError, match=f"{instead} after 'module.', which is harmless; check"):
        load(tmp_path, under("module.", others))


def test_a_state_dict_of_a_smaller_network_is_told_by_its_size(tmp_path, state):
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "net.pth")
    wanted = "tensors in 'state_dict', its largest dict, where .*; check --architecture"
    with pytest.raises(ModelError, match=wanted):
        load_model("mine", tmp_path / "net.pth", architecture="tf_efficientnet_lite0")
    with pytest.raises(ModelError, match=r"own add --architecture TIMM_NAME$"):
        load_model("mine", tmp_path / "net.pth")


def test_a_dict_that_holds_itself_ends(tmp_path, state):
    content: dict = {"epoch": 3}
    content["again"] = content
    with pytest.raises(ModelError, match="holds no state dict"):
        load(tmp_path, content)


# ---- numbers that cannot be copied ---------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64, torch.int64],
)
def test_weights_of_another_kind_of_number_are_refused(tmp_path, state, dtype):
    state["conv1.0.weight"] = state["conv1.0.weight"].to(dtype)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match=f"has {kind} values in 'conv1.0.weight' where .* float32"):
        load(tmp_path, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_size_are_taken(tmp_path, state, dtype):
    halved = {name: x.to(dtype) if x.is_floating_point() else x for name, x in state.items()}
    model = load(tmp_path, halved)
    assert model.n_outputs == 1000 and all(map(is_remark, model.notes))
    kind = str(dtype).removeprefix("torch.")
    assert [f"are stored in {kind} and run" in note for note in model.notes] == (
        [] if dtype == torch.float64 else [True]
    )


def sparse(x):
    return x.to_sparse()


def quantised(x):
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    "change, message",
    [
        (sparse, "sparse_coo values"),
        (quantised, "quantised values"),
        (lambda x: x.to("meta"), "meta values"),
        (lambda x: torch.zeros(1).expand(10**9, x.shape[1]), "values in 'fc.weight' of which"),
        (lambda x: torch.tensor(1.0), "another shape of 'fc.weight'"),
        (lambda x: x[:0], "another shape of 'fc.weight'"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_arrays_are_one_line(tmp_path, state, change, message):
    state["fc.weight"] = change(state["fc.weight"])
    with pytest.raises(ModelError, match=message) as error:
        load(tmp_path, state)
    assert "\n" not in str(error.value)


def test_a_state_dict_of_numbered_tensors_is_one_line(tmp_path, state):
    with pytest.raises(ModelError, match="holds no state dict"):
        load(tmp_path, dict(enumerate(state.values())))


def test_a_normaliser_of_a_terabyte_is_not_made(tmp_path, state):
    huge = torch.zeros(1).expand(10**6, 10**6)
    with pytest.raises(ModelError, match="its normaliser is not three means"):
        load(tmp_path, state | {"normalizer.mean": huge, "normalizer.std": huge})


@pytest.mark.parametrize(
    "mean, std, message",
    [
        ((127.5,) * 3, (127.5,) * 3, "mean .* is in levels of 255"),
        ((0.5,) * 3, (58.4,) * 3, "std .* is in levels of 255"),
        ((0.5, -0.1, 0.5), (0.5,) * 3, "is negative"),
        ((0.5,) * 3, (0.5, 0.0, 0.5), "three positive stds"),
        ((0.5, float("nan"), 0.5), (0.5,) * 3, "not three numbers"),
    ],
)
def test_a_normaliser_that_cannot_be_right_is_refused(tmp_path, state, mean, std, message):
    beside = {"normalizer.mean": torch.tensor(mean), "normalizer.std": torch.tensor(std)}
    with pytest.raises(ModelError, match=message):
        load(tmp_path, state | beside)


# ---- files of another kind than their name says --------------------------------------------------


def test_content_decides_not_the_ending(tmp_path, net, state):
    safetensors.torch.save_file(state, tmp_path / "pytorch_model.bin")
    torch.save(state, tmp_path / "net.safetensors")
    for name in ("pytorch_model.bin", "net.safetensors"):
        model = load_model("test_resnet", tmp_path / name)
        assert model.settings["weights_sha256"] == weights_sha256(net)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "Keras"),
        (b"root:x:0:0:root:/root:/bin/bash\n", "a text that begins 'root:x"),
        (b"a", "a text that begins 'a'"),
        (b".", "a text that begins"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80", "damaged"),
    ],
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_of_another_kind_is_told_as_what_it_is(tmp_path, data, message, ending):
    (tmp_path / f"net.{ending}").write_bytes(data)
    with pytest.raises(ModelError, match=message) as error:
        load_model("test_resnet", tmp_path / f"net.{ending}")
    assert "\n" not in str(error.value)


def test_torchscript_is_told_as_what_it_is(tmp_path, net):
    torch.jit.trace(net, torch.rand(1, 3, 160, 160)).save(str(tmp_path / "net.pt"))
    with pytest.raises(ModelError, match="a TorchScript program.*save its state_dict"):
        load_model("test_resnet", tmp_path / "net.pt")


def test_an_archive_of_arrays_is_no_checkpoint(tmp_path):
    np.savez(tmp_path / "net.pth.npz", a=np.ones(3))
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("net.pth.npz", "net.zip"):
        with pytest.raises(ModelError, match="not a readable checkpoint"):
            load_model("test_resnet", tmp_path / name)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_off_is_called_so(tmp_path, state, ending, part):
    path = tmp_path / f"net{ending}"
    torch.save(state, path) if ending == ".pth" else safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ModelError, match="it is cut off or damaged .* download it again"):
        load_model("test_resnet", path)


def test_a_folder_or_a_quantised_copy_is_told_as_such(tmp_path, state):
    torch.save({name: tensor.to(torch.int8) for name, tensor in state.items()}, tmp_path / "q.pth")
    with pytest.raises(ModelError, match="int8 values .*; give plain tensors, floats in float32"):
        load_model("test_resnet", tmp_path / "q.pth")
    with pytest.raises(ModelError, match=r"a folder, no checkpoint; give a file in it \(q.pth\)"):
        load_model("test_resnet", tmp_path)
    (folder := tmp_path / "deepspeed" / "global_step1").mkdir(parents=True)
    (folder / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(ModelError, match="give a file in it .global_step1/mp_rank_00_model_states"):
        read_checkpoint(tmp_path / "deepspeed")
    (tmp_path / "deepspeed" / ".metadata").touch()
    with pytest.raises(ModelError, match="in parts: join them with .python -m torch.distributed"):
        read_checkpoint(tmp_path / "deepspeed")


def test_no_damage_of_a_checkpoint_is_a_traceback(tmp_path, state):
    torch.save({"state_dict": {"fc.bias": state["fc.bias"]}}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for position in random.integers(0, len(data), 4):
            data[position] = random.integers(0, 256)
        (tmp_path / "net.pth").write_bytes(data[: random.integers(1, len(data))])
        with pytest.raises(ModelError):
            load_model("test_resnet", tmp_path / "net.pth")


# ---- heads ---------------------------------------------------------------------------------------

# a pair of classifiers, a list, a convolution, other names of them, and a network without classes
HEADS = [
    "test_resnet",
    "test_vit",
    "test_convnext",
    "test_mambaout",
    "deit_tiny_distilled_patch16_224",
    "levit_128s",
    "repvit_m1",
    "efficientformer_l1",
    "crossvit_9_240",
    "squeezenet1_0" if timm.is_model("squeezenet1_0") else "test_nfnet",
]


@pytest.mark.parametrize("name", HEADS)
def test_a_network_of_k_classes_is_fitted_by_timm_itself(tmp_path, name):
    torch.manual_seed(0)
    saved = timm.create_model(name, num_classes=7)
    torch.save({"state_dict": under("module.", saved.state_dict())}, tmp_path / "net.pth")
    model = load_model("mine", tmp_path / "net.pth", architecture=name)
    assert model.n_outputs == 7 and model.settings["weights_sha256"] == weights_sha256(saved)
    side = model.preprocessing["input_size"]
    assert model.module(torch.rand(1, *side)).shape == (1, 7)


def test_a_network_without_classes_gets_those_of_its_checkpoint(tmp_path):
    saved = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    name = next(n for n in timm.list_models("vit_small*dinov2*"))
    assert timm.create_model(name).num_classes == 0 and saved.num_classes == 0
    trained = timm.create_model(name, num_classes=5)
    torch.save(trained.state_dict(), tmp_path / "net.pth")
    assert load_model("mine", tmp_path / "net.pth", architecture=name).n_outputs == 5


# ---- configurations ------------------------------------------------------------------------------


def local_dir(folder, net, **config):
    folder.mkdir()
    safetensors.torch.save_file(net.state_dict(), folder / "model.safetensors")
    cfg = {
        "input_size": [3, 160, 160],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "num_classes": 1000,
        "classifier": "fc",
        "first_conv": "conv1",
    }
    body = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": cfg | config}
    (folder / "config.json").write_text(json.dumps(body))
    return f"local-dir:{folder}"


@pytest.mark.parametrize(
    "config, message",
    [
        ({"interpolation": "random"}, "interpolation is 'random'"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'"),
        ({"crop_mode": "five"}, "crop_mode is 'five'"),
        ({"crop_pct": 87.5}, "crop_pct is 87.5"),
        ({"input_size": [160, 160]}, "do not fit its config.json"),
        ({"input_size": [1, 160, 160]}, "do not fit its config.json"),
        ({"mean": [0.5]}, "its mean is .*, not three numbers"),
        ({"mean": [0.5] * 4}, "its mean is .*, not three numbers"),
        ({"mean": [123.7, 116.3, 103.5]}, "levels of 255"),
        ({"mean": [-0.5] * 3}, "negative"),
        ({"std": [0, 0.5, 0.5]}, "has to be positive"),
        ({"std": "0.5"}, "not three numbers"),
    ],
)
def test_a_configuration_that_cannot_be_right_is_refused(tmp_path, net, config, message):
    with pytest.raises(ModelError, match=message) as error:
        load_model(local_dir(tmp_path / "mine", net, **config))
    assert "\n" not in str(error.value)


def test_a_configuration_that_is_right_is_taken(tmp_path, net):
    model = load_model(local_dir(tmp_path / "mine", net, crop_mode="squash", std=[1.0] * 3))
    assert model.settings["weights_sha256"] == weights_sha256(net)


@pytest.mark.parametrize(
    "config",
    [
        {"crop_mode": "border", "mean": [0.2] * 3, "crop_pct": 1.2},
        {"crop_mode": "border", "input_size": [3, 96, 160]},
        {"crop_mode": "squash", "input_size": [3, 96, 160], "interpolation": "lanczos"},
        {"crop_pct": 1.2},
    ],
)
def test_a_network_sees_the_pixels_of_timms_transform(tmp_path, net, sample, config):
    """Crop mode `border` pads with the network's own mean."""
    name = local_dir(tmp_path / "mine", net, **config)
    model, images = load_model(name), sample.take([0])
    timms = timm.create_model(name, pretrained=True)
    transform = create_transform(**resolve_model_data_config(timms), is_training=False)
    want = transform(Image.open(images.paths[0]).convert("RGB"))
    (_, x, _), module = next(stream_images(images, model.preprocessing)), model.module
    torch.testing.assert_close((x - module.mean[0]) / module.std[0], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spoil", ["no config", "no JSON", "no weights"])
def test_a_folder_that_is_no_model_is_one_line(tmp_path, net, spoil):
    name = local_dir(tmp_path / "mine", net)
    if spoil == "no config":
        (tmp_path / "mine" / "config.json").unlink()
    if spoil == "no JSON":
        (tmp_path / "mine" / "config.json").write_text("{")
    if spoil == "no weights":
        (tmp_path / "mine" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="local-dir:") as error:
        load_model(name)
    assert "hub" not in str(error.value) and "\n" not in str(error.value)


# ---- every family of timm ------------------------------------------------------------------------


def names_of_families() -> list[str]:
    """The shortest name of every module of timm, and of those whose classifier is no one name."""
    families: dict[tuple, list[str]] = {}
    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        one_name = config is None or isinstance(config.classifier, str)
        module = timm.models.model_entrypoint(name).__module__
        families.setdefault((module, one_name), []).append(name)
    return sorted(min(names, key=len) for names in families.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", names_of_families())
def test_the_classes_of_every_family_are_counted(name):
    """On the meta device: shapes alone. What training writes has as many classes, too."""
    create = partial(create_net, name, False)
    with torch.device("meta"):
        net, saved = create(), create(num_classes=7)
        if name.endswith("_enc"):  # an encoder, which has no classes at all
            assert net.num_classes == 0 and count_classes(create, net, saved.state_dict()) is None
            return
        assert count_classes(create, net, saved.state_dict()) == 7
        fresh = create(num_classes=7)
        assert find_misfit(fresh, rename_for_timm(fresh, saved.state_dict())) == ""
        if net.num_classes:
            assert net.state_dict().keys() == saved.state_dict().keys()  # timm_nets.with_classes


def test_no_weights_are_called_damaged_where_memory_is_short(tmp_path, monkeypatch):
    for file in ("x.pth", "x.safetensors"):
        save = safetensors.torch.save_file if file.endswith("s") else torch.save
        save({"weight": torch.zeros(2, 2)}, tmp_path / file)

    def no_memory(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B")

    monkeypatch.setattr(torch, "load", no_memory)
    monkeypatch.setattr(safetensors.torch, "load_file", no_memory)
    monkeypatch.setattr(timm, "create_model", no_memory)
    monkeypatch.setattr(torchvision_source, "get_model", no_memory)
    for load in (
        lambda: read_checkpoint(tmp_path / "x.pth"),
        lambda: read_checkpoint(tmp_path / "x.safetensors"),
        lambda: create_net("resnet18", pretrained=True),
        lambda: torchvision_source.load_torchvision("resnet18", ""),
    ):
        with pytest.raises(TryAgain, match="cannot be loaded, since the machine is out of memory"):
            load()
