"""Environments in which the policy calls tools until a turn makes no call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar

from actors.environments.base import End, Environment, Observation
from actors.tools import PolicyTurn, Schema, ToolCall, ToolTurn, check_call, check_schemas
from cluster.types import INVALID_TOOL_CALL, Event, Message, Task


@dataclass(frozen=True)
class Toolbox:
    """What one episode works with."""

    messages: tuple[Message, ...]
    """The prompt."""
    tools: tuple[Schema, ...]
    call: Callable[[ToolCall], Awaitable[str]]
    """Makes a call that fits its schema and returns the result. Raises ToolFailed for an error to be shown."""
    reward: Callable[[], Awaitable[float]]
    """Return the reward of the episode so far; NaN where there is none."""


class ToolFailed(Exception):
    """A tool answered a call with an error, which the policy is shown."""


class ToolEnvironment(Environment):
    """Subclasses implement `opened`. A turn without a call ends the episode with its text as the answer.

    Calls are events named after their tool, with their number so far. A call that cannot be read, or does not fit the
    tool's schema, is answered with the reason, and is the event `invalid tool call`.
    """

    uses_tools: ClassVar[bool] = True
    runs_foreign_code: ClassVar[bool] = True
    roles: ClassVar[tuple[str, ...]] = ("tool",)

    def opened(self, task: Task, variant: str) -> AbstractAsyncContextManager[Toolbox]:
        """Open what an episode needs, and close it in the end."""
        raise NotImplementedError

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        async with self.opened(task, variant) as box:
            tools = check_schemas(box.tools)
            said = yield Observation(box.messages, tools=tools, reward=await box.reward())
            counts: dict[str, int] = {}
            turn = 0
            while (read := _read(said)).calls or read.error:
                results, events = [], []
                for call in read.calls or (None,):
                    name, result = await _made(box, tools, call, read.error)
                    counts[name] = counts.get(name, 0) + 1
                    results.append(Message("tool", result))
                    events.append(Event(name, turn, counts[name]))
                said = yield Observation(tuple(results), tuple(events), reward=await box.reward())
                turn += 1
            yield End(await box.reward(), answer=read.text)


def _read(said: str) -> ToolTurn:
    return said.turn if isinstance(said, PolicyTurn) else ToolTurn(said)


async def _made(box: Toolbox, tools: tuple[Schema, ...], call: ToolCall | None, unread: str) -> tuple[str, str]:
    """Return (event, result) of one call, None for one that could not be read."""
    if call is None or (wrong := check_call(call, tools)):
        return INVALID_TOOL_CALL, f"Error: {unread if call is None else wrong}"
    try:
        return call.name, await box.call(call)
    except ToolFailed as error:
        return call.name, f"Error: {error}"
