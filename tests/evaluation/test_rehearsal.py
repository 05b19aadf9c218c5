"""What a rehearsal counts, by attacks whose passes and seconds are known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from alignment_security.evaluation import Clean, Crossing, rehearsal
from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.evaluation.rehearsal import (
    LONGEST,
    Rehearsal,
    attack,
    by_distance,
    decode,
    rehearse,
    work_of_image,
)
from alignment_security.evaluation.run import prepare
from alignment_security.images import loading
from alignment_security.images.decoded import DecodedImages
from alignment_security.models.heads import Model

SURVIVOR = 1000.0
EVEN = Rehearsal(100, [3.0] * 10, 0, 2.0, 0.0, 0.5, 0, [4], 2**30)


# ---- the time of all images ----------------------------------------------------------------------


def test_all_images_take_the_mean_passes_at_the_attacks_own_speed():
    assert EVEN.seconds() == EVEN.seconds(1) == 100 * (3 * 2 + 0.5)
    assert replace(EVEN, start=7.0).seconds() == EVEN.seconds() + 7


@pytest.mark.parametrize(("workers", "an_image"), [(0, 6.5), (10, 6), (1, 6), (2, 6)])
def test_workers_decode_while_the_attack_runs(workers, an_image):
    assert replace(EVEN, workers=workers).seconds() == 100 * an_image
    assert replace(EVEN, workers=workers, decode=40.0).seconds() == pytest.approx(
        100 * max(6, 40 / workers) if workers else 100 * 46
    )


def test_idle_rows_of_the_last_batches_are_counted():
    """Of 20 images 2 take nearly all the passes, of 1000 a hundred: two of four rows are idle, or
    none."""
    few = replace(EVEN, images=20, work=[*[1e-6] * 9, SURVIVOR])
    assert few.filled == 2 and replace(few, images=1000).filled == 1
    assert replace(few, images=1000, shapes=[8, 16, 32, 64, 128]).filled == 1.04


def test_the_interval_is_of_neighbours_that_differ():
    """Survivors that the order tells from the others vary little; all images known, not at all."""
    apart = replace(EVEN, images=10**9, work=[1.0] * 8 + [SURVIVOR] * 2)
    mixed = replace(apart, work=[1.0, 1.0, 1.0, SURVIVOR] * 2 + [1.0, 1.0])
    assert apart.standard_error == pytest.approx(999 / np.sqrt(180), rel=1e-6)
    assert mixed.standard_error > apart.standard_error
    assert replace(apart, images=10).standard_error == 0
    assert replace(apart, work=[5.0]).standard_error == 0
    assert apart.seconds(-1) < apart.seconds() < apart.seconds(1)
    assert mixed.seconds(-10) > 0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Images in blocks of easy and hard ones, every fourth of which is attacked."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(300):
        chance = 1 / (1 + np.exp(-np.linspace(-8, 4, 80)))
        work = np.where(random.random(80) < chance, SURVIVOR, 5.0)
        part = replace(EVEN, images=80, work=work[random.integers(4) :: 4])
        covered += abs(part.mean_work - work.mean()) <= part.standard_error
    assert 0.6 < covered / 300 < 0.95


# ---- an attack and its clock ---------------------------------------------------------------------


class Scripted:
    """A threat whose steps are written down.

    steps   (rows through the network, seconds, images whose row is known) of each
    """

    has_next_phase, map_reduce = False, None

    def __init__(self, clock, steps):
        self.clock, self.steps = clock, steps

    def cost(self):
        return (3, 1), (13, 10)

    def rows_of(self, name):
        return 1

    def run(self, model, images, execution):
        names = [name for name, _, _ in images]
        for rows, seconds, finished in self.steps:
            self.clock.now += seconds
            execution.on_pass(rows, True)
            yield [{"image_id": names[i], "forwards": 5, "backwards": 2} for i in finished]


@pytest.fixture
def attacked(monkeypatch):
    """Attacks two images by steps, on a clock that stands still between them."""
    clock = SimpleNamespace(now=100.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(rehearsal, "time", clock)

    def call(steps):
        items = [("a", None, 0), ("b", None, 0)]
        return attack(Evaluation(None, None, Scripted(clock, steps), 4), {}, items)

    return call


def test_the_first_steps_are_not_timed(attacked):
    """Three of 1000 s, then 12 rows forward and backward (36 units) in 18 s."""
    done = attacked([(4, 1000, [])] * 3 + [(4, 6, []), (4, 6, [0]), (4, 6, [1])])
    assert done.work == {"a": 9, "b": 9} and done.unfinished == 0
    assert done.unit == 0.5 and done.began == 3100


def test_a_run_of_few_steps_is_timed_all_the_same(attacked):
    assert attacked([(4, 6, [0, 1])]).unit == 0.5
    assert attacked([(4, 99, [0]), (4, 6, [1]), (0, 0, [])]).unit == 0.5


def test_images_that_are_not_finished_in_time_count_as_never_fooled(attacked):
    done = attacked([(4, 1, [0]), *[(4, LONGEST / 4, [])] * 99])
    assert done.work == {"a": 9, "b": 13 + 2 * 10} and done.unfinished == 1
    assert done.unit == LONGEST / 4 / 12


def test_an_image_that_waits_for_a_second_phase_counts_as_never_fooled():
    threat = Scripted(None, [])
    rows = [{"robust": robust, "forwards": 5, "backwards": 2} for robust in (0, 1)]
    assert work_of_image(threat, rows) == 2 * 9
    assert work_of_image(threat, [{}]) == 33  # saliency's rows have no passes
    threat.has_next_phase = True
    assert work_of_image(threat, rows) == 33 and work_of_image(threat, rows[:1]) == 9


# ---- which images --------------------------------------------------------------------------------


class Steep(nn.Module):
    """Two classes, whose logits differ by (red - 0.5) x green of the first pixel."""

    def forward(self, x):
        red, green = x[:, 0, 0, 0], x[:, 1, 0, 0]
        return torch.stack([10 * (red - 0.5) * green, torch.zeros_like(red)], 1)


@pytest.mark.parametrize(
    ("threat", "order"),
    [(Clean(), ["wrong", "far", "steep"]), (Crossing("L2", 3), ["wrong", "steep", "far"])],
)
def test_images_are_in_the_order_of_their_distance(threat, order):
    """Margins are 0.5 and 0.6, distances 0.08 and 0.06; without gradients the margin is known."""
    pixels = {"far": (1.0, 0.1, 0), "steep": (0.56, 1.0, 0), "wrong": (0.4, 1.0, 0)}
    items = [(name, torch.tensor(x).view(3, 1, 1).repeat(1, 4, 4), 0) for name, x in pixels.items()]
    evaluation = Evaluation(Model(Steep(), {}, {}, 2), None, threat, 2)
    assert by_distance(evaluation, items) == order


def test_a_slow_net_looks_at_fewer_images(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(rehearsal, "time", clock)

    class Slow(Steep):
        def forward(self, x):
            clock.now += LONGEST / 2
            return super().forward(x)

    items = [(name, torch.full((3, 4, 4), 0.7), 0) for name in "abcdefgh"]
    evaluation = Evaluation(Model(Slow(), {}, {}, 2), None, Clean(), 2)
    assert by_distance(evaluation, items) == list("abcdef")


def test_a_rehearsal_of_a_net(sample, lite0, monkeypatch):
    """Ten of 20 photographs; a second threat finds them decoded. Only decoding takes time here."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    load = loading.load_photograph

    def slow(images, i):
        clock.now += 1
        return load(images, i)

    monkeypatch.setattr(rehearsal, "time", clock)
    monkeypatch.setattr(loading, "load_photograph", slow)
    monkeypatch.setattr(loading, "DECODED", DecodedImages())
    found = rehearse(prepare(lite0, sample, Clean()))
    assert list(found.work) == [1.0] * 10 and found.images == 20 and found.unfinished == 0
    assert (found.decode, found.start, found.unit) == (1, 0, 0) and found.shapes == [4]
    assert found.peak_bytes > 100e6
    assert rehearse(prepare(lite0, sample, Clean())).decode == 0


@pytest.mark.parametrize(("room", "again"), [(1e9, False), (1e3, True)])
def test_images_that_do_not_fit_are_decoded_again(sample, lite0, monkeypatch, room, again):
    cleared = []
    monkeypatch.setattr(rehearsal, "KEPT_BYTES", room)
    monkeypatch.setattr(DecodedImages, "clear", lambda self: cleared.append(self))
    items, _ = decode(sample.take([0]), 20, lite0)
    assert len(items) == 1 and bool(cleared) == again
