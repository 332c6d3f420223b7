"""Environments behind an OpenEnv server, spoken to over its websocket, one session an episode."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedOK, WebSocketException

from actors.environments.base import End, Environment, Observation
from actors.environments.hosted import finite, joined, seed_of
from cluster.errors import ConfigError, DataError, InfrastructureError, one_line
from cluster.process.foreign_loops import outside_of_deadline
from cluster.thoughts import spoken
from cluster.types import Event, Task
from cluster.types.wire import brief

FULL = "CAPACITY_REACHED"
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0


class OpenEnv(Environment):
    """`reset` and `step` messages go to the server, observations and rewards come back.

    The prompt is the task's, with the first observation behind it; `meta["seed"]` of the task is the seed. A full
    server is waited for. A server that does not answer within `connect_timeout_s` is an infrastructure failure; an
    error of the environment, and a connection that is lost in mid-episode, drop the group.
    """

    shows_task: ClassVar[bool] = False
    runs_foreign_code: ClassVar[bool] = True

    url: str = Field(pattern=r"^wss?://")
    """Address of the server's websocket, such as `ws://127.0.0.1:8000/ws`."""
    action: str = Field(default="message", min_length=1)
    """Field of the environment's action that gets the policy's turn, thoughts left out."""
    observation: str = ""
    """Field of the environment's observation that the policy sees; by default the whole of it, as JSON."""
    reset_options: dict[str, Any] = {}
    """What `reset` is sent beside the seed."""
    connect_timeout_s: PositiveFloat = 60.0
    """How long a server that refuses connections is tried again."""

    def check(self) -> None:
        """Reset once, unless the server is full. Raises ConfigError."""
        try:
            asyncio.run(asyncio.wait_for(self._try(), self.connect_timeout_s))
        except (DataError, OSError, WebSocketException) as error:
            said = "it does not answer." if isinstance(error, TimeoutError) else one_line(error)
            raise ConfigError(
                f"rollout.environment.options.url: the OpenEnv server at {self.url}: {said} Start it, or correct the "
                "options."
            ) from error

    async def _try(self) -> None:
        async with self._connected() as socket:
            with contextlib.suppress(_Full, ConnectionClosedOK):
                await self._asked(socket, "reset", {**self.reset_options, "seed": 0})

    def _connected(self) -> connect:
        """Open a connection; to this machine without the proxy that the process's environment may name."""
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        return connect(self.url, max_size=None, proxy=None if local else True)

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        async with self._begun(seed_of(task)) as (socket, (shown, reward, done)):
            total, turn = reward, 0
            said = yield Observation(joined(task.variants[variant], shown), reward=total)
            while not done:
                shown, reward, done = await self._asked(socket, "step", {self.action: spoken(said).strip()})
                total += reward
                events = (Event("step", turn, turn + 1, reward),) if reward else ()
                turn += 1
                if done:
                    yield End(total, events=events)
                    return
                said = yield Observation.of(shown, reward=total, events=events)
            yield End(total)

    @asynccontextmanager
    async def _begun(self, seed: int) -> AsyncIterator[tuple[ClientConnection, tuple[str, float, bool]]]:
        """A connection that has a place at the server, and what `reset` gave. Raises InfrastructureError."""
        refused_s, wait_s, begun = time.monotonic(), FIRST_WAIT_S, False
        while True:
            try:
                async with self._connected() as socket:
                    first = await self._asked(socket, "reset", {**self.reset_options, "seed": seed})
                    begun = True
                    yield socket, first
                    return
            except _Full:
                refused_s = time.monotonic()  # it is there
            except (OSError, TimeoutError, WebSocketException) as error:
                if begun:
                    raise DataError(f"the OpenEnv server at {self.url} ended the episode: {one_line(error)}") from error
                if isinstance(error, ConnectionClosedOK):  # servers without a place close instead of answering
                    refused_s = time.monotonic()
                elif time.monotonic() - refused_s > self.connect_timeout_s:
                    raise InfrastructureError(
                        f"the OpenEnv server at {self.url} has not answered for {self.connect_timeout_s:g} s: "
                        f"{one_line(error)}"
                    ) from error
            await outside_of_deadline(lambda wait_s=wait_s: asyncio.sleep(wait_s))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _asked(self, socket: ClientConnection, kind: str, data: dict[str, Any]) -> tuple[str, float, bool]:
        """Return (text, reward, whether the episode is over). Raises DataError for what is none."""
        await socket.send(json.dumps({"type": kind, "data": data}))
        answer = _parsed(await socket.recv())
        body = answer.get("data")
        if answer.get("type") == "error":
            if isinstance(body, dict) and body.get("code") == FULL:
                raise _Full
            raise DataError(f"the OpenEnv server answered {kind} with an error: {brief(body)}.")
        if answer.get("type") != "observation" or not isinstance(body, dict) or "observation" not in body:
            raise DataError(f"the OpenEnv server answered {kind} with {brief(answer)}; an observation is expected.")
        reward = body.get("reward")
        return (
            self._text(body["observation"]),
            0.0 if reward is None else finite(reward, f"the reward of {kind}"),
            bool(body.get("done")),
        )

    def _text(self, observation: Any) -> str:
        if self.observation:
            if not isinstance(observation, dict) or self.observation not in observation:
                raise DataError(
                    f"rollout.environment.options.observation = '{self.observation}' is no field of "
                    f"{brief(observation)}."
                )
            observation = observation[self.observation]
        if observation is None:
            return ""
        return observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)


class _Full(Exception):
    """The server has no place for another session."""


def _parsed(text: str | bytes) -> dict[str, Any]:
    """Raises DataError for what is no JSON object."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the OpenEnv server sent {brief(text)}, which is no JSON.") from error
    if not isinstance(answer, dict):
        raise DataError(f"the OpenEnv server sent {brief(answer)}; an object is expected.")
    return answer
