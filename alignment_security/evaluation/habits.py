"""Options of other tools that evaluate_robustness.py has under another name."""

from __future__ import annotations

from collections.abc import Sequence

from alignment_security.common.command_line import Parser

THREAT = "the norm is the threat, `Linf --eps 8/255` or `L2 --eps 0.5`"
IMAGES = "the number of images is -s N"
EPS = "radii are --eps 4/255 8/255"
STEPS = "gradient steps are --steps N"
BUDGET = (
    "the standard AutoAttack is what `Linf --eps 8/255` runs; others are --budget, --attacks and "
    "--steps"
)
RESULTS = "results go to --results_dir DIR"
PRECISION = "--precision bf16 or tf32"
# name of an option, as of RobustBench, AutoAttack, timm, foolbox, torchattacks -> what to write
HABITS = {
    **dict.fromkeys(("norm", "p", "threat", "threat_model", "threat_models"), THREAT),
    **dict.fromkeys(
        ("n", "n_ex", "n_examples", "n_samples", "n_images", "num_examples", "num_samples"), IMAGES
    ),
    **dict.fromkeys(("num_images", "limit", "max_images", "subset_size", "n_test"), IMAGES),
    **dict.fromkeys(("e", "epsilon", "epsilons", "epsilon_list", "epsilon_values"), EPS),
    **dict.fromkeys(
        ("n_iter", "n_iters", "iterations", "nb_iter", "num_steps", "n_steps", "max_iter"), STEPS
    ),
    **dict.fromkeys(("version", "attack", "attacks_to_run", "adversary", "autoattack"), BUDGET),
    **dict.fromkeys(("n_queries", "num_queries"), "Square's queries are --queries N"),
    **dict.fromkeys(("n_target_classes", "n_targets"), "target classes are --targets N"),
    **dict.fromkeys(("m", "arch", "net", "model"), "nearest: --model_name"),
    **dict.fromkeys(
        ("model_path", "weights", "ckpt", "resume", "initial_checkpoint", "model_dir"),
        "your weights are --architecture TIMM_NAME --checkpoint FILE",
    ),
    **dict.fromkeys(("d", "data", "data_path", "root"), "images are --dataset NAME --data_dir DIR"),
    **dict.fromkeys(("b", "bs", "test_batch_size"), "nearest: --batch_size"),
    **dict.fromkeys(("j", "num_workers"), "nearest: --workers"),
    **dict.fromkeys(("gpu", "gpus", "cuda"), "nearest: --device"),
    **dict.fromkeys(("amp", "fp16", "half", "bf16", "amp_dtype"), PRECISION),
    **dict.fromkeys(
        ("output", "output_dir", "out", "save_dir", "log_path", "results_file"), RESULTS
    ),
    **dict.fromkeys(
        ("img_size", "input_size", "crop_pct", "mean", "std", "interpolation", "preprocessing"),
        "preprocessing is the model's own (docs/models.md)",
    ),
    "num_classes": "a network has as many classes as its checkpoint",
    "pretrained": "a timm name always has its public weights",
}


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
