"""One pool finds a live replica for every service: the least busy, another where one is gone or full."""

from __future__ import annotations

import asyncio

import pytest

from cluster.process.replica_pool import ReplicaPool


class Gone(Exception):
    pass


class Full(Exception):
    pass


async def test_the_least_busy_is_asked_and_its_load_counts_while_it_answers():
    pool: ReplicaPool[str] = ReplicaPool()
    pool.set({"a": "A", "b": "B"})
    with pool.busy("a", load=3):
        assert pool.in_flight("a") == 3
        assert await pool.take() == ("b", "B")
        with pool.busy("b", load=4):
            assert await pool.take() == ("a", "A")
    assert pool.in_flight("a") == pool.in_flight("b") == 0


async def test_one_that_is_gone_is_never_asked_again_and_one_that_is_full_is():
    pool: ReplicaPool[type[Exception] | None] = ReplicaPool(look_s=0.001)
    pool.set({"gone": Gone, "full": Full})
    asked: list[str] = []

    async def call(name: str, error: type[Exception] | None) -> str:
        asked.append(name)
        if error is not None:
            pool.set({"gone": Gone, "full": Full if len(asked) < 4 else None})
            raise error
        return name

    assert await pool.ask(call, gone=(Gone,), full=(Full,)) == "full"
    assert asked.count("gone") == 1
    assert list(pool.replicas) == ["full"]
    with pytest.raises(ZeroDivisionError):
        await pool.ask(lambda name, replica: failing(), gone=(Gone,), full=(Full,))
    assert pool.in_flight("full") == 0


async def failing() -> str:
    raise ZeroDivisionError


async def test_a_call_waits_until_a_replica_joins_or_its_time_is_over():
    pool: ReplicaPool[str] = ReplicaPool()
    with pytest.raises(TimeoutError):
        await pool.take(timeout_s=0.01)
    waiting = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    pool.add("a", "A")
    assert await waiting == ("a", "A")
    pool.remove("a")
    assert pool.least_busy() is None


async def test_replicas_are_looked_for_again_while_none_is_there():
    looks = iter([{}, {}, {"a-1": "A"}])

    async def look() -> dict[str, str]:
        return next(looks)

    pool = ReplicaPool(look, look_s=0.001)
    assert await pool.take() == ("a-1", "A")


async def test_one_that_may_not_be_asked_now_is_passed_over_until_it_may():
    closed = {"a"}
    pool: ReplicaPool[str] = ReplicaPool(usable=lambda replica: replica not in closed)
    pool.set({"a": "a"})
    waiting = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    closed.clear()
    pool.notify()
    assert await waiting == ("a", "a")
