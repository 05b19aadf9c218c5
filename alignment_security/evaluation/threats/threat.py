"""What a threat is: the questions that every protocol answers about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd
from torch import Tensor, nn

from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.clean import ImageStream
from alignment_security.images.image_sets import ImageSet
from alignment_security.models.fast import WithoutTF32, Wrapper, fast_copy
from alignment_security.models.heads import Model, example_pixels

# forward passes of one image, and how many of these also go backward
Cost = tuple[int, int]
RecordRows = Iterator[list[dict]]
# options of the command line about human maps, of the threats that compare with them
MAP_OPTIONS = frozenset({"map_dir", "blur_maps", "map_reduce"})
# options of a search with a faster copy of the network (`fast_module`)
FAST_OPTIONS = frozenset({"precision", "compile"})


@dataclass(frozen=True)
class Execution:
    """How a threat is run on this machine.

    batch_size    images a pass; halved when the device runs out of memory
    precision     float32, tf32 or bf16, of the search; clean answers and findings are of float32
    compiled      whether torch.compile compiles the model
    log           receives warnings
    known_rows    rows of earlier sessions by image id, for threats with several eps
    on_pass       called after each forward pass: number of images, whether a backward pass follows
    """

    batch_size: int
    precision: str = "float32"
    compiled: bool = False
    log: Callable[[str], None] = lambda message: None
    known_rows: dict[str, list[dict]] = field(default_factory=dict)
    on_pass: Callable[[int, bool], None] = lambda images, backward: None


class Threat(ABC):
    """The questions that a threat answers. Subclasses are frozen dataclasses."""

    kind: ClassVar[str]  # columns of its records (records.record.RECORD_COLUMNS)
    takes_random_models: ClassVar[bool] = False  # whose logits differ from pass to pass
    grows: ClassVar[bool] = True  # a finished record takes more images and eps
    survivors: ClassVar[str] = "robust"  # what it calls images that nothing fooled so far
    phase: ClassVar[str] = ""  # which one of several it is, in words
    has_next_phase: ClassVar[bool] = False  # whether `next_phase` may give one
    # options of the command line that this threat reads and some other one does not
    options: ClassVar[frozenset[str]]
    eps: Sequence[float] = ()  # radii in pixel units of [0, 1]; a row for each, else one row
    seed: int = 0  # of the attack's random numbers
    map_reduce: str | None = None  # perturbation or gradient -> map, to compare with human maps

    @property
    @abstractmethod
    def name(self) -> str:
        """Folder of its records: `clean`, `Linf`, `L2-fmn`, `corruptions-fog-3`, ..."""

    @abstractmethod
    def settings(self, head: str) -> dict:
        """What changes a row, for the run file; compared on resume and on merge."""

    @abstractmethod
    def cost(self) -> tuple[Cost, Cost]:
        """(least, most) passes of one correctly classified image.

        The least is an attack whose first point fools; the most is one that nothing fools, at any
        eps. A finding is confirmed by one more pass. A misclassified image takes one pass.
        """

    @abstractmethod
    def run(self, model: Model, images: ImageStream, execution: Execution) -> RecordRows:
        """Record rows as they become known, images in any order."""

    @classmethod
    @abstractmethod
    def from_args(cls, args: Namespace) -> Threat:
        """The threat that a command line asks for."""

    def check(self, model: Model, images: ImageSet) -> None:  # noqa: B027
        """Raise UserError for a model or images that this threat is not defined on."""

    def as_begun(self, settings: dict) -> Threat:
        """This threat as the run was begun, which early versions may have done otherwise.

        settings   of the run file
        """
        return self

    def input_model(self, model: Model, settings: dict) -> Model:
        """The model on the images that this threat attacks: mostly those of its own preprocessing.

        settings   of the run file, which say how the run was begun
        """
        return model

    def attacked_module(self, model: Model, execution: Execution) -> nn.Module:
        """The module that the attack calls: the model itself, or a faster copy of it."""
        return model.module

    def attacked_model(self, model: Model, execution: Execution) -> AttackedModel:
        """What `run` hands to an attack; passes are reported to `execution`."""
        return AttackedModel(
            ReportedPasses(self.attacked_module(model, execution), execution),
            model.n_outputs,
            ReportedPasses(WithoutTF32(model.module), execution),
            execution.batch_size,
            self.seed,
            execution.log,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What its settings cannot find: warnings for the run file."""
        return ()

    def notes_on(self, rows: pd.DataFrame) -> list[str]:
        """What the rows of a finished record show of the attack: sentences for the run file."""
        return []

    def rows_of(self, image_id: str) -> int:
        """How many rows an image gets."""
        return max(1, len(self.eps))

    def own_rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Those rows of an unfinished record that are of this phase."""
        return rows

    def next_phase(self, rows: pd.DataFrame) -> Threat | None:
        """What follows once every image has its rows: a threat of its own, or nothing."""
        return None


class ReportedPasses(Wrapper):
    """A module that calls `on_pass` after each forward pass (`Execution.on_pass`)."""

    def __init__(self, module: nn.Module, execution: Execution):
        super().__init__(module)
        self.on_pass = execution.on_pass

    def forward(self, x: Tensor) -> Tensor:
        logits = self.module(x)
        self.on_pass(len(x), logits.requires_grad)
        return logits


def fast_module(module: nn.Module, model: Model, execution: Execution) -> nn.Module:
    """A faster copy of a module of the model, checked on random pixels."""
    return fast_copy(module, example_pixels(model, 2), execution.precision, execution.compiled)
