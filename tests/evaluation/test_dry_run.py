"""The cost that a dry run estimates, against the counted cost of runs of that kind."""

from __future__ import annotations

import time

import pytest
import torch
from nets import digits, digits_net
from torch import nn

from alignment_security.attacks.autoattack import AUTOATTACK, Budget, run_autoattack
from alignment_security.attacks.libraries import FOOLBOX, run_foolbox, run_pyautoattack
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.evaluation import (
    AutoAttack,
    Clean,
    Crossing,
    FastMinimumNorm,
    Foolbox,
)
from alignment_security.evaluation.dry_run import Speed, describe_cost, measure
from alignment_security.models.forward import CPU_ROWS

TINY_EPS, HUGE_EPS = (1e-4, 2e-4, 3e-4), (1.0,)


@pytest.fixture(scope="module")
def net():
    return digits_net(0.1, 6)


@pytest.fixture(scope="module")
def images(net):
    """Six digits that the net is sure of."""
    with torch.no_grad():
        right = [row for row in digits()[1200:1300] if int(net(row[1][None]).argmax()) == row[2]]
    return right[:6]


def small(eps, names=AUTOATTACK, engine="own") -> AutoAttack:
    """AutoAttack with a budget of few passes."""
    budget = Budget(tuple(names), steps=10, targets=3, queries=60)
    return AutoAttack("Linf", tuple(eps), budget, engine)


def counted(rows) -> tuple[float, float]:
    """Passes an image, forward and backward."""
    rows = [row for part in rows for row in part]
    n = len({row["image_id"] for row in rows})
    return sum(row["forwards"] for row in rows) / n, sum(row["backwards"] for row in rows) / n


def own(net, images, threat: AutoAttack) -> tuple[float, float]:
    eps = list(threat.eps)
    return counted(run_autoattack(net, images, "Linf", eps, 10, threat.budget))


# ---- passes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [(name,) for name in AUTOATTACK] + [AUTOATTACK], ids="+".join)
@pytest.mark.parametrize("eps", [TINY_EPS[:1], TINY_EPS])
def test_nothing_takes_more_passes_than_the_most(net, images, names, eps):
    """Images that nothing fools take all of it for APGD and Square (but for the confirmation), and
    most of it for FAB."""
    threat = small(eps, names)
    forwards, backwards = own(net, images, threat)
    most = threat.cost()[1]
    share = 0.5 if "fab-t" in names else 1
    assert share * most[0] <= forwards + 1 <= most[0] and share * most[1] <= backwards <= most[1]


def test_many_eps_cost_little_more_than_one(net, images):
    """Images that survive all: one walk, and the first attack twice."""
    eps, budget = tuple(1e-4 * k for k in range(1, 8)), Budget(("apgd-ce", "square"), 50, 3, 900)
    many, one = (AutoAttack("Linf", part, budget) for part in (eps, eps[:1]))
    assert own(net, images, many) == (pytest.approx(many.cost()[1][0] - 1), 2 * 50 + 30)
    assert sum(own(net, images, many)) < 1.2 * sum(own(net, images, one))


@pytest.mark.parametrize("names", [["apgd-ce"], ["square"]])
def test_fooled_at_once_takes_the_least(names):
    threat = small(HUGE_EPS, names)
    x = torch.full((1, 8, 8), 0.5)
    found = counted(
        run_autoattack(AnyChange(x), [("a", x, 0)], "Linf", list(HUGE_EPS), 4, threat.budget)
    )
    assert found == threat.cost()[0]


class AnyChange(nn.Module):
    """Class 0 for one image, class 1 for every other."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, x):
        other = (x - self.x).flatten(1).abs().amax(1, keepdim=True).sign()
        return torch.cat([1 - other, other, 0 * other - 1, 0 * other - 2], dim=1)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize("threat_class", [FastMinimumNorm, Crossing])
def test_minimal_norms_take_the_estimated_passes(net, images, threat_class, norm):
    threat = threat_class(norm, steps=10)
    least, most = threat.cost()
    assert least == most == counted(run_minimum_norm(net, images, threat.attack(), 10))


@pytest.mark.parametrize("protocol", FOOLBOX)
def test_foolboxs_classes_take_the_estimated_passes(net, images, protocol):
    least, most = Foolbox(protocol, steps=10).cost()
    forwards, backwards = counted(run_foolbox(net, images, protocol, 10, 10))
    assert least[0] <= forwards <= most[0] and least[1] <= backwards <= most[1]
    assert least == most or protocol == "deepfool"


@pytest.mark.parametrize("names", [(name,) for name in AUTOATTACK], ids="+".join)
def test_the_reference_takes_about_the_estimated_passes(net, images, names):
    threat = small(TINY_EPS[:2], names, engine="reference")
    eps = list(threat.eps)
    forwards, backwards = counted(run_pyautoattack(net, images, "Linf", eps, 10, threat.budget))
    most = threat.cost()[1]
    assert forwards == pytest.approx(most[0], rel=0.05)
    assert backwards == pytest.approx(most[1], rel=0.15)


def test_a_clean_pass_is_one():
    assert Clean().cost() == ((1, 0), (1, 0))


# ---- time ----------------------------------------------------------------------------------------


class Slow(nn.Module):
    """10 ms a row forward, 20 ms a row backward."""

    def forward(self, x):
        time.sleep(0.01 * len(x))
        logits = x.flatten(1)[:, :10] * 1
        if logits.requires_grad:
            logits.register_hook(lambda grad: time.sleep(0.02 * len(grad)))
        return logits


def test_times_are_those_of_a_net_that_sleeps(sample, lite0):
    speed = measure(Slow(), sample, lite0.preprocessing, CPU_ROWS, gradients=True)
    assert 0.010 <= speed.forward < 0.02 and 0.030 <= speed.both < 0.045 and speed.decode > 0
    assert speed.peak_bytes > 100e6 and speed.batch_size == CPU_ROWS


def test_the_estimate_is_passes_times_seconds():
    """1000 images: 0.1 s to decode; 13 forward passes of 1 s, 10 of which go back in 2 s more."""
    speed = Speed(decode=0.1, forward=1.0, both=3.0, batch_size=8, peak_bytes=3 * 2**29)
    lines = describe_cost(FastMinimumNorm("L2", steps=10), 1000, speed, on_gpu=True)
    assert lines["estimated time"] == "9:11:40"  # 33,100 s
    assert lines["peak memory"] == "1.50 GiB of the GPU"
    assert lines["passes"] == (
        "an image takes 13 forward and 10 backward; a misclassified one 1 forward"
    )
    lines = describe_cost(small([0.1], ["apgd-ce"]), 1000, speed, on_gpu=False)
    assert lines["estimated time"] == "1:25:00 to 9:11:40"
    assert "to 13 forward and 10 backward (never fooled)" in lines["passes"]


def test_a_set_smaller_than_the_batches_is_enough(sample, lite0):
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    net(torch.zeros(1, 3, 224, 224))
    assert measure(net, sample.take([0]), lite0.preprocessing, 4, gradients=False).forward > 0
