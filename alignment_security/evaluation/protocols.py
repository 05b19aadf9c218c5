"""The protocols of each threat, the options that they read, and the threat of a request."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.autoattack import Budget
from alignment_security.attacks.libraries import FOOLBOX
from alignment_security.evaluation.threats.autoattack import AutoAttack, ReferenceAutoAttack
from alignment_security.evaluation.threats.clean import Clean, Corruptions
from alignment_security.evaluation.threats.foolbox import Foolbox
from alignment_security.evaluation.threats.minimum_norm import Crossing, FastMinimumNorm
from alignment_security.evaluation.threats.rand import RandomAutoAttack
from alignment_security.evaluation.threats.saliency import Saliency
from alignment_security.evaluation.threats.screened import Screened
from alignment_security.evaluation.threats.threat import FAST_OPTIONS, MAP_OPTIONS, Threat

CLEAN_THREATS: dict[str, type[Threat]] = {
    "clean": Clean,
    "corruptions": Corruptions,
    "saliency": Saliency,
}


class Protocol(NamedTuple):
    """A value of --protocol: its threat, its default --steps, and what it does, in words."""

    threat: type[Threat]
    steps: int
    purpose: str


OF_FOOLBOX = {
    "feng2025": "foolbox's FMN as Feng 2025 ran it, whose norms are not minimal",
    "ddn": "foolbox's DDN",
    "cw": "foolbox's Carlini-Wagner",
    "deepfool": "foolbox's DeepFool",
}
PROTOCOLS = {
    "autoattack": Protocol(AutoAttack, Budget().steps, "robust accuracy within --eps"),
    "fmn": Protocol(
        FastMinimumNorm, FastMinimumNorm.steps, "minimal norms as in Pintor et al. 2021"
    ),
    "crossing": Protocol(Crossing, Crossing.steps, "minimal norms in a tenth of fmn's passes"),
    **{
        name: Protocol(Foolbox, FOOLBOX[name][1]["steps"], purpose)
        for name, purpose in OF_FOOLBOX.items()
    },
}
# --budget and --engine of autoattack
AUTOATTACKS: dict[tuple[str, str], type[Threat]] = {
    ("standard", "own"): AutoAttack,
    ("standard", "reference"): ReferenceAutoAttack,
    ("rand", "own"): RandomAutoAttack,
    ("screened", "own"): Screened,
}
# norm -> its protocols, the default first
NORM_PROTOCOLS = {
    "Linf": ("autoattack", "fmn", "crossing"),
    "L2": ("crossing", "fmn", *OF_FOOLBOX, "autoattack"),
    "L1": ("fmn",),
}
THREATS = (*CLEAN_THREATS, *NORM_PROTOCOLS)
# options that some protocol does not read; all other options are read by every protocol
PROTOCOL_OPTIONS = frozenset().union(
    *(threat.options for threat in CLEAN_THREATS.values()),
    *(protocol.threat.options for protocol in PROTOCOLS.values()),
)
# of these, options of the run: a script may give them to every threat, so they are only remarked on
RUN_OPTIONS = MAP_OPTIONS | FAST_OPTIONS | {"examples", "multilabel"}


def threat_class(threat: str, protocol: str | None) -> type[Threat]:
    return CLEAN_THREATS.get(threat) or PROTOCOLS[protocol or default_protocol(threat)].threat


def threat_from_args(args: argparse.Namespace) -> Threat:
    """The threat that a command line asks for. Raises AttackError for an impossible attack."""
    threat: type[Threat] | None = threat_class(args.threat, args.protocol)
    if args.protocol == "autoattack":
        threat = AUTOATTACKS.get((args.budget, args.engine))
    if threat is None:
        raise AttackError(f"--budget {args.budget}: not with --engine {args.engine}")
    return threat.from_args(args)


def default_protocol(norm: str, eps: list[float] | None = None) -> str:
    """The protocol without --protocol: AutoAttack where eps are given, else the norm's first."""
    protocols = NORM_PROTOCOLS[norm]
    return "autoattack" if eps and "autoattack" in protocols else protocols[0]


# ---- options -------------------------------------------------------------------------------------


def options_of(threat: str) -> frozenset[str]:
    """The PROTOCOL_OPTIONS that some protocol of a threat reads."""
    protocols = NORM_PROTOCOLS.get(threat, (None,))
    return frozenset().union(*(threat_class(threat, protocol).options for protocol in protocols))


def unread_options(args: argparse.Namespace, named: set[str]) -> dict[str, str]:
    """The options that a request would ignore -> a sentence that says who reads them.

    named   `dest` of the options that the command line names
    """
    threat, protocol = args.threat, args.protocol
    unread = (named & PROTOCOL_OPTIONS) - threat_class(threat, protocol).options
    request = threat if protocol is None else f"{threat} --protocol {protocol}"
    said = {
        option: f"--{option}: {request} does not read it; it belongs to "
        + " or ".join(readers_of(option, threat))
        for option in sorted(unread)
    }
    if args.engine == ReferenceAutoAttack.engine:
        said |= {
            option: f"--{option}: --engine reference does not read it; it belongs to --engine own"
            for option in sorted(named & FAST_OPTIONS - unread)
        }
    return said


def readers_of(option: str, threat: str) -> list[str]:
    """The protocols of a norm that read an option, else the threats that do."""
    protocols = NORM_PROTOCOLS.get(threat, ())
    readers = [
        f"--protocol {name}" for name in protocols if option in PROTOCOLS[name].threat.options
    ]
    return readers or [other for other in THREATS if option in options_of(other)]
