"""What a run costs and keeps after many steps with much outstanding, in commands and bytes of a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from cluster.buffer import connection
from cluster.buffer.server import Store
from tests.bench.steady import Steady
from tests.cluster.mutants import ORIGINAL

SMALL, LARGE = 64, 2048
GROUPS = 16


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A server that nothing else uses, so that its counters are ours."""
    with Store(tmp_path_factory.mktemp("redis")) as store:
        redis.Redis.from_url(store.url).config_set("appendfsync", "everysec")
        yield store


@contextmanager
def steady(store: Store, run: str, **shape: int) -> Iterator[Steady]:
    work = Steady(store.url, run, groups=GROUPS, size=2, tokens=30, **shape)
    try:
        yield work
    finally:
        work.close()


def cost_of_a_step(work: Steady) -> tuple[int, int]:
    """Commands of the server in one step, those inside scripts included, and bytes of its answers."""
    work.step()
    before = work.commands(), work.answered_bytes()
    work.step()
    return work.commands() - before[0], work.answered_bytes() - before[1]


def test_a_group_costs_the_same_whatever_is_outstanding(own_store: Store):
    costs = []
    for outstanding in (SMALL, LARGE):
        with steady(own_store, f"outstanding-{outstanding}", outstanding=outstanding) as work:
            costs.append(cost_of_a_step(work))
    (few, few_bytes), (many, many_bytes) = costs
    assert many <= 1.02 * few
    assert many_bytes <= 1.1 * few_bytes


def test_a_waiting_learner_reads_groups_once(own_store: Store):
    """What is there already is neither named nor read again each time that another group comes in."""
    with steady(own_store, "waiting", outstanding=SMALL) as work:
        work.step()
        for claim in work.unfinished[: GROUPS - 1]:
            work.score(claim)
        before = work.answered_bytes()
        for _ in range(100):
            assert work.wait(timeout_s=0.0) is None
        assert work.answered_bytes() - before < 100 * 200


def test_redis_holds_no_more_after_many_steps(own_store: Store, monkeypatch: pytest.MonkeyPatch):
    """With checkpoints, and with a ledger that keeps fewer lines than a run has claims."""
    monkeypatch.setattr(connection, "_source", lambda name: ORIGINAL(name).replace("KEPT = 20000", "KEPT = 100"))
    with steady(own_store, "long", outstanding=SMALL) as work:
        held = []
        for step in range(1, 61):
            work.step()
            if step % 10 == 0:
                work.checkpoint()
                work.forget_answers()
                held.append(work.server_bytes())
        summary = work.buffer.summary("policy")
        assert summary["groups_trained"] == 60 * GROUPS
        assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
        assert len(list(work.buffer.ledger("policy"))) <= 100 + SMALL
        # A line of the ledger for each of the 400 groups between the two looks would be 32 kB.
        assert held[-1] - held[1] < 16_000
