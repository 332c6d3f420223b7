"""A run goes on under other ranks and another ZeRO stage as if it had never stopped."""

from __future__ import annotations

import pytest

from tests.learner.conftest import ALONE, ALONE_AGAIN, PAIR
from tests.learner.test_engine import assert_same, distance

ARRIVALS = [
    (now, job) for now, jobs in (("alone", ALONE), ("pair", PAIR), ("alone_again", ALONE_AGAIN)) for job in jobs
    if job.startswith("arrive")
]  # fmt: skip


@pytest.mark.parametrize(("now", "job"), ARRIVALS)
def test_other_ranks_and_stages_take_the_steps_that_would_have_come(request, now, job):
    _, optimizer, _, left_world, left_stage = job.split(":")
    left = request.getfixturevalue({"1": "alone", "2": "pair"}[left_world])
    expected, expected_metrics, end = left[f"leave:{optimizer}:{left_stage}"]
    weights, metrics, reached, resumed_at = request.getfixturevalue(now)[job]
    assert (resumed_at, reached) == (2, end)
    assert_same(weights, expected, atol=1e-5)
    for name in ("loss/policy", "learner/grad_norm", "learner/tokens", "learner/num_skipped"):
        assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-4, abs=1e-6), name
    assert metrics["learner/lr"] == expected_metrics["learner/lr"], "the schedule goes on where it was"


def test_what_is_compared_has_moved(alone, pair):
    one, _, _ = alone["leave:adamw:0"]
    other, _, _ = alone["leave:sgd:0"]
    assert distance(one, other) > 1e-3
    assert_same(pair["leave:adamw:3"][0], one)
