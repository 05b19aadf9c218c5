"""Threats that go on as a run was begun."""

from alignment_security.evaluation import Crossing


def test_crossing_goes_on_with_the_walks_that_a_run_was_begun_with():
    """Early versions wrote no number of walks; they had one for each fifty steps."""
    for steps, walks in ((20, 1), (50, 1), (100, 2), (150, 3)):
        threat = Crossing("L2", steps)
        assert threat.as_begun({}).attack().walks == walks
        assert threat.as_begun(threat.settings("none")).attack().walks == threat.attack().walks
    assert Crossing("L2", 50).settings("none")["walks"] == 2
