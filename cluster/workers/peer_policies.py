"""Engines of another policy, for the worker that has claimed a group: they play their part of it where they are.

member's RolloutActor ── signs the roster ──► Redis ──► PeerPolicyClient of each claiming worker ── play ──► rollouts
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from cluster.buffer.discovery import Roster
from cluster.placement.ray_errors import INFRASTRUCTURE
from cluster.process.replica_pool import ReplicaPool
from cluster.types import Rollout, Task
from cluster.workers.context import RunContext, worker_name


def players_roster(context: RunContext, policy: str) -> Roster:
    return Roster(context.url, context.run_id, f"policy:{policy}", context.config.run.progress_timeout_s)


class PeerPolicyClient:
    """A client of one policy's engines. An engine that dies under a call is not asked again; the call goes to another
    one."""

    def __init__(self, context: RunContext, policy: str) -> None:
        self._context = context
        self._roster = players_roster(context, policy)
        self._pool: ReplicaPool[str] = ReplicaPool(self._look)

    async def play(self, task: Task, count: int, at_least: str) -> tuple[Rollout, ...]:
        """`count` episodes with weights no older than version `at_least`.

        Waits while no engine is there: the group's lease, which progress alone renews, is the deadline. Raises
        DataError as `actors.episode.play` does.
        """

        async def ask(name: str, actor_name: str) -> tuple[Rollout, ...]:
            actor: Any = await asyncio.to_thread(ray.get_actor, actor_name)
            asked = actor.play.remote(task, count, at_least)
            try:
                return await asked
            except asyncio.CancelledError:
                ray.cancel(asked)
                raise

        return await self._pool.ask(ask, gone=(ValueError, *INFRASTRUCTURE))

    async def _look(self) -> dict[str, str]:
        there = await asyncio.to_thread(self._roster.there)
        return {name: worker_name(self._context.run_id, name) for name in there}
