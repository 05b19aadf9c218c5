"""EpsSearch: one image against several eps, and the record rows of it.

What is known of an image is an interval (`EpsProgress`). An image that is broken at eps is broken
at every larger eps, since the larger ball contains the point. The search begins with the smallest
eps. If the first attack does not break the image there and the rest of the budget is expensive, a
short minimum-norm walk estimates the norm at which the image breaks, and the eps just below it is
attacked next, then the one just above. An image that is robust there is taken as robust at every
smaller eps, an inference. The walk decides the order and no verdict. The column from_eps shows
which verdicts are inferred: it is the eps of the attack that gave the verdict.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from alignment_security.attacks.attack import AttackedImage, EpsProgress, Finding
from alignment_security.attacks.engine import Confirm, Decision

FAB_NAME = "fab-t"
NO_PASSES = {"forwards": 0, "backwards": 0}

# ---- order of eps ------------------------------------------------------------------------------


def next_index(progress: EpsProgress) -> int:
    """Index of the next eps: as near as an undecided one can be to `estimate_index`."""
    at_least = max(progress.estimate_index, progress.survived_index + 1)
    return min(at_least, progress.broken_index - 1)


def first_decided_by(norm: float, progress: EpsProgress, at_most: int) -> int:
    """Index of the smallest eps not survived whose ball holds a perturbation of this norm.

    at_most   index of an eps that it breaks, where its norm may exceed eps by rounding
    """
    return bisect_left(progress.eps, norm, progress.survived_index + 1, at_most)


# ---- record rows -------------------------------------------------------------------------------


def misclassified(image: AttackedImage) -> dict[str, Any]:
    """The verdict on an image that is misclassified without an attack."""
    verdict = {"adv_pred": image.clean["clean_pred"], "broken_by": "clean", "from_eps": 0.0}
    return {"robust": 0} | verdict | passes_spent(image)


def survived(image: AttackedImage, from_eps: float) -> dict[str, Any]:
    """The verdict on an image that survived the attack at `from_eps`."""
    verdict = {"robust": 1, "adv_pred": image.label, "from_eps": from_eps}
    return verdict | passes_spent(image)


def broken(image: AttackedImage, finding: Finding) -> dict[str, Any]:
    """The verdict of a finding."""
    verdict = {"robust": 0, "broken_by": finding.broken_by, "from_eps": finding.from_eps}
    found = finding.columns() | {"perturbation": finding.perturbation}
    return verdict | found | passes_spent(image)


def known(row: dict[str, Any]) -> dict[str, Any]:
    """The verdict of a row that an earlier session wrote, whose passes are in that row."""
    columns = ("robust", "adv_pred", "broken_by", "from_eps", "linf", "l2")
    return {column: row[column] for column in columns} | NO_PASSES


def passes_spent(image: AttackedImage) -> dict[str, float]:
    """Passes since the image's last verdict."""
    spent = {"forwards": image.forwards, "backwards": image.backwards}
    image.forwards = image.backwards = 0
    return spent


def rows_of_image(image: AttackedImage[EpsProgress]) -> list[dict]:
    """A row for each eps that has none yet, from `image.progress.verdicts`.

    Each verdict decides the eps from its own to the next one's. Its first row has its passes and
    its perturbation.
    """
    progress, rows, last = image.progress, [], None
    for index, value in enumerate(progress.eps):
        if index in progress.written:
            continue
        start = max(start for start in progress.verdicts if start <= index)
        row = image.clean | {"eps": value} | progress.verdicts[start]
        rows.append(row | NO_PASSES | {"perturbation": None} if start == last else row)
        last = start
    return rows


# ---- the search --------------------------------------------------------------------------------


class EpsSearch:
    """The `Search` of norm-bounded attacks.

    attacks         names of the attacks, a stage each
    eps             radii in pixel units of [0, 1], in any order
    confirm         see `engine.Search`
    to_attack       items of the source -> images after their clean pass
    begun           rows that an earlier session wrote, by image id
    estimate_name   name of the walk that estimates an image's minimal norm, which is the stage
                    after the attacks; None: the eps are attacked in ascending order
    wanted          image id -> the eps at which it is attacked, ascending; None: all of `eps`
    """

    def __init__(
        self,
        attacks: Sequence[str],
        eps: Sequence[float],
        norm: str,
        confirm: Confirm,
        to_attack: Callable[[list], list[AttackedImage[EpsProgress]]],
        begun: dict[str, list[dict]] | None = None,
        estimate_name: str | None = None,
        wanted: dict[str, list[float]] | None = None,
    ):
        self.attacks, self.eps, self.norm = attacks, sorted(eps), norm
        self.confirm, self.to_attack, self.begun = confirm, to_attack, begun or {}
        self.estimate_name, self.wanted = estimate_name, wanted
        self.zero_gradient_ids: set[str] = set()  # APGD met a zero gradient at a start point

    def on_images(self, batch: list) -> tuple[list[dict], list[AttackedImage[EpsProgress]]]:
        """Rows that need no attack, and the images to attack at their first eps."""
        rows, images = [], []
        for image in self.to_attack(batch):
            self._begin(image, self.begun.get(image.image_id, []))
            if image.progress.decided:
                rows += rows_of_image(image)
            else:
                self._next_eps(image)
                images.append(image)
        return rows, images

    def on_fooled(self, image: AttackedImage[EpsProgress], finding: Finding) -> Decision:
        """The image is broken at its eps; go on with a smaller one, or finish it."""
        if finding.broken_by == self.estimate_name:
            return self._on_estimate(image, finding.norm(self.norm))
        self._record_broken(image, finding)
        return self._continue(image)

    def on_exhausted(self, image: AttackedImage[EpsProgress], stage: int) -> Decision:
        """The attack of this stage failed: on to the next attack, or robust at this eps."""
        if stage == len(self.attacks):
            return self._on_estimate(image, math.inf)
        if self.attacks[stage] == FAB_NAME:
            image.progress.fab.finished = True
        if stage == 0 and self._needs_estimate(image.progress):
            image.eps = math.inf  # the walk has no eps; what it finds is confirmed at any distance
            return [], len(self.attacks)
        return self._next_attack(image, stage + 1)

    def on_survived(self, image: AttackedImage[EpsProgress]) -> Decision:
        """All attacks failed at the image's eps; go on with a larger one, or finish it."""
        self._record_survived(image)
        return self._continue(image)

    def _begin(self, image: AttackedImage[EpsProgress], rows: list[dict]) -> None:
        """Note what is known of an image without an attack, and from `rows` of earlier sessions."""
        progress = image.progress
        progress.eps = self.wanted[image.image_id] if self.wanted else self.eps
        progress.broken_index = len(progress.eps)
        if not image.clean["clean_correct"]:
            progress.verdicts[0] = misclassified(image)
            progress.broken_index = 0
        elif progress.eps[0] == 0:  # a correct prediction survives eps 0
            progress.verdicts[0] = survived(image, 0.0)
            progress.survived_index = 0
        for row in sorted(rows, key=lambda row: (not row["robust"], row["eps"])):
            index = progress.eps.index(row["eps"])
            progress.written.add(index)
            if row["robust"]:
                progress.survived_index = max(index, progress.survived_index)
                progress.verdicts[0] = known(row)
            elif index < progress.broken_index:
                # a point that lies inside a smaller ball decides that one, too
                index = first_decided_by(row[self.norm.lower()], progress, index)
                progress.verdicts[index], progress.broken_index = known(row), index

    def _needs_estimate(self, progress: EpsProgress) -> bool:
        """Several eps are to be decided, and the walk was not made yet."""
        several = len(progress.eps) > 1
        return bool(self.estimate_name) and several and progress.estimate_index < 0

    def _on_estimate(self, image: AttackedImage[EpsProgress], norm: float) -> Decision:
        """Attack the largest eps below the estimated norm, or the smallest of all.

        The first attack has already failed at the present one.
        """
        progress, before = image.progress, image.progress.eps_index
        progress.estimate_index = max(bisect_left(progress.eps, norm) - 1, 0)
        self._next_eps(image)
        return self._next_attack(image, 1 if progress.eps_index == before else 0)

    def _continue(self, image: AttackedImage[EpsProgress]) -> Decision:
        """Decide as many eps as possible without an attack.

        Returns the image's rows if every eps is decided, else the stage of the next attack.
        """
        progress = image.progress
        if progress.zero_gradient:
            self.zero_gradient_ids.add(image.image_id)
        while not progress.decided:
            self._next_eps(image)
            finding = self._recall(image)
            if finding is None:
                return self._next_attack(image, 0)
            self._record_broken(image, finding)
        return rows_of_image(image), None

    def _next_attack(self, image: AttackedImage[EpsProgress], first: int) -> Decision:
        """The first stage from `first` on that can still break the image, else it survived.

        FAB ignores eps, so after all of its runs it would find nothing new.
        """
        for stage in range(first, len(self.attacks)):
            if self.attacks[stage] != FAB_NAME or not image.progress.fab.finished:
                return [], stage
        return self.on_survived(image)

    def _next_eps(self, image: AttackedImage[EpsProgress]) -> None:
        image.progress.eps_index = next_index(image.progress)
        image.eps = image.progress.eps[image.progress.eps_index]

    def _record_survived(self, image: AttackedImage[EpsProgress]) -> None:
        """Move the lower bound up to the present eps."""
        progress = image.progress
        progress.verdicts[progress.survived_index + 1] = survived(image, image.eps)
        progress.survived_index = progress.eps_index

    def _record_broken(self, image: AttackedImage[EpsProgress], finding: Finding) -> None:
        """Move the upper bound down to the smallest eps that the finding decides."""
        progress = image.progress
        index = first_decided_by(finding.norm(self.norm), progress, progress.eps_index)
        progress.verdicts[index] = broken(image, finding)
        progress.broken_index = index

    def _recall(self, image: AttackedImage[EpsProgress]) -> Finding | None:
        """FAB ignores eps, so its point from outside a smaller ball also settles this larger one.

        None if it remembers no point inside this ball, or if float32 rejects the point.
        """
        fab = image.progress.fab
        if fab.nearest is None or fab.distance > image.eps:
            return None
        (finding,) = self.confirm([image], fab.nearest[None], FAB_NAME)
        return finding and replace(finding, from_eps=fab.found_at)
