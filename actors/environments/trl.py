"""Environments as TRL's `environment_factory` makes them: an object an episode, whose methods are tools."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from actors.environments.hosted import HostedEnvironment, finite, joined
from actors.environments.tool_environment import Toolbox, ToolEnvironment, ToolFailed
from actors.tools import Schema, ToolCall, check_schemas
from cluster.errors import DataError
from cluster.process.hosted.processes import ForeignError, Host
from cluster.types import Task
from cluster.types.wire import brief

RESET, REWARD = "reset", "get_reward"
ASKED: dict[str, Any] = {"do": "tools", "without": (RESET, REWARD)}


class Trl(HostedEnvironment, ToolEnvironment):
    """Public methods with docstrings are tools, as TRL has it; type hints and `Args:` of the docstring are the schema.

    `reset` gets the columns of the task's row, `prompt` and `answer` that it has parameters for; what it returns stands
    behind the prompt. What a tool raises is shown to the policy. `get_reward`, if there is one, gives the reward; None
    is an unknown one.
    """

    @asynccontextmanager
    async def opened(self, task: Task, variant: str) -> AsyncIterator[Toolbox]:
        async with self._hosts.borrow() as hosted:
            schemas, methods = _tools(await hosted.ask(**ASKED))
            prompt = [{"role": m.role, "content": m.content} for m in task.variants[variant]]
            row = {**task.meta, "prompt": prompt, "answer": task.answer}
            shown = await hosted.call(RESET, lenient=True, **row)
            if shown is not None and not isinstance(shown, str):
                raise DataError(f"reset returned {brief(shown)}; a text or None is expected.")

            async def call(made: ToolCall) -> str:
                try:
                    return _text(await hosted.call(made.name, **made.arguments))
                except ForeignError as error:
                    raise ToolFailed(str(error)) from error

            async def reward() -> float:
                value = await hosted.call(REWARD) if REWARD in methods else None
                return math.nan if value is None else finite(value, "get_reward()")

            yield Toolbox(joined(task.variants[variant], shown or ""), schemas, call, reward)

    def _try_made(self, host: Host) -> None:
        _tools(host.ask(object=0, **ASKED))


def _tools(answer: Any) -> tuple[tuple[Schema, ...], list[str]]:
    """Return the schemas of the tools and the names of all public methods. Raises DataError without tools or reset."""
    schemas, methods = answer
    if RESET not in methods:
        raise DataError("it has no method `reset`.")
    if not schemas:
        raise DataError("it has no tool: a public method with a docstring is expected, beside `reset`.")
    return check_schemas(schemas), methods


def _text(value: Any) -> str:
    """A tool's result as a template shows it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
