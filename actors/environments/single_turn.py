"""One question, one answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

from actors.environments.base import End, Environment, Observation
from cluster.types import Task


class SingleTurn(Environment):
    """The task's prompt, and one answer."""

    roles: ClassVar[tuple[str, ...]] = ()

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        yield Observation(task.variants[variant])
