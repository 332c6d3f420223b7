"""Random environments that misbehave: what they yield, raise, return and change, drawn from a seed."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from copy import copy
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from actors.environments import End, Environment, Observation
from actors.environments.multi_policy import MultiPolicyEnvironment
from cluster.types import Event, Message, Rollout
from tests.rewards.hostile import RAISED, deep, note, number

EPISODES: defaultdict[str, Any] = defaultdict(count)
"""By task: numbers its episodes, so that each of a group does something else."""


class Shouts(Observation):
    """An observation whose parts raise when they are looked at."""

    __slots__ = ()

    def __getattribute__(self, name):
        if name in ("messages", "events"):
            raise random.choice((SystemExit(1), KeyboardInterrupt(), KeyError("part"), asyncio.CancelledError()))
        return object.__getattribute__(self, name)


class Endless(list):
    def __iter__(self):
        raise GeneratorExit


class Awaitable:
    def __await__(self):
        yield "no future"


class Steps:
    """No generator: what is awaited next is whatever was given."""

    def __init__(self, *steps):
        self._steps = iter(steps)

    def __anext__(self):
        return next(self._steps)

    asend = __anext__


def thrown(draw: random.Random):
    raise copy(draw.choice(RAISED))


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


BOTTOMLESS = nested(100_000)


def oddity(draw: random.Random) -> Any:
    return draw.choice(
        (
            lambda: number(draw),
            lambda: note(draw),
            lambda: draw.choice((nested(3), BOTTOMLESS)),
            lambda: Endless((1, 2)),
            lambda: Endless(),
            lambda: {"a": nested(100)},
            lambda: (x for x in range(3)),
            lambda: Message("user", "x"),
            lambda: {"role": "user", "content": "x"},
            lambda: "\x00\ud800" * 9,
            lambda: np.zeros((2, 2)),
            lambda: object.__new__(Observation),
            lambda: object.__new__(End),
            lambda: Event("x", 0),
            lambda: Observation,
        )
    )()


def event(draw: random.Random) -> Any:
    if draw.random() < 0.1:
        return oddity(draw)
    return Event(
        draw.choice(("won", "won", "\x00", note(draw))),
        draw.choice((0, 0, 0, 1, 1, True, np.int8(0), 0.0, 2, -1, 2**63, 10**40, number(draw))),
        draw.choice((1, 1, 1, 2, 0, -1, 2**64, number(draw))),
        draw.choice((0.0, 0.5, 1, True, float("nan"), 1e308, number(draw))),
    )


def events(draw: random.Random) -> Any:
    chance = draw.random()
    if chance < 0.7:
        return ()
    if chance < 0.75:
        return oddity(draw)
    return draw.choice((tuple, list))(event(draw) for _ in range(draw.randint(0, 3)))


def reward(draw: random.Random) -> Any:
    return draw.choice((0.0, 1.0, float("nan"), True, np.float16(0.5), 3)) if draw.random() < 0.8 else number(draw)


def end(draw: random.Random) -> Any:
    found = End(reward(draw), draw.choice((None, None, "4", note(draw))), events(draw))
    if draw.random() < 0.3:
        agents = [draw.choice(("a", "b", "", "c", note(draw))) for _ in range(2)]
        hashable = [s for s in agents if isinstance(s, str | int | float | bytes | None)]
        found = replace(found, rewards={s: reward(draw) for s in hashable})
        found = replace(found, agent_events={s: events(draw) for s in hashable})
    if draw.random() < 0.05:
        name = draw.choice(("reward", "answer", "events", "rewards", "agent_events"))
        object.__setattr__(found, name, oddity(draw))
    return found


def message(draw: random.Random) -> Any:
    if draw.random() < 0.05:
        return oddity(draw)
    role = draw.choice(("user", "user", "user", "system", "tool", "assistant", "", "\ud800", note(draw)))
    return Message(role, draw.choice(("hello", "2+2=?", "", "x" * 70, "ü\x00\ud83d", "[EOS]", note(draw))))


def observation(draw: random.Random, agents: tuple[str, ...]) -> Any:
    if draw.random() < 0.02:
        return Shouts((Message("user", "x"),))
    agent = draw.choice(agents)
    if draw.random() < 0.75:
        return Observation.of(draw.choice(("hello", "2+2=?", "x" * 30)), agent=agent, reward=reward(draw))
    many = draw.choice((1, 1, 1, 1, 2, 3, 0, draw.choice((0, 500))))
    found = Observation(tuple(message(draw) for _ in range(many)), events(draw), reward(draw), agent)
    if draw.random() < 0.3:
        found = replace(found, when_cut=end(draw))
    if draw.random() < 0.2:
        name = draw.choice(("messages", "events", "reward", "agent", "when_cut"))
        object.__setattr__(found, name, oddity(draw))
    return found


def spoil(draw: random.Random, task: Any) -> None:
    """Change what was handed over; what cannot be changed raises, which is ignored."""
    for change in draw.sample(
        (
            lambda: task.meta.clear(),
            lambda: task.meta["nested"]["list"].append(task),
            lambda: task.variants.clear(),
            lambda: task.variants.update(orig=7, more=()),
            lambda: object.__setattr__(task, "id", object()),
            lambda: object.__setattr__(task, "answer", "spoilt"),
            lambda: object.__setattr__(task.variants["orig"][0], "content", 3),
        ),
        2,
    ):
        try:
            change()
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            continue


RARELY = (0.05, 0.2, 0.1, 0.3, 0.01, 0.2)
"""Weights of what takes time: hangs, ends the loop, stops it, blocks it for a moment, blocks it for long, a thread."""


async def act(draw: random.Random) -> None:
    """Something that a coroutine ought not to do; most of it raises."""
    what = draw.choices(range(12), (8, 4, 4, 4, 4, 4, *RARELY))[0]
    if what == 0:
        thrown(draw)
    elif what == 1:
        deep()
    elif what == 2:
        await asyncio.gather(_later(draw), asyncio.sleep(0))
    elif what == 3:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
    elif what == 4:
        LEFT_BEHIND.append(asyncio.create_task(draw.choice((_later(draw), asyncio.sleep(3600)))))
        del LEFT_BEHIND[:-100]
    elif what == 5:
        await Awaitable()
    elif what == 6:
        await asyncio.sleep(3600)
    elif what == 7:
        asyncio.get_running_loop().call_soon(thrown, draw)
        await asyncio.sleep(0)
    elif what == 8:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
    elif what == 9:
        time.sleep(0.01)  # noqa: ASYNC251
    elif what == 10:
        time.sleep(1.0)  # noqa: ASYNC251
    elif what == 11:
        await asyncio.to_thread(thrown, draw)


LEFT_BEHIND: list[Any] = []


async def _later(draw):
    await asyncio.sleep(0)
    thrown(draw)


class Hostile(Environment):
    """Does something else wrong with every task."""

    seed: int = 0

    def play(self, task, variant):
        draw = random.Random(f"{self.seed}/{task.id}/{next(EPISODES[task.id])}")
        what = draw.randrange(60)
        if what == 0:
            thrown(draw)
        if what == 1:
            return oddity(draw)
        if what == 2:
            return Steps(*(draw.choice((Awaitable(), self._one(draw), oddity(draw))) for _ in range(3)))
        if what == 3:
            return self._one(draw)
        return self._episode(draw, task, variant)

    async def _one(self, draw):
        return observation(draw, self.agents)

    async def _episode(self, draw, task, variant):
        clean = draw.random() < 0.5
        try:
            if draw.random() < 0.3:
                spoil(draw, task)
            for _ in range(draw.randint(0, 4)):
                if draw.random() < 0.1:
                    await act(draw)
                what = draw.randrange(25)
                if what == 0:
                    return
                if what == 1:
                    yield oddity(draw)
                elif what == 2:
                    yield end(draw)
                elif clean:
                    yield Observation.of("2+2=?", agent=draw.choice(self.agents), reward=reward(draw))
                else:
                    yield observation(draw, (*self.agents, "c"))
            if draw.random() < 0.5:
                yield end(draw)
        except GeneratorExit:
            if draw.random() < 0.05:
                yield oddity(draw)
            if draw.random() < 0.05:
                await act(draw)
        finally:
            if draw.random() < 0.05:
                await act(draw)


class Cut(Hostile):
    """Answers a turn that ran out of tokens too."""

    ends_when_cut = False


class Agents(Hostile):
    """Plays with two."""

    agents = ("a", "b")


def forged(draw: random.Random, rollout: Rollout) -> Any:
    """A rollout with one field that is other than it was sampled."""
    count = len(rollout.tokens)
    changes: dict[str, Any] = {
        "tokens": lambda: draw.choice((np.arange(count), np.zeros(count + 1, np.int32), rollout.tokens.tolist())),
        "loss_mask": lambda: draw.choice((~rollout.loss_mask, np.ones(count), np.ones(2, bool))),
        "logprobs": lambda: draw.choice((np.zeros(count), np.full(count, -np.inf), rollout.logprobs * 2)),
        "text": lambda: note(draw),
        "turns": lambda: draw.choice(((), rollout.turns * 2, rollout.turns[:1])),
        "spans": lambda: draw.choice(((), rollout.spans * 2)),
        "finish": lambda: draw.choice(("stop", "length", "abort")),
        "temperature": lambda: number(draw),
        "answer": lambda: note(draw),
        "variant": lambda: draw.choice(("orig", "solution", "\ud800", note(draw))),
        "policy": lambda: draw.choice(("policy", "b", "stranger", note(draw))),
        "attempt": lambda: number(draw),
        "parent": lambda: draw.choice((None, 0, 1, -1, 7, True, number(draw))),
        "events": lambda: events(draw),
        "reward": lambda: reward(draw),
        "agent": lambda: note(draw),
        "num_cut_observations": lambda: number(draw),
    }
    name = draw.choice(list(changes))
    value = oddity(draw) if draw.random() < 0.2 else changes[name]()
    if draw.random() < 0.5:
        return replace(rollout, **{name: value})
    object.__setattr__(rollout, name, value)
    return rollout


class Meets(MultiPolicyEnvironment):
    """Policies that meet, and do something else wrong about every task."""

    seed: int = 0

    def hold(self, task, cast):
        draw = random.Random(f"{self.seed}/{task.id}/{next(EPISODES[task.id])}")
        what = draw.randrange(60)
        if what == 0:
            thrown(draw)
        if what == 1:
            return oddity(draw)
        return self._held(draw, task, cast)

    async def _held(self, draw, task, cast):
        said = []
        try:
            if draw.random() < 0.3:
                spoil(draw, task)
            for _ in range(draw.randint(0, 4)):
                if draw.random() < 0.06:
                    await act(draw)
                what = draw.randrange(20)
                if what == 0:
                    said += await asyncio.gather(*(cast.say(name, "all") for name in cast.policies))
                elif what == 1:
                    said.append(await cast.speak(oddity(draw), oddity(draw)))
                elif what == 2:
                    said.append(await cast.speak("policy", tuple(message(draw) for _ in range(draw.randint(0, 3)))))
                elif what == 3:
                    LEFT_BEHIND.append(asyncio.create_task(cast.say("b", "not waited for")))
                else:
                    said.append(await cast.say(draw.choice(("policy", "b")), draw.choice(("2+2", "hello"))))
        finally:
            if draw.random() < 0.03:
                await act(draw)
        what = draw.randrange(14)
        if what == 0:
            return oddity(draw)
        if what == 1:
            return [*said, oddity(draw)]
        if what == 2:
            return said * 2
        if what == 3:
            return [forged(draw, r) for r in said]
        if what == 4:
            return tuple(replace(r, variant="solution", parent=i - 1 if i else None) for i, r in enumerate(said))
        if what == 5:
            return iter(said)
        if what == 6:
            return [{name: getattr(r, name) for name in r.__slots__} for r in said]
        return said

    def size(self, num_policies):
        return 2


ALL: tuple[type[Environment], ...] = (Hostile, Cut, Agents, Meets)
