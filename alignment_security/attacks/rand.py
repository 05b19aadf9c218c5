"""AutoAttack on random networks: `--budget rand`, after the `rand` version of fra31/auto-attack.

Every point is asked about `draws` times. APGD ascends the mean loss of the draws (expectation over
transformation, Athalye et al. 2018). An image is fooled when more than half of new draws at a point
are wrong, beyond chance: one lucky draw in a thousand points proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import torch
from scipy.stats import binom, binomtest
from torch import Tensor, nn

from alignment_security.attacks.apgd import APGD
from alignment_security.attacks.attack import (
    Attack,
    AttackedImage,
    AttackError,
    EpsProgress,
    Finding,
    Rows,
    State,
)
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget, warn_of_zero_gradients
from alignment_security.attacks.clean import ImageStream, clean_columns, clean_pass
from alignment_security.attacks.engine import Confirm, run_stages
from alignment_security.attacks.eps_search import EpsSearch
from alignment_security.attacks.geometry import ORDER, exact_norm
from alignment_security.common.pixels import in_unit_range
from alignment_security.common.verdicts import RAND_ATTACKS, inside_ball
from alignment_security.models.draws import DrawnForward, draws_differ_in_a_batch, share_wrong
from alignment_security.models.forward import device_of

DRAWS = 20  # eot_iter of the reference
# Draws of a confirmation: it goes on to the next number while the majority is wrong, but not
# beyond chance.
CONFIRMATIONS = (20, 80, 320)
FALSE_SUCCESS = 0.01  # bound on the chance that an image is called fooled at an eps and is not
SHARE_COLUMNS = ("draws", "wrong_share", "wrong_low", "wrong_high")
CONFIDENCE = 0.95  # of the interval of the share of wrong draws, exact (Clopper & Pearson 1934)


@dataclass(frozen=True)
class RandomBudget(Budget):
    """What is spent on an image of a random network that nothing fools.

    draws   of the network at every point
    The reference's `rand` version has the untargeted DLR loss where this has APGD-T.
    """

    attacks: tuple[str, ...] = RAND_ATTACKS
    draws: int = DRAWS
    alternative: ClassVar[str] = ""  # no attack for minimal norms takes a random network

    def __post_init__(self):
        super().__post_init__()
        other = [name for name in self.attacks if name not in RAND_ATTACKS]
        if other:
            raise AttackError(
                f"attack {other[0]}: --budget rand has {' and '.join(RAND_ATTACKS)}; the others "
                "take no expectation over draws"
            )
        if self.draws < 2:
            raise AttackError(f"draws {self.draws}: a random network needs at least 2")

    @property
    def name(self) -> str:
        return f"rand: {self.listed} of {self.draws} draws"

    @property
    def looks(self) -> int:
        """At how many points of an image and eps a confirmation is tried at most."""
        return sum(attack.runs for attack in self.build("Linf")) * ((self.draws + 1) // 2) + 1

    def _build(self, name: str, norm: str) -> Attack[EpsProgress]:
        if name == "apgd-ce":
            return ExpectedAPGD(norm, self.steps, targeted=False)
        return ExpectedAPGD(norm, self.steps, targeted=True, runs=self.targets)


class ExpectedAPGD(APGD):
    """APGD on the mean loss of the draws. Logits are (B, draws, K) in `look` and `update`.

    The reference compares the loss of the last draw; the mean of all is less noisy.
    """

    def start(self, images: list[AttackedImage[EpsProgress]]) -> State:
        """Rows as APGD's. Key besides: most_wrong (B,), the largest share of wrong draws so far."""
        state = super().start(images)
        return state | {"most_wrong": torch.zeros_like(state["eps"])}

    def loss(self, state: State, logits: Tensor, rows: Rows) -> Tensor:
        """As APGD's, (b,); of logits (b, draws, K) the mean over the draws."""
        if logits.ndim == 2:
            return super().loss(state, logits, rows)
        draws = logits.shape[1]
        each = torch.arange(len(state["y"]), device=logits.device)[rows].repeat_interleave(draws)
        return super().loss(state, logits.flatten(0, 1), each).view(-1, draws).mean(1)

    def look(self, state: State, logits: Tensor) -> list[Tensor]:
        """Points at which most draws are wrong, and more than at any earlier one of the run.

        So a run has at most (draws + 1) / 2 candidates, and few confirmations succeed by chance.
        """
        share = share_wrong(logits, state["y"])
        rises = (share > 0.5) & (share > state["most_wrong"])
        state["most_wrong"] = torch.maximum(state["most_wrong"], share)
        return [rises, state["zero_gradient"]]


# ---- confirmation --------------------------------------------------------------------------------


@dataclass(frozen=True)
class MajorityFinding(Finding):
    """A point at which most draws of the float32 model are wrong, beyond chance."""

    wrong: int  # draws of the confirmation that were wrong
    draws: int

    def columns(self) -> dict[str, Any]:
        return super().columns() | share_columns(self.wrong, self.draws)


def share_columns(wrong: int, draws: int) -> dict[str, Any]:
    """Number of draws, the share that was wrong, and its interval at CONFIDENCE."""
    interval = binomtest(wrong, draws).proportion_ci(CONFIDENCE, method="exact")
    values = (draws, wrong / draws, float(interval.low), float(interval.high))
    return dict(zip(SHARE_COLUMNS, values))


def wrong_classes(
    ask: Callable[[int], list[int]], label: int, level: float
) -> tuple[list[int], int] | None:
    """The wrong classes among the draws at a point, and the number of draws; None if not confirmed.

    ask     number of draws -> their classes
    level   chance that a point of which half of all draws are wrong is confirmed, at most
    """
    wrong: list[int] = []
    drawn = 0
    for total in CONFIRMATIONS:
        wrong += [prediction for prediction in ask(total - drawn) if prediction != label]
        drawn = total
        if binom.sf(len(wrong) - 1, drawn, 0.5) <= level / len(CONFIRMATIONS):
            return wrong, drawn
        if 2 * len(wrong) <= drawn:
            return None
    return None


def confirm_by_majority(module: nn.Module, norm: str, key: str, level: float) -> Confirm:
    """The `confirm` of `run_stages` for one image of a random network.

    module   float32 model
    key      seeds the draws, which are passes of one row: no two share what the network may draw
             once for a batch
    level    see `wrong_classes`
    """
    asked = count()

    def confirm_one(image: AttackedImage, point: Tensor, broken_by: str) -> Finding | None:
        delta = (point - image.x)[None]
        size, linf, l2 = (float(exact_norm(delta, ORDER[name])) for name in (norm, "Linf", "L2"))
        if not inside_ball(size, image.eps):
            return None

        def ask(draws: int) -> list[int]:
            image.forwards += draws
            forward = DrawnForward(module, draws, f"{key}|{next(asked)}", together=False)
            return forward.logits(point[None])[0].argmax(1).tolist()

        found = wrong_classes(ask, image.label, level)
        if found is None:
            return None
        wrong, draws = found
        most_frequent = max(sorted(set(wrong)), key=wrong.count)
        return MajorityFinding(
            most_frequent, linf, l2, delta[0], broken_by, image.eps, len(wrong), draws
        )

    def confirm(
        images: list[AttackedImage], points: Tensor, broken_by: str
    ) -> list[Finding | None]:
        return [confirm_one(image, point, broken_by) for image, point in zip(images, points)]

    return confirm


# ---- verdicts ------------------------------------------------------------------------------------


def asked_image(
    forward: DrawnForward, confirm: Confirm, n_outputs: int, seed: int
) -> Callable[[list], list[AttackedImage[EpsProgress]]]:
    """The `to_attack` of `EpsSearch` for one image of a random network.

    It is misclassified if `confirm` says so of the image itself: then it has the columns of the
    share. Its logits, by which targets are chosen, are the mean of the draws.
    """

    def to_attack(batch: list) -> list[AttackedImage[EpsProgress]]:
        x, logits, _ = clean_pass(forward, batch, n_outputs)
        ((name, _, label),) = batch
        clean = clean_columns(name, label, label)
        image = AttackedImage(
            name,
            x[0],
            label,
            logits[0].mean(0),
            EpsProgress(),
            clean,
            seed,
            forwards=forward.draws,
        )
        (finding,) = confirm([image], x, "clean")
        if finding is not None:
            columns = finding.columns()
            image.clean = clean_columns(name, label, finding.adv_pred)
            image.clean |= {column: columns[column] for column in SHARE_COLUMNS}
        return [image]

    return to_attack


def run_rand(
    model: AttackedModel,
    source: ImageStream,
    norm: str,
    eps: Sequence[float],
    budget: RandomBudget,
    begun: dict[str, list[dict]] | None = None,
) -> Iterator[list[dict]]:
    """Verdicts on a random network. Yields lists of `ball_rand` record rows, an image's together.

    Parameters and errors as of `run_autoattack`. An image goes through the attacks alone, in
    batches of its draws. `begun` rows are not given again: an image with some of its rows is
    attacked anew, from the same seeds.
    """
    budget.check(model.n_outputs)
    module, seed = model.module, model.seed
    together: bool | None = None
    zero_gradient_ids: set[str] = set()
    for name, x, label in source:
        if together is None:
            on_device = in_unit_range(x[None].to(device_of(module)))
            together = draws_differ_in_a_batch(module, on_device)
        key = f"{seed}|{name}"
        forward = DrawnForward(module, budget.draws, key, together, model.log)
        level = FALSE_SUCCESS / budget.looks
        confirm = confirm_by_majority(model.exact or module, norm, f"{key}|confirm", level)
        to_attack = asked_image(forward, confirm, model.n_outputs, seed)
        search = EpsSearch(budget.attacks, eps, norm, confirm, to_attack)
        stages = run_stages([(name, x, label)], budget.build(norm), forward, search)
        done = {row["eps"] for row in (begun or {}).get(name, [])}
        yield [row for rows in stages for row in rows if row["eps"] not in done]
        zero_gradient_ids |= search.zero_gradient_ids
    warn_of_zero_gradients(zero_gradient_ids, model.log)
