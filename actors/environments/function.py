"""An async Python function as the agent: `async def solve(client: openai.AsyncOpenAI, task: Task) -> float | None`."""

from __future__ import annotations

import inspect
import pkgutil
from typing import Any

from pydantic import field_validator

from actors.environments.agent import AgentEnvironment, Outcome, PolicyAccess
from cluster.errors import DataError
from cluster.types import Task
from cluster.types.wire import brief, conformed


class FunctionAgent(AgentEnvironment):
    """Calls an async function with a client of the policy and the task.

    The function returns the episode's reward, None where it has none, or an `Outcome` (also as a dict). It runs on a
    thread's event loop beside the worker, so that code that blocks it slows down agents alone.
    """

    function: str
    """`package.module:function`, importable by the job."""

    @field_validator("function")
    @classmethod
    def _is_async(cls, path: str) -> str:
        function = _function(path)
        if not inspect.iscoroutinefunction(function):
            raise ValueError(f"'{path}' is {brief(function)}; an async function of (client, task) is expected.")
        try:
            inspect.signature(function).bind("client", "task")
        except TypeError as error:
            raise ValueError(f"'{path}' cannot be called with (client, task): {error}.") from error
        return path

    async def run(self, task: Task, variant: str, policy: PolicyAccess) -> Outcome:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        # Plain HTTP to this machine: certificates would take longer to load than an episode, and no proxy is between.
        http = DefaultAsyncHttpxClient(verify=False, trust_env=False, timeout=self.timeout_s)
        async with AsyncOpenAI(base_url=policy.base_url, api_key=policy.api_key, http_client=http) as client:
            return outcome_of(await _function(self.function)(client, task))


def outcome_of(value: Any) -> Outcome:
    """Return what an agent gave as an Outcome. Raises DataError for what is none."""
    if value is None:
        return Outcome()
    if isinstance(value, Outcome | dict):
        unknown = set(value) - {"reward", "answer"} if isinstance(value, dict) else set()
        if unknown:
            raise DataError(f"the agent gave {brief(value)}; its keys may be 'reward' and 'answer'.")
        return conformed(Outcome, value, "outcome")
    try:
        return Outcome(conformed(float, value, "reward"))
    except DataError as error:
        raise DataError(f"the agent gave {brief(value)}; a finite reward, None or an Outcome is expected.") from error


def _function(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"'{path}' cannot be imported: {error}. Write 'package.module:function' of a module that the job can "
            "import: in its working directory or in py_modules."
        ) from error
