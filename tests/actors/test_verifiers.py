"""Runs of a verifiers server: what it says of them, what it does wrong, and the end of one that is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgpack
import pytest
import zmq
import zmq.asyncio

from actors.environments.verifiers import Verifiers
from cluster.errors import ConfigError, DataError, InfrastructureError
from cluster.types import Rollout
from tests.actors.agents import TASK, Scripted, chat, played
from tests.actors.test_endpoint import check_sampled, plain


class Server:
    """A ROUTER that plays a run as it is told, and keeps the kinds of the requests."""

    def __init__(self, run: Callable[[Server, dict[str, Any]], Any]) -> None:
        self.socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self.url = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.kinds: list[str] = []
        self.cancelled, self.asked = asyncio.Event(), asyncio.Event()
        self._run, self._runs = run, set()

    async def serve(self) -> None:
        while True:
            client, name, kind, data = await self.socket.recv_multipart()
            self.kinds.append(kind.decode())
            self.reply = lambda kind, data, to=(client, name): self.socket.send_multipart([*to, kind, data])
            if kind == b"run":
                run = asyncio.create_task(self._run(self, msgpack.unpackb(data)))
                self._runs.add(run)
            elif kind == b"cancel":
                self.cancelled.set()
            else:
                if self.kinds.count("health") >= 8:  # they come at a quarter of the time that it may be silent
                    self.asked.set()
                await self.reply(b"reply", msgpack.packb({"success": True}))


@asynccontextmanager
async def serving(run: Callable[..., Any]) -> AsyncIterator[Server]:
    server = Server(run)
    task = asyncio.create_task(server.serve())
    try:
        yield server
    finally:
        task.cancel()
        server.socket.close(0)


async def turn(request: dict[str, Any], ids: list[int]) -> list[int]:
    """Ask the endpoint for a turn as the training client does; return prompt and turn."""
    url = request["client"]["base_url"].removesuffix("/v1") + "/inference/v1/generate"
    body = {"model": request["model"], "token_ids": ids, "sampling_params": {"logprobs": 1, "stop_token_ids": []}}
    async with plain() as client:
        answer = await client.post(url, json=body, timeout=20)
    assert answer.status_code == httpx.codes.OK, answer.text
    return [*ids, *answer.json()["choices"][0]["token_ids"]]


def trace(name: str, nodes: list[tuple[int | None, list[int]]], rewards: Any, **agent: Any) -> bytes:
    shown = [{"parent": parent, "token_ids": ids} for parent, ids in nodes]
    said = {"agent": {"name": name, "trainable": True, **agent}, "rewards": rewards}
    return msgpack.packb({"trace": name, "open": {}, "nodes": shown, "set": said})


async def finish(server: Server, reply: Any, **head: Any) -> None:
    await reply(b"reply", msgpack.packb({"success": True, "head": {"ok": True, "errors": [], **head}}))


def worth(score: float, weight: float = 1.0) -> dict[str, float]:
    return {"score": score, "weight": weight}


async def episode(run: Callable[..., Any], **options: Any) -> tuple[list[Rollout], Scripted, Server]:
    engine = Scripted(chat(), lambda prompt: "four")
    async with serving(run) as server:
        environment = Verifiers(url=server.url, tokenizer="somewhere", **options)
        rollouts = await played(engine, environment)
    check_sampled(rollouts, engine)
    return rollouts, engine, server


async def test_each_agent_has_its_own_reward_and_those_not_trained_are_left_out():
    async def run(server: Server, request: dict[str, Any]) -> None:
        reply = server.reply
        assert request["task_data"]["prompt"] == "2+2?"
        assert request["client"]["renderer_model_name"] == "somewhere"
        first, second, user = [await turn(request, [i, i + 1]) for i in (10, 20, 30)]
        again = await turn(request, [*first, 15])
        nodes = [(None, first[:2]), (0, first[2:]), (1, again[len(first) :])]
        await reply(b"delta", trace("first", nodes, {"won": worth(1.0), "right": worth(4.0, 0.5)}))
        await reply(b"delta", trace("second", [(None, second[:2]), (0, second[2:])], {"won": worth(-1.0)}))
        await reply(b"delta", trace("user", [(None, user)], {}, trainable=False))
        await finish(server, reply)

    rollouts, engine, _ = await episode(run)
    assert [(r.agent, r.reward, len(r.turns)) for r in rollouts] == [("first", 3.0, 4), ("second", -1.0, 2)]
    assert len(engine.record) == 4


async def test_a_reward_that_is_not_scored_is_unknown():
    async def run(server: Server, request: dict[str, Any]) -> None:
        reply, said = server.reply, await turn(request, [10])
        await reply(b"delta", trace("agent", [(None, said)], {"won": worth(1.0), "judge": None}))
        await finish(server, reply)

    ((rollout,), _, _) = await episode(run)
    assert rollout.reward != rollout.reward
    assert rollout.agent == "", "an agent alone needs no name"


async def test_a_trace_that_the_server_discards_does_not_count():
    async def run(server: Server, request: dict[str, Any]) -> None:
        reply, said = server.reply, await turn(request, [10])
        await reply(b"delta", trace("agent", [(None, said)], {"won": worth(9.0)}))
        await reply(b"delta", msgpack.packb({"trace": "agent", "discard": True}))
        await reply(b"delta", trace("again", [(None, await turn(request, [10]))], {"won": worth(2.0)}))
        await finish(server, reply)

    rollouts, _, _ = await episode(run)
    assert [r.reward for r in rollouts if r.reward == r.reward] == [2.0]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (msgpack.packb({"success": False, "error": "ValueError: no such task"}), "no such task"),
        (
            msgpack.packb({"success": True, "head": {"ok": False, "errors": [{"type": "E", "message": "lost"}]}}),
            "E: lost",
        ),
        (msgpack.packb({"success": True, "head": None}), "failed the run"),
        (b"\xc1", "in msgpack are expected"),
        (msgpack.packb([1]), "in msgpack are expected"),
    ],
)
async def test_a_run_that_fails_is_a_data_failure(said: bytes, error: str):
    async def run(server: Server, request: dict[str, Any]) -> None:
        reply = server.reply
        await turn(request, [10])
        await reply(b"reply", said)

    with pytest.raises(DataError, match=error):
        await episode(run)


@pytest.mark.parametrize(
    "delta",
    [
        trace("agent", [(None, [10])], {"won": worth(float("nan"))}),
        trace("agent", [(None, [10])], {"won": 1.0}),
        trace("agent", [(3, [10])], {}),
        trace("agent", [(0, [10])], {}),
        msgpack.packb({"trace": "agent", "nodes": "all"}),
        msgpack.packb({"trace": "agent", "nodes": [7]}),
    ],
)
async def test_nonsense_about_a_run_is_a_data_failure(delta: bytes):
    async def run(server: Server, request: dict[str, Any]) -> None:
        reply = server.reply
        await turn(request, [10])
        await reply(b"delta", delta)
        await finish(server, reply)

    with pytest.raises(DataError, match="the agent of task t failed"):
        await episode(run)


async def test_a_run_past_its_deadline_is_cancelled_and_keeps_its_turns():
    async def run(server: Server, request: dict[str, Any]) -> None:
        await turn(request, [10])

    engine = Scripted(chat(), lambda prompt: "four")
    async with serving(run) as server:
        environment = Verifiers(url=server.url, tokenizer="t", timeout_s=2.0, reward_when_cut=-1.0)
        (rollout,) = await played(engine, environment)
        await asyncio.wait_for(server.cancelled.wait(), 10)
    assert (rollout.finish, rollout.reward) == ("length", -1.0)


async def test_a_server_that_answers_for_its_health_has_all_the_time_of_the_episode():
    async def run(server: Server, request: dict[str, Any]) -> None:
        reply, said = server.reply, await turn(request, [10])
        await server.asked.wait()
        await reply(b"delta", trace("agent", [(None, said)], {"won": worth(1.0)}))
        await finish(server, reply)

    ((rollout,), _, server) = await episode(run, silence_timeout_s=0.4)
    assert rollout.reward == 1.0
    assert server.kinds.count("health") >= 8


async def test_a_server_that_is_not_there_is_an_infrastructure_failure():
    server = Server(lambda *_: None)
    server.socket.close(0)
    environment = Verifiers(url=server.url, tokenizer="t", silence_timeout_s=0.2)
    with pytest.raises(InfrastructureError, match=r"has not answered for 0\.2 s"):
        await played(Scripted(chat(), lambda prompt: "four"), environment, task=TASK)
    with pytest.raises(ConfigError, match=r"options\.url: the verifiers server at"):
        await asyncio.to_thread(environment.check)


async def test_a_server_that_dies_in_a_run_is_an_infrastructure_failure():
    async def run(server: Server, request: dict[str, Any]) -> None:
        await turn(request, [10])
        server.socket.close(0)

    with pytest.raises(InfrastructureError, match=r"has not answered for 0\.5 s"):
        await episode(run, silence_timeout_s=0.5)
