"""Threats that go on as a run was begun, and what they do in which precision."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.attacks.rand import RandomBudget
from alignment_security.common.remarks import is_remark
from alignment_security.evaluation import (
    AutoAttack,
    Clean,
    Crossing,
    FastMinimumNorm,
    Foolbox,
    RandomAutoAttack,
    ReferenceAutoAttack,
    Saliency,
    Screened,
    evaluate,
)
from alignment_security.images.slices import take_slice
from alignment_security.models.heads import Model


def test_crossing_goes_on_with_the_walks_that_a_run_was_begun_with():
    """Early versions wrote no number of walks; they had one for each fifty steps."""
    for steps, walks in ((20, 1), (50, 1), (100, 2), (150, 3)):
        threat = Crossing("L2", steps)
        assert threat.as_begun({}).attack().walks == walks
        assert threat.as_begun(threat.settings("none")).attack().walks == threat.attack().walks
    assert Crossing("L2", 50).settings("none")["walks"] == 2


def test_crossing_in_linf_goes_on_without_saturation_where_a_run_was_begun_so():
    threat = Crossing("Linf", 50)
    assert threat.settings("none")["saturation"] == threat.attack().saturation > 1
    assert threat.as_begun(threat.settings("none")) == replace(threat, walks=2)
    assert threat.as_begun({}).attack().saturation == 1
    assert "saturation" not in threat.as_begun({}).settings("none")
    assert "saturation" not in Crossing("L2", 50).settings("none")


@pytest.mark.parametrize("steps, count", [(1, 1), (19, 1), (20, 0), (100, 0)])
def test_a_walk_of_few_steps_says_so(steps, count):
    """As a remark: the steps were asked for, and no audit finds fault with them."""
    notes = Crossing("Linf", steps).notes
    assert len(notes) == count and all(map(is_remark, notes))


def test_a_second_attempt_is_seen_in_the_rows_of_an_attack():
    """Of two images, one has no gradient, so that its first attempt finds nothing."""

    class HalfFlat(torch.nn.Module):
        def forward(self, x):
            seen = x.mean((1, 2, 3))
            rise = torch.where(seen < 0.3, 0 * seen, seen - 0.6)
            return torch.stack([torch.zeros_like(rise), rise - 0.01], 1)

    images = [(name, torch.full((1, 4, 4), grey), 0) for name, grey in (("a", 0.2), ("b", 0.5))]
    batches = run_minimum_norm(AttackedModel(HalfFlat(), 2), images, Crossing("L2", 20).attack())
    rows = pd.DataFrame([row for batch in batches for row in batch])
    (note,) = Crossing("L2", 20).notes_on(rows)
    assert note.startswith("1 of 2 correctly") and "e.g. a;" in note


# ---- precision -----------------------------------------------------------------------------------

SMALL = Budget(("apgd-ce",), steps=2)
RANDOM = RandomBudget(("apgd-ce",), steps=2, draws=2)
# a threat, and whether it searches with a faster copy of the network
THREATS = {
    "clean": (Clean(), False),
    "saliency": (Saliency(), False),
    "Linf": (AutoAttack("Linf", [0.1], SMALL), True),
    "reference": (ReferenceAutoAttack("Linf", [0.1], SMALL), False),
    "rand": (RandomAutoAttack("Linf", [0.1], RANDOM), True),
    "screened": (Screened("Linf", [0.1], SMALL), True),
    "crossing": (Crossing("L2", 2), True),
    "fmn": (FastMinimumNorm("L1", 2), True),
    "ddn": (Foolbox("ddn", 2), False),
}


class Spied(nn.Module):
    """Logits rise with the pixels, those of class 1 by one in 1024 more than those of class 0.

    In bfloat16 both are equal, and class 0 wins.
    passes   (of a copy, train mode, TF32, bfloat16) of each pass of this net and its copies
    """

    def __init__(self):
        super().__init__()
        self.passes: set[tuple[bool, bool, bool, bool]] = set()
        self.is_copy, self.layer = False, nn.Linear(1, 1000)
        self.layer.weight.data = torch.tensor([1, 1 + 2**-10, *[0.0] * 998])[:, None]
        self.layer.bias.data.zero_()
        self.eval().requires_grad_(False)

    def __deepcopy__(self, memo):
        copy = Spied()
        copy.passes, copy.is_copy = self.passes, True
        return copy

    def forward(self, x):
        train = self.training or self.layer.training
        low = torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")
        self.passes.add((self.is_copy, train, *low))
        return self.layer(x.mean((1, 2, 3))[:, None])


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("threat, searches", THREATS.values(), ids=THREATS)
def test_a_low_precision_is_of_the_search_alone(threat, searches, precision, sample):
    """Clean images are classified in float32, too, and no network is ever in train mode."""
    net, images = Spied(), take_slice(sample, 0, 2)
    preprocessing = {"input_size": (3, 32, 32), "interpolation": "bilinear", "crop_pct": 1.0}
    model = Model(net, {"name": "spied", "head": "none", "weights": "none"}, preprocessing, 1000)
    images = replace(images, labels=[1] * len(images))
    rows = evaluate(model, images, threat, precision=precision, batch_size=2)
    low = (True, False, precision == "tf32", precision == "bf16")
    exact = {(False, False, False, False), (True, False, False, False)}  # and checks of the copy
    assert net.passes - {low} <= exact and (low in net.passes) == searches
    assert rows["clean_correct"].all()
