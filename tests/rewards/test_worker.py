"""A reward worker on a buffer in memory: whatever a plug-in does, its groups are answered, and never with a number."""

import asyncio
import threading
import time

import numpy as np
import pytest

from cluster.buffer import Suspicion
from cluster.config import parse
from cluster.types import FAILED, SCORED, Scores
from cluster.types.events import RewardReport
from rewards.base import Reward
from rewards.worker import RewardWorker
from tests.rewards.groups import group

HERE = "tests.rewards.test_worker"


class Hangs(Reward):
    async def score(self, group, services):
        await asyncio.sleep(3600)


class Raises(Reward):
    async def score(self, group, services):
        raise RuntimeError("judge is drunk")


class WrongShape(Reward):
    async def score(self, group, services):
        return Scores.of([1.0] * (len(group) + 1))


class NotScores(Reward):
    async def score(self, group, services):
        return np.ones(len(group))


class NotANumber(Reward):
    async def score(self, group, services):
        return Scores.of([float("nan"), float("inf"), *[1.0] * (len(group) - 2)])


class ForgedNan(Reward):
    async def score(self, group, services):
        return Scores(np.full(len(group), np.nan), np.full(len(group), SCORED, np.uint8))


class Slow(Reward):
    seconds: float = 0.3

    async def score(self, group, services):
        await asyncio.sleep(self.seconds)
        return Scores.of([1.0] * len(group))


class SecondTime(Reward):
    async def score(self, group, services):
        tried = TRIED[group.id] = TRIED.get(group.id, 0) + 1
        if tried < 2:
            raise ConnectionError("not yet")
        return Scores.of([1.0] * len(group))


TRIED: dict[str, int] = {}


class MemoryBuffer:
    """Hands out every group once, remembers the first answer per reward."""

    def __init__(self, groups):
        self.groups, self.scores, self.lock = list(groups), {g.id: {} for g in groups}, threading.Lock()
        self.events, self.suspected, self.cleared, self.forsaken = [], {}, [], None

    def unscored(self, worker, limit, timeout_s):
        with self.lock:
            taken, self.groups = self.groups[:limit], self.groups[limit:]
        if not taken:
            time.sleep(0.02)
        return taken

    def answered(self, ids):
        with self.lock:
            return [{(name, s.version) for name, s in self.scores[id].items()} for id in ids]

    def asks(self, worker, claim_id, rewards, *, now):
        pass

    def suspicions(self, ids):
        return [self.suspected.get(id, Suspicion()) for id in ids]

    def tried(self, claim_id, reward):
        self.cleared.append((claim_id, reward))

    def forsake(self, policy, worker):
        self.forsaken = worker

    def relabel(self, versions):
        self.versions = versions

    def score(self, claim_id, scores):
        with self.lock:
            for name, value in scores.items():
                self.scores[claim_id].setdefault(name, value)

    def emit(self, event, once=""):
        self.events.append(event)

    def costly(self):
        """Events that count against the budget."""
        return [event for event in self.events if isinstance(event, RewardReport) and event.data_failures]


def config(*rewards, **workers):
    return parse({"rewards": list(rewards), "reward_workers": workers})


def plugin(cls, **fields):
    return {"use": f"{HERE}:{cls.__name__}", **fields}


async def work(buffer, settings, *, until=None, timeout_s=20):
    """Run a worker until every group has all its scores."""
    worker = RewardWorker("reward-0", buffer=buffer, config=settings)
    running = asyncio.create_task(worker.run())
    names = until or settings.reward_names
    try:
        async with asyncio.timeout(timeout_s):
            while not running.done() and any(set(names) - set(s) for s in buffer.scores.values()):
                await asyncio.wait([running], timeout=0.01)
    finally:
        await worker.stop()
    await running
    return worker


@pytest.mark.parametrize(
    ("cls", "note"),
    [
        (Hangs, "no answer within 0.2 s"),
        (Raises, "RuntimeError: judge is drunk"),
        (WrongShape, r"shape (3,) for 2 rollouts"),
        (NotScores, "it returned ndarray, not Scores"),
        (ForgedNan, "must coincide"),
    ],
)
async def test_a_broken_reward_is_failed_with_its_name_and_the_others_are_scored(cls, note):
    settings = config({"use": "exact"}, plugin(cls, timeout_s=0.2))
    buffer = MemoryBuffer([group("85", "86")])
    worker = await work(buffer, settings)
    scores = buffer.scores["policy/1/0"]
    assert scores["exact"].values.tolist() == [1, 0]
    assert (scores[cls.__name__].state == FAILED).all()
    assert note in scores[cls.__name__].provenance[0].note
    assert cls.__name__ in scores[cls.__name__].provenance[0].note
    assert worker.failures == {cls.__name__: 1}
    (event,) = buffer.costly()
    assert note in event.last_failure
    assert event.failed == {cls.__name__: 2}
    assert event.asked == {"exact": 2, cls.__name__: 2}
    assert note in event.causes[cls.__name__]


@pytest.mark.parametrize("fields", [{"weight": 0.0}, {"missing": 0.0}])
async def test_a_failure_that_costs_no_group_is_not_counted_against_the_budget(fields):
    buffer = MemoryBuffer([group("85", "86")])
    await work(buffer, config({"use": "exact"}, plugin(Raises, **fields)))
    assert not buffer.costly()
    assert sum(event.failed.get("Raises", 0) for event in buffer.events) == 2


async def test_a_function_that_raises_on_all_rollouts_counts_and_on_some_does_not():
    buffer = MemoryBuffer([group("85", "86"), group("85", "boom", seq=1), group("boom", "boom", seq=2)])
    await work(buffer, config({"use": f"{HERE}:explosive"}))
    (event,) = buffer.costly()
    assert "policy/1/2" in event.last_failure
    assert "ValueError: it went off" in event.last_failure


def explosive(prompt, completion):
    if completion == "boom":
        raise ValueError("it went off")
    return 1.0


async def test_nan_and_infinity_are_failed_one_by_one():
    buffer = MemoryBuffer([group("a", "b", "c")])
    await work(buffer, config(plugin(NotANumber)))
    assert buffer.scores["policy/1/0"]["NotANumber"].state.tolist() == [FAILED, FAILED, SCORED]


async def test_groups_and_their_rewards_are_scored_at_once():
    settings = config(plugin(Slow, name="a"), plugin(Slow, name="b"), concurrent_groups=8)
    buffer = MemoryBuffer([group("x", seq=i) for i in range(8)])
    start = time.monotonic()
    await work(buffer, settings)
    assert time.monotonic() - start < 8 * 0.3


async def test_no_more_groups_are_taken_than_there_are_slots():
    settings = config(plugin(Slow, options={"seconds": 0.05}), concurrent_groups=2)
    buffer = MemoryBuffer([group("x", seq=i) for i in range(6)])
    worker = RewardWorker("reward-0", buffer=buffer, config=settings)
    running, most = asyncio.create_task(worker.run()), 0
    while any(not s for s in buffer.scores.values()):
        most = max(most, len(worker._active))
        await asyncio.sleep(0.005)
    await worker.stop()
    await running
    assert most == 2


async def test_a_non_blocking_reward_holds_up_no_blocking_one():
    settings = config({"use": "exact"}, plugin(Slow, blocking=False, options={"seconds": 1.0}))
    buffer = MemoryBuffer([group("85")])
    start = time.monotonic()
    await work(buffer, settings, until=["exact"])
    assert set(buffer.scores["policy/1/0"]) == {"exact", "Slow"}  # `stop` lets it finish
    assert time.monotonic() - start >= 1.0


async def test_non_blocking_rewards_take_no_place_from_groups_that_are_waited_for():
    """However slow a late judge is: with a place each, the third group would wait for the judge of the first."""
    settings = config({"use": "exact"}, plugin(Slow, blocking=False, options={"seconds": 30.0}), concurrent_groups=2)
    buffer = MemoryBuffer([group("85", seq=i) for i in range(20)])
    worker = RewardWorker("reward-0", buffer=buffer, config=settings)
    running, start = asyncio.create_task(worker.run()), time.monotonic()
    while any("exact" not in s for s in buffer.scores.values()):
        assert time.monotonic() - start < 5
        await asyncio.sleep(0.01)
    assert len(worker._behind) == 8, "the oldest are let go"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_reward_that_is_waited_for_is_asked_again_while_the_others_are_stored():
    settings = config({"use": "exact"}, plugin(SecondTime, missing="wait"))
    buffer = MemoryBuffer([group("85", seq=77)])
    worker = await work(buffer, settings)
    scores = buffer.scores["policy/1/77"]["SecondTime"]
    assert scores.values.tolist() == [1.0]
    assert scores.provenance[0].attempt == 2
    assert worker.failures == {"SecondTime": 1}


async def test_a_reward_that_is_waited_for_too_long_is_failed():
    settings = config(plugin(Raises, missing="wait"), max_wait_s=0.5)
    buffer = MemoryBuffer([group("85")])
    await work(buffer, settings)
    assert buffer.scores["policy/1/0"]["Raises"].state.tolist() == [FAILED]


async def test_scores_say_who_and_how_long():
    worker = RewardWorker("reward-0", buffer=MemoryBuffer([]), config=config(plugin(Slow, name="slow")))
    provenance = (await worker.score(group("85", "86")))["slow"].provenance[0]
    assert provenance.judge == f"{HERE}:Slow"
    assert 0.3 <= provenance.latency_s < 5
    assert provenance.attempt == 1


async def test_an_error_of_the_buffer_ends_the_worker():
    class Broken(MemoryBuffer):
        def score(self, claim_id, scores):
            raise ConnectionError("redis is gone")

    worker = RewardWorker("reward-0", buffer=Broken([group("85")]), config=config({"use": "exact"}))
    with pytest.raises(ConnectionError, match="redis is gone"):
        async with asyncio.timeout(10):
            await worker.run()


async def test_on_the_real_buffer_a_scored_group_becomes_ready(buffer):
    from cluster.buffer import Limits
    from cluster.types import Publication

    buffer.configure(Limits(1, 1, "wait", ("exact",), 60.0, 60.0, None))
    epoch = buffer.resume("policy", None)
    buffer.announce(Publication("policy", epoch, 0))
    claim = buffer.claim("policy", worker="w", engine=f"{epoch}.0", timeout_s=1.0)
    from dataclasses import replace

    buffer.put(replace(group("85", "86"), claim=claim))
    worker = RewardWorker("reward-0", buffer=buffer, config=config({"use": "exact"}))
    running = asyncio.create_task(worker.run())
    stored = await asyncio.to_thread(buffer.ready, "policy", epoch, 0, limit=1, timeout_s=10.0)
    await worker.stop()
    await running
    assert stored[0].scores["exact"].values.tolist() == [1, 0]


async def test_of_a_suspected_group_one_reward_is_asked_and_cleared():
    buffer = MemoryBuffer([group("85")])
    buffer.suspected["policy/1/0"] = Suspicion("contains")
    await work(
        buffer, config({"use": "exact"}, {"use": f"{HERE}:contains"}, plugin(Slow, blocking=False)), until=["contains"]
    )
    assert list(buffer.scores["policy/1/0"]) == ["contains"]
    assert buffer.cleared == [("policy/1/0", "contains")]


async def test_a_late_reward_is_cleared_once_it_has_answered():
    buffer = MemoryBuffer([group("85")])
    buffer.suspected["policy/1/0"] = Suspicion("Slow")
    await work(buffer, config({"use": "exact"}, plugin(Slow, blocking=False)), until=["Slow"])
    assert list(buffer.scores["policy/1/0"]) == ["Slow"]
    assert buffer.cleared == [("policy/1/0", "Slow")]


async def test_a_condemned_reward_is_not_asked_and_fails_with_the_reason():
    buffer = MemoryBuffer([group("85", "86")])
    buffer.suspected["policy/1/0"] = Suspicion("", {"explosive": "reward-0 and reward-3"})
    await work(buffer, config({"use": "exact"}, {"use": f"{HERE}:explosive"}))
    scores = buffer.scores["policy/1/0"]
    assert scores["exact"].values.tolist() == [1, 0]
    assert (scores["explosive"].state == FAILED).all()
    assert "reward-0 and reward-3 died while they had it in hand" in scores["explosive"].provenance[0].note
    (event,) = buffer.costly()
    assert "is not asked about this group again" in event.last_failure
    assert event.failed == {"explosive": 2}


def contains(completion):
    return float("8" in completion)
