"""All policies of a run, as the worker that has claimed a group sees them: its own engine, and the others elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Protocol

from actors.environments.meeting import Cast, Meeting
from cluster.errors import DataError, InfrastructureError, LeaseLost, one_line
from cluster.types import Claim, Message, Rollout, Task

Play = Callable[[Task, int, str], Awaitable[tuple[Rollout, ...]]]
"""(task, how many episodes of each view, version that the weights are no older than) → a policy's rollouts."""


class Generators(Protocol):
    """Models that answer every task too and are never trained."""

    shares: Mapping[str, int]
    """By name: episodes that each adds to a group."""

    def play(self, name: str, task: Task) -> Coroutine[Any, Any, list[Rollout]]:
        """One episode. Raises DataError."""
        ...


class Troupe:
    def __init__(
        self, policy: str, play: Play, others: Mapping[str, Play], seed: int, generators: Generators | None = None
    ) -> None:
        """`play` is `policy`'s own, on the engine of this process."""
        self._plays = {policy: play, **others}
        self._others, self._seed, self._generators = others, seed, generators

    def elsewhere(self, claim: Claim, task: Task, count: int) -> list[asyncio.Future[tuple[Rollout, ...]]]:
        """`count` episodes of each other policy, under way."""
        return [asyncio.ensure_future(play(task, count, _version(claim))) for play in self._others.values()]

    def generated(self, task: Task) -> list[asyncio.Task[list[Rollout]]]:
        """What the generators add, under way: behind the policy's own, under their own names."""
        if self._generators is None:
            return []
        shares = self._generators.shares.items()
        names = [name for name, share in shares for _ in range(share)]
        return [asyncio.create_task(self._generators.play(name, task)) for name in names]

    async def meet(
        self, meeting: Meeting, claim: Claim, task: Task, progress: Callable[[], Awaitable[None]]
    ) -> tuple[Rollout, ...]:
        """A group of a meeting; `progress` is called after every utterance. Raises DataError if the meeting fails."""

        async def speak(policy: str, prompt: tuple[Message, ...]) -> Rollout:
            (rollout,) = await self._plays[policy](replace(task, views={"orig": prompt}), 1, _version(claim))
            await progress()
            return rollout

        cast = Cast(tuple(self._plays), speak, Random(f"{self._seed}/{claim.task}"))
        try:
            return _checked(await meeting.hold(task, cast), tuple(self._plays))
        except (DataError, InfrastructureError, LeaseLost):
            raise
        except Exception as error:  # a meeting of the user's own
            raise DataError(f"the meeting failed on task {task.id}: {one_line(error)}") from error


def _checked(rollouts: object, policies: tuple[str, ...]) -> tuple[Rollout, ...]:
    found = tuple(rollouts) if isinstance(rollouts, list | tuple) else ()
    if not found or not all(isinstance(r, Rollout) and r.policy in policies for r in found):
        raise DataError(f"the meeting gave {rollouts!r:.80}; a list of rollouts that were spoken in it is expected.")
    return found


def is_older(version: str, than: str) -> bool:
    """Of two versions `epoch.step`."""
    one, other = (tuple(map(int, v.split("."))) for v in (version, than))
    return one < other


def _version(claim: Claim) -> str:
    return f"{claim.epoch}.{claim.version}"
