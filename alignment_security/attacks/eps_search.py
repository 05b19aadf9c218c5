"""EpsSearch: one image against several eps, ascending or by bisection, and the record rows of it.

What is known of an image is an interval (`EpsProgress`). An image that is broken at eps is broken
at every larger eps, since the larger ball contains the point. Bisection also takes an image that is
robust at eps as robust at every smaller one, an inference. The column from_eps shows which verdicts
are inferred: it is the eps of the attack that gave the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from alignment_security.attacks.attack import AttackedImage, EpsProgress, Finding
from alignment_security.attacks.clean import images_to_attack
from alignment_security.attacks.engine import Confirm, Decision
from alignment_security.models.forward import Forward

FAB_NAME = "fab-t"

# ---- order of eps ------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpsOrder:
    """Which eps comes next: the smallest undecided one, or the middle of the undecided ones."""

    eps: list[float]  # ascending
    bisect: bool = False

    def next_index(self, progress: EpsProgress) -> int:
        if self.bisect:
            return (progress.survived_index + progress.broken_index) // 2
        return progress.survived_index + 1

    def first_decided_by(self, norm: float, progress: EpsProgress) -> int:
        """Index of the smallest undecided eps whose ball holds a perturbation of this norm.

        At most the eps under attack, where it was confirmed; under bisection smaller ones may be
        undecided.
        """
        index = progress.eps_index
        while index - 1 > progress.survived_index and self.eps[index - 1] >= norm:
            index -= 1
        return index


# ---- record rows -------------------------------------------------------------------------------


def robust_rows(image: AttackedImage, eps: list[float], from_eps: float) -> list[dict]:
    """Rows of an image that survived the attack at `from_eps`."""
    return _rows(image, eps, {"robust": 1, "adv_pred": image.label, "from_eps": from_eps})


def misclassified_rows(image: AttackedImage, eps: list[float]) -> list[dict]:
    """Rows of an image that is misclassified without an attack."""
    verdict = {"adv_pred": image.clean["clean_pred"], "broken_by": "clean", "from_eps": 0.0}
    return _rows(image, eps, {"robust": 0} | verdict)


def broken_rows(image: AttackedImage, eps: list[float], finding: Finding) -> list[dict]:
    """Rows of an image that one finding decides. The first row has the perturbation."""
    verdict = {"broken_by": finding.broken_by, "from_eps": finding.from_eps} | finding.columns()
    return _rows(image, eps, {"robust": 0} | verdict, finding.perturbation)


def repeated_rows(image: AttackedImage, eps: list[float], row: dict) -> list[dict]:
    """Rows with the verdict of a row that an earlier session wrote."""
    columns = ("robust", "adv_pred", "broken_by", "from_eps", "linf", "l2")
    return _rows(image, eps, {column: row[column] for column in columns})


def _rows(
    image: AttackedImage,
    eps: list[float],
    verdict: dict[str, Any],
    perturbation: Tensor | None = None,
) -> list[dict]:
    """One row per eps. The first row has the passes spent since the image's last row."""
    rows: list[dict] = []
    for value in eps:
        rows.append(image.clean | {"eps": value, "forwards": 0, "backwards": 0} | verdict)
    if rows:
        spent = {"forwards": image.forwards, "backwards": image.backwards}
        rows[0] |= spent | {"perturbation": perturbation}
        image.forwards = image.backwards = 0
    return rows


# ---- the search --------------------------------------------------------------------------------


class EpsSearch:
    """The callbacks of `run_stages` for norm-bounded attacks.

    attacks     names of the attacks, a stage each
    eps         radii in pixel units of [0, 1], in any order
    confirm     see `run_stages`
    begun       rows that an earlier session wrote, by image id: those of its smallest eps
    to_attack   gives the images of a batch after their clean pass
    """

    def __init__(
        self,
        attacks: Sequence[str],
        eps: list[float],
        norm: str,
        seed: int,
        n_outputs: int,
        forward: Forward,
        confirm: Confirm,
        bisect: bool = False,
        begun: dict[str, list[dict]] | None = None,
        to_attack: Callable[..., list[AttackedImage[EpsProgress]]] = images_to_attack,
    ):
        self.attacks, self.norm, self.seed, self.n_outputs = attacks, norm, seed, n_outputs
        self.forward, self.confirm = forward, confirm
        self.eps = sorted(eps)
        self.order = EpsOrder(self.eps, bisect)
        self.begun = begun or {}
        self.to_attack = to_attack
        self.zero_gradient_ids: set[str] = set()  # APGD met a zero gradient at a start point

    def on_images(self, batch: list) -> tuple[list[dict], list[AttackedImage[EpsProgress]]]:
        """Rows that need no attack, and the images to attack at their first eps."""
        rows, images = [], []
        for image in self.to_attack(
            self.forward,
            batch,
            self.n_outputs,
            lambda: EpsProgress(broken_index=len(self.eps)),
            self.seed,
        ):
            decided_rows, attack = self._begin(image, self.begun.get(image.image_id, []))
            rows += decided_rows
            if attack:
                self._next_eps(image)
                images.append(image)
        return rows, images

    def on_fooled(self, image: AttackedImage[EpsProgress], finding: Finding) -> Decision:
        """The image is broken at its eps; go on with a smaller one, or finish it."""
        self._record_broken(image, finding)
        return self._continue(image, [])

    def on_exhausted(self, image: AttackedImage[EpsProgress], stage: int) -> Decision:
        """The attack of this stage failed: on to the next attack, or robust at this eps."""
        if self.attacks[stage] == FAB_NAME:
            image.progress.fab.finished = True
        next_stage = self._next_stage(image, stage + 1)
        if next_stage is not None:
            return [], next_stage
        return self.on_survived(image)

    def on_survived(self, image: AttackedImage[EpsProgress]) -> Decision:
        """All attacks failed at the image's eps; go on with a larger one, or finish it."""
        return self._continue(image, self._record_survived(image))

    def _begin(
        self, image: AttackedImage[EpsProgress], done: list[dict]
    ) -> tuple[list[dict], bool]:
        """Rows that need no attack, and whether an attack is needed.

        `done` are the image's rows of an earlier session, always those of the smallest eps.
        """
        remaining = self.eps[len(done) :]
        if not image.clean["clean_correct"]:
            return misclassified_rows(image, remaining), False
        if done and not done[-1]["robust"]:
            # the interrupted session wrote only some of the rows that one finding decides
            return repeated_rows(image, remaining, done[-1]), False
        image.progress.survived_index = len(done) - 1
        rows: list[dict] = []
        if remaining and remaining[0] == 0:  # a correct prediction survives eps 0
            rows = robust_rows(image, remaining[:1], from_eps=0.0)
            image.progress.survived_index += 1
        return rows, not image.progress.decided

    def _continue(self, image: AttackedImage[EpsProgress], rows: list[dict]) -> Decision:
        """Decide as many eps as possible without an attack.

        Returns `rows` and the rows decided here, and the stage of the next attack, or None if every
        eps is decided. Rows of broken eps come last, when the smallest broken eps is known.
        """
        progress = image.progress
        if progress.zero_gradient:
            self.zero_gradient_ids.add(image.image_id)
        while not progress.decided:
            self._next_eps(image)
            finding = self._recall(image)
            if finding is not None:
                self._record_broken(image, finding)
                continue
            stage = self._next_stage(image, 0)
            if stage is not None:
                return rows, stage
            rows = rows + self._record_survived(image)
        return rows + self._broken_rows(image), None

    def _next_eps(self, image: AttackedImage[EpsProgress]) -> None:
        image.progress.eps_index = self.order.next_index(image.progress)
        image.eps = self.eps[image.progress.eps_index]

    def _next_stage(self, image: AttackedImage[EpsProgress], first: int) -> int | None:
        """First stage from `first` on that can still break the image.

        FAB ignores eps, so after all of its runs it would find nothing new.
        """
        for stage in range(first, len(self.attacks)):
            if self.attacks[stage] != FAB_NAME or not image.progress.fab.finished:
                return stage
        return None

    def _record_survived(self, image: AttackedImage[EpsProgress]) -> list[dict]:
        """Move the lower bound up to the present eps; returns rows of the eps that this decides."""
        progress = image.progress
        decided = self.eps[progress.survived_index + 1 : progress.eps_index + 1]
        progress.survived_index = progress.eps_index
        return robust_rows(image, decided, from_eps=image.eps)

    def _record_broken(self, image: AttackedImage[EpsProgress], finding: Finding) -> None:
        """Move the upper bound down to the smallest eps that the finding decides."""
        progress = image.progress
        index = self.order.first_decided_by(finding.norm(self.norm), progress)
        progress.findings[index] = finding
        progress.broken_index = index

    def _broken_rows(self, image: AttackedImage[EpsProgress]) -> list[dict]:
        """Rows of the broken eps: each finding decides those from its own to the next one's."""
        findings = image.progress.findings
        starts = sorted(findings)
        ends = [*starts[1:], len(self.eps)]
        rows: list[dict] = []
        for start, end in zip(starts, ends):
            rows += broken_rows(image, self.eps[start:end], findings[start])
        return rows

    def _recall(self, image: AttackedImage[EpsProgress]) -> Finding | None:
        """FAB ignores eps, so its point from outside a smaller ball also settles this larger one.

        None if it remembers no point inside this ball, or if float32 rejects the point.
        """
        fab = image.progress.fab
        if fab.nearest is None or fab.distance > image.eps:
            return None
        (finding,) = self.confirm([image], fab.nearest[None], FAB_NAME)
        return finding and replace(finding, from_eps=fab.found_at)
