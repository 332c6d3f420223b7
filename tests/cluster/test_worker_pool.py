"""The driver's workers by role, with stand-ins for the actors: who is counted, placed, replaced and let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
import ray
from ray.exceptions import ActorDiedError

from cluster import config
from cluster.buffer import ReplicaCounts
from cluster.commands import scale
from cluster.driver import worker_pool
from cluster.driver.evaluator import until
from cluster.driver.watchdog import Watchdog
from cluster.driver.worker_pool import WorkerPool
from cluster.errors import KanaboError
from cluster.types.events import RewardReport
from cluster.workers import RunContext
from tests.cluster.stand_ins import WORKER, Answers, StandIn

TREE = {"rollout": {"workers": 2}, "placement": {"layout": "colocated"}}


class Crew:
    """A pool whose workers are served as a supervisor serves them: one that dies is replaced."""

    def __init__(self, url: str) -> None:
        run = f"test-{uuid4().hex[:12]}"
        context = RunContext(config.parse(TREE), "", url, run, "")
        self.buffer = context.buffer()
        self.pool = WorkerPool(context, self.buffer, Watchdog(60, None), self.launch)
        self.wishes = ReplicaCounts(url, run)
        self.answers: dict[str, Answers] = {}
        """By a worker's name."""
        self.placed: dict[str, StandIn] = {}
        self.beside: dict[str, bool] = {}
        """Whether a rollout worker was given a place beside the learner."""
        self.admitted = asyncio.Event()
        """A worker that is launched is placed once this is set."""
        self.admitted.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def place(self, context: Any, name: str, *, beside: bool = False) -> StandIn:
        self.placed[name], self.beside[name] = StandIn(WORKER | self.answers.get(name, {})), beside
        return self.placed[name]

    def launch(self, role: str, name: str) -> None:
        async def live() -> None:
            await self.admitted.wait()
            with suppress(ActorDiedError):
                await self.pool.serve(role, name, lambda: None)
            self.pool.ended(role, name)

        self._tasks.add(asyncio.create_task(live()))

    def begin(self) -> None:
        self.pool.may_work.set()
        self.pool.begin()
        self._tasks.add(asyncio.create_task(self.pool.follow_wishes()))

    async def end(self) -> None:
        self.pool.closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pool.close()
        self.wishes.close()


@pytest.fixture
async def crew(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Crew]:
    """Two engines beside the learner, and a reward worker."""
    made = Crew(redis_url)
    for role in ("rollout", "reward"):
        monkeypatch.setitem(worker_pool.PLACE, role, made.place)
    monkeypatch.setattr(worker_pool, "LOOK_S", 0.02)
    monkeypatch.setattr(worker_pool, "on_gpu", lambda: False)
    monkeypatch.setattr(ray, "kill", StandIn.kill)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.2})
    yield made
    await made.end()


def gate() -> tuple[asyncio.Event, Callable[..., Any]]:
    """An event, and a call that waits for it."""
    event = asyncio.Event()

    async def wait(*asked: Any) -> None:
        await event.wait()

    return event, wait


async def within(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        await until(lambda: bool(condition()))


async def test_training_begins_with_all_engines_or_with_as_many_as_are_wished_for(crew):
    up, ready = gate()
    crew.answers["rollout-1"] = {"ready": ready}
    crew.begin()
    await within(lambda: crew.pool.up() == {"rollout": 1, "reward": 1})
    assert not crew.pool.complete()
    up.set()
    await within(lambda: crew.pool.up()["rollout"] == 2)
    assert crew.pool.complete()
    crew.wishes.wish("rollout", 1)
    await within(lambda: crew.pool.up()["rollout"] == 1)
    assert crew.pool.complete(), "an earlier life wished for fewer than the recipe says"


async def test_counting_workers_costs_the_same_for_ten_times_as_many(crew):
    """Each engine's report asks for the number of engines: to count them anew was quadratic."""

    def seconds_of_counting() -> float:
        begun = time.thread_time()
        for _ in range(2_000):
            crew.pool.up()
        return time.thread_time() - begun

    def arrive(total: int) -> None:
        for number in range(len(crew.pool.of("rollout")), total):
            crew.pool.arrived(f"rollout-{number}", StandIn(WORKER))

    arrive(100)
    few = min(seconds_of_counting() for _ in range(3))
    arrive(1_000)
    assert min(seconds_of_counting() for _ in range(3)) < 3 * few
    assert crew.pool.up()["rollout"] == 1_000


async def test_a_place_beside_the_learner_is_free_again_once_its_engine_has_gone(crew):
    crew.begin()
    crew.wishes.wish("rollout", 3)
    await within(lambda: crew.pool.up()["rollout"] == 3)
    crew.placed["rollout-0"].kill()
    await within(lambda: "rollout-3" in crew.placed)
    crew.wishes.wish("rollout", 4)
    await within(lambda: "rollout-4" in crew.placed)
    rollouts = {name: beside for name, beside in crew.beside.items() if name.startswith("rollout")}
    assert rollouts == {
        "rollout-0": True, "rollout-1": True, "rollout-2": False, "rollout-3": True, "rollout-4": False,
    }  # fmt: skip


async def test_a_worker_that_waits_for_room_leaves_at_once_when_it_is_no_longer_wished_for(crew):
    _, ready = gate()
    crew.answers["rollout-1"] = {"ready": ready}
    crew.begin()
    await within(lambda: crew.pool.up()["rollout"] == 1)
    crew.wishes.wish("rollout", 1)
    await within(lambda: crew.pool.counts()["rollout"] == 1)
    await within(lambda: "rollout-1" not in crew.pool.moving())
    assert crew.pool.counts()["rollout"] == 1
    assert crew.placed.keys() == {"rollout-0", "rollout-1", "reward-0"}, "it is not replaced"


async def test_a_worker_that_is_not_placed_yet_leaves_once_it_is(crew):
    crew.admitted.clear()
    crew.wishes.wish("rollout", 1)
    crew.begin()
    for _ in range(2):  # the second report comes after the pool has followed the wish of the first
        await asyncio.to_thread(crew.wishes.tell_moving, {})
        await within(crew.wishes.moving)
    assert crew.pool.counts()["rollout"] == 2, "there is no worker yet that could be told"
    crew.admitted.set()
    await within(lambda: crew.pool.counts()["rollout"] == 1)


async def test_workers_that_join_or_leave_say_what_they_wait_for_and_since_when(crew):
    alive, begun = gate()
    up, ready = gate()
    left, run = gate()
    crew.answers["rollout-1"] = {"__ray_ready__": begun, "ready": ready, "run": run}
    crew.begin()
    await within(lambda: "rollout-1" in crew.placed)
    said = crew.pool.moving()["rollout-1"]
    assert "waits for room: it needs 0.9 CPU on one node" in said
    assert "have 0.2 CPU free" in said
    assert "(for 0 s)" in said
    alive.set()
    await within(lambda: crew.pool.moving()["rollout-1"].startswith("starts: its process is there"))
    up.set()
    await within(lambda: "rollout-1" not in crew.pool.moving())
    crew.wishes.wish("rollout", 1)
    await within(lambda: crew.pool.moving().get("rollout-1", "").startswith("leaves: "))
    left.set()
    await within(lambda: "rollout-1" not in crew.pool.moving())


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


async def test_two_deaths_over_one_reward_of_groups_that_left_are_that_rewards(crew):
    """A group that is assembled is not asked about again: what a worker asked when it died is all that is known."""
    buffer, pool = crew.buffer, crew.pool
    asked = [("late", "other"), ("late",), ("third",), ("late",)]
    crew.begin()
    for number, rewards in enumerate(asked):
        name = f"reward-{number}"
        await within(lambda name=name: name in pool.named("reward"))
        buffer.asks(name, f"policy/1/{number}", rewards, now=True)
        buffer.asks(name, "policy/1/99", ("healthy",), now=True)
        buffer.asks(name, "policy/1/99", ("healthy",), now=False)
        crew.placed[name].kill()
        await within(lambda name=name: name in pool.last_words)
    assert pool.last_words["reward-0"] == " while it asked 'late', 'other' about group policy/1/0"
    await within(lambda: pool.explained == {"reward-0", "reward-1", "reward-3"})
    events = [event for _, event in buffer.events() if isinstance(event, RewardReport)]
    assert [event.data_failures for event in events] == [2, 1]
    assert "reward-0 and reward-1 died while reward 'late' was asked" in events[0].last_failure
    assert "'late' about group policy/1/3" in events[1].causes["late"]
    assert buffer.questions("reward-0") == [], "what was asked is forgotten with the worker"


async def test_a_worker_that_leaves_explains_nothing_and_blames_nothing(crew):
    crew.begin()
    crew.wishes.wish("reward", 2)
    await within(lambda: crew.pool.up()["reward"] == 2)
    crew.buffer.asks("reward-1", "policy/1/0", ("late",), now=True)
    crew.wishes.wish("reward", 1)
    await within(lambda: "reward-1" in crew.pool.moving())
    crew.placed["reward-1"].kill()
    await within(lambda: not crew.buffer.questions("reward-1"))
    assert not crew.pool.last_words
