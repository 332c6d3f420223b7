"""Environments behind a verifiers server (0.4), spoken to over its ZMQ socket, one run an episode.

    DEALER → ROUTER   [request id, "health" | "run" | "cancel", msgpack]
    ROUTER → DEALER   [request id, "delta", msgpack]…, then [request id, "reply", msgpack]

The server plays the episode, and its training client asks the endpoint for turns of token ids: what is trained on is
what the endpoint has written down. The adapter reads the server's own record for which agent had which conversation,
and for its rewards.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from uuid import uuid4

import msgspec
import zmq
import zmq.asyncio
from pydantic import Field, PositiveFloat

from actors.environments.agent import AgentEnvironment, Conversation, Outcome, PolicyAccess
from actors.environments.hosted import finite
from cluster.errors import ConfigError, DataError, InfrastructureError
from cluster.types import Task
from cluster.types.wire import brief

LINGER_MS = 1000
"""How long a message to the server may still be under way when its episode is over."""


class Verifiers(AgentEnvironment):
    """Sends the task to the server and returns the rewards of the agents that the server lets play.

    The task's data is `meta["task_data"]`, or, without it, its prompt, answer and `meta`. The reward of an agent is the
    weighted sum of its named rewards, unknown if one of them is not scored; agents that the server does not train are
    left out. A server that is silent for `silence_timeout_s` is an infrastructure failure; a run that it reports as
    failed costs the group.
    """

    blocks: ClassVar[bool] = False

    url: str = Field(pattern=r"^(tcp|ipc)://")
    """Address of the server, such as `tcp://127.0.0.1:5000`."""
    tokenizer: str = Field(min_length=1)
    """Directory or Hugging Face id of the policy's tokenizer, as the server's machine finds it."""
    renderer: dict[str, Any] = {}
    """How the server writes prompts, such as `{ name = "qwen3" }`; by default chosen by `tokenizer`."""
    silence_timeout_s: PositiveFloat = 60.0
    """How long the server may leave a question for its health unanswered."""

    def check(self) -> None:
        try:
            asyncio.run(self._ask_health())
        except InfrastructureError as error:
            raise ConfigError(f"rollout.environment.options.url: {error}") from error

    async def run(self, task: Task, variant: str, policy: PolicyAccess) -> Outcome:
        client = {"type": "train", "base_url": policy.session_url, "renderer_model_name": self.tokenizer}
        request = {
            "task_data": _data(task, variant),
            "client": client | ({"renderer": self.renderer} if self.renderer else {}),
            "model": policy.model,
            "sampling": {},
        }
        async with self._connected() as socket:
            traces: dict[str, dict[str, Any]] = {}
            name = await _send(socket, "run", request)
            try:
                head = await self._finished(socket, name, traces)
            except asyncio.CancelledError:
                await _send(socket, "cancel", {"request_id": name.decode()})
                raise
            if not head.get("ok"):
                raise DataError(f"the verifiers server failed the run: {_first_error(head, traces)}")
        return _outcome(list(traces.values()))

    async def _finished(self, socket: zmq.asyncio.Socket, run: bytes, traces: dict[str, dict[str, Any]]) -> Any:
        """Collect what the server says of a run, and return its end. Raises DataError and InfrastructureError."""
        heard, asked = time.monotonic(), False
        while True:
            if not await socket.poll(round(1000 * self.silence_timeout_s / 4)):
                if time.monotonic() - heard > self.silence_timeout_s:
                    raise self._silent()
                if not asked:
                    await _send(socket, "health", {})
                    asked = True
                continue
            heard, asked = time.monotonic(), False
            name, kind, data = await _received(socket)
            if name != run:
                continue
            if kind == b"delta":
                _apply(traces, data)
                continue
            if not data.get("success"):
                raise DataError(f"the verifiers server refused the run: {brief(data.get('error'))}.")
            return data.get("head") or {}

    async def _ask_health(self) -> None:
        async with self._connected() as socket:
            await _send(socket, "health", {})
            if not await socket.poll(round(1000 * self.silence_timeout_s)):
                raise self._silent()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[zmq.asyncio.Socket]:
        with zmq.asyncio.Context.instance().socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, LINGER_MS)
            socket.connect(self.url)
            yield socket

    def _silent(self) -> InfrastructureError:
        return InfrastructureError(
            f"the verifiers server at {self.url} has not answered for {self.silence_timeout_s:g} s. Start it, or raise "
            "silence_timeout_s."
        )


async def _send(socket: zmq.asyncio.Socket, kind: str, data: dict[str, Any]) -> bytes:
    """Send a request and return its id."""
    name = uuid4().hex.encode()
    await socket.send_multipart([name, kind.encode(), msgspec.msgpack.encode(data)])
    return name


async def _received(socket: zmq.asyncio.Socket) -> tuple[bytes, bytes, dict[str, Any]]:
    """Return a message's request id, kind and data. Raises DataError for what is none."""
    frames = await socket.recv_multipart()
    data: Any = None
    if len(frames) == 3:
        with contextlib.suppress(msgspec.DecodeError):
            data = msgspec.msgpack.decode(frames[2])
    if not isinstance(data, dict):
        raise DataError(f"the verifiers server sent {brief(frames)}; an id, a kind and a map in msgpack are expected.")
    return frames[0], frames[1], data


def _data(task: Task, variant: str) -> dict[str, Any]:
    if isinstance(data := task.meta.get("task_data"), dict):
        return data
    messages = task.variants[variant]
    text = messages[0].content if len(messages) == 1 and messages[0].role == "user" else None
    prompt = text if text is not None else [{"role": m.role, "content": m.content} for m in messages]
    return {"prompt": prompt, "answer": task.answer, **task.meta}


def _apply(traces: dict[str, dict[str, Any]], delta: dict[str, Any]) -> None:
    """Add what a delta says of one agent's trace. Raises DataError for a delta that says it otherwise."""
    name = delta.get("trace")
    if delta.get("discard"):
        traces.pop(str(name), None)
        return
    trace = traces.setdefault(str(name), {"nodes": [], "errors": []})
    for field in ("nodes", "errors"):
        if not isinstance(added := delta.get(field, []), list):
            raise DataError(f"the verifiers server sent {field} = {brief(added)}; a list is expected.")
        trace[field] += added
    trace.update(delta.get("set") or {})


def _first_error(head: dict[str, Any], traces: dict[str, dict[str, Any]]) -> str:
    """Return what went wrong first: an agent's error is the cause of the run's."""
    errors = [*(error for trace in traces.values() for error in trace["errors"]), *(head.get("errors") or [])]
    first = errors[0] if errors and isinstance(errors[0], dict) else {}
    return f"{first.get('type', 'unknown error')}: {str(first.get('message', ''))[:300]}"


def _outcome(traces: list[dict[str, Any]]) -> Outcome:
    """Return the rewards of the agents, and by which conversations each is known. Raises DataError."""
    agents = [trace.get("agent") or {} for trace in traces]
    names = {str(agent.get("name", "")) for agent in agents}
    conversations = [
        Conversation(
            tokens,
            _reward(trace.get("rewards") or {}),
            str(agent.get("name", "")) if len(names) > 1 else "",
            bool(agent.get("trainable", True)),
        )
        for trace, agent in zip(traces, agents, strict=True)
        for tokens in _paths(trace["nodes"])
    ]
    return Outcome(conversations=tuple(conversations))


def _reward(rewards: dict[str, Any]) -> float:
    """Return the weighted sum of named rewards; NaN if there is none, or one that is not scored."""
    total = 0.0 if rewards else float("nan")
    for name, reward in rewards.items():
        if reward is None:
            return float("nan")
        score, weight = (reward.get(key) if isinstance(reward, dict) else None for key in ("score", "weight"))
        total += finite(score, f"the score of reward '{name}'") * finite(weight, f"the weight of reward '{name}'")
    return total


def _paths(nodes: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    """Return the token ids from the root to each leaf of a tree of messages, in which each names an earlier one."""
    paths: list[tuple[int, ...]] = []
    try:
        for node in nodes:
            before = () if node["parent"] is None else paths[node["parent"]]
            paths.append((*before, *node["token_ids"]))
        inner = {node["parent"] for node in nodes}
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"the verifiers server sent nodes that are no tree of messages: {error!r}.") from error
    return [path for i, path in enumerate(paths) if i not in inner]
