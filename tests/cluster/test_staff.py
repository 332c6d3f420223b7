"""The driver's book of its workers, with workers that do nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

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
    made = Staff(site, site.buffer(), Watchdog(60, None), lambda role, name, predecessor: None)
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
