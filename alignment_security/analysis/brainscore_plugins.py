"""What a Brain-Score plugin is: the timm net with whose weights it certainly runs, and its input.

Read from the plugin's model.py: nothing is imported or run.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from alignment_security.analysis.python_source import (
    UNKNOWN,
    definitions,
    evaluate_node,
    parse_file,
)
from alignment_security.common.settings import ROOT

TIMM_NETS = ROOT / "lists" / "brainscore_timm_nets.txt"
USES_TIMM = re.compile(r"^(import|from) .*\btimm\b", re.MULTILINE)
# source code after which the net, or its input, is not timm's
ALTERED = re.compile(r"load_state_dict|GaussianBlur|\.half\(")
# of load_preprocess_images in brainscore_vision/model_helpers/activations/pytorch.py
IMAGENET_MEAN, INCEPTION_MEAN = [0.485, 0.456, 0.406], [0.5, 0.5, 0.5]
OWN_INPUT = "the net's own"  # the plugin takes timm's transform of the net


def timm_names(folder: Path, keys: list[str]) -> dict[str, str]:
    """{key: timm model} of a plugin's keys that certainly are a timm model with timm's own weights.

    That is the key's `timm_model_name` in model_configs.json; or, in a plugin of one key, the only
    NAME of all its `create_model(NAME, pretrained=True)`. Empty if model.py loads other weights or
    alters the net or its input.
    """
    path, configs = folder / "model.py", folder / "model_configs.json"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not USES_TIMM.search(text) or ALTERED.search(text):
        return {}
    if "timm_model_name" in text and configs.is_file():
        entries = json.loads(configs.read_text(encoding="utf-8"))
        return {key: entries[key].get("timm_model_name") or "" for key in keys if key in entries}
    created = created_models(parse_file(path))
    if len(keys) == len(created) == 1 and UNKNOWN not in created:
        return {keys[0]: created.pop()}
    return {}


def created_models(tree: ast.Module) -> set[Any]:
    """NAME of each `create_model(NAME, pretrained=True)` outside classes; UNKNOWN for others."""
    names, created = definitions(tree), set()
    outside_classes = [part for part in tree.body if not isinstance(part, ast.ClassDef)]
    for node in (node for part in outside_classes for node in ast.walk(part)):
        match node:
            case ast.Call(
                func=ast.Name(id="create_model") | ast.Attribute(attr="create_model"),
                args=arguments,
                keywords=keywords,
            ):
                options = {option.arg: evaluate_node(option.value, names) for option in keywords}
                is_plain = len(arguments) == 1 and options == {"pretrained": True}
                created.add(evaluate_node(arguments[0], names) if is_plain else UNKNOWN)
    return created


def plugin_input(folder: Path) -> str:
    """Size and mean of the images that a plugin gives its net: `299 px, mean 0.485 0.456 0.406`.

    OWN_INPUT for timm's transform of the net; "" where the source does not say it plainly.
    """
    path = folder / "model.py"
    if not path.is_file():
        return ""
    tree = parse_file(path)
    if "create_transform(" in path.read_text(encoding="utf-8", errors="replace"):
        return OWN_INPUT
    names, found = definitions(tree), set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(args=[ast.Name(id="load_preprocess_images")], keywords=keywords):
                options = {option.arg: evaluate_node(option.value, names) for option in keywords}
                found.add(input_text(options))
    return found.pop() if len(found) == 1 else ""


def input_text(options: dict[str | None, Any]) -> str:
    """Arguments of brainscore_vision's load_preprocess_images as text; "" if one is not literal."""
    if UNKNOWN in options.values():
        return ""
    is_inception = options.get("preprocess_type") == "inception"
    default = INCEPTION_MEAN if is_inception else IMAGENET_MEAN
    mean = default if is_inception else options.get("normalize_mean", default)
    return f"{options.get('image_size')} px, mean {' '.join(f'{value:g}' for value in mean)}"


# ---- what differs from timm ----------------------------------------------------------------------


@cache
def listed_nets() -> pd.DataFrame:
    """The rows of TIMM_NETS by registry name: `timm_name, plugin_input, own_input`."""
    table = pd.read_csv(TIMM_NETS, sep="\t", comment="#", keep_default_na=False)
    return table.set_index("name")


def input_note(timm_name: str, seen: str) -> str:
    """How the input of a plugin differs from what timm gives that net; "" if it does not.

    timm_name   with its tag
    seen        `plugin_input`
    """
    nets = listed_nets()
    own = dict(zip(nets["timm_name"], nets["own_input"])).get(timm_name, "")
    if seen and seen in (OWN_INPUT, own):
        return ""
    return f"the plugin gives it {seen or 'an unknown input'}, timm {own or 'its own'}"
