"""Tools of an MCP server, started as a child process or reached over HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from pydantic import Field, PositiveFloat, PrivateAttr, model_validator

from actors.environments.tool_environment import Toolbox, ToolEnvironment, ToolFailed
from actors.tools import Schema, ToolCall
from cluster.errors import ConfigError, DataError, InfrastructureError, one_line
from cluster.process.foreign_loops import outside_of_deadline
from cluster.types import Task

WAIT_S = 0.5
"""Between two tries to reach a server."""


class Mcp(ToolEnvironment):
    """The policy calls the tools of a server; a turn without a call is the answer, which a reward has to judge.

    All episodes of a worker share one connection, for servers without state. With `per_episode` each has a connection,
    and with `command` a server, of its own, which ends with it. A server that dies drops the groups that were using it
    and is started, or reached, anew; one that cannot be within `connect_timeout_s` is an infrastructure failure.
    """

    command: tuple[str, ...] = ()
    """Starts a server that speaks on standard input and output, such as `["mcp-server-time"]`."""
    url: str = Field(default="", pattern=r"^(https?://.*)?$")
    """Address of a server that speaks streamable HTTP. Either this or `command`."""
    env: dict[str, str] = {}
    """Environment variables of the command."""
    cwd: str | None = None
    """Working directory of the command."""
    tools: tuple[str, ...] = ()
    """The tools to show; by default all."""
    per_episode: bool = False
    """Whether each episode has a connection of its own, for servers with state."""
    connect_timeout_s: PositiveFloat = 60.0
    """How long a server that does not answer is tried again."""

    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    _all: list[_Connection] = PrivateAttr(default_factory=list)
    """The connection that episodes share, once there is one."""

    @model_validator(mode="after")
    def _one_server(self) -> Mcp:
        if bool(self.command) == bool(self.url):
            raise ValueError("name a server by either command or url")
        return self

    def check(self) -> None:
        """Connect once and list the tools. Raises ConfigError."""
        connection = _Connection(self._target)
        try:
            self._shown(connection.ready.result(self.connect_timeout_s))
        except (ConfigError, DataError):
            raise
        except TimeoutError as error:
            raise ConfigError(
                f"rollout.environment: the MCP server {self._name} has not answered within "
                f"connect_timeout_s = {self.connect_timeout_s:g} s."
            ) from error
        except Exception as error:
            raise ConfigError(f"rollout.environment: the MCP server {self._name}: {one_line(error)}") from error
        finally:
            connection.close()

    @asynccontextmanager
    async def opened(self, task: Task, variant: str) -> AsyncIterator[Toolbox]:
        connection = await self._connected()
        try:
            schemas = self._shown(await asyncio.wrap_future(connection.ready))

            async def call(made: ToolCall) -> str:
                return await connection.call(made.name, made.arguments, self._name)

            async def reward() -> float:
                return math.nan

            yield Toolbox(task.variants[variant], schemas, call, reward)
        finally:
            if self.per_episode:
                connection.close()

    async def _connected(self) -> _Connection:
        """A connection that has listed its tools. Raises InfrastructureError."""
        begun_s = time.monotonic()
        while True:
            connection = _Connection(self._target) if self.per_episode else self._shared()
            try:
                await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(connection.ready)), self.connect_timeout_s)
                return connection
            except asyncio.CancelledError:
                if self.per_episode:
                    connection.close()
                raise
            except Exception as error:
                connection.close()
                if time.monotonic() - begun_s > self.connect_timeout_s:
                    raise InfrastructureError(
                        f"the MCP server {self._name} has not answered for {self.connect_timeout_s:g} s: "
                        f"{one_line(error)}"
                    ) from error
            await outside_of_deadline(lambda: asyncio.sleep(WAIT_S))

    def _shared(self) -> _Connection:
        """The connection of all episodes, made anew where it was lost."""
        with self._lock:
            if not self._all or self._all[0].lost:
                self._all[:] = [_Connection(self._target)]
            return self._all[0]

    def _target(self) -> Any:
        from mcp.client.stdio import StdioServerParameters

        if self.url:
            return self.url
        return StdioServerParameters(command=self.command[0], args=list(self.command[1:]), env=self.env, cwd=self.cwd)

    def _shown(self, schemas: tuple[Schema, ...]) -> tuple[Schema, ...]:
        """The tools that the recipe names. Raises ConfigError for one that there is not, or if there is none."""
        if not schemas:
            raise ConfigError(
                f"rollout.environment: the MCP server {self._name} has no tool. Its resources and prompts are not "
                "read; name a server with tools."
            )
        known = {s["function"]["name"]: s for s in schemas}
        if missing := [name for name in self.tools if name not in known]:
            raise ConfigError(
                f"rollout.environment.options.tools: the MCP server has no tool '{missing[0]}'. Known: "
                f"{', '.join(known)}."
            )
        return tuple(known[name] for name in self.tools) if self.tools else schemas

    @property
    def _name(self) -> str:
        return f"'{self.url or ' '.join(self.command)}'"


class _Connection:
    """One connection, held open by a task on the loop that all connections of the process share."""

    def __init__(self, target: Callable[[], Any]) -> None:
        """`target` says where the server is; it is called on the loop, because it imports the client."""
        self.ready: Future[tuple[Schema, ...]] = Future()
        """The tools, once they are listed."""
        self._client: Any = None
        self.lost = False
        self._closing = asyncio.Event()
        self._kept = _on_loop(self._keep(target))

    def close(self) -> None:
        """End the connection and, if it was started for it, the server."""
        self.lost = True
        if self.ready.done():  # the client ends its server when it is left, and not for certain when it is cancelled
            _loop().call_soon_threadsafe(self._closing.set)
        else:
            self._kept.cancel()

    async def call(self, name: str, arguments: dict[str, Any], server: str) -> str:
        """Return a tool's result as text. Raises ToolFailed for an error of the tool, DataError if the server dies."""
        from mcp.shared.exceptions import MCPError
        from mcp_types import CONNECTION_CLOSED

        try:
            result = await asyncio.wrap_future(_on_loop(self._client.call_tool(name, arguments)))
        except MCPError as error:
            if error.error.code == CONNECTION_CLOSED:
                self.close()
                raise DataError(f"the MCP server {server} died in a call of '{name}'.") from error
            raise ToolFailed(error.error.message) from error
        except Exception as error:
            self.close()
            raise DataError(f"the MCP server {server} failed in a call of '{name}': {one_line(error)}") from error
        text = "\n".join(_text(part) for part in result.content)
        if result.is_error:
            raise ToolFailed(text)
        return text or json.dumps(result.structured_content, ensure_ascii=False)

    async def _keep(self, target: Callable[[], Any]) -> None:
        from mcp import Client

        try:
            async with Client(target()) as client:
                self._client, tools, cursor = client, [], None
                while client.server_capabilities.tools is not None:  # one without tools does not know the question
                    page = await client.list_tools(cursor=cursor)
                    tools += page.tools
                    cursor = page.next_cursor
                    if not cursor:
                        break
                self.ready.set_result(tuple(_schema(tool) for tool in tools))
                await self._closing.wait()
        except BaseException as error:
            if not self.ready.done():
                self.ready.set_exception(InfrastructureError(one_line(error)))
            raise


def _schema(tool: Any) -> Schema:
    known = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": known}


def _text(part: Any) -> str:
    text = getattr(part, "text", None)
    return text if isinstance(text, str) else f"[{part.type}]"


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """A loop on a thread of its own: the MCP client is entered and left by one task, whatever becomes of episodes."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="mcp", daemon=True).start()
    return loop


def _on_loop(work: Coroutine[Any, Any, Any]) -> Future[Any]:
    return asyncio.run_coroutine_threadsafe(work, _loop())
