"""Ray's autoscaler starts a node for a worker that no node has room for, and ends it when nobody needs it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from cluster.commands.run_lookup import connected
from tests.end_to_end import jobs
from tests.end_to_end.autoscaling import autoscaling
from tests.end_to_end.test_failures import FAKE
from tests.end_to_end.test_scale import scale, workers_of
from tests.verify.keep import keep

pytestmark = pytest.mark.job

TYPES = {
    "plain": {"resources": {"CPU": 1}},
    "engines": {"resources": {"CPU": 1}, "labels": {"room": "engines"}, "min_workers": 1, "max_workers": 2},
}
"""No engine may be on a plain one; of the others there are one or two."""
ROOMS = 'placement.nodes={rollout = {room = "engines"}, learner = {room = "rest"}, reward = {room = "rest"}}'
"""Without the last two the autoscaler might pack what it is asked for so that it keeps a node that nobody is on."""
WHOLE, TENTH = "CPU 1", "CPU 0.1"
"""What an engine or a learner asks for, and what a reward worker does."""


def until(condition: Callable[[], object], timeout_s: float, said: Callable[[], object]) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {said()}"
        time.sleep(0.5)


@pytest.mark.verify
@pytest.mark.timeout(600)
def test_a_node_is_started_for_who_finds_no_room_and_ends_after_it(tmp_path):
    """The head has room for a learner and a reward worker, the first node for one engine."""
    log, run = tmp_path / "log", tmp_path / "growing"
    options = [
        *FAKE, "engine.options.delay_s=0.2", f"run.dir={tmp_path}", "run.name=growing", "learner.steps=100000",
        ROOMS, "autoscaling.rollout.max_workers=3", "autoscaling.rollout.times=100000",
    ]  # fmt: skip
    with autoscaling(2, TYPES, labels={"room": "rest"}, idle_s=6) as cluster:
        until(lambda: cluster.nodes() == {"engines": 1}, 60, cluster.nodes)
        process = jobs.start(options, log=log, RAY_ADDRESS=cluster.address)

        def state() -> object:
            return cluster.nodes(), cluster.asked(), jobs.tail(log)

        try:
            jobs.wait_for_step(run, 2, process, log, timeout_s=120)
            assert cluster.nodes() == {"engines": 1}, state()
            assert cluster.asked() == {WHOLE: 2, TENTH: 1}, state()
            begun = time.monotonic()
            scale(run, "rollout=+1", wait_s=90)
            assert cluster.nodes() == {"engines": 2}, state()
            assert cluster.asked() == {WHOLE: 3, TENTH: 1}, state()
            with connected(run) as connection:
                until(lambda: "rollout-1" in workers_of(connection), 30, state)
            joined_s = time.monotonic() - begun
            scale(run, "rollout=+1", wait_s=0)
            until(lambda: cluster.asked() == {WHOLE: 4, TENTH: 1}, 20, state)
            scale(run, "rollout=1", wait_s=60)  # the third is still waiting for room
            until(lambda: cluster.asked() == {WHOLE: 2, TENTH: 1}, 20, state)
            begun = time.monotonic()
            until(lambda: cluster.nodes() == {"engines": 1}, 60, state)
            left_s = time.monotonic() - begun
            process.terminate()
            assert process.wait(60) == 0, jobs.tail(log)
            until(lambda: not cluster.asked(), 20, state)
        finally:
            jobs.end(process)
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert "died" not in log.read_text(), "the node ended under somebody"
    keep("autoscaler", {"seconds_from_wish_to_first_claim": joined_s, "seconds_from_leaving_to_one_node_less": left_s})
