"""Evaluation: one model, one threat, one image set, and how they are run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePath

from alignment_security.common.files import UserError
from alignment_security.evaluation.threats.threat import FAST_OPTIONS, Execution, Threat
from alignment_security.images.human_maps import is_blurred, map_source
from alignment_security.images.image_sets import ImageSet
from alignment_security.models.fast import PRECISIONS
from alignment_security.models.heads import Model
from alignment_security.records.ceiling import HUMAN_CEILING, MAP_BLUR


@dataclass(frozen=True)
class Evaluation:
    """One model x one threat x one image set, ready to run.

    batch_size           images a pass
    precision, compiled  of the copy of the model that the threat searches with, if it has one
                         (threats.Execution)
    workers              processes that decode images; 0 decodes in this one
    examples             adversarial examples of the first images of the list to save
    example_names        images whose adversarial examples to save besides: image ids, or file names
    published_accuracy   CSV of published accuracies to compare the clean accuracy with
    stop_after           seconds after which no new image is taken
    remarks              to be said with the first line
    """

    model: Model
    images: ImageSet
    threat: Threat
    batch_size: int
    precision: str = "float32"
    compiled: bool = False
    workers: int = 0
    examples: int = 0
    example_names: Sequence[str] = ()
    published_accuracy: Path | None = None
    stop_after: float | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise UserError(f"precision {self.precision!r}: one of {', '.join(PRECISIONS)}")
        if self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size}: at least 1, or 'auto'")
        for name in ("workers", "examples", "stop_after"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # nan is not
                raise UserError(f"{name} {value}: at least 0")
        _ = self.named_examples  # a wrong name is told before anything runs

    @cached_property
    def named_examples(self) -> list[str]:
        """The image ids of `example_names`. Raises UserError for a name of no image."""
        return [image_called(name, self.images) for name in self.example_names]

    @cached_property
    def kept_examples(self) -> set[str]:
        """The image ids of all examples to save."""
        return {*self.images.ids[: self.examples], *self.named_examples}

    def on_attacked_images(self, settings: dict) -> Evaluation:
        """With the model on the images that the threat attacks (`Threat.input_model`)."""
        return replace(self, model=self.threat.input_model(self.model, settings))

    def execution(self, **more) -> Execution:
        """How the threat is run; `more` are other fields of `Execution`."""
        return Execution(self.batch_size, self.precision, self.compiled, **more)

    @cached_property
    def settings(self) -> dict:
        """Everything that changes a row: kept in the run file, compared on resume and on merge."""
        model, images, threat = self.model, self.images, self.threat
        head = model.settings["head"]
        run = {
            **threat.settings(head),
            "precision": self.precision if FAST_OPTIONS <= threat.options else "float32",
            "head": head,
            "image_set": images.name,
            "images": len(images),
            "list_sha256": images.list_sha256,
            "slice": images.slice,
            **images.facts,
        }
        if images.name == "big12":
            run["contents_sha256"] = images.contents_sha256()
        return {"model": model.settings, "run": run | map_settings(images, threat.map_reduce)}

    @property
    def settings_apart(self) -> set[str]:
        """Names of the settings in which records of one model, threat and set stand apart."""
        threat = self.threat.settings(self.model.settings["head"])
        return {*threat, "precision", "head", "map_reduce"}


def map_settings(images: ImageSet, map_reduce: str | None) -> dict:
    """How human maps are read and compared, for the run file; empty where none are compared."""
    if map_reduce is None:
        return {}
    source = map_source(images)  # hashes every map of --map_dir
    if source is None:
        return {}
    blur = {"human_map_blur": MAP_BLUR} if is_blurred(images) else {}
    return {"human_map": source, "map_reduce": map_reduce, **blur, "human_ceiling": HUMAN_CEILING}


def image_called(name: str, images: ImageSet) -> str:
    """The image_id that a name stands for: itself, or the only one whose file is called that.

    Raises UserError for a name of no image, or of several.
    """
    if name in images.ids:
        return name
    found = [image_id for image_id in images.ids if PurePath(image_id).name == name]
    if len(found) == 1:
        return found[0]
    near = ", ".join(found[:3] or get_close_matches(name, images.ids, n=3, cutoff=0.4))
    what = f"{len(found)} images of that name" if found else "no image of that name"
    raise UserError(
        f"--examples {name}: {images.name} has {what}" + (f"; one is {near}" if near else "")
    )
