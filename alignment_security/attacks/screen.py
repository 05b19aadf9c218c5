"""The first phase of `--budget screened`: APGD-CE, and a walk where it fails.

The walk of `BoundaryCrossing` breaks an image at every eps above the norm that it finds. That norm
also says how likely an image is to fall to the attacks that follow (`records.screened`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from alignment_security.attacks.attack import AttackedImage, EpsProgress, Finding
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget, warn_of_zero_gradients
from alignment_security.attacks.clean import ImageStream, images_to_attack
from alignment_security.attacks.confirmation import confirm_in_float32
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.engine import Decision, run_stages
from alignment_security.attacks.eps_search import (
    EpsSearch,
    broken,
    first_decided_by,
    rows_of_image,
)
from alignment_security.attacks.minimum_norm import confirmed_best

SCREEN = Budget(("apgd-ce",))
WALK_STEPS = 50


def screening_walk(norm: str) -> BoundaryCrossing:
    return BoundaryCrossing(norm, WALK_STEPS)


class ScreenSearch(EpsSearch):
    """`EpsSearch` whose walk not only estimates at which eps an image breaks, but breaks it.

    norms   image id -> norm of the smallest confirmed point of its walk
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.norms: dict[str, float] = {}

    def on_fooled(self, image: AttackedImage[EpsProgress], finding: Finding) -> Decision:
        if finding.broken_by == self.estimate_name:
            self.norms[image.image_id] = finding.norm(self.norm)
            self._record_walk(image, finding)
            if image.progress.decided:
                return rows_of_image(image), None
        return super().on_fooled(image, finding)

    def on_exhausted(self, image: AttackedImage[EpsProgress], stage: int) -> Decision:
        """Float32 rejected the walk's point, so that a larger one is tried; or as `EpsSearch`."""
        if stage == len(self.attacks):
            finding = confirmed_best(image, self.confirm, str(self.estimate_name))
            if finding is not None:
                return self.on_fooled(image, finding)
        return super().on_exhausted(image, stage)

    def _needs_estimate(self, progress: EpsProgress) -> bool:
        return progress.estimate_index < 0

    def _record_walk(self, image: AttackedImage[EpsProgress], finding: Finding) -> None:
        """Move the upper bound down to the smallest eps whose ball holds the walk's point."""
        progress = image.progress
        index = first_decided_by(finding.norm(self.norm), progress, progress.broken_index)
        if index < progress.broken_index:
            found = replace(finding, from_eps=progress.eps[index])
            progress.verdicts[index], progress.broken_index = broken(image, found), index


def run_screen(
    model: AttackedModel,
    source: ImageStream,
    norm: str,
    eps: Sequence[float],
    begun: dict[str, list[dict]] | None = None,
) -> Iterator[list[dict]]:
    """Verdicts of the screen. Yields lists of `ball` record rows with `screen_norm`.

    screen_norm   the norm that the walk found; missing where APGD-CE broke the image at once, or
                  the walk found no point
    Parameters and errors as of `run_autoattack`, but for `begun`: its rows are not given again,
    and an image with some of its rows is attacked anew.
    """
    exact, walk = model.exact_forward(), screening_walk(norm)
    search = ScreenSearch(
        SCREEN.attacks,
        eps,
        norm,
        confirm_in_float32(exact, norm),
        lambda batch: images_to_attack(model, exact, batch, EpsProgress),
        estimate_name=walk.name,
    )
    known = {name: {row["eps"] for row in rows} for name, rows in (begun or {}).items()}
    for rows in run_stages(source, [*SCREEN.build(norm), walk], model.forward(), search):
        yield [
            row | {"screen_norm": search.norms.get(row["image_id"])}
            for row in rows
            if row["eps"] not in known.get(row["image_id"], ())
        ]
    warn_of_zero_gradients(search.zero_gradient_ids, model.log)
