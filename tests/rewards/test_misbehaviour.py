"""Whatever a reward raises, returns or changes: its group's scores are stored and read, and the worker lives."""

import asyncio
import logging
import sys
import threading
import time

import numpy as np
import pytest

from cluster.config import parse
from cluster.types import ABSTAINED, FAILED, SCORED, Provenance, Scores, decode, encode
from cluster.types.events import JudgeReport, encode_event
from rewards.asking import ask, copied
from rewards.base import Reward, Services
from rewards.worker import RewardWorker
from tests.rewards import hostile
from tests.rewards.groups import group
from tests.rewards.test_worker import MemoryBuffer, config, work

HERE = "tests.rewards.test_misbehaviour"


@pytest.fixture
def services():
    made = Services()
    yield made
    made.close()


def reward(act):
    class Acting(Reward):
        async def score(self, group, services):
            return await act(group) if asyncio.iscoroutinefunction(act) else act(group)

    return Acting()


def throw(error):
    raise error


@pytest.mark.parametrize("error", hostile.RAISED, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("beside", [False, True], ids=["itself", "in a task of its own"])
async def test_whatever_a_reward_raises_is_its_failure_with_the_cause(error, beside, services):
    async def aside(group):
        await asyncio.gather(later(), pause())

    async def later():
        throw(error)

    async def pause():
        await asyncio.sleep(0)

    act = aside if beside else lambda group: throw(error)
    scores, why = await ask(reward(act), group("85", "86"), services, 5.0)
    assert (scores.state == FAILED).all()
    assert why
    assert beside or type(error).__name__ in why or why == str(error)
    assert decode(encode(scores), Scores).provenance[0].note == why


async def test_sys_exit_in_one_rollouts_function_is_that_rollouts_failure(services):
    from rewards.function_reward import FunctionReward

    def leaves(completion):
        return sys.exit(1) if completion == "boom" else 1.0

    made = FunctionReward.of(leaves, "leaves", {}, "rewards[0]")
    scores, _ = await ask(made, group("85", "boom"), services, 5.0)
    assert scores.state.tolist() == [SCORED, FAILED]
    assert "SystemExit: 1" in scores.provenance[1].note


async def test_the_callers_own_cancellation_is_passed_on(services):
    calling = asyncio.create_task(ask(reward(_sleeps), group("85"), services, 60.0))
    await asyncio.wait({calling}, timeout=0.05)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


async def _sleeps(group):
    await asyncio.sleep(3600)


async def test_a_reward_that_refuses_to_be_cancelled_is_left_alone(services, monkeypatch):
    monkeypatch.setattr("rewards.asking.CANCEL_S", 0.1)
    ended = asyncio.Event()

    async def stubborn(group):
        while not ended.is_set():
            try:
                await ended.wait()
            except asyncio.CancelledError:
                continue

    scores, why = await ask(reward(stubborn), group("85"), services, 0.1)
    ended.set()
    assert (scores.state == FAILED).all()
    assert why == "no answer within 0.1 s"


def scored(**fields):
    def act(group):
        scores = Scores.of([1.0] * len(group))
        for name, value in fields.items():
            object.__setattr__(scores, name, value)
        return scores

    return act


TOKENS = 4  # of a rollout of two letters


@pytest.mark.parametrize(
    ("act", "values"),
    [
        (scored(values=np.array([True, False])), [1, 0]),
        (scored(values=np.array([3, 4], np.int8)), [3, 4]),
        (scored(values=[np.float32(0.5), 2]), [0.5, 2]),
        (scored(values=np.array([True, np.int64(2)], object)), [1, 2]),
        (scored(values=(1.0, None)), [1, None]),
        (scored(values=np.ma.array([1.0, 2.0], mask=[False, True])), [1, None]),
        (scored(values=[1.0, np.ma.masked]), [1, None]),
        (scored(values=np.array([np.nan, 1.0])), [None, 1]),
        (scored(values=np.array([np.inf, 10**300])), [None, 1e300]),
        (scored(state=[0, 2]), [1, None]),
        (scored(state=np.array([1, 0])), [None, 1]),
        (scored(provenance=None), [1, 1]),
        (scored(provenance=Provenance(note=None)), [1, 1]),
        (scored(provenance=[Provenance(note="\ud83d half"), Provenance(cost_tokens=2**64)]), [1, 1]),
        (scored(provenance=(Provenance(cost_tokens=-(2**70), latency_s=-1.0, attempt=None),)), [1, 1]),
        (scored(provenance=(Provenance(note="x" * 10**6, judge=7, model=b"m"),)), [1, 1]),
        (scored(version=None), [1, 1]),
        (scored(version="\udc80"), [1, 1]),
        (scored(tokens=[[1] * TOKENS, [0.5] * TOKENS]), [1, 1]),
        (scored(tokens=[np.full(TOKENS, np.inf, np.float32)] * 2), [1, 1]),
    ],
)
async def test_what_is_obviously_meant_is_taken_as_that(act, values, services):
    scores, why = await ask(reward(act), group("85", "86"), services, 5.0)
    assert not why
    read = decode(encode(scores), Scores)
    assert [None if np.isnan(v) else v for v in read.values] == values
    assert all(len(p.note) <= 20_000 for p in read.provenance)
    assert all(len(t) == TOKENS and t.dtype == np.float64 for t in read.tokens or ())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda g: [1.0, 2.0], "it returned list, not Scores: [1.0, 2.0]. Return Scores.of("),
        (lambda g: None, "NoneType, not Scores"),
        (lambda g: {"score": 1.0}, "dict, not Scores"),
        (scored(values=np.ones(3)), "values of shape (3,) for 2 rollouts"),
        (scored(values=np.ones((2, 1))), "values of shape (2, 1) for 2 rollouts"),
        (scored(values=["1", "2"]), "which is no number"),
        (scored(values=np.array(["1", "2"])), "numbers are expected"),
        (scored(values=np.ones(2, complex)), "numbers are expected"),
        (scored(state=[0, 9]), "0 is scored, 1 failed, 2 abstained"),
        (scored(provenance=("a", "b")), "a Provenance is expected"),
        (scored(provenance=(Provenance(),) * 3), "3 provenances for 2 rollouts"),
        (scored(tokens=[np.ones(TOKENS)]), "token values of 1 rollouts"),
        (scored(tokens=[np.ones(TOKENS), np.ones(9)]), "for rollout 1, which has 4 tokens"),
        (scored(tokens=[["a"] * TOKENS] * 2), "which is no number"),
        (scored(tokens=5), "token values of no rollouts"),
    ],
)
async def test_what_is_no_score_per_rollout_is_a_failure_that_says_so(act, message, services):
    scores, why = await ask(reward(act), group("85", "86"), services, 5.0)
    assert (scores.state == FAILED).all()
    assert message in why


async def test_a_reward_cannot_change_what_others_are_given(services):
    made = group("85", "86", nested={"list": [1]})
    before = encode(made)

    def spoils(given):
        given.task.meta["nested"]["list"].clear()
        given.task.meta.clear()
        object.__setattr__(given.rollouts[0], "text", "spoilt")
        object.__setattr__(given.task, "answer", "spoilt")
        return Scores.of([1.0, 1.0])

    assert (await ask(reward(spoils), made, services, 5.0))[1] == ""
    assert encode(made) == before


def test_arrays_of_a_reward_are_read_only_for_good():
    array = copied(group("85")).rollouts[0].tokens
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.setflags(write=True)


class Sync(Reward):
    def score(self, group, services):
        time.sleep(0.3)
        return Scores.abstained(len(group), "not today")


async def test_a_class_without_async_runs_in_a_thread(services):
    beats = 0

    async def beat():
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.01)

    beating = asyncio.create_task(beat())
    scores, _ = await ask(Sync(), group("85"), services, 5.0)
    beating.cancel()
    assert scores.state.tolist() == [ABSTAINED]
    assert beats > 5


class Moody(Reward):
    """What a worker asks beside scores raises too."""

    def version(self):
        raise SystemExit("no version")

    async def refresh(self, services):
        raise RuntimeError("no refresh")

    async def score(self, group, services):
        return Scores.of([1.0] * len(group))


async def test_a_version_that_cannot_be_told_ends_no_worker():
    buffer = MemoryBuffer([group("85")])
    await work(buffer, config({"use": f"{HERE}:Moody"}))
    assert buffer.scores["policy/1/0"]["Moody"].values.tolist() == [1]


def hangs_on_bad(completion):
    if completion == "bad":
        HUNG.wait(60)
    return 1.0


HUNG = threading.Event()


async def answered(buffer, running):
    """Wait until every group has scores."""
    async with asyncio.timeout(20):
        while not running.done() and any(not s for s in buffer.scores.values()):
            await asyncio.wait([running], timeout=0.02)


async def test_calls_that_hang_fail_their_own_group_and_40_healthy_ones_are_scored():
    bad = group(*["bad"] * 16)
    healthy = [group("good", "fine", seq=i + 1) for i in range(40)]
    settings = config({"use": f"{HERE}:hangs_on_bad", "timeout_s": 3.0}, concurrent_groups=64)
    buffer = MemoryBuffer([bad, *healthy])
    worker = RewardWorker("reward-0", buffer=buffer, config=settings)
    running = asyncio.create_task(worker.run())
    name = settings.reward_names[0]
    await answered(buffer, running)
    assert all((buffer.scores[g.id][name].values == 1).all() for g in healthy)
    assert (buffer.scores[bad.id][name].state == FAILED).all()
    assert "16 calls of functions were given up" in worker.waiting()
    HUNG.set()
    await worker.stop()
    await running
    metrics = [event.metrics for event in buffer.events if isinstance(event, JudgeReport)]
    assert metrics[-1]["reward/num_replaced_threads"] == 16


async def test_a_worker_with_too_many_hung_calls_ends_and_hands_its_groups_back(monkeypatch, caplog):
    monkeypatch.setattr("rewards.worker.MOST_HUNG", 3)
    settings = config({"use": f"{HERE}:never", "timeout_s": 0.2}, concurrent_groups=8)
    buffer = MemoryBuffer([group("a", seq=i) for i in range(8)])
    worker = RewardWorker("reward-0", buffer=buffer, config=settings)
    async with asyncio.timeout(20):
        await worker.run()
    NEVER.set()
    assert "The worker ends and is replaced" in caplog.text
    assert "no answer within 0.2 s" in caplog.text


NEVER = threading.Event()


def never(completion):
    NEVER.wait(60)
    return 1.0


class Blocks(Reward):
    async def score(self, group, services):
        time.sleep(3.0)  # noqa: ASYNC251
        return Scores.of([1.0] * len(group))


async def test_a_reward_that_holds_the_event_loop_is_named_and_its_group_failed(caplog):
    settings = parse({"rewards": [{"use": f"{HERE}:Blocks", "timeout_s": 0.5}], "reward_workers": {}})
    buffer = MemoryBuffer([group("85")])
    worker = RewardWorker("reward-0", buffer=buffer, config=settings)
    ended = []
    worker.end_process = ended.append
    running = asyncio.create_task(worker.run())
    await answered(buffer, running)
    await worker.stop()
    await running
    assert ended == [75]
    assert buffer.forsaken == "reward-0", "what else it had in hand is free, and not to blame"
    note = buffer.scores["policy/1/0"]["Blocks"].provenance[0].note
    assert "reward 'Blocks' held the event loop of reward-0" in note
    assert "test_misbehaviour.py" in note
    assert "Blocks" in caplog.text
    assert buffer.costly()


@pytest.mark.parametrize("use", hostile.ALL)
async def test_random_misbehaviour_is_stored_readable(use):
    await misbehave(use, 400, 0)


async def misbehave(use, num_groups, first):
    """Let a worker score groups with a reward that misbehaves; everything stored must be what it may be."""
    logging.disable(logging.WARNING)
    settings = config(
        {"use": f"tests.rewards.hostile:{use}", "options": {"seed": first}, "timeout_s": 20.0}, concurrent_groups=32
    )
    groups = [group("85", f"{first}/{i}", "7", seq=first + i, nested={"list": [i]}) for i in range(num_groups)]
    before = [encode(g) for g in groups]
    buffer = MemoryBuffer(groups)
    try:
        await work(buffer, settings, timeout_s=600)
    finally:
        logging.disable(logging.NOTSET)
    for made, was in zip(groups, before, strict=True):
        assert encode(made) == was
        read = decode(encode(buffer.scores[made.id]), dict[str, Scores])[settings.reward_names[0]]
        assert read.values.shape == read.state.shape == (3,)
        assert (np.isfinite(read.values) == (read.state == SCORED)).all()
        assert len(read.provenance) in (1, 3)
        for tokens, rollout in zip(read.tokens or (), made.rollouts, strict=False):
            assert tokens.shape == rollout.tokens.shape
    for event in buffer.events:
        encode_event(event)
