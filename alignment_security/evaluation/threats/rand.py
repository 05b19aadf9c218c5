"""Verdicts within eps on random networks, `--budget rand`."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import ClassVar

from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.autoattack import Budget
from alignment_security.attacks.clean import ImageStream
from alignment_security.attacks.rand import CONFIRMATIONS, RandomBudget, run_rand
from alignment_security.evaluation.threats.autoattack import AutoAttack
from alignment_security.evaluation.threats.threat import Cost, Execution, RecordRows
from alignment_security.models.heads import Model


@dataclass(frozen=True)
class RandomAutoAttack(AutoAttack):
    """APGD with the expectation over draws, and verdicts by the majority of new draws.

    budget   attacks, their steps, and the draws at every point
    """

    budget: RandomBudget = RandomBudget()
    kind: ClassVar[str] = "ball_rand"
    takes_random_models: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"{self.norm}-rand"

    def settings(self, head: str) -> dict:
        settings = super().settings(head) | {"draws": self.budget.draws}
        del settings["queries"]
        return settings

    def cost(self) -> tuple[Cost, Cost]:
        """Draws count as passes. A point that fools is confirmed by CONFIRMATIONS[0] of them."""
        draws, first = self.budget.draws, CONFIRMATIONS[0]
        (_, backwards), (most_forwards, most_backwards) = super().cost()
        least = (2 * draws + 2 * first, backwards * draws)
        return least, ((most_forwards - 1) * draws + first, most_backwards * draws)

    def _estimate(self) -> None:
        """The eps are attacked in ascending order."""

    def run(self, model: Model, images: ImageStream, execution: Execution) -> RecordRows:
        attacked, known = self.attacked_model(model, execution), execution.known_rows
        return run_rand(attacked, images, self.norm, self.eps, self.budget, known)

    @classmethod
    def from_args(cls, args: Namespace) -> RandomAutoAttack:
        """Raises AttackError for an impossible budget."""
        if args.queries != Budget().queries:
            raise AttackError("--budget rand: --queries belongs to square, which it does not run")
        attacks = tuple(args.attacks or RandomBudget().attacks)
        budget = RandomBudget(attacks, args.steps, args.targets)
        return cls(args.threat, args.eps, budget, args.seed)
