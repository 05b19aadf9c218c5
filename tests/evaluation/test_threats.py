"""Threats that go on as a run was begun."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.common.remarks import is_remark
from alignment_security.evaluation import Crossing


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
    batches = run_minimum_norm(HalfFlat(), images, Crossing("L2", 20).attack(), 2)
    rows = pd.DataFrame([row for batch in batches for row in batch])
    (note,) = Crossing("L2", 20).notes_on(rows)
    assert note.startswith("1 of 2 correctly") and "e.g. a;" in note
