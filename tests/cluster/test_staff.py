"""The driver's book of its workers, with workers that do nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from cluster import config, staff
from cluster.staff import Staff
from cluster.topology import Site
from cluster.watch import Watchdog


async def nothing() -> None: ...


def worker():
    return SimpleNamespace(stop=SimpleNamespace(remote=nothing))


@pytest.fixture
def workers(redis_url):
    """Of a recipe with two engines, in the making: `_up` is what a test says it is."""
    tree = {"rollout": {"workers": 2}, "placement": {"layout": "colocated"}}
    site = Site(config.parse(tree), "", redis_url, "staff", "")
    made = Staff(site, site.buffer(), Watchdog(60, None), lambda role, name: None)
    made.begin()
    return made


async def test_the_lap_begins_with_all_engines_or_with_as_many_as_are_wished_for(workers):
    workers._up = {"rollout-0": worker()}
    assert not workers.complete()
    workers._up["rollout-1"] = worker()
    assert workers.complete()
    workers._let_go("rollout-1")
    assert workers.up()["rollout"] == 1
    workers._leaving["rollout-1"].cancel()
    assert workers.complete(), "an earlier life wished for fewer than the recipe says"


def test_a_place_beside_the_learner_is_free_again_once_its_engine_has_gone(workers, monkeypatch):
    placed = []
    monkeypatch.setitem(staff.PLACE, "rollout", lambda site, name, beside=False: placed.append(beside))
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
    monkeypatch.setitem(staff.PLACE, "rollout", lambda site, name, beside=False: waits)
    monkeypatch.setattr(staff.ray, "kill", kill)
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
