"""The command line of evaluate_robustness.py, and the threat that it asks for.

A request that makes no sense is refused here, before anything is loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise, product

from alignment_security.attacks.attack import AttackError
from alignment_security.common.command_line import Parser, positive_int
from alignment_security.common.files import UserError
from alignment_security.common.process import print_line
from alignment_security.evaluation.habits import refuse_unknown_options
from alignment_security.evaluation.protocols import (
    NORM_PROTOCOLS,
    PROTOCOL_OPTIONS,
    PROTOCOLS,
    RUN_OPTIONS,
    THREATS,
    default_protocol,
    options_of,
    threat_from_args,
    unread_options,
)
from alignment_security.evaluation.run_options import (
    add_image_options,
    add_model_options,
    add_run_options,
)
from alignment_security.evaluation.threats.autoattack import add_autoattack_options
from alignment_security.evaluation.threats.minimum_norm import add_fmn_options
from alignment_security.images.image_sets import check_folder_is_read
from alignment_security.models.sources import STAGED_SOURCES, TIMM
from alignment_security.records.metrics import ALEXNET_ERRORS

# threat -> what it measures, and an example
DESCRIPTIONS = {
    "clean": ("accuracy on the images as they are", "clean"),
    "corruptions": (
        "accuracy on corrupted images (ImageNet-C's: of a folder, or made while loading)",
        "corruptions --corruption_type fog --corruption_severity 3",
    ),
    "saliency": ("rank correlation of the input gradient with human maps", "saliency"),
    "Linf": (
        "robust accuracy within eps by AutoAttack, or minimal norms (--protocol crossing, fmn)",
        "Linf --eps 0.5/255 1/255",
    ),
    "L2": (
        "minimal norms by crossing (--protocol crossing, fmn, ...); with --eps robust accuracy by "
        "AutoAttack",
        "L2",
    ),
    "L1": ("minimal norms by FMN", "L1 --steps 1000"),
}

SLIP_FOR_A_THREAT = 0.7  # similarity of a word and the threat that it is a slip for


# ---- options -------------------------------------------------------------------------------------


def get_args_parser(threat: str | None, description: str) -> Parser:
    """The options of a threat and those of every run; without a threat, the latter.

    Options that only other threats read are hidden: they are parsed, so that their error can say
    where they belong.
    """
    script = "evaluate_robustness.py"
    parser = Parser(
        prog=script if threat is None else f"{script} {threat}",
        usage=f"{script} --model_name NAME [options] {threat or 'THREAT'} [options]",
    )
    if threat is None:
        parser.description = f"{description}\n{threats_text()}"
        parser.add_argument("threat", metavar="THREAT", choices=THREATS, help="see above")
    else:
        purpose, example = DESCRIPTIONS[threat]
        model = "--model_name tf_efficientnet_lite0"
        parser.description = f"{threat}: {purpose}.\n\n    python {script} {model} {example}"
        add_attack_options(parser, threat)
    add_model_options(parser.add_argument_group("model"))
    add_image_options(parser.add_argument_group("images"))
    add_run_options(parser.add_argument_group("run"))
    if threat:
        parser.hide(PROTOCOL_OPTIONS - options_of(threat))
    return parser


def threats_text() -> str:
    lines = [f"  {name:12} {purpose}" for name, (purpose, _) in DESCRIPTIONS.items()]
    return "\n".join(
        ["threats (options of a threat: evaluate_robustness.py THREAT --help):", *lines]
    )


def add_attack_options(parser: Parser, threat: str) -> None:
    """The options of all threats. --protocol decides which of them are read."""
    group = parser.add_argument_group("corruptions")
    group.add_argument(
        "--corruption_type",
        nargs="+",
        metavar="TYPE",
        help="gaussian_noise, fog, ...; all: the 15 of ImageNet-C; an unknown one lists them",
    )
    group.add_argument(
        "--corruption_severity",
        nargs="+",
        type=positive_int,
        metavar="N",
        help="1 to 5; several with several types: each with each",
    )
    protocols = NORM_PROTOCOLS.get(threat, ())
    group = parser.add_argument_group("attack")
    group.add_argument(
        "--protocol", choices=protocols or None, metavar="NAME", help=protocols_text(protocols)
    )
    steps = ", ".join(f"{PROTOCOLS[name].steps} ({name})" for name in protocols)
    group.add_argument("--steps", type=positive_int, help=f"gradient steps; default {steps}")
    add_autoattack_options(parser, threat)
    add_fmn_options(parser)


def protocols_text(protocols: Sequence[str]) -> str:
    names = [f"{name}: {PROTOCOLS[name].purpose}" for name in protocols]
    with_eps = ", autoattack with --eps" if "autoattack" in protocols[1:] else ""
    return f"{'; '.join(names)} (default: {''.join(protocols[:1])}{with_eps})"


# ---- a request -----------------------------------------------------------------------------------


def parse_args(argv: list[str], description: str = "") -> argparse.Namespace:
    """Parse a command line, its options before and after the threat.

    Exits with status 2 and one line for a request that makes no sense.
    """
    threat, options = split_threat(argv)
    parser = get_args_parser(threat, description)
    if not {"-h", "--help"} & {*argv}:
        refuse_unknown_options(parser if threat else get_args_parser("Linf", description), argv)
        if threat is None:
            parser.error(no_threat(argv))
    if second := split_threat(options)[0]:
        parser.error(f"{threat} and {second}: one threat a command; a study has several (--study)")
    args = parser.parse_args(options)
    args.threat = threat
    set_requests(args)
    try:
        check_run_options(args)
        check_attack_options(args, parser.named(options))
        threat_from_args(args)
    except UserError as error:
        parser.error(str(error))
    return args


def split_threat(argv: list[str]) -> tuple[str | None, list[str]]:
    """The threat of a command line, and the other words.

    It is the first word that names one and is not the value of an option, as in `--dataset clean`.
    Options of several values do not count: in `--eps 1/255 Linf` Linf is the threat.
    """
    one_value = get_args_parser("Linf", "").options_of_one_value()
    for i, word in enumerate(argv):
        if word in THREATS and (i == 0 or argv[i - 1] not in one_value):
            return word, [*argv[:i], *argv[i + 1 :]]
    return None, argv


def no_threat(argv: list[str]) -> str:
    """What to say of a command line without a threat: the word that may be meant, or what lacks."""
    names = {name.casefold(): name for name in THREATS}
    for before, word in pairwise(["", *argv]):
        near = get_close_matches(word.casefold(), names, n=1, cutoff=SLIP_FOR_A_THREAT)
        if near and not before.startswith("--"):
            return f"no threat {word!r}; nearest: {names[near[0]]}"
    return (
        f"THREAT is missing: add one of {', '.join(THREATS)} before or after the options, e.g. "
        "`Linf --eps 1/255`"
    )


def set_requests(args: argparse.Namespace) -> None:
    """Note what is asked for in `models` and `corruptions`, and the first of each in its option."""
    types, severities = args.corruption_type or [], args.corruption_severity or []
    if types == ["all"]:
        types = list(ALEXNET_ERRORS)
    args.models = list(dict.fromkeys(args.model_name))
    args.corruptions = list(product(types, severities))
    args.model_name = args.models[0]
    args.corruption_type, args.corruption_severity = next(iter(args.corruptions), (None, None))


def single_requests(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """A request for each model and each corruption, the corruptions of a model in turn."""
    for model in args.models:
        for kind, severity in args.corruptions or [(None, None)]:
            one = {"model_name": model, "corruption_type": kind, "corruption_severity": severity}
            yield argparse.Namespace(**vars(args) | one)


def check_run_options(args: argparse.Namespace) -> None:
    """Raise UserError for options of models and images that exclude or need each other."""
    own_net = args.checkpoint or args.architecture
    if own_net and len(args.models) > 1:
        raise UserError(
            f"--model_name {' '.join(args.models)}: --checkpoint is of one model; evaluate each "
            "with its own command"
        )
    if ":" in args.source and len(args.models) > 1:
        raise UserError(
            f"--model_name {' '.join(args.models)}: --source {args.source} is of one model; "
            "evaluate each with its own command"
        )
    if args.architecture and not args.checkpoint and args.source == TIMM:
        raise UserError(
            f"--architecture {args.architecture}: a net of your own needs its weights, "
            "--checkpoint FILE"
        )
    if args.chtc and (own_net or args.source not in STAGED_SOURCES):
        raise UserError(
            "--chtc takes net and weights from STAGING_DIR; leave out --checkpoint, --architecture "
            "and --source, but for --source brainscore"
        )
    check_folder_is_read(args.dataset, args.data_dir)
    if args.subset and not args.slice:
        raise UserError(f"--subset {args.subset}: is an order of the images; say how many, -s STOP")


def check_attack_options(args: argparse.Namespace, named: set[str]) -> None:
    """Choose the default protocol and steps. Raise UserError for an attack without what it needs.

    named   `dest` of the options that the command line names, of which some may be ignored
    """
    if args.threat in NORM_PROTOCOLS:
        args.protocol = args.protocol or default_protocol(args.threat, args.eps)
        args.steps = args.steps or PROTOCOLS[args.protocol].steps
    for option, sentence in unread_options(args, named).items():
        if option not in RUN_OPTIONS:
            raise UserError(sentence)
        print_line(f"warning: {sentence}", sys.stderr)
    if args.protocol == "autoattack" and not args.eps:
        raise AttackError(
            f"{args.threat} needs --eps, e.g. --eps 1/255 2/255, or --protocol crossing for "
            "minimal norms"
        )
    if args.protocol == "feng2025" and args.steps != PROTOCOLS["feng2025"].steps:
        raise AttackError(
            "--protocol feng2025 is what was published: 1000 steps; for others use --protocol fmn"
        )
    if args.threat == "corruptions" and not (args.corruption_type and args.corruption_severity):
        raise AttackError("corruptions needs --corruption_type and --corruption_severity")
