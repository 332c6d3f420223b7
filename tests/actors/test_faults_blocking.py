"""An environment that blocks, whatever in, costs its own group: every other one is sampled meanwhile."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from dataclasses import replace

import pytest

from actors import rollout
from actors.environments import End, Environment, Observation
from actors.environments.multi_policy import MultiPolicyEnvironment
from actors.multi_policy import MultiPolicySampler
from cluster.errors import DataError
from cluster.process.foreign_loops import ForeignLoops
from cluster.types import Claim, Task
from cluster.types.events import RolloutReport
from tests.actors.test_faults import BAD, GROUPS, Faulty, dropped_and_named, model, worker  # noqa: F401
from tests.actors.test_multi_policy import CLAIM, Heard
from tests.actors.test_multi_policy import rollout as spoken

RELEASED = [threading.Event()]
"""The last one ends what the environments of this test block in."""


@pytest.fixture(autouse=True)
def released():
    RELEASED.append(threading.Event())
    yield
    RELEASED[-1].set()


def wait():
    RELEASED[-1].wait(60)


class Sleeps(Faulty):
    async def fail(self):
        wait()


class Spins(Faulty):
    async def fail(self):
        released = RELEASED[-1]
        while not released.is_set():
            pass


class SpinsOnErrors(Faulty):
    async def fail(self):
        released = RELEASED[-1]
        while not released.is_set():
            try:
                sum(range(1000))
            except Exception:
                continue


class Listens(Faulty):
    async def fail(self):
        released = RELEASED[-1]
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.settimeout(0.05)
            server.listen()
            while not released.is_set():
                try:
                    server.accept()
                except TimeoutError:
                    continue


class BlocksInATask(Faulty):
    async def fail(self):
        async def blocks():
            wait()

        await asyncio.gather(asyncio.create_task(blocks()), asyncio.sleep(0))


class BlocksInACallback(Faulty):
    async def fail(self):
        asyncio.get_running_loop().call_soon(wait)
        await asyncio.sleep(3600)


class BlocksInAThread(Faulty):
    async def fail(self):
        await asyncio.gather(*(asyncio.to_thread(wait) for _ in range(10)))  # below `MOST_HUNG` in both episodes


class SwallowsItsCancellation(Faulty):
    async def fail(self):
        released = RELEASED[-1]
        while not released.is_set():
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue


class BlocksWhenShown(Faulty):
    async def fail(self):
        class Slow:
            def __repr__(self):
                wait()
                return "slow"

        return Slow()


class BlocksInItsEnd(Environment):
    async def play(self, task, variant):
        try:
            yield Observation(task.variants[variant])
        finally:
            if task.prompt == BAD:
                wait()


class BlocksBeforeItBegins(Environment):
    def play(self, task, variant):
        if task.prompt == BAD:
            wait()
        return self.well(task, variant)

    async def well(self, task, variant):
        yield Observation(task.variants[variant])


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize(
    "cls", [Sleeps, Spins, SpinsOnErrors, Listens, BlocksInATask, BlocksInACallback, SwallowsItsCancellation]
)
async def test_an_environment_that_blocks_costs_its_group(cls, turn, worker, buffer):  # noqa: F811
    assert "no answer within rollout.environment_timeout_s" in await dropped_and_named(worker(cls(turn=turn)), buffer)


@pytest.mark.parametrize("cls", [BlocksInAThread, BlocksWhenShown])
async def test_an_environment_that_blocks_beside_its_loop(cls, worker, buffer):  # noqa: F811
    assert "no answer within rollout.environment_timeout_s" in await dropped_and_named(worker(cls()), buffer)


@pytest.mark.parametrize("cls", [BlocksInItsEnd, BlocksBeforeItBegins])
async def test_an_environment_that_blocks_before_or_after_its_turns(cls, worker, buffer):  # noqa: F811
    said = await dropped_and_named(worker(cls()), buffer)
    assert "It blocks its event loop at" in said


async def test_the_line_that_blocks_is_named(worker, buffer):  # noqa: F811
    assert "threading.py:" in await dropped_and_named(worker(Sleeps()), buffer)
    assert GROUPS == 4


class Shares(Environment):
    """All episodes wait for one another at an asyncio lock of the environment's, and one of them blocks."""

    async def play(self, task, variant):
        text = yield Observation(task.variants[variant])
        async with LOCK:
            await asyncio.sleep(0.01)
            LOOPS.add(id(asyncio.get_running_loop()))
        yield End(reward=float(len(text)))


LOCK = asyncio.Lock()
LOOPS: set[int] = set()


async def test_episodes_of_an_environment_that_does_not_block_share_one_loop(worker):  # noqa: F811
    LOOPS.clear()
    tasks = [Task.of(str(i), "fine") for i in range(40)]
    groups = await worker(Shares()).evaluate(tasks, temperature=1.0)
    assert len(groups) == 40
    assert len(LOOPS) == 1


class HoldsOverTurns(Environment):
    async def play(self, task, variant):
        async with asyncio.timeout(30):
            yield Observation(task.variants[variant])
            yield Observation.of("again")
        yield End(reward=1.0)


async def test_a_time_out_may_be_held_over_turns(worker):  # noqa: F811
    one = worker(HoldsOverTurns())
    (group,) = await one.evaluate([Task.of("0", "fine")], temperature=1.0)
    assert group.rollouts[0].turns


async def waits(call):
    await asyncio.sleep(0.05)
    return "waited"


async def blocks(call):
    wait()


async def test_calls_beside_one_that_blocks_begin_anew_and_each_key_has_its_own_thread_from_then_on():
    loops = ForeignLoops()
    found = []

    async def patiently(key):
        while True:
            try:
                return await loops.run(key, waits, 5.0, late="late")
            except Exception as error:
                found.append(type(error).__name__)

    try:
        blocked = asyncio.create_task(loops.run("bad", blocks, 2.0, late="late"))
        await asyncio.sleep(0)
        begun = time.monotonic()
        assert await asyncio.gather(*map(patiently, range(20))) == ["waited"] * 20
        assert time.monotonic() - begun < 1.9, "nothing waits until the one that blocks is given up"
        assert set(found) == {"Displaced"}
        with pytest.raises(DataError, match=r"late It blocks its event loop at threading\.py"):
            await blocked
        assert (loops.num_hung, loops.num_replaced) == (1, 1)
        begun = time.monotonic()
        again = asyncio.create_task(loops.run("bad", blocks, 1.0, late="late"))
        assert await asyncio.gather(*map(patiently, range(20))) == ["waited"] * 20
        assert time.monotonic() - begun < 0.9
        with pytest.raises(DataError):
            await again
    finally:
        loops.close()


async def test_a_loop_in_python_that_is_given_up_ends():
    loops = ForeignLoops()

    async def spins(call):
        while True:
            pass

    try:
        with pytest.raises(DataError, match="late"):
            await loops.run("bad", spins, 0.5, late="late")
        async with asyncio.timeout(10):
            while loops.num_hung:
                await loops.run("well", waits, 5.0, late="late")
        assert loops.num_replaced == 1
    finally:
        loops.close()


async def test_a_worker_with_too_many_hung_threads_finishes_its_groups_and_ends(worker, buffer, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setattr(rollout, "MOST_HUNG", 1)
    one = worker(Sleeps(), task_at=lambda i: Task.of(str(i), BAD if i < 2 else "fine"))
    async with asyncio.timeout(20):
        await one.run()
    assert "2 threads of its environment never returned" in caplog.text
    assert buffer.summary("policy")["groups_dropped"] == {"data_failure": 2}
    reports = [event for _, event in buffer.events() if isinstance(event, RolloutReport)]
    assert max(r.replaced_threads for r in reports) == 2


# ── meetings ────────────────────────────────────────────────────────────────────────────────────────────────────


class Misbehaves(MultiPolicyEnvironment):
    how: str

    async def hold(self, task, cast):
        first = await cast.say("policy", "hello")
        if self.how == "exit":
            raise SystemExit(3)
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "cancelled":
            raise asyncio.CancelledError
        if self.how == "generator exit":
            raise GeneratorExit
        if self.how == "recursion":
            return await self.hold(task, cast)
        if self.how == "blocks":
            wait()
        if self.how == "hangs":
            await asyncio.sleep(3600)
        if self.how == "writes":
            first.tokens[:] = 0
        if self.how == "no prompt":
            await cast.say("policy", 3)
        if self.how == "stranger":
            await cast.say("stranger", "hello")
        if self.how == "no rollout":
            return [first, None]
        if self.how == "broken rollout":
            return [replace(first, text=3)]
        if self.how == "other tokens":
            return [replace(first, tokens=first.tokens + 1)]
        if self.how == "other log-probs":
            return [replace(first, logprobs=first.logprobs - 1)]
        if self.how == "another policy":
            return [replace(first, policy="b")]
        if self.how == "twice":
            return [first, replace(first, variant="again")]
        if self.how == "labels":
            return [replace(first, variant="v", answer="4", reward=1.0, agent="r"), await cast.say("policy", "more")]
        if self.how == "task":
            task.meta["mine"] = 1
            task.variants.clear()
        return [first]

    def size(self, num_policies):
        return 1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("exit", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt"),
        ("cancelled", "CancelledError"),
        ("generator exit", "GeneratorExit"),
        ("recursion", "RecursionError|nested too deep|no utterance"),
        ("blocks", "It blocks its event loop"),
        ("hangs", "no utterance and no end within"),
        ("writes", "read-only"),
        ("no prompt", "text is expected"),
        ("stranger", "KeyError: 'stranger'"),
        ("no rollout", "spoken in it"),
        ("broken rollout", "text is expected"),
        ("other tokens", r"rollouts\[0\] was not sampled in this group"),
        ("other log-probs", r"rollouts\[0\] was not sampled in this group"),
        ("another policy", r"rollouts\[0\] was not sampled in this group"),
        ("twice", r"rollouts\[1\] comes a second time"),
    ],
)
async def test_whatever_a_meeting_does_is_a_named_failure_of_its_group(how, words):
    heard = Heard("policy", "b")
    with pytest.raises(DataError, match=words) as raised:
        await meet(heard, Misbehaves(how=how))
    assert "the meeting failed on task sum/1" in str(raised.value)


async def test_a_meeting_may_label_what_was_sampled():
    found = await meet(Heard("policy"), Misbehaves(how="labels"))
    assert [(r.text, r.variant, r.answer, r.agent) for r in found] == [
        ("policy says 1", "v", "4", "r"),
        ("policy says 2", "orig", None, ""),
    ]


async def test_a_meeting_has_a_task_of_its_own():
    task = Task.of("sum/1", "1+1?")
    found = await meet(Heard("policy"), Misbehaves(how="task"), task)
    assert [r.text for r in found] == ["policy says 1"]
    assert (task.meta, list(task.variants)) == ({}, ["orig"])


async def test_meetings_beside_one_that_blocks_are_held():
    loops = ForeignLoops()
    try:
        heard = Heard("policy")
        bad = asyncio.create_task(meet(heard, Misbehaves(how="blocks"), loops=loops))
        well = [meet(heard, Misbehaves(how="well"), loops=loops, seq=i) for i in range(11, 19)]
        assert len(await asyncio.gather(*well)) == 8
        with pytest.raises(DataError, match="blocks"):
            await bad
    finally:
        loops.close()


async def meet(heard: Heard, meeting: MultiPolicyEnvironment, task: Task | None = None, *, loops=None, seq: int = 0):
    async def play(task: Task, count: int, at_least: str):
        heard.prompts.append(task.prompt)
        return tuple(spoken("policy", f"policy says {len(heard.prompts)}") for _ in range(count))

    sampler = MultiPolicySampler("policy", play, {"b": play}, 0, None, loops, 1.5)
    claim = Claim(f"policy/3/{seq}", "policy", 3, seq, 11, 5, "secret") if seq else CLAIM
    return await sampler.meet(meeting, claim, task or Task.of("sum/1", "1+1?"), heard.advance)
