"""--help of every script: each option explained with its default, an example for each command."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from functools import partial

import pytest

import dataloading
import plotting
import utilities
from alignment_security.common.command_line import Parser
from alignment_security.evaluation.options import get_args_parser as evaluation_parser
from alignment_security.evaluation.protocols import THREATS
from alignment_security.trainer.options import get_args_parser as training_parser

PARSERS = {
    "utilities": utilities.get_args_parser,
    "plotting": plotting.get_args_parser,
    "dataloading": dataloading.get_args_parser,
    "training": lambda: training_parser(""),
    **{
        f"evaluate_robustness {threat}": partial(evaluation_parser, threat, "")
        for threat in (None, *THREATS)
    },
}


def with_commands(parser: Parser) -> Iterator[Parser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from with_commands(command)


@pytest.mark.parametrize("script", PARSERS)
def test_every_option_is_explained(script):
    for parser in with_commands(PARSERS[script]()):
        text = " ".join(parser.format_help().split())
        assert "(default: )" not in text
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert action.help, f"{parser.prog}: {action.option_strings or action.dest}"
            if action.help == argparse.SUPPRESS:  # an option of other threats
                continue
            default = action.default
            if isinstance(default, int | float) and not isinstance(default, bool):
                assert f"default: {default}" in text or "default" in action.help


@pytest.mark.parametrize("command", utilities.EXAMPLES)
def test_the_example_of_a_command_is_a_request(command):
    parser = utilities.get_args_parser()
    assert parser.parse_args(shlex.split(utilities.EXAMPLES[command])).command == command


def test_every_command_has_an_example():
    parser, *commands = with_commands(utilities.get_args_parser())
    assert len(commands) == len(utilities.EXAMPLES)
    for command in commands:
        assert "python utilities.py" in command.format_help()


def test_setup_scores_from_python_is_one_line(capsys, tmp_path, monkeypatch):
    """The command of Hoak 2025 is a line of Python: no traceback where a file is missing."""
    monkeypatch.setenv("BRAINSCORE_VISION_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit) as ended:
        utilities.setup_scores(results_dir=tmp_path)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
