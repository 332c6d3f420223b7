"""Environments behind a wire: what servers answer reaches the policy, and what they do wrong is named."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys

import psutil
import pytest
from websockets.asyncio.server import serve

from actors.environments.mcp import Mcp
from actors.environments.openenv import OpenEnv
from actors.episode import Limits, play
from cluster.errors import ConfigError, DataError, InfrastructureError
from cluster.types import INVALID_TOOL_CALL, Task
from tests.actors.test_hosted import Caller
from tests.actors.typist import Letters, Typist

SERVER = [sys.executable, "-m", "tests.actors.mcp_server"]


def episode(environment, write, *, chat=Letters, timeout_s=20.0, turns=8):
    task = Task.of("t", "Hello.", seed=7)
    return play(Typist(write), chat(), environment, task, "orig", Limits(200, turns, 1.0, timeout_s))  # type: ignore[arg-type]


def called(environment, *written):
    texts = iter((*written, "done"))
    return episode(environment, lambda _: next(texts), chat=Caller)


def servers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "mcp_server" in " ".join(p.cmdline())]


async def test_tools_of_an_mcp_server_over_standard_input():
    environment = Mcp(command=SERVER)
    rollout = await called(environment, "increment()", "fail()", "add(a=1)", "nothing()", "increment()")
    shown = [t.text for t in rollout.turns if t.role == "tool"]
    assert (shown[0], shown[4]) == ("1", "2")
    assert shown[1] == "Error: Error executing tool fail"
    assert shown[2] == "Error: add: 'b' is a required property."
    assert shown[3].startswith("Error: There is no tool 'nothing'.")
    assert [e.text for e in rollout.events].count(INVALID_TOOL_CALL) == 2
    assert rollout.answer == "done"

    with pytest.raises(DataError, match=r"the MCP server '.*' died in a call of 'die'"):
        await called(environment, "die()")
    again = await called(environment, "increment()")
    assert again.turns[2].text == "1", "another server has taken its place"
    environment._all[0].close()
    gone = await asyncio.to_thread(psutil.wait_procs, servers(), 10)
    assert not gone[1]


async def test_a_server_for_each_episode():
    environment = Mcp(command=SERVER, per_episode=True, tools=("increment",))
    rollouts = await asyncio.gather(*(called(environment, "increment()") for _ in range(2)))
    assert [r.turns[2].text for r in rollouts] == ["1", "1"]
    assert not (await asyncio.to_thread(psutil.wait_procs, servers(), 10))[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"command": ["no-such-program"]}, "the MCP server 'no-such-program'"),
        ({"command": SERVER, "tools": ["ad"]}, "has no tool 'ad'. Known: add, increment"),
        ({"url": "http://127.0.0.1:9/mcp"}, "the MCP server 'http://127.0.0.1:9/mcp'"),
        ({"command": [*SERVER, "resources"]}, r"has no tool\. Its resources and prompts are not read"),
        (
            {"command": ["sh", "-c", "echo nonsense; sleep 60"], "connect_timeout_s": 3},
            r"has not answered within connect_timeout_s = 3 s",
        ),
    ],
)
def test_a_wrong_mcp_server_is_refused_before_the_run(options, words):
    with pytest.raises(ConfigError, match=words):
        Mcp(**options).check()


async def test_an_mcp_tool_that_is_slow_costs_its_episode_alone():
    environment = Mcp(command=SERVER)
    try:
        await called(environment, "increment()")
        with pytest.raises(DataError, match=r"no answer within rollout.environment_timeout_s = 1 s"):
            await episode(environment, lambda _: "sleep()", chat=Caller, timeout_s=1.0)
        again = await called(environment, "increment()")
        assert again.turns[2].text == "2", "the server is still the one that counted"
    finally:
        environment._all[0].close()
    assert not (await asyncio.to_thread(psutil.wait_procs, servers(), 10))[1]


async def test_an_mcp_server_over_http_that_dies_and_stays_down():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = await asyncio.create_subprocess_exec(*SERVER, str(port))
    environment = Mcp(url=f"http://127.0.0.1:{port}/mcp", connect_timeout_s=60)
    try:
        assert (await called(environment, "increment()")).turns[2].text == "1"
        with pytest.raises(DataError, match=r"the MCP server 'http://.*' (died|failed) in a call of 'die'"):
            await called(environment, "die()")
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        await server.wait()
    down = Mcp(url=environment.url, connect_timeout_s=0.2)
    with pytest.raises(InfrastructureError, match=r"the MCP server 'http://.*' has not answered for 0.2 s"):
        await called(down, "increment()")


@contextlib.asynccontextmanager
async def openenv_server(answer, *, port=0):
    async with serve(answer, "127.0.0.1", port) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"


def observation(text, reward=None, done=False):
    return json.dumps({"type": "observation", "data": {"observation": {"text": text}, "reward": reward, "done": done}})


async def counts(socket):
    """Ends after three steps, and gives 0.5 for each."""
    number = 0
    async for message in socket:
        request = json.loads(message)
        if request["type"] == "reset":
            await socket.send(observation(f"seed {request['data']['seed']}"))
        else:
            number += 1
            await socket.send(observation(request["data"]["message"] + "!", 0.5, number == 3))


async def test_an_openenv_episode():
    async with openenv_server(counts) as url:
        rollout = await episode(OpenEnv(url=url, observation="text"), lambda _: "go")
    assert rollout.turns[0].text == "Hello.\n\nseed 7"
    assert rollout.turns[2].text == "go!"
    assert rollout.reward == 1.5
    assert [e.reward for e in rollout.events] == [0.5] * 3


@pytest.mark.parametrize("says", [True, False])
async def test_a_full_openenv_server_is_waited_for(says):
    tries = 0

    async def full_at_first(socket):
        nonlocal tries
        tries += 1
        if tries <= 3:
            if says:
                await socket.send(json.dumps({"type": "error", "data": {"message": "", "code": "CAPACITY_REACHED"}}))
            await socket.close()
        else:
            await counts(socket)

    async with openenv_server(full_at_first) as url:
        rollout = await episode(OpenEnv(url=url, connect_timeout_s=0.1), lambda _: "go")
    assert (tries, rollout.reward) == (4, 1.5)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("nonsense", "which is no JSON"),
        ("[1]", "an object is expected"),
        ('{"type": "state", "data": {}}', "an observation is expected"),
        ('{"type": "error", "data": {"message": "boom", "code": "EXECUTION_ERROR"}}', "boom"),
        ('{"type": "observation", "data": {"observation": "x", "reward": NaN}}', "the reward of reset is nan"),
        (None, r"no answer within rollout.environment_timeout_s = 1 s"),
    ],
)
async def test_what_an_openenv_server_does_wrong_is_named(answer, words):
    async def wrong(socket):
        async for _ in socket:
            if answer is not None:
                await socket.send(answer)

    async with openenv_server(wrong) as url:
        with pytest.raises(DataError, match=f"the environment failed on task t: .*{words}"):
            await episode(OpenEnv(url=url), lambda _: "go", timeout_s=1.0 if answer is None else 20.0)


async def test_an_openenv_server_that_ends_the_episode_is_a_data_failure():
    async def leaves(socket):
        await socket.recv()
        await socket.send(observation("x"))
        await socket.recv()

    async with openenv_server(leaves) as url:
        with pytest.raises(DataError, match="ended the episode: ConnectionClosedOK"):
            await episode(OpenEnv(url=url), lambda _: "go")


async def test_a_reward_of_nan_in_mid_episode_is_a_data_failure():
    async def sick(socket):
        async for message in socket:
            await socket.send(observation("x", float("nan") if "step" in message else None))

    async with openenv_server(sick) as url:
        with pytest.raises(DataError, match="the reward of step is nan"):
            await episode(OpenEnv(url=url), lambda _: "go")


@pytest.mark.parametrize(
    ("options", "answer", "words"),
    [
        ({"observation": "txt"}, counts, "observation = 'txt' is no field of"),
        ({}, None, "Start it, or correct the options"),
    ],
)
async def test_a_wrong_openenv_server_is_refused_before_the_run(options, answer, words):
    async with openenv_server(answer or counts) as url:
        if answer is not None:
            await asyncio.to_thread(OpenEnv(url=url, observation="text").check)
            with pytest.raises(ConfigError, match=words):
                await asyncio.to_thread(OpenEnv(url=url, **options).check)
    if answer is None:
        with pytest.raises(ConfigError, match=words):
            await asyncio.to_thread(OpenEnv(url=url, **options).check)


async def test_a_full_openenv_server_is_none_that_is_refused(monkeypatch):
    asked = []

    async def full(socket):
        asked.append(socket)
        await socket.send(json.dumps({"type": "error", "data": {"message": "", "code": "CAPACITY_REACHED"}}))
        await socket.close()

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with openenv_server(full) as url:
        await asyncio.to_thread(OpenEnv(url=url).check)
    assert asked, "past the proxy"


async def test_an_openenv_server_that_is_down_is_an_infrastructure_failure():
    async with openenv_server(counts) as url:
        pass
    with pytest.raises(InfrastructureError, match=rf"{re.escape(url)} has not answered for 0.2 s"):
        await episode(OpenEnv(url=url, connect_timeout_s=0.2), lambda _: "go")
