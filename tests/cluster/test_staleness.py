"""The bound on staleness, with workers that are slow and some that are very slow."""

from __future__ import annotations

import random
import threading
import time

import pytest

from cluster.buffer import Buffer, Limits
from cluster.errors import LeaseLost
from tests.cluster.pipeline import RIGHT, Pipeline, group_of

STEPS = 40
WORKERS = 8
STRAGGLERS_FRAC = 0.1


class Workers:
    """Threads that claim, sample for a while and put, until told to stop; one more thread scores."""

    def __init__(self, buffer: Buffer, straggle_s: float) -> None:
        self.buffer, self.straggle_s = buffer, straggle_s
        self.stop = threading.Event()
        self.num_refused = 0
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self._guard, args=(self._roll, seed)) for seed in range(WORKERS)]
        self.threads.append(threading.Thread(target=self._guard, args=(self._judge, 0)))

    def __enter__(self) -> Workers:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert self.errors == []

    def _guard(self, target, seed: int) -> None:
        try:
            target(seed)
        except BaseException as error:
            self.errors.append(error)
            raise

    def _roll(self, seed: int) -> None:
        chance, engine = random.Random(seed), None
        while not self.stop.is_set():
            publication = self.buffer.published("policy", other_than=engine, timeout_s=0 if engine else 1)
            if publication:
                engine = publication.version
            claim = self.buffer.claim("policy", worker=f"worker-{seed}", engine=engine or "0.0", timeout_s=0.2)
            if claim is None:
                continue
            slow = chance.random() < STRAGGLERS_FRAC
            self.stop.wait(self.straggle_s if slow else chance.uniform(0, 0.004))
            try:
                self.buffer.put(group_of(claim))
            except LeaseLost:
                self.num_refused += 1

    def _judge(self, _: int) -> None:
        while not self.stop.is_set():
            for group in self.buffer.unscored("judge", 8, 0.2):
                self.buffer.score(group.id, {"judge": RIGHT})


@pytest.mark.parametrize("when_late", ["wait", "drop"])
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_staleness_never_exceeds_its_bound_with_stragglers(buffer: Buffer, max_staleness: int, when_late):
    # Dropping is about those that take longer than the bound's steps; waiting pays for each, so it gets shorter ones.
    straggle_s = 0.3 if when_late == "drop" and max_staleness else 0.05
    pipeline = Pipeline(buffer, Limits(4, max_staleness, when_late=when_late, blocking=("judge",)))
    seen = set()
    with Workers(buffer, straggle_s) as workers:
        for step in range(STEPS):
            stored = pipeline.ready(timeout_s=20)
            assert len(stored) == 4
            staleness = {step - s.group.version for s in stored}
            assert min(staleness) >= 0
            assert max(staleness) <= max_staleness
            seen |= staleness
            pipeline.assemble()
            time.sleep(0.002)
            pipeline.release()
    summary = buffer.summary("policy")
    assert pipeline.step == STEPS
    assert summary["groups_trained"] == 4 * STEPS
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert summary["max_staleness_observed"] == max(seen)
    assert (max_staleness == 0) == (seen == {0}), "a bound that is never used would prove nothing"
    num_late = summary["groups_dropped"].get("late", 0)
    if when_late == "drop" and max_staleness > 0:
        assert num_late > 0
        assert workers.num_refused > 0, "a straggler that comes back is told that its group is gone"
    else:
        # Bound 0 has no group to spare: all that are admitted are needed, so there it waits too.
        assert num_late == 0
    pipeline.check_tasks()
