"""The cost that a dry run estimates, against the counted cost of runs of that kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nets import digits, digits_net
from torch import nn

from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import AUTOATTACK, Budget, run_autoattack
from alignment_security.attacks.libraries import FOOLBOX, run_foolbox, run_pyautoattack
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.evaluation import (
    AutoAttack,
    Clean,
    Crossing,
    FastMinimumNorm,
    Foolbox,
    ReferenceAutoAttack,
)
from alignment_security.evaluation.dry_run import describe_cost
from alignment_security.evaluation.rehearsal import Rehearsal

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


def small(eps, names=AUTOATTACK, threat=AutoAttack) -> AutoAttack:
    """AutoAttack with a budget of few passes."""
    budget = Budget(tuple(names), steps=10, targets=3, queries=60)
    return threat("Linf", tuple(eps), budget)


def counted(rows) -> tuple[float, float]:
    """Passes an image, forward and backward."""
    rows = [row for part in rows for row in part]
    n = len({row["image_id"] for row in rows})
    return sum(row["forwards"] for row in rows) / n, sum(row["backwards"] for row in rows) / n


def own(net, images, threat: AutoAttack) -> tuple[float, float]:
    model = AttackedModel(net, 10)
    return counted(run_autoattack(model, images, "Linf", list(threat.eps), threat.budget))


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
    model = AttackedModel(AnyChange(x), 4)
    found = counted(run_autoattack(model, [("a", x, 0)], "Linf", list(HUGE_EPS), threat.budget))
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
    found = counted(run_minimum_norm(AttackedModel(net, 10), images, threat.attack()))
    assert least == most == found


@pytest.mark.parametrize("protocol", FOOLBOX)
def test_foolboxs_classes_take_the_estimated_passes(net, images, protocol):
    least, most = Foolbox(protocol, steps=10).cost()
    forwards, backwards = counted(run_foolbox(AttackedModel(net, 10), images, protocol, 10))
    assert least[0] <= forwards <= most[0] and least[1] <= backwards <= most[1]
    assert least == most or protocol == "deepfool"


@pytest.mark.parametrize("names", [(name,) for name in AUTOATTACK], ids="+".join)
def test_the_reference_takes_about_the_estimated_passes(net, images, names):
    threat = small(TINY_EPS[:2], names, ReferenceAutoAttack)
    model, eps = AttackedModel(net, 10), list(threat.eps)
    forwards, backwards = counted(run_pyautoattack(model, images, "Linf", eps, threat.budget))
    most = threat.cost()[1]
    assert forwards == pytest.approx(most[0], rel=0.05)
    assert backwards == pytest.approx(most[1], rel=0.15)


def test_a_clean_pass_is_one():
    assert Clean().cost() == ((1, 0), (1, 0))


# ---- in words ------------------------------------------------------------------------------------


def test_the_estimate_is_that_of_the_rehearsal():
    """1000 images: 0.1 s to decode, 33 units of 1 s; and those of which one in ten survives."""
    rehearsal = Rehearsal(1000, [33.0] * 10, 0, 1.0, 2.0, 0.1, 0, [8], 3 * 2**29)
    lines = describe_cost(FastMinimumNorm("L2", steps=10), rehearsal, on_gpu=True)
    assert lines["estimated time"] == "9:11:42"  # 2 + 33,100 s
    assert lines["peak memory"] == "1.50 GiB of a GPU"
    assert lines["passes"] == (
        "an image takes 13 forward and 10 backward; a misclassified one 1 forward"
    )
    assert lines["rehearsed"] == (
        "10 images; 1 forward passes a second, half as many backward; 10 images decoded by one "
        "process"
    )
    few = replace(rehearsal, work=[5.0] * 9 + [33.0], decode=0.0, unfinished=1)
    lines = describe_cost(small([0.1], ["apgd-ce"]), few, on_gpu=False)
    assert lines["estimated time"] == "2:10:19 (1:35:38 to 2:45:00)"
    assert "to 13 forward and 10 backward (never fooled)" in lines["passes"]
    assert lines["rehearsed"].startswith("10 images, of which 1 not finished after 60 s (they")
