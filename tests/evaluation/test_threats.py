"""Threats that go on as a run was begun."""

from dataclasses import replace

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
