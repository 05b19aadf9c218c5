"""Where networks come from besides timm: `--source KIND[:PLACE]`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alignment_security.models.brainscore import load_brainscore
from alignment_security.models.heads import ModelError
from alignment_security.models.loaded_net import LoadedNet
from alignment_security.models.python_source import load_python
from alignment_security.models.torchvision_source import load_torchvision
from alignment_security.models.transformers_source import load_transformers

TIMM = "timm"
# kind -> (model name, place) -> network
LOADERS: dict[str, Callable[[str, str], LoadedNet]] = {
    "brainscore": load_brainscore,
    "python": load_python,
    "torchvision": load_torchvision,
    "hf": load_transformers,
}
STAGED_SOURCES = (TIMM, "brainscore")  # that --chtc takes; a tar says any other source itself


def source_kind(source: str) -> str:
    return source.partition(":")[0]


def model_source(text: str) -> str:
    """A value of --source. Raises ValueError for an unknown kind."""
    kinds = (TIMM, *LOADERS)
    if source_kind(text) not in kinds or text.startswith(f"{TIMM}:"):
        raise ValueError(f"{text!r} begins with none of {', '.join(kinds)}")
    return text


def load_from_source(
    source: str, name: str, checkpoint: Path | None = None, architecture: str | None = None
) -> LoadedNet:
    """The network called `name` from a source other than timm.

    checkpoint   path for the function of a `python:` source; the others bring their weights
    """
    kind, _, place = source.partition(":")
    if architecture or (checkpoint and kind != "python"):
        what = "--architecture" if architecture else "--checkpoint"
        raise ModelError(
            f"{name}: --source {kind} builds the net and its weights itself; leave out {what}"
        )
    if checkpoint:
        return load_python(name, place, checkpoint)
    return LOADERS[kind](name, place)
