"""Engines of another policy, for the worker that has claimed a group: they play their part of it where they are.

member's RolloutActor ── signs the roster ──► Redis ──► PeerPolicyClient of each claiming worker ── play ──► rollouts
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Any

import ray

from cluster.buffer.discovery import Roster
from cluster.errors import one_line
from cluster.placement.ray_errors import INFRASTRUCTURE, cause_of
from cluster.types import Rollout, Task
from cluster.workers.context import RunContext, worker_name

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""The roster is not read more often than this."""


def players_roster(context: RunContext, policy: str) -> Roster:
    return Roster(context.url, context.run_id, f"policy:{policy}", context.config.run.progress_timeout_s)


class PeerPolicyClient:
    """A client of one policy's engines. An engine that dies under a call is not asked again; the call goes to another
    one."""

    def __init__(self, context: RunContext, policy: str) -> None:
        self._context, self._policy = context, policy
        self._roster = players_roster(context, policy)
        self._there: list[str] = []
        self._looked = -LOOK_S
        self._looking = asyncio.Lock()
        self._gone: set[str] = set()
        self._busy: Counter[str] = Counter()

    async def play(self, task: Task, count: int, at_least: str) -> tuple[Rollout, ...]:
        """`count` episodes with weights no older than version `at_least`.

        Waits while no engine is there: the group's lease, which progress alone renews, is the deadline. Raises
        DataError as `actors.episode.play` does.
        """
        while True:
            name = await self._least_busy()
            self._busy[name] += 1
            try:
                return await self._ask(name, task, count, at_least)
            except (ValueError, *INFRASTRUCTURE) as error:
                log.warning("%s is gone, another engine takes its part: %s", name, one_line(cause_of(error) or error))
                self._gone.add(name)
            finally:
                self._busy[name] -= 1

    async def _ask(self, name: str, task: Task, count: int, at_least: str) -> tuple[Rollout, ...]:
        actor: Any = await asyncio.to_thread(ray.get_actor, worker_name(self._context.run_id, name))
        asked = actor.play.remote(task, count, at_least)
        try:
            return await asked
        except asyncio.CancelledError:
            ray.cancel(asked)
            raise

    async def _least_busy(self) -> str:
        while True:
            async with self._looking:
                if time.monotonic() - self._looked >= LOOK_S:
                    self._there = list(await asyncio.to_thread(self._roster.there))
                    self._looked = time.monotonic()
            if there := [name for name in self._there if name not in self._gone]:
                return min(there, key=lambda name: self._busy[name])
            await asyncio.sleep(LOOK_S)
