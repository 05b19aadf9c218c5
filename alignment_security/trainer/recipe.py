"""A training recipe: objective, optimiser, schedule and seed, built once from the command line.

lists/training/*.txt hold recipes as command lines, one per line.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from alignment_security.common.files import UserError
from alignment_security.common.text import text_lines, words_of_line


@dataclass(frozen=True)
class Harmonizer:
    """The term lambda_1 * harmonizer_loss(form) of a loss (objectives.FORMS)."""

    form: str
    lambda_1: float


@dataclass(frozen=True)
class AdversarialAttack:
    """PGD's settings (pgd.pgd); eps and step_size in pixel units of [0, 1], None: 2/3 eps."""

    norm: str
    eps: float
    steps: int
    step_size: float | None
    random_start: bool


@dataclass(frozen=True)
class Objective:
    """What a step minimises: cross-entropy, plus the harmonizer's term if there is one.

    attack       both are computed at the adversarial examples of this attack; None: at the images
    smoothing    label smoothing of the cross-entropy
    """

    harmonizer: Harmonizer | None
    attack: AdversarialAttack | None
    smoothing: float

    @classmethod
    def from_args(cls, args: Namespace) -> Objective:
        harmonizer = attack = None
        if args.objective in ("harmonizer", "both"):
            harmonizer = Harmonizer(args.form, args.lambda_1)
        if args.objective in ("adversarial", "both"):
            attack = AdversarialAttack(
                args.norm, args.eps, args.attack_steps, args.attack_step, args.random_start
            )
        return cls(harmonizer, attack, args.smoothing)


@dataclass(frozen=True)
class Optimisation:
    """timm's optimiser and learning-rate schedule, gradient clipping, and the average of weights.

    optimizer, schedule   names of timm
    weight_decay          as the optimiser applies it (--lambda_2); not applied to biases
    clip_grad             largest L2 norm of the gradient; None or 0: not clipped
    ema                   decay of the exponential moving average of the weights; 0: no average
    """

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    epochs: int
    decay_epochs: int
    decay_rate: float
    warmup_epochs: int
    clip_grad: float | None
    ema: float

    @classmethod
    def from_args(cls, args: Namespace) -> Optimisation:
        return cls(
            optimizer=args.optimizer,
            lr=args.lr,
            momentum=args.momentum,
            weight_decay=args.lambda_2,
            schedule=args.schedule,
            epochs=args.epochs,
            decay_epochs=args.decay_epochs,
            decay_rate=args.decay_rate,
            warmup_epochs=args.warmup_epochs,
            clip_grad=args.clip_grad,
            ema=args.ema,
        )


@dataclass(frozen=True)
class Recipe:
    """Everything that a training step depends on besides the network and its images.

    batch_size   images per step, over all processes
    pass_size    images per forward pass; None: all images of this process at once
    precision    one of models.fast.PRECISIONS
    log_every    steps per row of log.csv
    """

    name: str
    objective: Objective
    optimisation: Optimisation
    batch_size: int
    pass_size: int | None
    precision: str
    seed: int
    log_every: int

    @classmethod
    def from_args(cls, args: Namespace) -> Recipe:
        """The recipe of a command line that options.parse_args has parsed and checked."""
        return cls(
            name=args.name or f"{args.model_name}-{args.objective}",
            objective=Objective.from_args(args),
            optimisation=Optimisation.from_args(args),
            batch_size=args.batch_size,
            pass_size=args.pass_size,
            precision=args.precision,
            seed=args.seed,
            log_every=args.log_every,
        )


def recipe_options(reference: str) -> list[str]:
    """Options of the recipe FILE:NAME: the line of FILE with `--name NAME`.

    Raises ValueError for another reference, and UserError for a wrong line of the file.
    """
    file, _, name = reference.rpartition(":")
    if not file or not Path(file).is_file():
        raise ValueError(
            f"--recipe {reference}: must be FILE:NAME, "
            "e.g. lists/training/robust.txt:resnet50_l2_eps0.5"
        )
    recipes: dict[str, list[str]] = {}
    for number, line in enumerate(text_lines(file), start=1):
        options = words_of_line(file, number, line)
        if "--name" not in options:
            continue
        own = next(iter(options[options.index("--name") + 1 :]), "")
        if not own or own in recipes:
            raise UserError(f"{file}, line {number}: --name {own}: give it a name of its own")
        recipes[own] = options
    if name not in recipes:
        raise ValueError(f"{file}: no recipe {name!r}; there are {', '.join(recipes)}")
    return recipes[name]
