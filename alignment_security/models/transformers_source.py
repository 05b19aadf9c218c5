"""Image classifiers of transformers: `--source hf[:REPOSITORY]`, if they know ImageNet's classes.

transformers is not among the requirements: it is imported here, when it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn

from alignment_security.common.command_line import expand_home
from alignment_security.common.files import TryAgain
from alignment_security.common.out_of_memory import reading_into_memory
from alignment_security.common.settings import IMAGENET_CLASSES
from alignment_security.models.heads import ModelError
from alignment_security.models.loaded_net import LoadedNet, checked_net, in_one_line
from alignment_security.models.preprocessing import measured_preprocessing
from alignment_security.models.timm_nets import hub_answer, hub_error


class Logits(nn.Module):
    """The logits (B, 1000) of a classifier of transformers."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(pixel_values=x).logits


def load_transformers(name: str, place: str) -> LoadedNet:
    """An image classifier of transformers, and what its image processor does.

    place   a repository of the hub, `@REVISION` behind it, or a folder; `name` where it is empty.
            What begins with `.`, `/` or `~`, or has two slashes, can only be a folder

    Raises ModelError, as for other outputs than ImageNet's classes and for random weights.
    """
    place = expand_home(place or name)
    net, processor = _from_pretrained(name, place)
    check_labels(net.config.id2label, name)

    def preprocess(paths: list[str]) -> Tensor:
        images = [Image.open(path).convert("RGB") for path in paths]
        return processor(images, return_tensors="pt")["pixel_values"]

    config = measured_preprocessing(preprocess, name)
    return checked_net(Logits(net), f"hf:{place}", config, name)


def _from_pretrained(name: str, place: str) -> tuple[Any, Any]:
    """(network, image processor) of a folder or of the hub. Raises ModelError."""
    try:
        from transformers import AutoImageProcessor, AutoModelForImageClassification
    except ImportError as error:
        raise ModelError(
            f"{name}: --source hf needs transformers ({error}); pip install 'transformers>=5'"
        ) from None
    repository, options = _repository(place)
    try:
        with reading_into_memory(place):
            net, loaded = AutoModelForImageClassification.from_pretrained(
                repository, output_loading_info=True, dtype="float32", **options
            )
        # PIL resizes as timm does; torchvision's tensors differ from it by a few levels of 255
        processor = AutoImageProcessor.from_pretrained(repository, backend="pil", **options)
    except TryAgain:
        raise
    except Exception as error:  # a repository may hold anything
        raise _load_error(name, place, f"`hf download {repository}`", error) from None
    random = sorted(map(str, {*loaded["missing_keys"], *loaded["mismatched_keys"]}))
    if random:
        raise ModelError(f"{name}: {place} has no weights for {random[0]} ({len(random)} such)")
    return net, processor


def _repository(place: str) -> tuple[str, dict[str, Any]]:
    """A folder or a repository, and options of from_pretrained. Raises ModelError for a file."""
    if Path(place).is_dir():
        return place, {}
    if place.startswith((".", "/")) or place.count("/") > 1:
        what = "a file; give its folder" if Path(place).is_file() else "no such folder"
        raise ModelError(f"--source hf:{place}: {what}")
    repository, _, revision = place.partition("@")
    return repository, {"revision": revision} if revision else {}


def _load_error(name: str, place: str, download: str, error: Exception) -> ModelError:
    """The error about what could not be loaded.

    download   the command that fetches it
    """
    if hub_answer(error):
        return hub_error(place, error, download, or_else="")
    hint = (
        f"; there is no folder {place}; without network, run {download} where there is one and "
        "copy $HF_HOME here"
    )
    if Path(place).is_dir():
        hint = ""
    return ModelError(f"{name}: transformers cannot load {place} ({in_one_line(error)}){hint}")


def check_labels(labels: dict[int, str], name: str) -> None:
    """Raise ModelError unless the labels of outputs are ImageNet's 1000 classes in their order.

    labels   id2label of a configuration: `tench, Tinca tinca`, its first synonym, or the synset
    """
    if len(labels) != IMAGENET_CLASSES:
        raise ModelError(
            f"{name}: has {len(labels)} outputs, not the {IMAGENET_CLASSES} classes of ImageNet"
        )
    imagenet = ImageNetInfo("imagenet-1k")
    classes = zip(imagenet.label_names(), imagenet.label_descriptions())
    for i, (synset, words) in enumerate(classes):
        found = str(labels.get(i, ""))
        if first_word(found) not in {synset, *synonyms(words)}:
            raise ModelError(
                f"{name}: its output {i} is {found!r}, ImageNet's class {i} is {words!r} ({synset})"
            )


def synonyms(words: str) -> set[str]:
    return {word.strip().casefold() for word in words.split(",")}


def first_word(label: str) -> str:
    return label.partition(",")[0].strip().casefold()
