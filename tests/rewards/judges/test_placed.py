"""Judges whose replicas come and go, and judges whose weights change while they judge."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from cluster.buffer import ReplicaCounts
from cluster.buffer.discovery import Roster, keep_signing
from cluster.buffer.scaling import apply
from cluster.config import parse
from cluster.errors import ConfigError
from cluster.types import FAILED, SCORED
from rewards.base import Services
from rewards.judges.backends import discovery
from rewards.judges.backends.discovery import follow
from rewards.judges.backends.http import HttpClient
from rewards.judges.backends.keyword import KeywordJudge
from rewards.judges.ensembles import Cached
from rewards.judges.errors import JudgeAbsent
from rewards.judges.factory import open_judges
from rewards.judges.pool.archive import MemoryArchive
from rewards.judges.pool.circuit_breaker import CircuitBreaker
from rewards.judges.pool.pool import JudgePool
from rewards.judges.types import Call, Completion
from rewards.worker import RewardWorker
from tests.rewards.groups import group
from tests.rewards.judges.servers import chat, says, serving
from tests.rewards.judges.test_pool import pointwise


class LivePolicy(KeywordJudge):
    """Counts words, and names the version it does so with."""

    def __init__(self, version: str) -> None:
        super().__init__()
        self.weights = version

    async def complete(self, call: Call) -> Completion:
        answer = await super().complete(call)
        return Completion(answer.text, answer.finish, "policy", answer.tokens, version=self.weights)


@pytest.fixture
def at_the_roster(redis_url):
    found = Roster(redis_url, f"run-{uuid4().hex[:8]}", "own")
    yield found
    found.close()


def test_who_has_not_signed_for_long_is_gone(at_the_roster, monkeypatch):
    at_the_roster.sign("own-1", "http://b")
    at_the_roster.sign("own-0", "http://a")
    assert at_the_roster.there() == {"own-0": "http://a", "own-1": "http://b"}
    at_the_roster.leave("own-1")
    monkeypatch.setattr("cluster.buffer.discovery.GOOD_S", 0.05)
    at_the_roster.sign("own-2", "http://c")
    assert list(at_the_roster.there()) == ["own-0", "own-2"]
    time.sleep(0.1)
    assert list(at_the_roster.there()) == ["own-0"]


@asynccontextmanager
async def background(*work) -> AsyncIterator[list[asyncio.Task]]:
    tasks = [asyncio.create_task(w) for w in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def test_replicas_join_and_leave_without_disturbing_calls_under_way(at_the_roster, monkeypatch):
    monkeypatch.setattr(discovery, "FOLLOW_S", 0.02)
    made = {name: KeywordJudge(name=name, latency_s=0.4) for name in ("own-0", "own-1")}
    closed = []

    async def connect(name: str, says: str) -> KeywordJudge:
        if name not in made:
            raise JudgeAbsent(f"{name} has ended")
        made[name].close = lambda: _note(closed, name)
        return made[name]

    pool = JudgePool("own", [], come_and_go=True, deadline_s=10)
    async with background(follow(pool, at_the_roster, connect)):
        asked = asyncio.create_task(pool.ask(pointwise("good")))  # before anybody is there
        await asyncio.sleep(0.1)
        assert "none of its replicas is up" in pool.trouble()
        async with background(keep_signing(at_the_roster, "own-0", lambda: "http://a")) as (signing,):
            at_the_roster.sign("ghost", "http://nowhere")
            await until(lambda: len(pool.replicas) == 1)
            assert pool.trouble() == ""
            await until(lambda: pool.replicas.in_flight(pool.replicas[0]) == 1)
            at_the_roster.sign("own-1", "http://b")
            await until(lambda: len(pool.replicas) == 2)
            signing.cancel()  # it leaves at once, with a call under way
            await until(lambda: len(pool.replicas) == 1)
            assert closed == []
        verdict = await asked
        assert (verdict.state, made["own-0"].num_calls, made["own-1"].num_calls) == (SCORED, 1, 0)
        await until(lambda: closed == ["own-0"])
        assert (await pool.ask(pointwise("more"))).scored
        assert made["own-1"].num_calls == 1
    await pool.close()


async def test_another_address_is_another_replica_and_another_version_is_not(at_the_roster, monkeypatch):
    monkeypatch.setattr(discovery, "FOLLOW_S", 0.02)
    met = []

    async def connect(name: str, says: str) -> KeywordJudge:
        met.append(says)
        return KeywordJudge(name=says)

    for live, expected in ((False, ["1.1", "1.2"]), (True, ["1.2"])):
        pool = JudgePool("own", [], live=live, come_and_go=True)
        async with background(follow(pool, at_the_roster, connect)):
            if not live:
                at_the_roster.sign("own-0", "1.1")
                await until(lambda: len(met) == 1)
                at_the_roster.sign("own-0", "1.2")
            await until(lambda expected=expected: met == expected)
            if live:
                at_the_roster.sign("own-0", "1.3")
                await until(lambda pool=pool: pool.key(pointwise()) == pool.key(pointwise(), "1.3"))
                assert met == ["1.2"]
            assert len(pool.replicas) == 1
        await pool.close()
        met.clear()


async def _note(closed: list[str], name: str) -> None:
    closed.append(name)


async def test_what_a_dead_replica_was_asked_another_answers():
    async with serving(says(chat("4"))) as dead, serving(says(chat("5"))) as alive:
        one, other = HttpClient(dead, model="m"), HttpClient(alive, model="m")
        pool = JudgePool("own", [one], come_and_go=True, deadline_s=10)
        assert (await pool.ask(pointwise("a"))).values == (4.0,)
        await one.close()
    async with serving(says(chat("5"))) as alive:
        other = HttpClient(alive, model="m")
        gone = HttpClient(dead, model="m")
        pool = JudgePool("own", [gone, other], come_and_go=True, deadline_s=10)
        for i in range(3):
            assert (await pool.ask(pointwise(f"b{i}"))).values == (5.0,)
        await pool.close()


async def test_requests_of_an_outage_are_asked_again_when_the_judge_is_back():
    """Nobody is there for a while: no number meanwhile, and who still waits is answered; no attempt is spent on it."""

    class Away(KeywordJudge):
        away = True

        async def complete(self, call: Call) -> Completion:
            if self.away:
                self.num_calls += 1
                raise JudgeAbsent("nobody listens")
            return await super().complete(call)

    judge, archive = Away(), MemoryArchive()
    options = {"deadline_s": 2.0, "in_flight_ttl_s": 10, "archive": archive}
    pool = JudgePool("k", [judge], breaker=lambda: CircuitBreaker(pause_s=0.1), **options)
    early = asyncio.create_task(pool.ask(pointwise("early")))
    verdict = await early
    assert (verdict.state, verdict.note.split(":")[0]) == (FAILED, "JudgeUnavailable")
    assert math.isnan(verdict.values[0])
    assert judge.num_calls > 3, "three calls that reached nobody are no reason to give up"
    late = asyncio.create_task(pool.ask(pointwise("late")))
    await asyncio.sleep(0.2)
    judge.away = False
    assert (await late).scored
    await until(lambda: len(archive.records) == 2)  # also what nobody waits for any more, within its time in flight
    assert (await Cached(pool).ask(pointwise("early"))).cached
    await pool.close()


async def test_a_policy_s_answer_is_good_for_its_version_and_no_other():
    policy, archive = LivePolicy("1.7"), MemoryArchive()
    pool = JudgePool("self", [policy], model="policy", live=True, archive=archive)
    cached, request = Cached(pool), pointwise("good")
    assert (await cached.ask(request)).model == "policy@1.7"
    again = await cached.ask(request)
    assert (again.model, again.cached, policy.num_calls) == ("policy@1.7", True, 1)
    before = pool.identity
    policy.weights = "1.8"
    pool.saw("1.8")
    pool.saw("1.7")  # an engine that is behind
    newer = await cached.ask(request)
    assert (newer.model, newer.cached, policy.num_calls) == ("policy@1.8", False, 2)
    assert pool.identity == before == "self:policy@", "or every step would have the whole store judged again"
    assert len(archive.records) == 2
    policy.weights = "1.8-1.10"  # weights that changed while it spoke
    assert (await pool.ask(pointwise("other"))).model == "policy@1.8-1.10"
    assert not (await cached.ask(pointwise("other"))).cached
    assert pool.key(request) == pool.key(request, "1.10")


def test_an_epoch_counts_before_a_step():
    pool = JudgePool("self", [], live=True)
    for version in ("1.99", "2.0", "1.100"):
        pool.saw(version)
    assert pool.key(pointwise()) == pool.key(pointwise(), "2.0")


def recipe(**judge):
    return parse({"rewards": [{"use": "judge", "options": {"judge": "j"}}], "judges": {"j": judge}})


def test_another_model_is_another_judge():
    def identity(**fields: str) -> str:
        config = recipe(urls=["http://x/v1"], **fields)
        return open_judges(config.judges, MemoryArchive())["j"].identity

    assert len({identity(), identity(model="a"), identity(model="b"), identity(model="a", revision="2")}) == 4
    assert identity(model="a") == identity(model="a")


async def test_a_changed_model_has_stored_groups_judged_again():
    from rewards.registry import build_reward

    versions = []
    for model in ("a", "b", "a"):
        config = recipe(urls=["http://127.0.0.1:1/v1"], model=model)
        made = Services(judges=open_judges(config.judges, MemoryArchive()))
        reward = build_reward(config.rewards[0], "rewards[0]")
        await reward.prepare(made)
        versions.append(reward.version())
        await made.close_judges()
        made.close()
    assert versions[0] == versions[2] != versions[1]


async def test_labels_are_checked_before_a_replica_is_up(buffer):
    options = {"judge": "j", "template_options": {"levels": {"5": "half", "10": "all"}}}
    config = parse(
        {"rewards": [{"use": "judge", "options": options}], "judges": {"j": {"kind": "vllm", "model": "somewhere"}}}
    )

    async def characters(text: str) -> list[str]:
        return list(text)

    made = Services(judges=open_judges(config.judges, MemoryArchive(), {"j": characters}))
    worker = RewardWorker("w", buffer=buffer, config=config, services=made)
    with pytest.raises(ConfigError, match=r"judges\.j: the label '10' is 2 tokens for this judge: '1' '0'"):
        await asyncio.wait_for(worker.run(), 5)


async def test_a_worker_says_which_judge_it_waits_for(buffer):
    config = recipe(kind="policy", deadline_s=5.0)
    made = Services(judges=open_judges(config.judges, MemoryArchive()))
    worker = RewardWorker("w", buffer=buffer, config=config, services=made)
    asking = asyncio.create_task(worker.score(group("good")))
    await asyncio.sleep(0.1)
    assert "asks 'judge' for 1; judge 'j': none of its replicas is up" in worker.waiting()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    made.close()


def test_a_judge_s_replicas_can_be_wished_for(redis_url):
    run = ReplicaCounts(redis_url, f"run-{uuid4().hex[:8]}")
    run.staff({"rollout": 1, "reward": 1, "judge:my-judge.2": 1})
    assert apply(run, ["judge:my-judge.2=3"]) == {"judge:my-judge.2": 3}
    assert run.wished() == {"judge:my-judge.2": 3}
    for wrong in ("judge:other=1", "judge=1", "judge:my-judge.2=0"):
        with pytest.raises(ConfigError):
            apply(run, [wrong])
    run.close()


def test_only_judges_that_groups_wait_for_hold_up_the_start():
    judges = {"a": {"kind": "policy"}, "b": {"kind": "policy"}}
    rewards = [
        {"use": "judge", "name": "x", "options": {"judge": ["a"]}},
        {"use": "judge", "name": "y", "blocking": False, "options": {"judge": "b"}},
        {"use": "exact"},
    ]
    assert parse({"rewards": rewards, "judges": judges}).blocking_judges == ["a"]


def test_judges_of_the_run_take_places_of_their_own():
    from cluster.driver.worker_pool import roles
    from cluster.placement.ray_runtime import needed_cpus

    judges = {"a": {"kind": "vllm", "model": "m", "replicas": 2, "cpus": 3}, "b": {"kind": "policy"}}
    with_judges, without = parse({"judges": judges}), parse({})
    assert needed_cpus(with_judges) == needed_cpus(without) + 6
    assert roles(with_judges) == roles(without) | {"judge:a": 2}


def test_policy_judges_leave_something_of_the_engine():
    judges = {n: {"kind": "policy", "engine_share": 0.5} for n in ("a", "b")}
    with pytest.raises(ConfigError, match="engine_share = 1 together"):
        parse({"judges": judges})
