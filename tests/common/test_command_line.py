"""Types of arguments: what is taken, and what is refused where it is parsed."""

from __future__ import annotations

import pytest

import dataloading
import utilities
from alignment_security.common import command_line
from alignment_security.common.command_line import Parser, new_folder, whole_number
from alignment_security.evaluation.options import parse_args as parse_evaluation
from alignment_security.trainer.options import parse_args as parse_training

EVALUATION = ["--model_name", "m"]
TRAINING = ["--model_name", "m", "--dataset", "sample"]
BAD_EVALUATION = {
    "--seed": ["-1", "1.5", "x", "9" * 30],
    "--stop_after": ["nan", "-1", "inf", "soon"],
    "--examples": ["-3", "1e3"],
    "--workers": ["999", "-1", "²"],
    "--dataset": ["a" * 300, "a/b", ""],
    "--batch_size": ["-4", "1e3"],
    "--model_name": ["", " ", "a\nb", "a\x1b[2Jb"],
    "-s": ["x"],
}
BAD_TRAINING = {
    "--seed": ["-1"],
    "--model_name": ["", "a\tb"],
    "--stop_after": ["nan", "-0.5"],
    "--workers": ["999"],
    "--save_every": ["nan", "-1"],
    "--hflip": ["1.1", "nan"],
    "--momentum": ["-0.1", "2"],
    "--decay_rate": ["nan"],
    "--color_jitter": ["-1"],
}


def cases(bad: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(option, value) for option, values in bad.items() for value in values]


@pytest.mark.parametrize("option, value", cases(BAD_EVALUATION))
def test_an_evaluation_refuses_a_value_in_one_line(capsys, option, value):
    with pytest.raises(SystemExit) as error:
        parse_evaluation([*EVALUATION, f"{option}={value}" if option != "-s" else "-s", value], "")
    err = capsys.readouterr().err
    assert error.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("option, value", cases(BAD_TRAINING))
def test_a_training_refuses_a_value_in_one_line(capsys, option, value):
    with pytest.raises(SystemExit) as error:
        parse_training([*TRAINING, f"{option}={value}"])
    err = capsys.readouterr().err
    assert error.value.code == 2 and err.startswith("error: argument") and err.count("\n") == 1


@pytest.mark.parametrize(
    "options, says",
    [
        ("--data_dir /x", "--dataset NAME"),
        ("--val_dir /x", "--val_dataset NAME"),
        ("--val_dir /x --val_dataset sample", "reads no folder"),
        ("--val_dataset /x", "--val_dir"),
    ],
)
def test_a_training_refuses_a_folder_that_it_would_not_read(capsys, options, says):
    with pytest.raises(SystemExit, match="2"):
        parse_training([*TRAINING, *options.split()])
    assert says in capsys.readouterr().err


def test_values_at_the_limits_are_taken():
    args = parse_evaluation(
        [*EVALUATION, "--stop_after=0", "--seed=0", "--workers=0", "-s", "0", "1", "clean"], ""
    )
    assert (args.stop_after, args.seed, args.workers, args.slice) == (0.0, 0, 0, (0, 1))
    assert parse_training([*TRAINING, "--hflip=0", "--momentum=1"]).hflip == 0.0


@pytest.mark.parametrize("depth", ["parser", "sub-command"])
def test_no_parser_takes_an_abbreviated_option(capsys, depth):
    parser = Parser(prog="p")
    inner = parser
    if depth == "sub-command":
        inner = parser.add_subparsers(dest="command").add_parser("run")
    inner.add_argument("--overwrite", action="store_true")
    argv = [] if depth == "parser" else ["run"]
    assert parser.parse_args([*argv, "--overwrite"]).overwrite
    with pytest.raises(SystemExit):
        parser.parse_args([*argv, "--overw"])
    assert "--overw" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, says",
    [
        ("trace --result_dir x f.csv", "; nearest: --results_dir (see"),
        ("trace --format hoak2025 f.csv", "; an option of merge (see"),
        ("trace f.csv --lines 3", "unrecognized arguments: --lines 3; nearest: --line (see"),
        ("verify --ou x a", "; nearest: --out (see"),
    ],
)
def test_a_hint_names_options_of_the_command_alone(capsys, words, says):
    with pytest.raises(SystemExit, match="2"):
        utilities.get_args_parser().parse_args(words.split())
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "parser, words",
    [
        (utilities, "publish --out a.zip"),
        (utilities, "publish --out a.tar.gz"),
        (utilities, "verify a --out b.TGZ"),
        (utilities, "export_plugin net --out net.zip"),
        (utilities, "prestage --out tars.tar"),
        (dataloading, "big12 --imagenet i --out big12.tar.xz"),
        (dataloading, "clickme_big12 --clickme c --out pairs.zip"),
    ],
)
def test_no_folder_is_written_under_the_name_of_an_archive(capsys, parser, words):
    with pytest.raises(SystemExit, match="2"):
        parser.get_args_parser().parse_args(words.split())
    assert "names an archive; name a folder" in capsys.readouterr().err
    assert new_folder("results/v1.2").name == "v1.2"


def test_whole_number_says_its_limits():
    with pytest.raises(ValueError, match="'7' has to be a whole number from 0 to 5"):
        whole_number("7", most=5)
    assert whole_number("12") == 12
    assert command_line.MOST_WORKERS >= 64
