"""foolbox's protocols as threats: what few steps cannot find, what a signal can lose."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from nets import two_class

from alignment_security.common.remarks import is_remark
from alignment_security.evaluation.threats.foolbox import LARGEST_BATCH, Foolbox
from alignment_security.evaluation.threats.threat import Execution
from alignment_security.models.heads import Model


def model_of(net) -> Model:
    return Model(net, {"head": "none"}, {"input_size": (1, 8, 8)}, 2)


@pytest.mark.parametrize("steps, floored", [(20, True), (40, True), (80, True), (400, False)])
def test_ddn_with_few_steps_has_a_floor_and_says_so(steps, floored):
    """A boundary at 0.001 is found at the floor that the note names, or near its distance.

    What its steps can find is a remark; a record with norms there has a warning.
    """
    threat = Foolbox("ddn", steps)
    net, image = two_class(0.001, "L2")
    ((row,),) = threat.run(model_of(net), [("a", image, 0)], Execution(1))
    assert bool(threat.notes) == floored and all(map(is_remark, threat.notes))
    warnings = threat.notes_on(pd.DataFrame([row, row | {"clean_correct": 0}]))
    assert [warning.startswith("1 of 1 correctly") for warning in warnings] == [True] * floored
    assert not any(map(is_remark, warnings))
    if floored:
        named = float(re.search(r"below ([\d.]+)", threat.notes[0])[1])
        assert row["l2"] == pytest.approx(named, rel=0.05)
    else:
        assert row["l2"] < 0.0012
    assert Foolbox("deepfool").notes == ()


@pytest.mark.parametrize(
    ("protocol", "distance", "count"), [("ddn", 0.14, 1), ("ddn", 0.2, 0), ("deepfool", 1e-3, 0)]
)
def test_a_norm_above_the_floor_is_no_finding(protocol, distance, count):
    """DDN of 40 steps ends at 0.15: the boundary of such a norm may be nearer, not that of 0.2."""
    threat = Foolbox(protocol, 40)
    net, image = two_class(distance, "L2")
    ((row,),) = threat.run(model_of(net), [("a", image, 0)], Execution(1))
    assert len(threat.notes_on(pd.DataFrame([row]))) == count


def test_a_signal_loses_at_most_a_small_batch():
    """The rows of a batch are written before the next one is attacked; a large --batch_size does
    not make it larger."""
    net, image = two_class(0.1, "L2")
    images = [(f"{i}", image, 0) for i in range(2 * LARGEST_BATCH + 7)]
    batches = Foolbox("deepfool", 2).run(model_of(net), images, Execution(batch_size=512))
    assert [len(rows) for rows in batches] == [1, 2, 4, 8, 16, LARGEST_BATCH, 8]
