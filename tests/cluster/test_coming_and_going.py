"""Hundreds of engines without models join and leave at random while a learner trains; each has a client.

`KANABO_SEED` picks another sequence.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest

from cluster.buffer import Buffer, Limits
from cluster.errors import LeaseLost
from cluster.types import Claim
from tests.cluster.pipeline import RIGHT, Pipeline, group_of
from tests.verify.keep import keep

SEED = int(os.environ.get("KANABO_SEED", "0"))
LEASE_S = 3.0
WAYS = {"leaves": 5, "dies": 3, "vanishes": 2, "hangs": 2}
"""How one goes, and how often: finishing its group; missed at once; missed when its lease passes; back after that."""


class Engine(threading.Thread):
    """Fetches the current weights, then claims, samples for a while and puts, until it goes in one of the `WAYS`."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        super().__init__(name=f"engine-{number}", daemon=True)
        self.fleet, self.chance = fleet, random.Random(SEED * 100_000 + number)
        self.buffer = Buffer(*fleet.address)
        self.going = threading.Event()
        self.way = "leaves"
        self.wished = time.monotonic()

    def go(self, way: str) -> None:
        self.way = way
        self.going.set()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.fleet.errors.append(error)
            raise
        finally:
            self.buffer.close()

    def _work(self) -> None:
        engine = self._join()
        while not self.going.is_set():
            newer = self.buffer.published("policy", other_than=engine)
            engine = newer.version if newer else engine
            claim = self.buffer.claim("policy", worker=self.name, engine=engine, timeout_s=0.5)
            if claim is None:
                continue
            if self.wished:
                self.fleet.joined_s.append(time.monotonic() - self.wished)
                self.wished = 0.0
            try:
                self._sample(claim)
                if self.going.is_set() and self.way != "leaves" and not self._goes_with_a_group():
                    return
                self.buffer.put(group_of(claim))
            except LeaseLost:
                self.fleet.count("refused")

    def _sample(self, claim: Claim) -> None:
        """For a while; progress renews the lease."""
        until = time.monotonic() + self.fleet.sample_s * self.chance.uniform(0.3, 1.7)
        while (left_s := until - time.monotonic()) > 0 and not self.going.wait(min(left_s, LEASE_S / 3)):
            self.buffer.renew(claim)

    def _join(self) -> str:
        """Its first weights. Claims with older ones, if there were any, are refused."""
        publication = self.buffer.published("policy", timeout_s=10)
        assert publication is not None
        if publication.step:
            old = f"{publication.epoch}.{publication.step - 1}"
            assert self.buffer.claim("policy", worker=self.name, engine=old, timeout_s=0) is None, "rule 9"
        return publication.version

    def _goes_with_a_group(self) -> bool:
        """Whether it comes back and puts it, too late."""
        self.fleet.count(f"{self.way}, a group in hand")
        if self.way == "dies":
            time.sleep(self.chance.uniform(0, 0.5))
            self.fleet.buffer.forsake("policy", self.name)
        elif self.way == "hangs":
            time.sleep(1.5 * LEASE_S)
        return self.way == "hangs"


class Fleet:
    """Up to `most` engines at a time, told to come and go at random; two threads score."""

    def __init__(self, buffer: Buffer, most: int, sample_s: float) -> None:
        self.buffer, self.address, self.most, self.sample_s = buffer, buffer.__reduce__()[1], most, sample_s
        self.chance = random.Random(SEED)
        self.engines: list[Engine] = []
        self.errors: list[BaseException] = []
        self.joined_s: list[float] = []
        """From being wished for to its first claim."""
        self.seen: Counter[str] = Counter()
        self.num_born = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._helpers = [
            threading.Thread(target=self._guard, args=(f,)) for f in (self._turn, self._score, self._score)
        ]

    def __enter__(self) -> Fleet:
        for thread in self._helpers:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """All leave: those with a group in hand finish it."""
        self._ended.set()
        for thread in self._helpers:
            thread.join()
        for engine in self.engines:
            engine.go("leaves")
        for engine in self.engines:
            engine.join(30)
        assert self.errors == []
        assert not any(engine.is_alive() for engine in self.engines)

    def count(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1

    def _guard(self, work) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)
            raise

    def _turn(self) -> None:
        """The number of engines wanders between a quarter of the most and the most; a few come or go at a time."""
        wanted = self.most
        while not self._ended.wait(self.chance.uniform(0, 0.2)):
            there = [engine for engine in self.engines if engine.is_alive() and not engine.going.is_set()]
            self.seen["most at once"] = max(self.seen["most at once"], len(there))
            if self.chance.random() < 0.02 or len(there) == wanted:
                wanted = self.chance.randint(self.most // 4, self.most)
            few = self.chance.randint(1, 1 + self.most // 20)
            for _ in range(min(few, wanted - len(there))):
                self.engines.append(Engine(self, self.num_born))
                self.num_born += 1
                self.engines[-1].start()
            too_many, at_random = len(there) - wanted, self.chance.random() < 0.3
            for engine in self.chance.sample(there, min(few, max(too_many, at_random), len(there))):
                way = self.chance.choices(list(WAYS), list(WAYS.values()))[0]
                self.count(way)
                engine.go(way)

    def _score(self) -> None:
        while not self._ended.is_set():
            for group in self.buffer.unscored("judge", 8, 0.2):
                self.buffer.score(group.id, {"judge": RIGHT})


def come_and_go(buffer: Buffer, *, engines: int, seconds: float, sample_s: float, groups_per_step: int) -> dict:
    """Laps for so long; what was seen. Every batch keeps the bound, and in the end each task is in one place."""
    limits = Limits(groups_per_step, max_staleness=2, blocking=("judge",), lease_s=LEASE_S, score_deadline_s=60)
    pipeline, staleness = Pipeline(buffer, limits), Counter()
    until = time.monotonic() + seconds
    with Fleet(buffer, engines, sample_s) as fleet:
        while time.monotonic() < until and not fleet.errors:
            stored = pipeline.ready(timeout_s=30)
            assert len(stored) == groups_per_step, "the learner starves"
            staleness.update(pipeline.step - s.group.version for s in stored)
            assert min(staleness) >= 0
            assert max(staleness) <= limits.max_staleness
            pipeline.assemble()
            pipeline.release()
            if pipeline.step % 5 == 0:
                buffer.trim(pipeline.snapshot())
    pipeline.check_tasks()
    summary = buffer.summary("policy")
    assert summary["groups_trained"] == groups_per_step * pipeline.step
    assert set(summary["groups_dropped"]) == {"worker_died", "lease_expired"}
    assert all(fleet.seen[f"{way}, a group in hand"] for way in ("dies", "vanishes", "hangs")), fleet.seen
    assert fleet.seen["refused"], "who comes back too late is told so"
    assert len(staleness) > 1, "a bound that is never used would prove nothing"
    return {
        "seconds": seconds,
        "engines_at_once": fleet.seen["most at once"],
        "joined": fleet.num_born,
        "left": {way: fleet.seen[way] for way in WAYS},
        "steps": pipeline.step,
        **{name: summary[f"groups_{name}"] for name in ("claimed", "trained", "dropped", "lost", "trained_twice")},
        "max_staleness": summary["max_staleness_observed"],
        "join_to_first_claim_s": dict(
            zip(("p50", "p95"), np.percentile(fleet.joined_s, (50, 95)).round(3).tolist(), strict=True)
        ),
    }


def test_engines_come_and_go(buffer: Buffer):
    seen = come_and_go(buffer, engines=30, seconds=8, sample_s=0.3, groups_per_step=12)
    assert seen["engines_at_once"] >= 20
    assert seen["steps"] >= 5


@pytest.mark.verify
@pytest.mark.timeout(480)
def test_two_hundred_engines_come_and_go_for_five_minutes(buffer: Buffer):
    seen = come_and_go(buffer, engines=200, seconds=300, sample_s=3.0, groups_per_step=64)
    keep("coming_and_going", seen)
    assert seen["engines_at_once"] >= 190
    assert seen["joined"] > 400
