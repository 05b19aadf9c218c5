"""The audit finds each planted problem in a sound results folder, and nothing else.

Figures are traced back to their runs.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_utilities
from norm_tables import make_norms

import plotting
from alignment_security.attacks.autoattack import Budget
from alignment_security.common.files import UserError, sha256_file
from alignment_security.common.folders import left_by_tools_note
from alignment_security.common.locked_run import json_round_trip
from alignment_security.common.remarks import warning_lines
from alignment_security.common.verdicts import EPS_ATOL, STANDARD_BUDGET
from alignment_security.records.adversarial_examples import example_path
from alignment_security.records.audit import audit
from alignment_security.records.audit_record import NEEDED_COLUMNS, Record
from alignment_security.records.audit_verdicts import impossible_norms
from alignment_security.records.record import read_record, rows_to_csv
from alignment_security.records.run import Run
from alignment_security.records.summary import SUMMARY_NAME, merge_records
from alignment_security.records.trace import describe_run, finished_runs

IMAGES = {"a.jpg": 3, "b.jpg": 5, "c.jpg": 7, "d.jpg": 9}  # a to c are right, d is not
LIST = hashlib.sha256(b"a.jpg 3\nb.jpg 5\nc.jpg 7\nd.jpg 9\n").hexdigest()
EPS = [1 / 255, 2 / 255]
VERDICTS = {"a.jpg": (1, 1), "b.jpg": (1, 0), "c.jpg": (0, 0), "d.jpg": (0, 0)}
OTHER_FACTOR = 1.25  # of the L2 norms of the network `other`
SESSION = {"git": "c0ffee", "device": "cpu", "versions": {"python": "3.12.1", "torch": "2.11.0"}}


def clean_columns(name: str) -> dict:
    label = IMAGES[name]
    return {
        "image_id": name,
        "label": label,
        "clean_pred": label if name != "d.jpg" else 0,
        "clean_correct": int(name != "d.jpg"),
    }


def ball_rows() -> list[dict]:
    return [
        clean_columns(name)
        | ball_verdict(name, eps, robust)
        | {"eps": eps, "robust": robust, "forwards": 5, "backwards": 4}
        for name, verdicts in VERDICTS.items()
        for eps, robust in zip(EPS, verdicts)
    ]


def ball_verdict(name: str, eps: float, robust: int) -> dict:
    if robust:
        return {"adv_pred": IMAGES[name], "from_eps": eps}
    if name == "d.jpg":
        return {"adv_pred": 0, "broken_by": "clean", "from_eps": 0.0}
    broken_at = EPS[VERDICTS[name].index(0)]
    return {
        "adv_pred": 0,
        "broken_by": "apgd-ce",
        "from_eps": broken_at,
        "linf": broken_at,
        "l2": 10 * broken_at,
    }


def norm_rows() -> list[dict]:
    fooled = {
        "success": 1,
        "adv_pred": 0,
        "l2": 0.5,
        "linf": 0.1,
        "human_alignment_raw": 0.2,
        "human_alignment": 0.2 / 0.65753,
    }
    return [
        clean_columns(name)
        | (fooled | {"l2": 0.5 + label / 100} if name != "d.jpg" else {})
        | {"forwards": 5, "backwards": 4}
        for name, label in IMAGES.items()
    ]


AUTOATTACK = {
    "attack": "AutoAttack standard",
    "attacks": ["apgd-ce", "apgd-t", "fab-t", "square"],
    "steps": 100,
    "targets": 9,
    "queries": 5000,
}
THREATS: dict[str, tuple[str, Callable[[], list[dict]], dict]] = {
    "clean": (
        "clean",
        lambda: [clean_columns(name) for name in IMAGES],
        {"protocol": "clean", "attack": "none"},
    ),
    "Linf": (
        "ball",
        ball_rows,
        {"protocol": "autoattack", "norm": "Linf", "eps": EPS, "seed": 0, **AUTOATTACK},
    ),
    "L2-fmn": (
        "minimum_norm",
        norm_rows,
        {"protocol": "fmn", "attack": "FMN 9 steps", "seed": 0, "human_ceiling": 0.65753},
    ),
}


def rows_of(model: str, threat: str) -> list[dict]:
    """Rows of a threat; no two networks have the same norms."""
    factor = 1.0 if model == "net" else OTHER_FACTOR
    rows = THREATS[threat][1]()
    return [row | ({"l2": factor * row["l2"]} if "l2" in row else {}) for row in rows]


def write(results, model: str, threat: str) -> None:
    kind, _, settings = THREATS[threat]
    common = {
        "images": 4,
        "list_sha256": LIST,
        "head": "none",
        "precision": "float32",
        "slice": None,
    }
    whole = {
        "model": {
            "name": model,
            "weights": "file:net.pth",
            "weights_sha256": f"w-{model}",
            "head": "none",
        },
        "run": settings | common,
    }
    with Run(results, "mine", threat, model, kind, whole, SESSION) as run:
        run.append(rows_of(model, threat))
        run.finish(list(IMAGES), settings.get("eps"), seconds=1.0)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Two models under three threats, merged, with nothing to find."""
    root = tmp_path_factory.mktemp("sound")
    for model in ("net", "other"):
        for threat in THREATS:
            write(root, model, threat)
    merge_records(root)
    return root


@pytest.fixture
def results(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "results")


def change_rows(threat: str, change):
    """A change of the rows of `net` that also signs them, as somebody would who edits results."""

    def plant(results):
        path = results / "records" / "mine" / threat / "net.csv"
        rows = read_record(path)
        path.write_text(rows_to_csv(change(rows)))
        change_run(threat, lambda run: run.update(record_sha256=sha256_file(path)))(results)

    return plant


def change_run(threat: str, change, models=("net",)):
    def plant(results):
        for model in models:
            path = results / "records" / "mine" / threat / f"{model}.json"
            run = json.loads(path.read_text())
            change(run)
            path.write_text(json.dumps(run))

    return plant


def cell(threat: str, name: str, column: str, value, eps=None):
    def change(rows):
        rows = rows.astype({column: object})
        rows.loc[(rows["image_id"] == name) & ((rows["eps"] == eps) if eps else True), column] = (
            value
        )
        return rows

    return change_rows(threat, change)


def both(*plants):
    """One plant after the other."""

    def plant(results):
        for part in plants:
            part(results)

    return plant


def in_settings(threat: str, part: str, **values):
    return change_run(threat, lambda run: run["settings"][part].update(values))


def in_session(threat: str, **values):
    return change_run(threat, lambda run: run["sessions"][0].update(values))


def in_summary(change):
    def plant(results):
        path = results / SUMMARY_NAME
        path.write_text(change(path.read_text()))

    return plant


def with_example(results) -> None:
    """The example that a run under L2-fmn saved of a.jpg."""
    in_session("L2-fmn", examples=1)(results)
    path = example_path(results / "records/mine/L2-fmn/net.csv", "a.jpg")
    path.parent.mkdir(parents=True)
    np.savez(path, l2=0.53, linf=0.1)


def unlink(name: str):
    return lambda results: (results / "records" / "mine" / name).unlink()


PLANTED = {  # what was done -> (how, what the only finding says)
    "an edited record": (
        lambda r: (p := r / "records/mine/clean/net.csv").write_text(
            p.read_text().replace("a.jpg,3", "a.jpg,4")
        ),
        "clean/net.csv: not the file that the run finished with",
    ),
    "a cut record": (
        lambda r: (p := r / "records/mine/Linf/net.csv").write_bytes(p.read_bytes()[:-60]),
        "sha256 differs",
    ),
    "no record": (
        unlink("Linf/net.csv"),
        "Linf/net.csv: no such record; bring it back, or evaluate it again",
    ),
    "no run file": (unlink("Linf/net.json"), "Linf/net.csv: a record without its run file"),
    "a damaged run file": (
        lambda r: (r / "records/mine/Linf/net.json").write_text("{"),
        "Linf/net.json: not a run file",
    ),
    "a run file without settings": (
        change_run("Linf", lambda run: run["settings"].pop("run")),
        "Linf/net.json: not a run file",
    ),
    "not finished": (
        change_run("Linf", lambda run: run.update(status="checkpointed")),
        r"Linf/net.csv: unfinished \(status checkpointed\); run the same command again",
        "or leave this record out: remove its .csv and .json, and merge again",
    ),
    "begun, without its record": (
        lambda r: (
            change_run("Linf", lambda run: run.update(status="failed"))(r),
            unlink("Linf/net.csv")(r),
        ),
        r"Linf/net.json: unfinished \(status failed\)",
    ),
    "a missing column": (
        change_rows("Linf", lambda rows: rows.drop(columns="broken_by")),
        "has no column broken_by",
    ),
    "an image less": (
        change_rows("clean", lambda rows: rows[rows["image_id"] != "d.jpg"]),
        "3 images, its settings say 4",
        "not those of the list",
    ),
    "an image twice": (
        change_rows("clean", lambda rows: pd.concat([rows, rows[:1]])),
        r"1 row\(s\) twice, e.g. a.jpg",
    ),
    "an eps less": (
        change_rows("Linf", lambda rows: rows[:-1]),
        r"1 row\(s\) missing, e.g. d.jpg at eps 0.0078",
    ),
    "another image": (
        cell("clean", "b.jpg", "image_id", "x.jpg"),
        "not those of the list that its settings name",
    ),
    "two images in another order": (
        change_rows("clean", lambda rows: rows.iloc[[1, 0, 2, 3]]),
        "not those of the list",
    ),
    "right though wrong": (
        cell("clean", "d.jpg", "clean_correct", 1),
        "clean_correct is not clean_pred == label, e.g. d.jpg",
    ),
    "a misclassified robust one": (
        cell("Linf", "d.jpg", "robust", 1),
        "a misclassified image counts as robust, e.g. d.jpg",
        "a robust image was broken by something",
        "so at a smaller one",
    ),
    "robust and broken": (
        cell("Linf", "a.jpg", "broken_by", "apgd-t"),
        "a robust image was broken by something",
    ),
    "broken by what was not run": (
        cell("Linf", "c.jpg", "broken_by", "pgd"),
        "no attack of the budget broke the image",
    ),
    "broken by nothing": (
        cell("Linf", "c.jpg", "broken_by", None),
        "no attack of the budget broke the image",
    ),
    "fooled into the label": (
        cell("Linf", "c.jpg", "adv_pred", 7),
        "the adversarial class is the label, e.g. c.jpg at eps",
    ),
    "outside the ball": (
        cell("Linf", "c.jpg", "linf", 1.001 / 255, EPS[0]),
        "the Linf norm is not within eps, e.g. c.jpg",
    ),
    "a norm above the eps that broke it": (
        cell("Linf", "c.jpg", "linf", 1.5 / 255, EPS[1]),
        "the Linf norm is above the eps that broke the image, e.g. c.jpg",
        "two rows of one point differ in it",
    ),
    "two rows of one point": (
        cell("Linf", "c.jpg", "l2", 0.03, EPS[1]),
        "two rows of one point differ in it, e.g. c.jpg",
    ),
    "a row of another model": (
        both(
            cell("Linf", "d.jpg", "clean_pred", 1, EPS[1]),
            cell("Linf", "d.jpg", "adv_pred", 1, EPS[1]),
        ),
        "clean prediction is not that of the image's other rows, e.g. d.jpg at eps 0.0078",
    ),
    "an eps that nobody attacked": (
        cell("Linf", "b.jpg", "from_eps", 2.5 / 255, EPS[1]),
        "the deciding eps was not attacked, e.g. b.jpg",
    ),
    "broken at eps 0": (
        cell("Linf", "b.jpg", "from_eps", 0, EPS[1]),
        "the deciding eps was not attacked, e.g. b.jpg",
    ),
    "a class beyond the last": (
        cell("L2-fmn", "b.jpg", "adv_pred", 1000),
        "a class is none of the 1000, e.g. b.jpg",
    ),
    "a class beyond those of the set": (
        change_run("L2-fmn", lambda run: run.update(classes=list("abcdefghi"))),
        "a class is none of the 9, e.g. d.jpg",
    ),
    "counts that are swapped": (
        change_rows(
            "Linf",
            lambda rows: rows.rename(columns={"forwards": "backwards", "backwards": "forwards"}),
        ),
        r"8 row\(s\) where an image has more backward than forward passes",
    ),
    "a norm in the place of another": (
        change_rows("L2-fmn", lambda rows: rows.assign(linf=rows["l2"])),
        "l2 is linf in each of 3 rows",
    ),
    "the norms of another network": (
        change_rows("L2-fmn", lambda rows: rows.assign(l2=OTHER_FACTOR * rows["l2"])),
        "L2-fmn/other.csv: its norms are those of .*/L2-fmn/net.csv to the last digit",
    ),
    "no norm in the ball": (cell("Linf", "c.jpg", "linf", None), "the Linf norm is not within eps"),
    "not monotone": (
        change_rows(
            "Linf",
            lambda rows: rows.assign(
                robust=[1, 1, 0, 1, 0, 0, 0, 0],
                broken_by=[*[None] * 2, "apgd-ce", None, *rows["broken_by"][4:]],
                linf=rows["linf"].shift(-1).where(rows.index == 2, rows["linf"]) / 2,
                from_eps=[*EPS, *EPS, EPS[0], EPS[0], 0, 0],
                adv_pred=[3, 3, 0, 5, 0, 0, 0, 0],
            ),
        ),
        "an image is robust that is broken at a smaller eps, e.g. b.jpg",
        "an image that was not broken has a norm",
        "a norm of a broken image is missing",
    ),
    "broken from above": (
        both(
            in_settings("Linf", "run", ladder="ascending"),
            cell("Linf", "c.jpg", "from_eps", EPS[1], EPS[0]),
        ),
        "broken at a larger one",
    ),
    "robust from below": (cell("Linf", "a.jpg", "from_eps", EPS[0], EPS[1]), "so at a smaller one"),
    "linf above l2": (cell("L2-fmn", "a.jpg", "linf", 0.6), "linf is above 1 or above l2"),
    "a norm of a misclassified image": (
        cell("L2-fmn", "d.jpg", "success", 1),
        "a misclassified image has a minimal norm",
        "fooled by no perturbation",
    ),
    "no norm of a right one": (
        change_rows(
            "L2-fmn",
            lambda rows: rows.assign(
                **{
                    name: rows[name].where(rows["image_id"] != "a.jpg")
                    for name in NEEDED_COLUMNS["minimum_norm"][2:]
                },
                success=[0, 1, 1, None],
            ),
        ),
        "leaves out the hardest, e.g. a.jpg; give it more --steps",
    ),
    "a norm of 0": (
        change_rows(
            "L2-fmn",
            lambda rows: rows.assign(
                l2=rows["l2"] * [0, 1, 1, 1], linf=rows["linf"] * [0, 1, 1, 1]
            ),
        ),
        "fooled by no perturbation",
    ),
    "another ceiling": (
        cell("L2-fmn", "b.jpg", "human_alignment", 0.2),
        "no correlation over its ceiling, e.g. b.jpg",
    ),
    "a warning": (
        change_run("Linf", lambda run: run["warnings"].append("masked gradients?")),
        "its run warned: masked gradients?",
    ),
    "no weights hash": (
        lambda r: [in_settings(threat, "model", weights_sha256=None)(r) for threat in THREATS],
        "net.csv: no sha256 of its weights",
    ),
    "other weights": (
        in_settings("Linf", "model", weights_sha256="v"),
        "not the model of .*/net.csv though it has the same name .*weights_sha256",
    ),
    "another function of one Python file": (
        lambda r: [
            in_settings(threat, "model", weights=f"python:net.py:{function}")(r)
            for threat, function in zip(THREATS, ("made", "made", "defended"))
        ],
        "not the model of .*/net.csv though it has the same name .*network",
    ),
    "other preprocessing": (
        in_settings("clean", "model", preprocessing={"crop_pct": 1}),
        "not the model .*preprocessing",
    ),
    "another seed": (
        in_settings("Linf", "run", seed=1),
        r"not comparable with net.json, whose settings differ \(seed: 1 -> 0\)",
    ),
    "a small budget of a great name": (
        lambda r: [
            in_settings("Linf", "run", steps=10)(r),
            (p := r / "records/mine/Linf/other.json").write_text(
                p.read_text().replace('"steps": 100', '"steps": 10')
            ),
        ],
        r"a budget called 'AutoAttack standard' that is not AutoAttack's \(steps 10\)",
    ),
    "no seed": (
        change_run("L2-fmn", lambda run: run["settings"]["run"].pop("seed"), ("net", "other")),
        "csv: no seed",
    ),
    "no list hash": (
        change_run(
            "clean", lambda run: run["settings"]["run"].pop("list_sha256"), ("net", "other")
        ),
        "no sha256 of its image list",
        "clean/.*another image list than .*/L2-fmn/net.csv",
    ),
    "another list under one threat": (
        change_run(
            "Linf", lambda run: run["settings"]["run"].update(list_sha256="l"), ("net", "other")
        ),
        "another image list than",
        "not those of the list that its settings name",
    ),
    "other clean predictions": (
        cell("L2-fmn", "d.jpg", "clean_pred", 1),
        "1 of 4 clean predictions differ from those of .*e.g. d.jpg",
    ),
    "code of no commit": (
        in_session("Linf", git="c0ffee-dirty"),
        r"made by code that no commit holds \(git c0ffee-dirty\)",
    ),
    "another commit": (
        in_session("Linf", git="beef"),
        "Linf: net.csv was made with git beef, other.csv with git c0ffee",
    ),
    "another version": (
        in_session("Linf", versions={"python": "3.12.1", "torch": "2.10.0"}),
        "records: net.csv was made with torch 2.11.0, net.csv with torch 2.10.0",
    ),
    "no summary": (lambda r: (r / SUMMARY_NAME).unlink(), "evaluation_results.csv: missing"),
    "an edited summary": (
        in_summary(lambda text: text.replace("0.75", "0.76", 1)),
        "clean_acc of net .* is 0.76, its record gives 0.75",
    ),
    "a row too few in the summary": (
        in_summary(lambda text: text[: text[:-1].rindex("\n") + 1]),
        "no row for a record .other clean",
    ),
    "a stale row in the summary": (
        in_summary(lambda text: text.replace("other,clean", "gone,clean")),
        "a row that no record gives",
        "no row for a record",
    ),
    "a summary with a row twice": (
        in_summary(lambda text: text + text.splitlines(keepends=True)[-1]),
        r"evaluation_results.csv, line \d+: the row of an earlier line again",
    ),
    "a summary cut in its last number": (
        in_summary(lambda text: text[:-3]),
        r"evaluation_results.csv, line \d+, the last line is cut off",
    ),
    "a summary with an impossible number": (
        in_summary(lambda text: re.sub(r"(,\d,0\.\d+)", r"\1e9", text, count=1)),
        r"evaluation_results.csv, line \d+, column \w+: '.*e9' is no number",
    ),
    **{
        f"an impossible cell: {column} {value}": (
            cell("L2-fmn", "a.jpg", column, value),
            re.escape(f"L2-fmn/net.csv, line 2, column {column}: '{value}' is no "),
        )
        for column, value in [
            ("forwards", "-1"),
            ("backwards", "inf"),
            ("linf", "-1"),
            ("l2", "1e30"),
            ("adv_pred", -1),
            ("success", 2),
            ("human_alignment", "=1+1"),
        ]
    },
    "a class that is missing": (
        cell("Linf", "c.jpg", "adv_pred", None, EPS[-1]),
        "1 row.* the adversarial class is missing, e.g. c.jpg",
    ),
    "a norm that is missing": (
        cell("Linf", "c.jpg", "l2", None, EPS[-1]),
        "1 row.* a norm of a broken image is missing, e.g. c.jpg",
    ),
    "a norm of a robust image": (
        cell("Linf", "a.jpg", "linf", EPS[0], EPS[0]),
        "1 row.* an image that was not broken has a norm, e.g. a.jpg",
    ),
    "a deciding eps that is missing": (
        cell("Linf", "a.jpg", "from_eps", None, EPS[0]),
        "1 row.* the eps that decided the verdict is missing, e.g. a.jpg",
    ),
    "a count that is missing": (
        cell("L2-fmn", "a.jpg", "forwards", None),
        "1 row.* the count of forwards is missing, e.g. a.jpg",
    ),
    "a norm of more values than an image has": (
        lambda r: (
            in_settings("L2-fmn", "model", preprocessing={"input_size": [3, 8, 8]})(r),
            cell("L2-fmn", "a.jpg", "l2", 1.5)(r),
        ),
        "l2 is larger than linf in every value",
        "not the model of",
    ),
    "a first prediction that is not among the first five": (
        cell("clean", "a.jpg", "clean_top5", 0),
        "a label is the first prediction and not among the first five",
    ),
    "norms that are not those of an example": (
        both(with_example, cell("L2-fmn", "a.jpg", "l2", 0.265)),
        r"no row of a.jpg has the norms of its saved example \(l2 0.53, linf 0.1\)",
    ),
    "an example that is gone": (
        in_session("L2-fmn", examples=2),
        "2 of its adversarial examples are missing, e.g. of a.jpg.*--examples 2",
    ),
    "no summary but a web page": (in_summary(lambda text: "<html>\n"), "no column model"),
}


def test_audit_finds_nothing_in_a_sound_folder(results):
    assert audit(results) == []


@pytest.mark.parametrize("case", PLANTED)
def test_what_was_planted_is_found_and_nothing_else(results, case):
    plant, *messages = PLANTED[case]
    plant(results)
    if "summary" not in case:
        # whoever changes results merges again; if merge refuses, audit skips the summary
        with suppress(UserError):
            merge_records(results, allow_partial=True)
    found = audit(results)
    assert all(any(re.search(message, line) for line in found) for message in messages), found
    assert all(any(re.search(message, line) for message in messages) for line in found), found
    assert all(
        line.startswith(str(results)) and "; " in line and "\n" not in line for line in found
    )


def test_standard_budget_and_tolerance_are_those_of_the_attacks():
    """A float32 sum near 1 is off by at most half a unit in the last place, 2^-24."""
    assert json_round_trip(STANDARD_BUDGET) == json_round_trip(vars(Budget()))
    assert 2**-24 <= EPS_ATOL < 2**-23


@pytest.mark.parametrize("name", ["Thumbs.db", ".DS_Store", "@eaDir", "x.jpg.part"])
def test_what_tools_leave_among_images_is_no_reason_to_evaluate_again(results, tmp_path, name):
    (sentence,) = left_by_tools_note(tmp_path, [tmp_path / name])
    change_run("Linf", lambda run: run["warnings"].append(sentence))(results)
    assert not audit(results)


@pytest.mark.parametrize(
    "sentence, is_finding",
    [
        ("sd.pth: its weights are the entry 'state_dict.module'", False),
        ("a.pth: its weights are the entry ''; 7 other tensors are left out (ema.a, ...)", False),
        ("batch size is now 3.pth: outputs look like probabilities, not logits", True),
        ("photos: 3 images are in no class folder and are left out (a.jpg)", True),
        (
            "5 of 5 correctly classified images: the attack found no norm in 50 steps and began "
            "again on a line to another image, e.g. a.jpg; their norms are in the mean",
            True,
        ),
        ("torch 2.9.0 is installed, requirements.txt pins 2.11.0", True),
    ],
)
def test_a_remark_of_a_run_is_no_finding_and_a_warning_is(results, sentence, is_finding):
    change_run("Linf", lambda run: run["warnings"].append(sentence))(results)
    assert any("its run warned" in line for line in audit(results)) == is_finding
    assert warning_lines([sentence])[0].startswith("  warning:" if is_finding else "  note:")


@pytest.mark.parametrize("steps, findings", [(2000, 0), (40, 0), (15, 1)])
def test_norms_at_the_floor_of_their_attack_are_found_in_the_rows(results, steps, findings):
    """Not in a warning on the steps, which runs of earlier versions have whatever their norms."""
    ddn = {"protocol": "ddn", "steps": steps, "init_epsilon": 1.0, "gamma": 0.05}
    in_settings("L2-fmn", "run", **ddn)(results)  # all norms are 0.5; 0.95^12 = 0.54
    said = f"ddn with {steps} steps finds no L2 norm below 0.1, however near the boundary is"
    change_run("L2-fmn", lambda run: run["warnings"].append(said))(results)
    found = [line for line in audit(results) if "at the floor" in line or "warned" in line]
    assert len(found) == findings and all("3 of 3 correctly" in line for line in found)


def test_audit_command_prints_and_exits_0_1_2(results, tmp_path_factory, capsys):
    for place in ([results], ["--results_dir", results], [f"--results_dir={results}"]):
        assert run_utilities("audit", *place) == 0 and "nothing found" in capsys.readouterr().out
    assert run_utilities("audit", results, "--results_dir", "other") == 2
    assert "one of them" in capsys.readouterr().err
    (results / SUMMARY_NAME).unlink()
    assert run_utilities("audit", results) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 finding(s)"
    assert run_utilities("audit", tmp_path_factory.mktemp("empty")) == 2
    assert "no records" in capsys.readouterr().err


# ---- a real run, and its examples run again ------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(tiny, tmp_path_factory) -> Path:
    """Three threats of a real net, by the script, as at a clean commit with the pinned versions."""
    import evaluate_robustness

    root = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alignment_security.models.forward.git_state", lambda: "c0ffee")
        patch.setattr("alignment_security.evaluation.run.version_drift", list)
        for threat in (
            "clean",
            "Linf --eps 8/255 64/255 --attacks apgd-ce --steps 5",
            "L2 --protocol crossing --steps 20",
        ):
            options = ["--workers", "0", "--examples", "12", "-s", "5", *threat.split()]
            assert evaluate_robustness.main([*tiny.arguments(root), *options]) == 0
    merge_records(root)
    return root


def test_audit_finds_nothing_in_records_of_the_script(evaluated):
    assert audit(evaluated) == []


def test_reattack_confirms_saved_examples_and_finds_changed_ones(evaluated, tiny, capsys):
    again = ["audit", evaluated, "--reattack", 4, "--checkpoint_dir", tiny.checkpoint.parent]
    assert run_utilities(*again) == 0 and "4 of 4 examples confirmed" in capsys.readouterr().err
    for path in evaluated.glob("examples/*/*/*/*.npz"):
        with np.load(path) as file:
            arrays = dict(file)
        # of the same norm, but it fools no model
        np.savez_compressed(path, **arrays | {"delta": -arrays["delta"]})
    assert run_utilities(*again) == 1
    out = capsys.readouterr().out
    assert "does not fool test_resnet, its record says that it does" in out
    np.savez_compressed(path, **arrays | {"delta": arrays["delta"] * 2})
    all_of_them = ["audit", evaluated, "--reattack", 999, *again[4:]]
    assert run_utilities(*all_of_them) == 1
    assert f"{path}: not the perturbation of its record" in capsys.readouterr().out
    path.write_bytes(b"")
    assert run_utilities(*all_of_them) == 1
    assert f"{path}: damaged example" in capsys.readouterr().out
    np.savez_compressed(path, **arrays)


def test_reattack_skips_a_model_without_its_weights(evaluated, capsys):
    assert run_utilities("audit", evaluated, "--reattack", 3) == 0
    err = capsys.readouterr().err
    assert (
        "0 of 3 examples confirmed" in err
        and "it is of the file net.pth; give the folder of that" in err
    )


# ---- from a figure to its runs -------------------------------------------------------------------


def traced(capsys, *arguments) -> tuple[int | str | None, str, str]:
    capsys.readouterr()
    return run_utilities("trace", *arguments), *capsys.readouterr()


def test_trace_leads_every_number_to_its_run(results, tmp_path_factory, capsys):
    figures = tmp_path_factory.mktemp("figures")
    plotting.main(
        ["--results_dir", str(results), "--figures_dir", str(figures), "--plots", "accuracy_vs_eps"]
    )
    figure = figures / "accuracy_vs_eps.csv"
    status, out, _ = traced(capsys, figure, "--results_dir", results)
    blocks = out.strip().split("\n\n")
    assert (
        status == 0
        and len(blocks) == 2
        and "line(s) 2-4\n" in blocks[0]
        and "line(s) 5-7\n" in blocks[1]
    )
    path = results / "records/mine/Linf/net.csv"
    for fact in (
        path,
        sha256_file(path),
        "weights file:net.pth, sha256 w-net",
        "git c0ffee",
        "torch 2.11.0",
        "seed 0",
        LIST,
        path.with_suffix(".json"),
    ):
        assert str(fact) in blocks[0]
    status, out, _ = traced(capsys, figure, "--results_dir", results, "--line", 6)
    assert status == 0 and "w-other" in out and "w-net" not in out


def test_trace_names_a_figure_older_than_its_record(results, tmp_path, capsys):
    figure = tmp_path / "figure.csv"
    figure.write_text(
        "image_set,threat,model,eps,accuracy\n"
        f"mine,Linf,net,{EPS[0]!r},0.5\nmine,Linf,net,0.0,0.7\n"
    )
    status, out, _ = traced(capsys, figure, "--results_dir", results)
    assert (
        status == 0
        and "line 2: accuracy" not in out
        and "line 3: accuracy 0.7, its record gives 0.75; draw it again" in out
    )
    path = results / "records/mine/Linf/net.csv"
    path.write_text(path.read_text() + "e")
    assert "WHICH IT NO LONGER HAS" in describe_run(path, finished_runs(results)[path])


@pytest.mark.parametrize("column", ["eps", "accuracy"])
@pytest.mark.parametrize("text", ["x", "nan", "=1+1", ""])
def test_trace_of_text_in_the_place_of_a_number_is_one_line(
    results, tmp_path, capsys, column, text
):
    figure = tmp_path / "accuracy_vs_eps.csv"
    row = {"image_set": "mine", "threat": "Linf", "model": "net", "budget": "AutoAttack standard"}
    row |= {"eps": str(EPS[0]), "accuracy": "0.5"} | {column: text}
    pd.DataFrame([row]).to_csv(figure, index=False)
    assert run_utilities("trace", figure, "--results_dir", results) == 2
    err = capsys.readouterr().err
    assert f"{figure}, line 2, column {column}: {text!r} is no number" in err


def test_trace_exits_1_for_numbers_without_a_run(results, tmp_path, capsys):
    (tmp_path / "f.csv").write_text("image_set,threat,model\nmine,Linf,net\nmine,Linf,published\n")
    status, out, err = traced(capsys, tmp_path / "f.csv", "--results_dir", results)
    assert status == 1 and "line(s) 2\n" in out and "is behind line(s) 3: numbers of others" in err


def test_trace_of_a_correlation_finds_the_models_of_its_caption(results, tmp_path, capsys):
    (tmp_path / "f.csv").write_text("benchmark,accuracy,rho\nV1,clean,0.3\nIT,0.0039,0.5\n")
    (tmp_path / "f.txt").write_text(
        "Correlation.\nmine (n = 4), L∞, autoattack, AutoAttack standard: 2 models"
    )
    status, out, _ = traced(capsys, tmp_path / "f.csv", "--results_dir", results)
    assert status == 0 and out.count("line(s) 2-3") == 2 and "L2-fmn" not in out
    assert "Linf/net.csv" in out and "Linf/other.csv" in out
    (tmp_path / "f.txt").write_text("of another image set and budget")
    assert traced(capsys, tmp_path / "f.csv", "--results_dir", results)[0] == 1


def test_trace_of_a_statistic_leads_to_the_runs_of_the_summary_alone(tmp_path, capsys):
    """Not to other threats that its caption names too, nor to a record of other images."""
    for model, images in (("a", "all"), ("b", "all"), ("c", "some")):
        make_norms(tmp_path, model, [0.1, 0.2], list_sha256=images)
    make_norms(tmp_path, "a", [0.1, 0.2], threat="L2-fmn", list_sha256="all")
    figure = tmp_path / "f.csv"
    figure.with_suffix(".txt").write_text("mine, L2-crossing 9 steps. Not drawn: L2-fmn 9 steps")
    for line in (
        "image_set,threat,attack,rho\nmine,L2-crossing,L2-crossing 9 steps,0.5\n",
        'source,rho\n"mine, L2-crossing, L2-crossing 9 steps",0.5\n',
    ):
        figure.write_text(line)
        status, out, _ = traced(capsys, figure, "--results_dir", tmp_path)
        assert status == 0 and re.findall(r"record +(\S+)/(\w)\.csv", out) == [
            (str(tmp_path / "records" / "mine" / "L2-crossing"), model) for model in "ab"
        ]


def test_trace_of_two_sources_finds_both_runs_of_the_model(results, tmp_path, capsys):
    (tmp_path / "f.csv").write_text(
        'model,source,ball\nnet,"mine, L2-fmn, FMN 9 steps","mine, Linf, AutoAttack standard"\n'
    )
    status, out, _ = traced(capsys, tmp_path / "f.csv", "--results_dir", results)
    assert status == 0 and out.count("line(s) 2\n") == 2 and "other" not in out
    assert "L2-fmn/net.csv" in out and "Linf/net.csv" in out


def test_trace_of_a_corruption_finds_its_type_and_severity(tmp_path, open_run, capsys):
    for severity in (1, 2):
        with open_run(kind="clean", threat=f"corruptions-fog-{severity}") as run:
            run.append([clean_columns("a.jpg")])
            run.finish(["a.jpg"])
    (tmp_path / "f.csv").write_text(
        "image_set,model,type,severity,n,error\nsample,net,fog,2,1,0.0\n"
    )
    status, out, _ = traced(capsys, tmp_path / "f.csv", "--results_dir", tmp_path)
    assert status == 0 and "corruptions-fog-2/net.csv" in out and "corruptions-fog-1" not in out


@pytest.mark.parametrize(
    "content, line, message",
    [
        ("", None, "not the table"),
        ("a\n1\n", 9, "has no line 9"),
        (b"\xff\xfe\0", None, "not the table"),
    ],
)
def test_trace_refuses_what_is_no_figure(results, tmp_path, capsys, content, line, message):
    (tmp_path / "f.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    status, out, err = traced(
        capsys, tmp_path / "f.csv", "--results_dir", results, *(["--line", line] if line else [])
    )
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("l1", "is_found"), [(0.3, False), (0.2, True), (4.3, True), (4.1, False), (np.nan, True)]
)
def test_an_l1_norm_lies_between_l2_and_l2_in_every_value(l1, is_found):
    """By hand: l2 is 0.3, and an image of 3 x 8 x 8 values has an l1 of at most 0.3 sqrt(192)."""
    rows = pd.DataFrame({"image_id": ["a", "b"], "linf": 0.1, "l2": 0.3, "l1": [2.0, l1]})
    settings = {"model": {"preprocessing": {"input_size": [3, 8, 8]}}, "run": {}}
    record = Record(Path("L1-fmn/net.csv"), {"settings": settings, "threat": "L1-fmn"}, rows)
    found = [sentence for sentence in impossible_norms(record) if "l1 is below" in sentence]
    assert len(found) == is_found and record.norm == "L1"
