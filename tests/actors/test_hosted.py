"""Environments of a user's own class run in processes of their own: what they do there costs their episode alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
from typing import Any, Literal

import psutil
import pytest

from actors.environments import ENVIRONMENTS
from actors.environments.gymnasium_text import GymnasiumText
from actors.environments.trl import Trl
from actors.episode import Limits, play
from actors.tools import PolicyTurn, ToolCall, ToolTurn
from cluster.errors import ConfigError, DataError
from cluster.plugins import build
from cluster.process.hosted.host import schema_of
from cluster.types import INVALID_TOOL_CALL, Message, Task
from tests.actors.typist import Letters, Typist

WORLDS = "tests.actors.small_worlds"


def guess(**options) -> GymnasiumText:
    return GymnasiumText(env=f"{WORLDS}:Guess", processes=1, **options)


def episode(environment, write, *, number=0, timeout_s=10.0, turns=8):
    chat, engine = Letters(), Typist(write)
    task = Task.of(f"t{number}", "Guess!", seed=7)
    return play(engine, chat, environment, task, "orig", Limits(100, turns, 1.0, timeout_s))  # type: ignore[arg-type]


def children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if "host.py" in " ".join(process.cmdline()):
                found.append(process)
    return found


async def test_an_episode_with_gymnasium_s_interface():
    texts = iter("456789")
    rollout = await episode(guess(), lambda _: next(texts), turns=9)
    assert rollout.turns[0].text == "Guess!\n\nA number from 1 to 9."
    assert {t.text for t in rollout.turns[2::2]} == {"higher"}
    assert rollout.text.splitlines() == ["4", "5", "6"]
    assert rollout.reward == 1.0 - 0.25 * 2
    assert rollout.reward == sum(e.reward for e in rollout.events)
    assert rollout.finish == "stop"


async def test_episodes_of_a_task_begin_alike_and_share_processes():
    others = set(children())
    environment = guess(episodes_per_process=2)
    rollouts = await asyncio.gather(*(episode(environment, lambda _: "5") for _ in range(6)))
    assert len({r.reward for r in rollouts}) == 1
    assert len(set(children()) - others) == 1
    del environment
    gc.collect()
    assert set(children()) <= others


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("raise", r"KeyError: 'no such move' \(small_worlds.py:\d+\)"),
        ("exit", "the process of the environment ended with exit code 3"),
        ("leave", r"SystemExit: 1 \(small_worlds.py:\d+\)"),
        ("nan", "the reward of step.* is nan; a finite number is expected"),
        ("nonsense", r"step\(action\) returned .*; \(text, reward, terminated, truncated, info\) is expected"),
    ],
)
async def test_what_a_step_does_fails_its_episode_alone(action, words):
    environment = guess()
    with pytest.raises(DataError, match=f"the environment failed on task t0: .*{words}"):
        await episode(environment, lambda _: action)
    assert (await episode(environment, lambda _: "print")).reward == -1.25, "the next one plays"


async def test_a_step_that_hangs_is_killed_with_what_it_started():
    others = set(children())
    environment = guess(episodes_per_process=2)
    await episode(environment, lambda _: "0", timeout_s=60.0)  # from here on the process is there
    pids: list[int] = []

    def write(shown):
        if found := re.fullmatch(r"\d+", shown):
            pids.append(int(found[0]))
            return "hang"
        return "fork"

    with pytest.raises(DataError, match=r"no answer within rollout.environment_timeout_s = 1 s"):
        await episode(environment, write, timeout_s=1.0)
    assert pids
    psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], timeout=5)
    assert not any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids)
    assert set(children()) <= others
    assert (await episode(environment, lambda _: "0")).reward == -1.25


async def test_episodes_wait_for_a_place_outside_of_their_deadline():
    environment = guess(episodes_per_process=1)
    await episode(environment, lambda _: "0", timeout_s=60.0)  # from here on the process is there
    hold, begun = asyncio.Event(), asyncio.Event()

    class Slow(Typist):
        async def sample(self, prompt, *, max_tokens, temperature):
            begun.set()
            await hold.wait()
            return await super().sample(prompt, max_tokens=max_tokens, temperature=temperature)

    task, limits = Task.of("t", "Guess!", seed=7), Limits(100, 8, 1.0, 1.0)
    one = asyncio.create_task(play(Slow(lambda _: "0"), Letters(), environment, task, "orig", limits))  # type: ignore[arg-type]
    await asyncio.wait([one, asyncio.create_task(begun.wait())], return_when=asyncio.FIRST_COMPLETED)
    other = asyncio.create_task(episode(environment, lambda _: "0", timeout_s=1.0))
    done, _ = await asyncio.wait([other], timeout=1.5)
    assert not done, "it waits for longer than its deadline"
    hold.set()
    assert (await one).reward == (await other).reward == -1.25


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("gymnasium_text", {"env": "nothing"}, "env"),
        ("gymnasium_text", {"env": "a:b", "python": "/nowhere/python"}, "'/nowhere/python' is no file"),
        ("gymnasium_text", {"env": "no_such_module:Env"}, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("gymnasium_text", {"env": f"{WORLDS}:fails"}, "ValueError: no data here"),
        ("gymnasium_text", {"env": f"{WORLDS}:Guess", "env_options": {"low": 1}}, "unexpected keyword argument 'low'"),
        (
            "gymnasium_text",
            {"env": f"{WORLDS}:OldGym"},
            r"reset\(seed\) returned \[0.5, 0.1\]; .* needs a class around it",
        ),
        ("trl", {"env": f"{WORLDS}:Undescribed"}, "act"),
    ],
)
def test_a_wrong_class_is_refused_before_the_run(kind, options, words):
    with pytest.raises(ConfigError, match=words):
        build(ENVIRONMENTS, kind, options, "rollout.environment").check()


def test_a_function_may_make_it():
    GymnasiumText(env=f"{WORLDS}:make_guess", env_options={"high": 3}).check()


class Caller(Letters):
    """Reads `name(a=1)` as a call."""

    def tool_turn(self, text, tools):
        if text == "garbled":
            return ToolTurn(text, error="The tool call cannot be read.")
        if found := re.fullmatch(r"(\w+)\((?:(\w+)=(-?\d+))?\)", text):
            return ToolTurn("", (ToolCall(found[1], {found[2]: int(found[3])} if found[2] else {}),))
        return ToolTurn(text)


async def test_methods_are_tools_as_in_trl():
    environment = Trl(env=f"{WORLDS}:Counter", env_options={"step": 2}, processes=1)
    written = ["increment(times=1)", "look()", "increment(times=-1)", "increment(by=2)", "hidden()", "garbled", "done"]
    texts = iter(written)
    task = Task("t", {"orig": (Message("user", "Hello."),)}, meta={"target": 2, "other": [1]})
    rollout = await play(
        Typist(lambda _: next(texts)),  # type: ignore[arg-type]
        Caller(),  # type: ignore[arg-type]
        environment,
        task,
        "orig",
        Limits(100, 9, 1.0, 60.0),
    )
    shown = [turn.text for turn in rollout.turns if turn.role != "assistant"]
    assert shown[0] == "Hello.\n\nCount to 2."
    assert shown[1:3] == ["2", "it stands at 2"]
    assert shown[3].startswith("Error: ValueError: times must not be negative")
    assert shown[4].startswith("Error: increment: Additional properties are not allowed ('by' was unexpected)")
    assert shown[5] == "Error: There is no tool 'hidden'. Tools: increment, look."
    assert shown[6] == "Error: The tool call cannot be read."
    assert (rollout.answer, rollout.reward) == ("done", 1.0)
    assert [e.text for e in rollout.events].count(INVALID_TOOL_CALL) == 3


async def test_what_an_async_method_opens_serves_in_the_next():
    environment = Trl(env=f"{WORLDS}:Clients", processes=1)
    texts = iter(["look()", "done"])
    write: Any = Typist(lambda _: next(texts))
    rollout = await play(write, Caller(), environment, Task.of("t", "?"), "orig", Limits(100, 9, 1.0, 60.0))  # type: ignore
    assert rollout.turns[2].text == "open"


async def test_arguments_of_many_kinds_fit_their_schema_or_are_answered():
    class Reads(Letters):
        def tool_turn(self, text, tools):
            return ToolTurn("", (ToolCall("draw", json.loads(text)),)) if text.startswith("{") else ToolTurn(text)

    right = {"kind": "line", "at": {"x": 1.5}, "sizes": [1, 2]}
    written = [right, right | {"name": None}, right | {"kind": "cube"}, right | {"sizes": ["a"]}, {"kind": "line"}]
    texts = iter([*map(json.dumps, written), "done"])
    environment = Trl(env=f"{WORLDS}:Shapes", processes=1)
    write: Any = Typist(lambda _: next(texts))
    rollout = await play(write, Reads(), environment, Task.of("t", "?"), "orig", Limits(200, 9, 1.0, 60.0))  # type: ignore
    shown = [turn.text for turn in rollout.turns if turn.role == "tool"]
    assert json.loads(shown[0]) == right | {"name": None}
    assert json.loads(shown[1]) == right | {"name": None}
    assert [text.split(" is ")[0] for text in shown[2:]] == [
        "Error: draw: kind: 'cube'",
        "Error: draw: sizes.0: 'a'",
        "Error: draw: 'at'",
    ]


@pytest.mark.parametrize(
    ("ill", "words"),
    [
        ("reset", "reset returned 3; a text or None is expected"),
        ("exit", "the process of the environment ended with exit code 3"),
        ("hang", "no answer within rollout.environment_timeout_s = 2 s"),
        ("nan", r"get_reward\(\) is nan; a finite number is expected"),
        ("text", r"get_reward\(\) is 'high'; a finite number is expected"),
    ],
)
async def test_what_an_environment_of_trl_does_wrong_is_named(ill, words):
    others = set(children())
    environment = Trl(env=f"{WORLDS}:Sick", env_options={"ill": ill}, processes=1)
    limits = Limits(100, 9, 1.0, 2.0 if ill == "hang" else 60.0)
    async with environment._hosts.borrow() as hosted:  # from here on the process is there
        await hosted.ask(do="tools", without=())
    texts = iter(["act()", "done"])
    write: Any = Typist(lambda _: next(texts))
    with pytest.raises(DataError, match=f"the environment failed on task t: .*{words}"):
        await play(write, Caller(), environment, Task.of("t", "?"), "orig", limits)  # type: ignore[arg-type]
    if ill in ("exit", "hang"):  # the process of the others serves the next episode
        await asyncio.to_thread(psutil.wait_procs, list(set(children()) - others), 10)
        assert set(children()) <= others


async def test_an_episode_that_is_cut_short_has_the_reward_so_far():
    environment = Trl(env=f"{WORLDS}:Counter", processes=1)
    rollout = await play(
        Typist(lambda _: "increment(times=3)"),  # type: ignore[arg-type]
        Caller(),  # type: ignore[arg-type]
        environment,
        Task.of("t", ""),
        "orig",
        Limits(100, 1, 1.0, 60.0),
    )
    assert (rollout.finish, rollout.reward) == ("length", 1.0)


class Typed:
    def simple(self, a: int, b: str | None = None, c: float | str = 1.0) -> str:
        """Do it.

        Args:
            a: The first
                of three.
            b: The second: optional.
            c: The third.

        Returns:
            Nothing.
        """
        return ""

    def nested(self, names: list[str], counts: dict[str, int], kind: Literal["x", "y"], some: Any) -> None:
        """
        Take structures.

        Args:
            names: Names.
            counts: Counts.
            kind: A kind.
            some: Anything.
        """

    def bare(self):
        """Do nothing."""


@pytest.mark.parametrize("name", ["simple", "nested", "bare"])
def test_schemas_are_those_of_transformers(name):
    from transformers.utils import get_json_schema

    expected = get_json_schema(getattr(Typed(), name))["function"]
    expected.pop("return", None)
    assert schema_of(getattr(Typed(), name))["function"] == expected


def test_a_turn_is_a_text():
    turn = PolicyTurn.of("hello", ToolTurn("hello"))
    assert turn == "hello"
    assert turn.turn.calls == ()
