"""What a run says before and while it works: first line, passes, time left; models that guess."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from nets import two_class

from alignment_security.attacks.libraries import FOOLBOX
from alignment_security.common.progress import ProgressMeter
from alignment_security.evaluation.checks import chance_warning
from alignment_security.evaluation.progress import EvaluationProgress, expected_time, work_of
from alignment_security.evaluation.report import alignment_text, norm_text
from alignment_security.evaluation.threats.autoattack import AutoAttack
from alignment_security.evaluation.threats.clean import Clean
from alignment_security.evaluation.threats.foolbox import Foolbox
from alignment_security.evaluation.threats.minimum_norm import Crossing
from alignment_security.evaluation.threats.saliency import Saliency
from alignment_security.evaluation.threats.threat import Execution
from alignment_security.models.heads import Model

IMAGES = [(f"{i}", torch.full((1, 8, 8), 0.5), 0) for i in range(4)]


def progress_of(threat, n: int = 4) -> EvaluationProgress:
    return EvaluationProgress(threat, n, 0, "net")


# ---- passes --------------------------------------------------------------------------------------


def test_idle_rows_of_finished_images_are_no_work_on_those_under_way():
    """Ten images one after the other, each alone among three idle rows: the last has just begun."""
    progress = progress_of(Crossing("L2", 20), 10)
    source = progress.count_images((f"i{k}", torch.zeros(1), 0) for k in range(10))
    for k in range(9):
        next(source)
        for _ in range(20):
            progress.on_pass(4, True)
        row = {"image_id": f"i{k}", "clean_correct": 1, "forwards": 20, "backwards": 20}
        progress.on_rows(1, [row])
    next(source)
    assert progress.work_left() == progress.most
    progress.on_pass(4, True)
    assert 0.8 * progress.most < progress.work_left() < progress.most


def test_images_that_wait_for_a_row_are_no_further_than_they_are():
    """Four images are taken at once, two fit into a batch, and these are done."""
    progress = progress_of(Crossing("L2", 20), 4)
    list(progress.count_images(iter(IMAGES)))
    for _ in range(20):
        progress.on_pass(2, True)
    for name, *_ in IMAGES[:2]:
        row = {"image_id": name, "clean_correct": 1, "forwards": 20, "backwards": 20}
        progress.on_rows(1, [row])
    assert progress.work_left() == 2 * progress.most


@pytest.mark.parametrize("protocol", [None, *FOOLBOX])
def test_the_work_of_a_minimum_norm_attack_is_what_it_costs(protocol):
    """Counted at the model, foolbox's too, and nothing is left at the end."""
    threat = Foolbox(protocol, steps=20) if protocol else Crossing("L2", 20)
    net, _ = two_class(0.7, "L2")
    model = Model(net, {"head": "none"}, {"input_size": (1, 8, 8)}, 2)
    progress, seen = progress_of(threat), []
    execution = Execution(2, on_pass=lambda n, back: (progress.on_pass(n, back), seen.append(n)))
    for rows in threat.run(model, progress.count_images(iter(IMAGES)), execution):
        progress.on_rows(len(rows), rows)
    assert progress.taken == 4 and progress.work_left() == 0
    passes = 20 * FOOLBOX[protocol][1].get("binary_search_steps", 1) if protocol else 20
    if protocol != "deepfool":  # which ends with the first point that fools
        assert progress.work == pytest.approx(4 * work_of((passes + 2, passes)), rel=0.1)
    assert len(seen) > (5 if protocol == "deepfool" else 20)  # it moves within a batch


@pytest.mark.parametrize("threat", [Clean(), Saliency()])
def test_rows_without_passes_settle_what_the_threat_costs(threat):
    """Every image costs the same: nothing is left of those that have a row."""
    net, _ = two_class(0.7, "L2")
    model = Model(net, {"head": "none"}, {"input_size": (1, 8, 8)}, 2)
    progress = progress_of(threat, 8)
    execution = Execution(4, on_pass=progress.on_pass)
    for rows in threat.run(model, progress.count_images(iter(IMAGES)), execution):
        progress.on_rows(len(rows), rows)
    assert progress.work == progress.settled == 4 * progress.most
    assert progress.work_left() == 4 * progress.most


def test_the_time_left_counts_passes():
    """Two images cost 300 each at most; nothing is known of those that wait but their like."""
    progress = progress_of(Crossing("L2", 100), n=4)
    most = work_of((103, 100))
    assert progress.work_left() == 4 * most
    list(progress.count_images(iter(IMAGES[:2])))
    for _ in range(50):
        progress.on_pass(2, backward=True)
    assert progress.work == 300 and progress.work_left() == pytest.approx(4 * most - 300)
    (first, *_), (second, *_) = IMAGES[:2]
    row = {"image_id": first, "clean_correct": 1, "success": 1, "l2": 0.5}
    progress.on_rows(1, [row | {"forwards": 103, "backwards": 100}])
    row = {"image_id": second, "clean_correct": 0, "forwards": 1, "backwards": 0}
    progress.on_rows(1, [row])
    assert progress.work_left() == pytest.approx(2 * (most + 1) / 2)
    assert progress.verdict() == "correct 1/2, mean L2 0.500"


def test_verdicts_of_several_eps_fit_a_line():
    eps = [0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255]
    progress = progress_of(AutoAttack("Linf", eps))
    for k, radius in enumerate(eps):
        row = {"image_id": "a", "clean_correct": 1, "eps": radius, "robust": int(k < 2)}
        progress.on_rows(0, [row])
    assert progress.verdict() == "robust 1/1, 1/1, 0/1 at 0.25, 0.5, 1/255"
    assert progress_of(AutoAttack("L2", [3.0])).verdict() == ""


def test_expected_time_is_a_range_where_the_attack_may_end_early():
    assert expected_time(Crossing("L2", 100), 10, 0.01) == "about 00:30"
    assert re.fullmatch("about 00:00 to [1-9].*", expected_time(AutoAttack("Linf", 0.1), 10, 0.01))
    assert expected_time(Clean(), 10, None) == ""


# ---- the screen ----------------------------------------------------------------------------------


def test_the_first_line_in_a_pipe_comes_early(monkeypatch, capsys):
    """After 15 s, then every minute."""
    now = 0.0
    monkeypatch.setattr("alignment_security.common.progress.time.monotonic", lambda: now)
    meter, times = ProgressMeter("net", 10, 0, "image"), []
    for now in range(1, 200):
        if meter.update(0, "", share=now / 200, seconds_left=200.0 - now):
            times.append(now)
    assert times == [15, 75, 135, 195]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("net: 0/10 images [03:15<00:05]")


def test_a_run_says_first_what_it_will_do(cli, tiny, tmp_path):
    arguments = [*tiny.arguments(tmp_path), "L2", "--steps", "3"]
    status, out, _ = cli("--stop_after", "1e-9", "--workers", "0", *arguments)
    first = out.splitlines()[0]
    assert status == 85 and re.fullmatch(
        r"test_resnet: 12 images of mine; L2-crossing, crossing 3 steps; cpu \(\w+\), "
        r"batches of 4; about \d\d:\d\d",
        first,
    )
    status, out, _ = cli(*arguments)
    assert status == 0 and re.match(r"test_resnet: \d+ of 12 images of mine;", out)


def test_a_report_without_a_norm_says_why():
    run: Any = SimpleNamespace(info={"image_size": 8, "threat": "Linf-fmn"})
    none = pd.DataFrame({"success": [], "linf": [], "human_alignment": []})
    assert norm_text(none, run) == (
        "minimal Linf norm: none, since no image is classified correctly"
    )
    robust = pd.DataFrame(
        {"success": [0, 0], "linf": [np.nan] * 2, "human_alignment": [np.nan] * 2}
    )
    assert norm_text(robust, run) == "minimal Linf norm: none found of 2 images"
    assert alignment_text(robust) == "none, since no image was compared"


@pytest.mark.parametrize(
    "threat, columns, said",
    [
        ("L2-ddn", "l2 linf", "minimal L2 norm: mean 0.3000, median 0.2000"),
        ("Linf-crossing", "l2 linf", "minimal Linf norm: mean 0.7650/255, median 0.5100/255"),
        ("L1-fmn", "l2 linf l1", "minimal L1 norm: mean 30.0000, median 20.0000"),
        # of an earlier version
        ("L1-fmn", "l2 linf", "L2 norm of the smallest L1 perturbation: mean 0.3000, median 0.2"),
        ("mine", "l2 linf", "minimal L2 norm: mean 0.3000"),
    ],
)
def test_a_report_names_the_norm_that_was_minimised(threat, columns, said):
    scales = {"l2": 0.1, "linf": 0.001, "l1": 10.0}
    rows = pd.DataFrame({name: [scales[name] * k for k in (1, 2, 6)] for name in columns.split()})
    settings = {"model": {"preprocessing": {"input_size": [3, 8, 8]}}, "run": {}}
    run: Any = SimpleNamespace(info={"threat": threat, "settings": settings})
    assert norm_text(rows.assign(success=1), run).startswith(said)


# ---- a model that guesses ------------------------------------------------------------------------


def rows(labels, answers) -> list[dict]:
    return [
        {"label": label, "clean_pred": answer, "clean_correct": int(label == answer)}
        for label, answer in zip(labels, answers)
    ]


@pytest.mark.parametrize(
    "labels, answers, classes, said",
    [
        (range(20), [7] * 20, 1000, "takes all 20 images for class 7"),
        (range(20), range(1, 21), 1000, "0 of 20, as of a guess among 1000 classes"),
        (range(64), [0, *range(2, 65)], 1000, "1 of 64, as of a guess"),
        ([0, 1] * 10, [0] * 10 + [1] * 10, 2, "10 of 20, as of a guess among 2 classes"),
        (range(20), [0, 1, *range(3, 21)], 1000, ""),  # 2 of 20 is no chance
        ([3] * 20, [3] * 20, 1000, ""),  # images of one class, all right
        ([0] * 18 + [1, 1], [0] * 20, 2, ""),  # the larger class
        ([0] * 9, [1] * 9, 1000, ""),  # too few to say
        (range(8), range(1, 9), 1000, "0 of 8, as of a guess"),
        (range(7), range(1, 8), 1000, ""),
        (range(8), [0, *range(2, 9)], 1000, ""),  # one of few is right
    ],
)
def test_a_guess_is_told_from_a_weak_model(labels, answers, classes, said):
    assert said in chance_warning(rows(labels, answers), classes)
    assert bool(said) == bool(chance_warning(rows(labels, answers), classes))


@pytest.mark.parametrize(
    "right, n, classes, warns",
    [
        (3, 400, 1000, True),  # labels shifted by one: some images have two classes
        (2, 60, 1000, False),  # a network of 5 % gets as few in one set of five
        (8, 400, 1000, True),
        (20, 400, 1000, False),
        (8, 400, 10, True),  # below a guess
        (80, 400, 10, False),
    ],
)
def test_labels_in_another_order_are_hardly_better_than_a_guess(right, n, classes, warns):
    """Of a folder of one's own; a hard set, such as ImageNet-A, has so few right in earnest."""
    labels = [k % classes for k in range(n)]
    wrong = [(label + 1) % classes for label in labels]
    found = rows(labels, labels[:right] + wrong[right:])
    assert bool(chance_warning(found, classes, own=True)) == warns
    if classes == 1000:
        assert chance_warning(found, classes) == ""


@pytest.mark.parametrize("threat", ["clean", "L2 --steps 2"])
def test_a_dead_model_is_said_before_its_attack(cli, tiny, tmp_path, threat):
    """Weights of zero: one class for all images."""
    state = torch.load(tiny.checkpoint)
    state["fc.weight"].zero_()
    torch.save(state, tmp_path / "dead.pth")
    arguments = tiny.arguments(tmp_path / "results")
    arguments[arguments.index("--checkpoint") + 1] = str(tmp_path / "dead.pth")
    status, out, err = cli(*arguments, *threat.split())
    (run_file,) = (tmp_path / "results").glob("records/*/*/*.json")
    said = "check the class order of the images"
    assert status == 0 and out.count(said) == 1
    assert any(said in warning for warning in json.loads(run_file.read_text())["warnings"])
    lines = err.splitlines()
    assert any(said in line for line in lines[:1]) == (threat != "clean")
