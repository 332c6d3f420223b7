"""The driver's book of its workers, with workers that do nothing."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from cluster import config
from cluster.buffer import ReplicaCounts
from cluster.commands import scale
from cluster.driver import worker_pool
from cluster.driver.evaluator import until
from cluster.driver.watchdog import Watchdog
from cluster.driver.worker_pool import WorkerPool
from cluster.errors import KanaboError
from cluster.workers import RunContext


async def nothing() -> None: ...


def worker():
    return SimpleNamespace(stop=SimpleNamespace(remote=nothing))


@pytest.fixture
def workers(redis_url):
    """Of a recipe with two engines, in the making: a test says which have arrived."""
    tree = {"rollout": {"workers": 2}, "placement": {"layout": "colocated"}}
    context = RunContext(config.parse(tree), "", redis_url, "staff", "")
    made = WorkerPool(context, context.buffer(), Watchdog(60, None), lambda role, name: None)
    made.begin()
    return made


async def test_the_lap_begins_with_all_engines_or_with_as_many_as_are_wished_for(workers):
    workers.arrived("rollout-0", worker())
    assert not workers.complete()
    workers.arrived("rollout-1", worker())
    assert workers.complete()
    workers._let_go("rollout-1")
    assert workers.up()["rollout"] == 1
    workers._leaving["rollout-1"].cancel()
    assert workers.complete(), "an earlier life wished for fewer than the recipe says"


async def test_counting_workers_costs_the_same_for_ten_times_as_many(workers):
    """Each engine's report asks for the number of engines: to count them anew was quadratic."""

    def seconds_of_counting() -> float:
        begun = time.thread_time()
        for _ in range(2_000):
            workers.up()
        return time.thread_time() - begun

    def arrive(total: int) -> None:
        for number in range(len(workers.of("rollout")), total):
            workers.arrived(f"rollout-{number}", worker())

    arrive(100)
    few = min(seconds_of_counting() for _ in range(3))
    arrive(1_000)
    assert min(seconds_of_counting() for _ in range(3)) < 3 * few
    assert workers.up()["rollout"] == 1_000


def test_a_place_beside_the_learner_is_free_again_once_its_engine_has_gone(workers, monkeypatch):
    placed = []
    monkeypatch.setitem(worker_pool.PLACE, "rollout", lambda context, name, beside=False: placed.append(beside))
    for name in ("rollout-0", "rollout-1", "rollout-2"):
        workers._place("rollout", name)
    workers._beside.discard("rollout-0")
    workers._place("rollout", "rollout-3")
    workers._place("rollout", "rollout-4")
    assert placed == [True, True, False, True, False]


async def test_who_waits_for_room_leaves_at_once_when_it_is_no_longer_wished_for(workers, monkeypatch):
    room = asyncio.get_running_loop().create_future()

    async def ready() -> None:
        await room

    def kill(who) -> None:
        if not room.done():
            room.set_exception(ActorDiedError())

    waits = SimpleNamespace(ready=SimpleNamespace(remote=ready))
    monkeypatch.setitem(worker_pool.PLACE, "rollout", lambda context, name, beside=False: waits)
    monkeypatch.setattr(worker_pool.ray, "kill", kill)
    serving = asyncio.create_task(workers.serve("rollout", "rollout-1", lambda: None))
    workers._let_go("rollout-1")
    assert workers.counts()["rollout"] == 2, "nobody is there yet who could be told"
    await asyncio.sleep(0)
    workers._let_go("rollout-1")
    assert workers.counts()["rollout"] == 1
    with pytest.raises(ActorDiedError):
        await asyncio.wait_for(serving, 5)
    assert workers.ended("rollout", "rollout-1"), "it is not replaced"
    assert workers.counts()["rollout"] == 1


async def test_workers_that_join_or_leave_say_what_they_wait_for_and_since_when(workers, monkeypatch, redis_url):
    alive, up = asyncio.get_running_loop().create_future(), asyncio.get_running_loop().create_future()

    async def begun() -> None:
        await alive

    async def ready() -> None:
        await up

    async def forever() -> None:
        await asyncio.Event().wait()

    joins = SimpleNamespace(
        ready=SimpleNamespace(remote=ready),
        __ray_ready__=SimpleNamespace(remote=begun),
        waiting=SimpleNamespace(remote=forever),
        stop=SimpleNamespace(remote=nothing),
        close=SimpleNamespace(remote=nothing),
    )
    monkeypatch.setitem(worker_pool.PLACE, "rollout", lambda context, name, beside=False: joins)
    monkeypatch.setattr(worker_pool.ray, "kill", lambda who: None)
    monkeypatch.setattr(worker_pool.ray, "available_resources", lambda: {"CPU": 0.2})
    monkeypatch.setattr(worker_pool, "on_gpu", lambda: False)
    serving = asyncio.create_task(workers.serve("rollout", "rollout-1", lambda: None))
    await asyncio.sleep(0)
    assert "waits for room: it needs 0.9 CPU on one node" in workers.moving()["rollout-1"]
    assert "have 0.2 CPU free" in workers.moving()["rollout-1"]
    assert "(for 0 s)" in workers.moving()["rollout-1"]
    alive.set_result(None)
    await until(lambda: workers.moving()["rollout-1"].startswith("starts: its process is there"))
    up.set_result(None)
    await until(lambda: "rollout-1" not in workers.moving())
    workers._let_go("rollout-1")
    assert workers.moving()["rollout-1"].startswith("leaves: ")
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    workers.ended("rollout", "rollout-1")
    assert "rollout-1" not in workers.moving()


def test_a_scale_that_times_out_names_each_worker_that_is_missing(redis_url):
    wishes = ReplicaCounts(redis_url, "moving")
    wishes.staff({"rollout": 1, "reward": 1})
    said = "waits for room: it needs 0.9 CPU on one node (for 43 s)"
    wishes.tell_moving({"rollout-1": said, "reward-7": "leaves: its process ends (for 2 s)"})
    with pytest.raises(KanaboError) as late:
        scale.wait(wishes, {"rollout": 2}, 0.1)
    assert "rollout: 1 still to come (1 up, 2 requested)" in str(late.value)
    assert f"rollout-1 {said}." in str(late.value)
    assert "reward-7" not in str(late.value), "nobody asked about those"
    wishes.tell_moving({})
    assert wishes.moving() == {}
    wishes.close()
