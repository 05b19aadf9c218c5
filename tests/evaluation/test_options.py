"""The command line of an evaluation: where options may stand, and which of them are read."""

from __future__ import annotations

import argparse
import re
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest

from alignment_security.attacks.attack import AttackError
from alignment_security.common.command_line import Parser
from alignment_security.evaluation.habits import HABITS
from alignment_security.evaluation.options import (
    DESCRIPTIONS,
    get_args_parser,
    parse_args,
    single_requests,
)
from alignment_security.evaluation.protocols import (
    CLEAN_THREATS,
    NORM_PROTOCOLS,
    PROTOCOL_OPTIONS,
    PROTOCOLS,
    RUN_OPTIONS,
    THREATS,
    threat_class,
    threat_from_args,
)
from alignment_security.evaluation.threats.rand import RandomAutoAttack
from alignment_security.evaluation.threats.threat import FAST_OPTIONS

MODEL = ["--model_name", "net"]


def refusal(capsys, arguments: str) -> str:
    """The one line with which a request is refused."""
    with pytest.raises(SystemExit) as refused:
        parse_args([*MODEL, *arguments.split()])
    said = capsys.readouterr().err
    assert refused.value.code == 2 and said.count("\n") == 1
    return said


# ---- where options stand -------------------------------------------------------------------------


def test_options_stand_anywhere():
    """Options of the run and of the attack, before and after the threat, in any order."""
    parts = [MODEL, ["-s", "2", "7"], ["--eps", "1/255", "2/255"], ["Linf"], ["--dataset", "clean"]]
    wanted = vars(parse_args([word for part in parts for word in part]))
    assert wanted["threat"] == "Linf" and wanted["slice"] == (2, 7) and wanted["dataset"] == "clean"
    for order in permutations(parts):
        assert vars(parse_args([word for part in order for word in part])) == wanted


@pytest.mark.parametrize(
    "arguments, wanted", [("-s 5", (0, 5)), ("-s 2 7", (2, 7)), ("", None), ("-s 1 -s 2 3", (2, 3))]
)
def test_a_slice_has_one_number_or_two(arguments, wanted):
    assert parse_args([*MODEL, *arguments.split(), "clean"]).slice == wanted


def test_a_slice_of_three_numbers(capsys):
    assert "one number or two" in refusal(capsys, "-s 1 2 3 clean")


def test_an_option_of_several_values_may_come_twice():
    args = parse_args([*MODEL, *"Linf --eps 1/255 --steps 5 --eps 2/255 4/255".split()])
    assert args.eps == [1 / 255, 2 / 255, 4 / 255]
    chosen = parse_args([*MODEL, *"Linf --eps 0.1 --attacks square --attacks apgd-ce".split()])
    assert chosen.attacks == ["square", "apgd-ce"]  # not added to the default, which is all of them
    assert parse_args([*MODEL, "--seed", "1", "--seed", "2", "clean"]).seed == 2


def test_a_slip_for_a_required_option_is_told_as_such(capsys):
    for option in ("--model", "--model_nam=x"):
        with pytest.raises(SystemExit, match="2"):
            parse_args([option, "resnet50", "clean"])
        name = option.partition("=")[0]
        assert f"unrecognized arguments: {name}; nearest: --model_name" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        parse_args(["clean"])
    assert "are required: --model_name" in capsys.readouterr().err


def test_the_nearest_option_is_named(capsys):
    assert "nearest" not in refusal(capsys, "clean --resume")
    assert "nearest: --batch_size" in refusal(capsys, "clean --batchsize 3")
    assert "unrecognized arguments: --overw" in refusal(capsys, "clean --overw")


@pytest.mark.parametrize(
    "line, says",
    [
        ("--eps 8/255 --norm Linf --n_examples 5", ["--norm: the norm is the threat", "is -s N"]),
        ("--norm Linf --n_ex=5 Linf", ["arguments: --norm --n_ex; ", "--n_ex: the number of"]),
        ("--threat_model Linf --eps 8/255", ["the norm is the threat, `Linf --eps 8/255`"]),
        ("Linf --epsilon 8/255", ["arguments: --epsilon; radii are --eps 4/255 8/255"]),
        ("--Data-Path x clean", ["images are --dataset NAME --data_dir DIR"]),
        ("-b 8 clean", ["arguments: -b; nearest: --batch_size"]),
        ("--batch-size 8 --norm L2 clean", ["--batch-size: nearest: --batch_size; --norm: the"]),
        ("--version rand Linf --eps 1/255", ["others are --budget, --attacks and --steps"]),
        ("--qwxz 3 clean L2", ["error: unrecognized arguments: --qwxz (see"]),
        ("linf --batchsize 3", ["unrecognized arguments: --batchsize; nearest: --batch_size"]),
    ],
)
def test_options_of_other_tools_are_told_first(capsys, line, says):
    """Whatever their values look like: that of --norm is no threat."""
    said = refusal(capsys, line)
    assert said.startswith("error: unrecognized arguments: --") or "-b" in said
    assert all(text in said for text in says), said


def test_a_hint_names_an_option_that_there_is_and_no_habit_is_one():
    known = get_args_parser("Linf", "")._known_names()
    for habit, hint in HABITS.items():
        assert f"--{habit}" not in known and f"-{habit}" not in known
        assert set(re.findall("--[a-z_]+", hint)) <= known, hint


@pytest.mark.parametrize(
    "line, says",
    [
        ("-s 8 clean L2", "clean and L2: one threat a command"),
        ("clean L2", "clean and L2: one threat a command"),
        ("Linf --eps 1/255 L2", "Linf and L2: one threat"),
        ("-s 4 linf --eps 4/255", "no threat 'linf'; nearest: Linf "),
        ("--examples 3 l2", "no threat 'l2'; nearest: L2 "),
        ("other clea", "no threat 'clea'; nearest: clean "),
        ("-s 4 --eps 4/255", "THREAT is missing: add one of clean, "),
        ("--dataset cleam", "THREAT is missing"),
    ],
)
def test_a_command_has_one_threat(capsys, line, says):
    """Also where an option of several values stands before the word and would take it."""
    assert says in refusal(capsys, line)


@pytest.mark.parametrize(
    "options, says",
    [
        ("--data_dir /x", "--data_dir /x: name the images in it with --dataset NAME"),
        ("--data_dir /x --dataset sample", "the set `sample` reads no folder"),
        ("--dataset /a/folder", "--dataset NAME --data_dir /a/folder"),
        ("--dataset ./folder", "--dataset NAME --data_dir ./folder"),
    ],
)
def test_a_folder_of_images_needs_a_name(capsys, options, says):
    """Else the sample would be measured in place of the folder's images."""
    assert says in refusal(capsys, f"clean {options}")


# ---- which options are read ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, protocol, steps",
    [
        ("L2", "crossing", 100),
        ("L2 --eps 0.5", "autoattack", 100),
        ("L2 --steps 7", "crossing", 7),
        ("Linf --eps 0.5", "autoattack", 100),
        ("Linf --protocol fmn", "fmn", 1000),
        ("L1", "fmn", 1000),
    ],
)
def test_the_default_protocol(arguments, protocol, steps):
    args = parse_args([*MODEL, *arguments.split()])
    assert (args.protocol, args.steps) == (protocol, steps)


FEW_CLASSES = [
    "",
    "--attacks apgd-ce fab-t square",
    "--attacks apgd-t",
    "--targets 3 --attacks fab-t",
]
FEW_CLASSES += ["--budget screened", "--budget rand", "--budget rand --attacks apgd-t"]


def by_option(text: str) -> dict[str, str]:
    """`--budget rand --attacks apgd-ce square` as a dict."""
    return dict(part.strip().split(" ", 1) for part in re.split("(?=--)", text) if part)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("options", FEW_CLASSES)
def test_a_budget_takes_what_it_advises_for_few_classes(options, classes):
    """The request with the options that its refusal names is taken, and FAB stays in it."""
    model: Any = SimpleNamespace(n_outputs=classes)
    images: Any = None

    def checked(options: dict[str, str]) -> Any:
        words = " ".join(f"{name} {values}" for name, values in options.items()).split()
        threat = threat_from_args(parse_args([*MODEL, "Linf", "--eps", "1/255", *words]))
        threat.check(model, images)
        return threat

    if classes == 7 and "--targets 3" in options:
        checked(by_option(options))
        return
    with pytest.raises(AttackError) as error:
        checked(by_option(options))
    refused = str(error.value)
    advice = re.search(r"(leave it out: |give it )(--[^;]*)", refused)
    assert advice
    threat = checked(by_option(options) | by_option(advice[2]))
    without_fab = "rand" in options or options == "--attacks apgd-t"
    assert ("fab-t" in threat.budget.attacks) != without_fab
    assert ("crossing" in refused) == ("rand" not in options and "apgd-t needs" in refused)


class Reading(argparse.Namespace):
    """A namespace that knows which of its values were read."""

    def __getattribute__(self, name: str):
        if not name.startswith("_"):
            object.__getattribute__(self, "__dict__").setdefault("_read", set()).add(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("name", [*CLEAN_THREATS, *PROTOCOLS])
def test_a_threat_declares_the_options_that_it_reads(name):
    """`options` of a threat are what its from_args reads, and what the run reads for it alone."""
    # the first three choose the class
    of_the_run = {"protocol", "budget", "engine", "examples", "map_dir", "blur_maps", *FAST_OPTIONS}
    threat = name if name in CLEAN_THREATS else "L2"
    line = (
        f"{threat} --corruption_type fog --corruption_severity 1" if name == "corruptions" else ""
    )
    if name in PROTOCOLS:
        line = f"L2 --protocol {name}" + (" --eps 1" if name == "autoattack" else "")
    args = Reading(**vars(parse_args([*MODEL, *(line or name).split()])))
    threat_class(threat, name).from_args(args)
    assert args._read & PROTOCOL_OPTIONS - of_the_run == (
        threat_class(threat, name).options - of_the_run
    )


VALUES = {
    "step_unit": "pixels",
    "eps": "0.1",
    "budget": "rand",
    "engine": "own",
    "attacks": "square",
    "map_reduce": "l2",
    "multilabel": "f",
    "precision": "bf16",
}


def requests():
    for threat in THREATS:
        for protocol in NORM_PROTOCOLS.get(threat, (None,)):
            unread = PROTOCOL_OPTIONS - {"protocol"} - threat_class(threat, protocol).options
            for option in sorted(unread):
                yield threat, protocol, option


@pytest.mark.parametrize("threat, protocol, option", requests())
def test_an_option_that_is_not_read_is_not_taken_in_silence(capsys, threat, protocol, option):
    """No protocol takes an option that it ignores, and the refusal names one that reads it."""
    flag = option in ("compile", "blur_maps")
    words = [f"--{option}"] if flag else [f"--{option}", VALUES.get(option, "1")]
    base = f"{threat} --protocol {protocol}" if protocol else threat
    if threat == "corruptions" and not option.startswith("corruption"):
        base += " --corruption_type fog --corruption_severity 1"
    if protocol == "autoattack":
        base += " --eps 1"
    if option in RUN_OPTIONS:  # remarked on: a script may give them to every threat
        parse_args([*MODEL, *base.split(), *words])
        said = capsys.readouterr().err
        assert said.startswith("warning: ") and said.count("\n") == 1
    else:
        said = refusal(capsys, f"{base} {' '.join(words)}")
    reader = re.search(r"it belongs to (--protocol )?(\S+)", said)
    assert reader, said
    norm = threat if reader[1] else reader[2]
    readers = [reader[2]] if reader[1] else NORM_PROTOCOLS.get(norm, (None,))
    assert any(option in threat_class(norm, name).options for name in readers)


@pytest.mark.parametrize("option", ["--precision bf16", "--compile"])
def test_the_reference_engine_says_that_it_has_no_fast_copy(capsys, option):
    parse_args([*MODEL, *f"Linf --eps 0.1 --engine reference {option}".split()])
    name = option.split()[0]
    said = f"warning: {name}: --engine reference does not read it; it belongs to --engine own\n"
    assert capsys.readouterr().err == said


def test_eps_of_l2_is_autoattacks(capsys):
    said = refusal(capsys, "L2 --protocol fmn --eps 0.5")
    assert "--eps: L2 --protocol fmn does not read it; it belongs to --protocol autoattack" in said
    assert threat_from_args(parse_args([*MODEL, "L2", "--eps", "3"])).name == "L2-autoattack"


# ---- several requests ----------------------------------------------------------------------------


def asked_for(line: str) -> list[tuple[str, str]]:
    """(model, threat) of each request of a command line."""
    requests = single_requests(parse_args(line.split()))
    return [(one.model_name, threat_from_args(one).name) for one in requests]


def test_several_models_and_corruptions_are_a_request_each():
    threats = ["fog-1", "fog-3", "snow-1", "snow-3"]
    assert asked_for(
        "--model_name a b corruptions --corruption_type fog snow --corruption_severity 1 3"
    ) == [(model, f"corruptions-{threat}") for model in "ab" for threat in threats]
    everything = "--model_name a corruptions --corruption_type all --corruption_severity 1 2 3 4 5"
    assert len(asked_for(everything)) == 15 * 5
    assert asked_for("--model_name a clean") == [("a", "clean")]


def test_a_checkpoint_is_of_one_model(capsys):
    with pytest.raises(SystemExit):
        parse_args("--model_name a b --checkpoint x.pth clean".split())
    assert "is of one model" in capsys.readouterr().err


# ---- help ----------------------------------------------------------------------------------------


def actions_of(parser: Parser):
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


@pytest.mark.parametrize("threat", [None, *THREATS])
def test_every_option_is_explained(threat):
    """Every option shown has a help text, every threat an example that is a request."""
    parser = get_args_parser(threat, "")
    assert all(action.help for action in actions_of(parser))
    text = parser.format_help()
    assert "default: 0)" in text  # --seed and --examples
    if threat:
        example = f"--model_name tf_efficientnet_lite0 {DESCRIPTIONS[threat][1]}"
        assert example in text and parse_args(example.split()).threat == threat


def test_help_of_a_threat_shows_what_it_reads(capsys):
    for arguments, shown, hidden in [
        ("clean --help", "--multilabel", "--eps"),
        ("--help Linf", "--eps", "--corruption_type"),
        ("L1 --help", "--gamma", "--eps"),
    ]:
        with pytest.raises(SystemExit) as ended:
            parse_args(arguments.split())
        text = capsys.readouterr().out
        assert ended.value.code == 0 and shown in text and hidden not in text


# ---- random networks -----------------------------------------------------------------------------


def test_the_rand_budget_is_a_threat_of_its_own(capsys):
    args = parse_args([*MODEL, *"Linf --eps 1/255 --budget rand --targets 3".split()])
    threat = threat_from_args(args)
    assert isinstance(threat, RandomAutoAttack) and threat.name == "Linf-rand"
    assert threat.budget.attacks == ("apgd-ce", "apgd-t") and threat.settings("none")["draws"] == 20
    assert (
        not threat_from_args(parse_args([*MODEL, *"Linf --eps 1/255".split()])).name == "Linf-rand"
    )
    for more, says in (
        ("--attacks square", "square: --budget rand has apgd-ce and apgd-t"),
        ("--engine reference", "not with --engine reference"),
        ("--queries 10", "--queries belongs to square"),
    ):
        assert says in refusal(capsys, f"Linf --eps 1/255 --budget rand {more}")


# ---- fmn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, unit",
    [
        ("", "distance"),
        ("--step_size 0.1", "pixels"),
        ("--final_step_size 0.001", "pixels"),
        ("--step_size 2 --step_unit distance", "distance"),
        ("--step_unit pixels", "pixels"),
    ],
)
def test_lengths_of_fmns_steps_are_in_pixels_where_they_are_given(arguments, unit):
    """As before the unit was an option; a run that has none in its settings goes on in pixels."""
    threat = threat_from_args(parse_args([*MODEL, "L2", "--protocol", "fmn", *arguments.split()]))
    settings = threat.settings("none")
    assert threat.attack().step_unit == unit
    assert settings.get("step_unit", "pixels") == unit and settings["step_size"] > 0
    assert threat.as_begun(settings) == threat
    old = {name: value for name, value in settings.items() if name != "step_unit"}
    assert threat.as_begun(old).attack().step_unit == "pixels"
    assert threat.as_begun(old).settings("none") == old
