"""AutoAttack: its budget, and its verdicts for several eps by our engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from alignment_security.attacks.apgd import APGD
from alignment_security.attacks.attack import Attack, AttackError, EpsProgress
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.clean import ImageStream, images_to_attack
from alignment_security.attacks.confirmation import confirm_in_float32
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.engine import run_stages
from alignment_security.attacks.eps_search import EpsSearch
from alignment_security.attacks.fab import FAB
from alignment_security.attacks.square import Square
from alignment_security.common.verdicts import AUTOATTACK, STANDARD_BUDGET, STANDARD_NAME

SQUARE_SHARE = 0.002  # of all images: above it the reference's check flags masked gradients
DLR_CLASSES = 4  # the targeted DLR loss divides by the 1st, 3rd and 4th logit
# gradients of the walk that estimates a minimal norm, and how many such walks an image that
# survives must cost at one eps for the estimate to pay
ESTIMATE_STEPS, LEAST_WALKS = 30, 10

# ---- the budget --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """What AutoAttack spends on an image that nothing fools. Default: the standard version.

    attacks   names among AUTOATTACK, in the order in which they run
    steps     of each run of APGD and FAB
    targets   target classes of apgd-t and fab-t
    queries   proposals of Square
    Raises AttackError for an unknown attack, none, or a number below 1.
    """

    attacks: tuple[str, ...] = AUTOATTACK
    steps: int = STANDARD_BUDGET["steps"]
    targets: int = STANDARD_BUDGET["targets"]
    queries: int = STANDARD_BUDGET["queries"]
    # what else to do for a model of too few classes
    alternative: ClassVar[str] = "; or find minimal norms with --protocol crossing"

    def __post_init__(self):
        unknown = [name for name in self.attacks if name not in AUTOATTACK]
        if unknown or not self.attacks:
            raise AttackError(
                f"attack {unknown[:1] or '(none)'}: the attacks are {', '.join(AUTOATTACK)}"
            )
        if min(self.steps, self.targets, self.queries) < 1:
            raise AttackError(f"{self.name}: steps, targets and queries have to be at least 1")

    @property
    def name(self) -> str:
        """`AutoAttack standard` for the standard budget only, else `reduced: ...`."""
        return STANDARD_NAME if self == Budget() else f"reduced: {self.listed}"

    @property
    def listed(self) -> str:
        """The attacks and what each may spend: `apgd-ce(100) + apgd-t(9x100)`."""
        targeted = f"{self.targets}x{self.steps}"
        cost = {
            "apgd-ce": str(self.steps),
            "apgd-t": targeted,
            "fab-t": targeted,
            "square": str(self.queries),
        }
        return " + ".join(f"{name}({cost[name]})" for name in self.attacks)

    def build(self, norm: str) -> list[Attack[EpsProgress]]:
        """The attacks in "Linf" or "L2"."""
        return [self._build(name, norm) for name in self.attacks]

    def _build(self, name: str, norm: str) -> Attack[EpsProgress]:
        if name == "apgd-ce":
            return APGD(norm, self.steps, targeted=False)
        if name == "apgd-t":
            return APGD(norm, self.steps, targeted=True, runs=self.targets)
        if name == "fab-t":
            return FAB(norm, self.steps, runs=self.targets)
        return Square(norm, self.queries)

    def cost_of(self, attack: str) -> tuple[int, int]:
        """Forward and backward passes of an attack on an image that survives it, at most."""
        return {
            "apgd-ce": (self.steps + 1, self.steps),
            "apgd-t": (self.targets * (self.steps + 1), self.targets * self.steps),
            "fab-t": (self.targets * 2 * self.steps, self.targets * 2 * self.steps),
            "square": (self.queries + 1, 0),
        }[attack]

    def check(self, n_outputs: int, first: str = "") -> None:
        """Raise AttackError if the model has too few classes for an attack's loss or targets.

        first   options that have to stand before those that the message advises
        """
        targeted = [name for name in self.attacks if name in ("apgd-t", "fab-t")]
        if "apgd-t" in targeted and n_outputs < DLR_CLASSES:
            raise AttackError(
                f"apgd-t needs at least {DLR_CLASSES} classes (its DLR loss compares the 1st, 3rd "
                f"and 4th logit), the model has {n_outputs} outputs; leave it out: "
                f"{first}{self._without_apgd_t(n_outputs)}{self.alternative}"
            )
        if targeted and self.targets > n_outputs - 1:
            raise AttackError(
                f"{targeted[0]}: {self.targets} targets, but {n_outputs} classes leave "
                f"{n_outputs - 1}; give it {first}--targets {n_outputs - 1}"
            )

    def _without_apgd_t(self, n_outputs: int) -> str:
        """The options for the other attacks of the budget on a model of so many classes."""
        others = [name for name in self.attacks if name != "apgd-t"] or ["apgd-ce"]
        targets = f" --targets {min(self.targets, n_outputs - 1)}" if "fab-t" in others else ""
        return f"--attacks {' '.join(others)}{targets}"


# ---- verdicts ----------------------------------------------------------------------------------


def run_autoattack(
    model: AttackedModel,
    source: ImageStream,
    norm: str,
    eps: Sequence[float],
    budget: Budget,
    begun: dict[str, list[dict]] | None = None,
    wanted: dict[str, list[float]] | None = None,
) -> Iterator[list[dict]]:
    """AutoAttack's verdicts. Yields lists of `ball` record rows, images in any order.

    norm     "Linf" or "L2"
    eps      radii in pixel units of [0, 1]; several are searched together (`EpsSearch`)
    begun    rows that an earlier session wrote, by image id; the search continues after them
    wanted   image id -> those of `eps` at which it is attacked, ascending; None: all
    Raises AttackError for bad images, labels or logits, and for a budget that needs more classes.
    """
    budget.check(model.n_outputs)
    exact = model.exact_forward()
    stages: list[Attack] = [*budget.build(norm)]
    estimate = estimate_of(budget, norm, eps)
    if estimate:
        stages.append(estimate)
    search = EpsSearch(
        budget.attacks,
        eps,
        norm,
        confirm_in_float32(exact, norm),
        lambda batch: images_to_attack(model, exact, batch, EpsProgress),
        begun,
        estimate.name if estimate else None,
        wanted,
    )
    yield from run_stages(source, stages, model.forward(), search)
    warn_of_zero_gradients(search.zero_gradient_ids, model.log)


def warn_of_zero_gradients(ids: set[str], log: Callable[[str], None]) -> None:
    if ids:
        log(
            f"{len(ids)} image(s) had a zero gradient at a start point of APGD, "
            f"e.g. {min(ids)}: white-box attacks cannot work there"
        )


def estimate_of(budget: Budget, norm: str, eps: Sequence[float]) -> BoundaryCrossing | None:
    """The walk that estimates a minimal norm, to attack the nearest eps first.

    None for one eps, and for budgets that cost no more than a few walks.
    """
    walk = BoundaryCrossing(norm, ESTIMATE_STEPS)
    passes = sum(sum(budget.cost_of(attack)) for attack in budget.attacks)
    pays = passes >= LEAST_WALKS * (2 * ESTIMATE_STEPS + 1)
    return walk if pays and sum(radius > 0 for radius in eps) > 1 else None


def masked_gradient_warnings(rows: pd.DataFrame) -> list[str]:
    """Square succeeding where white-box attacks failed indicates gradient masking.

    rows   `ball` record rows of a model; warns as the reference does, above SQUARE_SHARE
    """
    if "broken_by" not in rows or "square" not in set(rows["broken_by"].dropna()):
        return []
    worst = (rows["broken_by"] == "square").groupby(rows["eps"]).mean().max()
    if worst <= SQUARE_SHARE:
        return []
    return [
        f"square broke {worst:.1%} of the images after the white-box attacks failed: "
        "masked gradients?"
    ]
