"""Recipes: each line of lists/training/*.txt is a request that can be trained."""

from __future__ import annotations

import csv
import re
from argparse import Namespace

import pytest
import timm
from conftest import DATA, ROOT

import training
from alignment_security.common import command_line
from alignment_security.trainer.options import parse_args
from alignment_security.trainer.recipe import AdversarialAttack, Harmonizer, Objective, Recipe

PUBLISHED = DATA / "feng2025"


def recipes(file: str) -> dict[str, Namespace]:
    """The parsed command lines of a file of recipes, by name."""
    lines = (ROOT / "lists/training" / file).read_text().splitlines()
    parsed = [parse_args(line.split()) for line in lines if not line.startswith("#")]
    assert len({args.name for args in parsed}) == len(parsed)
    return {args.name: args for args in parsed}


@pytest.mark.parametrize("file, count", [("robust.txt", 42), ("harmonized.txt", 9)])
def test_parse_args_takes_every_recipe(file, count):
    found = recipes(file)
    assert len(found) == count and {args.model_name for args in found.values()} <= set(
        timm.list_models()
    )


def test_options_override_a_recipe(monkeypatch):
    monkeypatch.chdir(ROOT)
    args = parse_args(
        "--recipe lists/training/robust.txt:resnet50_linf_eps4.0 --epochs 1 --device cpu".split()
    )
    assert (args.model_name, args.objective, args.norm, args.eps, args.epochs) == (
        "resnet50",
        "adversarial",
        "Linf",
        4 / 255,
        1,
    )
    assert (
        args.attack_steps == 3 and args.attack_step is None and args.name == "resnet50_linf_eps4.0"
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\n--name a\xff", "line 2: not UTF-8 text"),
        (b'--name a\n--name "b', "line 2: no closing quotation"),
        (b"--epochs 1 --name", "line 1: --name : give it a name of its own"),
        (b"--name a\n--name a --lr 1", "line 2: --name a: give it a name of its own"),
    ],
)
def test_a_wrong_file_of_recipes_is_one_line(tmp_path, capsys, content, message):
    (tmp_path / "mine.txt").write_bytes(content)
    assert training.main(["--recipe", f"{tmp_path}/mine.txt:a"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/mine.txt, {message}")


def test_recipes_are_the_rows_of_the_published_tables():
    robust = recipes("robust.txt")
    for row in csv.DictReader(open(PUBLISHED / "robust_checkpoints_top1.csv")):
        args = robust[row["model"]]
        assert (
            args.norm == row["norm"]
            and args.eps == pytest.approx(eval(row["eps"]))
            and row["model"].startswith(args.model_name)
        )
    names = [row["model"] for row in csv.DictReader(open(PUBLISHED / "seed_tables_1_2.csv"))]
    assert {f"{name}_harmonized" for name in names[:9]} == set(recipes("harmonized.txt"))
    assert {re.sub("_255$", "", name) for name in names[9:]} <= set(robust)


@pytest.mark.parametrize(
    "options, harmonizer, attack",
    [
        ("--objective plain", None, None),
        ("--objective harmonizer --lambda_1 2 --form code", Harmonizer("code", 2.0), None),
        (
            "--objective adversarial --norm L2 --eps 0.5",
            None,
            AdversarialAttack("L2", 0.5, 3, None, random_start=False),
        ),
        (
            "--objective both --lambda_1 0 --norm Linf --eps 4/255 --attack_step 1/255",
            Harmonizer("equation", 0.0),
            AdversarialAttack("Linf", 4 / 255, 3, 1 / 255, random_start=False),
        ),
    ],
)
def test_recipe_from_args_has_the_parts_of_its_objective(options, harmonizer, attack):
    args = parse_args(["--model_name", "net", *options.split()])
    before = dict(vars(args))
    recipe = Recipe.from_args(args)
    assert recipe.objective == Objective(harmonizer, attack, smoothing=0.0)
    assert recipe.name == f"net-{args.objective}" and vars(args) == before


@pytest.mark.parametrize(
    ("processes", "options", "workers"),
    [(None, "", 8), ("8", "", 4), ("64", "", 0), ("8", "--workers 7", 7)],
)
def test_processes_of_torchrun_share_the_cpus_for_decoding(
    monkeypatch, processes, options, workers
):
    """64 CPUs."""
    monkeypatch.setattr(command_line, "usable_cpus", lambda: 64)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    args = parse_args(["--model_name", "net", "--objective", "plain", *options.split()])
    assert args.workers == workers
