"""Options of other tools that evaluate_robustness.py has under another name."""

from __future__ import annotations

from collections.abc import Sequence

from alignment_security.common.command_line import Parser

# what to write -> the option's names in RobustBench, AutoAttack, timm, foolbox and torchattacks
HINTS = {
    "the norm is the threat, `Linf --eps 8/255` or `L2 --eps 0.5`": (
        "norm p threat threat_model threat_models"
    ),
    "the number of images is -s N": (
        "n n_ex n_examples n_samples n_images num_examples num_samples num_images limit max_images "
        "subset_size n_test"
    ),
    "radii are --eps 4/255 8/255": "e epsilon epsilons epsilon_list epsilon_values",
    "gradient steps are --steps N": (
        "n_iter n_iters iterations nb_iter num_steps n_steps max_iter"
    ),
    "the standard AutoAttack is what `Linf --eps 8/255` runs; others are --budget, --attacks and "
    "--steps": "version attack attacks_to_run adversary autoattack",
    "Square's queries are --queries N": "n_queries num_queries",
    "target classes are --targets N": "n_target_classes n_targets",
    "nearest: --model_name": "m arch net model",
    "your weights are --architecture TIMM_NAME --checkpoint FILE": (
        "model_path weights ckpt resume initial_checkpoint model_dir"
    ),
    "images are --dataset NAME --data_dir DIR": "d data data_path root",
    "nearest: --batch_size": "b bs test_batch_size",
    "nearest: --workers": "j num_workers",
    "nearest: --device": "gpu gpus cuda",
    "--precision bf16 or tf32": "amp fp16 half bf16 amp_dtype",
    "results go to --results_dir DIR": "output output_dir out save_dir log_path results_file",
    "preprocessing is the model's own (docs/models.md)": (
        "img_size input_size crop_pct mean std interpolation preprocessing"
    ),
    "a network has as many classes as its checkpoint": "num_classes",
    "a timm name always has its public weights": "pretrained",
}
HABITS = {name: hint for hint, names in HINTS.items() for name in names.split()}


def refuse_unknown_options(parser: Parser, argv: Sequence[str]) -> None:
    """Exit with status 2 and one line for options that no threat has, before anything else is said.

    parser   with the options of all threats
    The values of such options may be taken for the threat, as that of `--norm Linf`.
    """
    unknown = parser.unknown_options(argv)
    hints = [HABITS.get(habit_name(name)) or parser.nearest(name) for name in unknown]
    if len(unknown) > 1:
        hints = [f"{name}: {hint}" if hint else "" for name, hint in zip(unknown, hints)]
    if unknown:
        parser.error(
            "; ".join([f"unrecognized arguments: {' '.join(unknown)}", *filter(None, hints)])
        )


def habit_name(option: str) -> str:
    """`n_examples` of `--n-examples`."""
    return option.lstrip("-").replace("-", "_").lower()
