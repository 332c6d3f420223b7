"""What fails while a run is going on costs its group alone: counted, named, and the worker goes on."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from itertools import count
from types import SimpleNamespace

import pytest

from actors import rollout
from actors.chat import Chat
from actors.environments import End, Environment, Observation
from actors.environments.single_turn import SingleTurn
from actors.rollout import RolloutWorker
from cluster.buffer import Buffer, Limits
from cluster.config import Use, parse
from cluster.driver.event_consumer import EventConsumer
from cluster.errors import BudgetSpent, ConfigError, DataError
from cluster.observability.metrics import Recorder
from cluster.plugins import build
from cluster.types import Claim, Event, Message, Publication, Task
from cluster.types.events import RewardReport, RolloutReport
from cluster.types.wire import checked_group
from tests.fakes import FakeEngine
from tests.models import random_llama

GROUPS = 4
BAD = "bad"
"""The task on which everything here fails."""


class Faulty(Environment):
    """Fails on one task, in its first answer or in its second."""

    ends_when_cut = False
    turn: int = 0

    async def play(self, task, variant):
        if self.turn == 0 and task.prompt == BAD:
            yield await self.fail()
        yield Observation(task.variants[variant])
        if task.prompt == BAD:
            yield await self.fail()

    async def fail(self):
        raise NotImplementedError


class Raises(Faulty):
    async def fail(self):
        raise KeyError("no such room")


class TimesOut(Faulty):
    async def fail(self):
        raise TimeoutError("a server of its own")


class Hangs(Faulty):
    async def fail(self):
        await asyncio.sleep(3600)


class SaysNothing(Faulty):
    async def fail(self):
        return None


class NoMessages(Faulty):
    async def fail(self):
        return Observation(())


class NoText(Faulty):
    async def fail(self):
        return Observation((Message("user", 3),))


class Infinite(Faulty):
    async def fail(self):
        return End(reward=float("inf"))


class NumberAsAnswer(Faulty):
    async def fail(self):
        return End(answer=3)


class NoGenerator(Environment):
    def play(self, task, variant):
        return SingleTurn().play(task, variant) if task.prompt != BAD else None


class HangsAtTheEnd(Environment):
    async def play(self, task, variant):
        try:
            yield Observation(task.variants[variant])
            yield End()
        finally:
            if task.prompt == BAD:
                await asyncio.sleep(3600)


class RaisesExit(Faulty):
    async def fail(self):
        raise SystemExit(3)


class RaisesInterrupt(Faulty):
    async def fail(self):
        raise KeyboardInterrupt


class RaisesCancelled(Faulty):
    async def fail(self):
        raise asyncio.CancelledError


class Recurses(Faulty):
    async def fail(self):
        return await self.fail()


class TextAsReward(Faulty):
    async def fail(self):
        return End(reward="1")  # type: ignore[arg-type]


class EventOfText(Faulty):
    async def fail(self):
        return End(events=("won",))  # type: ignore[arg-type]


class EventOfNoTurn(Faulty):
    async def fail(self):
        return End(events=(Event("won", 7),))


class TrueAsReward(Environment):
    ends_when_cut = False

    async def play(self, task, variant):
        task.meta["mine"] = object()
        yield Observation.of("half \ud800")
        yield End(reward=True)


class LongAnswer(Environment):
    ends_when_cut = False

    async def play(self, task, variant):
        yield Observation(task.variants[variant])
        yield Observation.of("x" * 100_000)
        yield End()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_llama(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture
def worker(model, buffer, monkeypatch):
    """Makes a worker on a buffer that admits four groups, of which the first is the bad task's."""
    from transformers import AutoTokenizer

    monkeypatch.setattr(rollout, "CLAIM_S", 0.1)
    monkeypatch.setattr(rollout, "REPORT_S", 0.1)
    rollouts = {"group_size": 2, "max_tokens": 4, "max_turns": 2, "environment_timeout_s": 0.3}
    buffer.configure(Limits(GROUPS, 0))
    epoch = buffer.resume("policy", None)
    buffer.announce(Publication("policy", epoch, 0))
    chat = Chat(AutoTokenizer.from_pretrained(model))

    def make(environment=None, task_at=None, max_model_len=64):
        settings = parse({"rollout": rollouts, "engine": {"max_model_len": max_model_len}})
        return RolloutWorker(
            "rollout-0",
            policy="policy",
            engine=FakeEngine(model, settings, stop_tokens=chat.stop_tokens, version=f"{epoch}.0"),
            chat=chat,
            environment=environment or SingleTurn(),
            task_at=task_at or (lambda i: Task.of(str(i), "fine" if i else BAD)),
            buffer=buffer,
            config=settings,
            fetch=None,
        )

    return make


async def dropped_and_named(worker: RolloutWorker, buffer: Buffer) -> str:
    """Works until the other groups are stored; returns how the failure was reported."""
    running = asyncio.create_task(worker.run())
    deadline = time.monotonic() + 8
    while buffer.status("policy")["groups"]["ready"] < GROUPS:
        assert not running.done(), running.exception()
        assert time.monotonic() < deadline, buffer.status("policy")
        await asyncio.sleep(0.02)
    await worker.stop()
    await running
    assert buffer.summary("policy")["groups_dropped"] == {"data_failure": 1}
    reports = [event for _, event in buffer.events() if isinstance(event, RolloutReport)]
    assert sum(r.data_failures for r in reports) == 1
    return reports[-1].last_failure


class ToolAnswer(Environment):
    """Answers as a tool does, with a text of 100,000 tokens and more."""

    ends_when_cut = False

    async def play(self, task, variant):
        yield Observation(task.variants[variant])
        yield Observation.of("x y " * 50_000, role="tool")
        yield End(reward=1.0)


async def test_a_tool_answer_of_100_000_tokens_leaves_a_rollout_within_a_context_of_400(model, buffer, worker):
    long = worker(ToolAnswer(), max_model_len=400)
    (group,) = await long.evaluate([Task.of("0", "fine")], temperature=1.0)
    (rollout,) = group.rollouts
    assert len(rollout.tokens) <= 400
    assert rollout.loss_mask[-1], "no token stands behind the last one that is trained"
    assert rollout.num_cut_observations == 1
    shown = next(turn.text for turn in rollout.turns if turn.role == "tool")
    assert "of 200000 characters did not fit the context]" in shown
    assert sum(turn.role == "assistant" for turn in rollout.turns) == 2, "the policy answers what it was shown"
    assert checked_group(group).rollouts[0].num_cut_observations == 1


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Raises, "KeyError: 'no such room'"),
        (TimesOut, "TimeoutError: a server of its own"),
        (Hangs, "no answer within rollout.environment_timeout_s = 0.3 s"),
        (SaysNothing, "yielded None"),
        (NoMessages, "yielded Observation(messages=()"),
        (NoText, "yielded Observation(messages=(Message(role='user', content=3)"),
        (Infinite, "yielded End(reward=inf"),
        (RaisesExit, "SystemExit"),
        (RaisesInterrupt, "KeyboardInterrupt"),
        (RaisesCancelled, "CancelledError"),
        (Recurses, "RecursionError"),
        (TextAsReward, "end.reward is '1'"),
        (EventOfText, "end.events[0] is 'won'"),
        (NumberAsAnswer, "yielded End(reward=nan, answer=3"),
    ],
)
async def test_an_environment_that_fails_costs_its_group(cls, words, turn, worker, buffer):
    said = await dropped_and_named(worker(cls(turn=turn)), buffer)
    assert words in said
    assert "task 0" in said


class Unbuildable(Environment):
    """Its constructor fails on every second call: preflight, which builds it first, finds nothing."""

    how: str = ""

    def model_post_init(self, _context):
        if next(BUILT) % 2 == 0:
            return
        if self.how == "sleeps":
            time.sleep(2)
        raise {"exits": SystemExit(3), "cancels": asyncio.CancelledError()}.get(self.how, KeyError("no such room"))

    async def play(self, task, variant):
        yield Observation(task.variants[variant])


BUILT = count()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", "cannot be built: KeyError: 'no such room' (test_faults.py:"),
        ("exits", "cannot be built: SystemExit: 3"),
        ("cancels", "cannot be built: CancelledError"),
        ("sleeps", "the constructor did not return within rollout.environment_timeout_s = 0.3 s"),
    ],
)
async def test_a_constructor_that_fails_costs_a_group_and_is_called_again(how, words, worker, buffer, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "BUILT", count(1))
    section = Use(use=f"{__name__}:Unbuildable", options={"how": how})
    assert words in await dropped_and_named(worker(section), buffer)


def test_what_a_constructor_raises_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "BUILT", count(1))
    with pytest.raises(ConfigError, match=r"rollout.environment.use = '.*:Unbuildable' cannot be built: SystemExit: 3"):
        build({}, f"{__name__}:Unbuildable", {"how": "exits"}, "rollout.environment")


@pytest.mark.parametrize(("cls", "words"), [(NoGenerator, "AttributeError"), (HangsAtTheEnd, "no answer within")])
async def test_an_environment_that_is_none_or_does_not_end(cls, words, worker, buffer):
    assert words in await dropped_and_named(worker(cls()), buffer)


async def test_a_prompt_longer_than_the_model(worker, buffer):
    said = await dropped_and_named(worker(task_at=lambda i: Task.of(str(i), "fine" if i else "x" * 65)), buffer)
    assert "task 0: its prompt has 65 tokens, engine.max_model_len is 64" in said


def broken_row(i):
    if not i:
        raise DataError("tasks.jsonl:10001: not JSON.")
    return Task.of(str(i), "fine")


def broken_source(i):
    return {0: 0}[i] if i > 100 else [None, *[Task.of(str(k), "fine") for k in range(1, 101)]][i] or 1 / 0


@pytest.mark.parametrize(
    ("task_at", "words"),
    [
        (broken_row, "tasks.jsonl:10001: not JSON."),
        (broken_source, "position 0: ZeroDivisionError"),
        (lambda i: Task.of(str(i), "fine") if i else "no task", "'no task' is no Task"),
        (lambda i: Task.of(str(i), "fine", source="x" if i else object()), "task 0 cannot be stored"),
        (lambda i: Task.of(str(i), "fine", None if i else 3), "task 0 cannot be stored"),
    ],
)
async def test_a_task_that_cannot_be_made(task_at, words, worker, buffer):
    assert words in await dropped_and_named(worker(task_at=task_at), buffer)


async def test_the_others_of_a_failed_group_are_not_sampled_on(worker, buffer):
    class Second(Environment):
        async def play(self, task, variant):
            PLAYED.append("begun")
            if len(PLAYED) == 1:
                raise KeyError("the first")
            yield Observation(task.variants[variant])
            await asyncio.sleep(0.2)
            PLAYED.append("ended")

    claim = buffer.claim("policy", worker="w", engine="1.0", timeout_s=1.0)
    with pytest.raises(DataError, match="the first"):
        await worker(Second())._group(claim, Task.of("0", "fine"))
    await asyncio.sleep(0.4)
    assert "ended" not in PLAYED


PLAYED: list[str] = []


async def test_a_held_out_task_that_fails_is_left_out_and_counted(worker):
    one = worker(Raises())
    groups = await one.evaluate([Task.of("0", "fine"), Task.of("1", BAD), Task.of("2", "fine")], temperature=0.0)
    assert [g.task.id for g in groups] == ["0", "2"]
    assert one._counts["data_failures"] == 1
    assert "no such room" in one._last_failure


async def test_failures_of_rollouts_and_rewards_share_a_budget_and_the_last_is_named(buffer, tmp_path):
    settings = parse({"run": {"max_data_failures": 3}})
    recorder = Recorder(tmp_path, settings.tracking, "faults", {})
    follower = EventConsumer(buffer, settings, recorder, SimpleNamespace(), lambda _: None)
    buffer.emit(
        RolloutReport(
            worker="rollout-0", claims=True, seconds=1.0, groups=2, data_failures=2,
            last_failure="group policy/1/0 dropped: x.",
        )
    )  # fmt: skip
    buffer.emit(RewardReport(worker="reward-0", data_failures=1, last_failure="y."))
    await follower.drain()
    buffer.emit(RewardReport(worker="reward-0", data_failures=1, last_failure="group 7: judge is drunk"))
    with pytest.raises(BudgetSpent, match=r"4 groups failed.*max_data_failures = 3.*The last: group 7: judge is drunk"):
        await follower.drain()
    recorder.close()
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [row["error"] for row in samples] == ["group policy/1/0 dropped: x.", "y.", "group 7: judge is drunk"]
    assert {row["reason"] for row in samples} == {"data_failure"}


async def test_a_long_run_may_lose_a_share_of_its_groups(buffer, tmp_path):
    settings = parse({"run": {"max_data_failures": 3, "max_data_failure_frac": 0.1}})
    recorder = Recorder(tmp_path, settings.tracking, "faults", {})
    follower = EventConsumer(buffer, settings, recorder, SimpleNamespace(), lambda _: None)
    report = RolloutReport(worker="rollout-0", claims=True, seconds=1.0, groups=1000, data_failures=100)
    buffer.emit(report)
    await follower.drain()
    buffer.emit(RolloutReport(worker="rollout-0", claims=True, seconds=1.0, data_failures=1, last_failure="x."))
    with pytest.raises(BudgetSpent, match="allowed are 100"):
        await follower.drain()


async def test_an_event_of_a_turn_that_was_not_played_costs_its_group(worker, buffer):
    assert "events[0].turn is 7" in await dropped_and_named(worker(EventOfNoTurn(turn=1)), buffer)


async def test_a_reward_of_true_is_one_and_the_task_stays_as_it_was(worker):
    task = Task.of("0", "fine")
    (group,) = await worker(TrueAsReward()).evaluate([task], temperature=0.0)
    assert group.rollouts[0].reward == 1.0
    assert task.meta == {}
    assert group.rollouts[0].turns[0].text == "half \ufffd"


async def test_a_long_observation_is_cut_to_the_context_and_nothing_untrained_is_stored_behind(worker):
    (group,) = await worker(LongAnswer()).evaluate([Task.of("0", "fine")], temperature=1.0)
    rollout = group.rollouts[0]
    assert len(rollout.tokens) <= 64
    assert rollout.loss_mask[-1]


class LongAnswers(Environment):
    """Answers of the given lengths, the last one again and again; the last agent's are as long."""

    ends_when_cut = False
    lengths: tuple[int, ...]
    messages: int = 1

    async def play(self, task, variant):
        yield Observation(task.variants[variant])
        for turn in range(20):
            length = self.lengths[min(turn, len(self.lengths) - 1)]
            yield Observation(tuple(Message("user", "x" * length) for _ in range(self.messages)))


@pytest.mark.parametrize(
    ("lengths", "messages", "cut"),
    [((100_000,), 1, True), ((1_000_000,), 1, True), ((0,), 1, False), ((9,), 1, None), ((5, 0, 400), 1, None),
     ((20,), 500, True)],
)  # fmt: skip
async def test_answers_of_any_length_fit_the_context_and_are_counted_when_cut(lengths, messages, cut, worker):
    environment = LongAnswers(lengths=lengths, messages=messages)
    begun = time.monotonic()
    (group,) = await worker(environment).evaluate([Task.of("0", "fine")], temperature=1.0)
    assert time.monotonic() - begun < 20
    rollout = group.rollouts[0]
    assert 0 < len(rollout.tokens) <= 64
    assert rollout.loss_mask[-1]
    if cut is not None:
        assert (rollout.num_cut_observations > 0) == cut


async def test_a_prompt_of_any_length_is_a_named_failure(worker):
    one = worker()
    assert await one.evaluate([Task.of("0", "x" * 20_000_000)], temperature=1.0) == []
    assert "task 0: its prompt has more than 64 tokens" in one._last_failure


CLAIM = Claim("policy/1/0", "policy", 1, 0, 0, 0, "secret")


class LateSeat(Environment):
    """Plays a second agent whose first observation has the given length."""

    agents = ("a", "b")
    ends_when_cut = False
    length: int
    messages: int = 1

    async def play(self, task, variant):
        yield Observation(task.variants[variant], agent="a")
        many = tuple(Message("user", "x" * self.length) for _ in range(self.messages))
        yield Observation(many, (Event("seen", 0),), agent="b")
        yield End(rewards={"a": 1.0, "b": 2.0})


@pytest.mark.parametrize("length", [1, 60, 100, 100_000, 10_000_000])
async def test_the_first_observation_of_a_later_agent_is_cut_to_the_context(length, worker):
    group = await worker(LateSeat(length=length))._group(CLAIM, Task.of("0", "fine"))
    first, second = group.rollouts
    assert (first.agent, second.agent) == ("a", "b")
    assert len(second.tokens) <= 64
    assert second.loss_mask[-1]
    assert second.num_cut_observations == (length > 60)
    assert first.num_cut_observations == 0


async def test_a_later_agent_that_sees_more_messages_than_fit_takes_no_turn(worker):
    group = checked_group(await worker(LateSeat(length=1, messages=500))._group(CLAIM, Task.of("0", "fine")))
    assert [r.agent for r in group.rollouts] == ["a"]
    assert group.rollouts[0].truncated


async def test_a_task_over_which_workers_died_is_not_played_again(worker, buffer):
    buffer.died_over(claim := Claim("policy/1/9", "policy", 1, 9, 0, 0, "secret"))
    buffer.died_over(claim)
    assert "task 0: 2 rollout workers ended inside its steps" in await dropped_and_named(worker(Faulty()), buffer)
