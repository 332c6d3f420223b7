"""The learners' ranks: one life of them, from their placing to the step they reach. They live and die together, those
of all policies: what one has trained on, all have, and a checkpoint is everybody's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from cluster import workers
from cluster.driver.watchdog import Watchdog
from cluster.placement.ray_errors import end, result
from cluster.workers import POLICY, RunContext


def _place(context: RunContext, policy: str) -> dict[str, Any]:
    """A policy's ranks by name."""
    kind = "learner" if policy == POLICY else f"learner:{policy}"
    ranks = range(context.config.of_policy(policy).learner.ranks)
    return {f"{kind}-{rank}": workers.place_learner(context, policy, rank) for rank in ranks}


class LearnerGroup:
    def __init__(self, context: RunContext, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._policies = {name: _place(context, name) for name in context.config.policy_names}
        self._ranks = {name: rank for ranks in self._policies.values() for name, rank in ranks.items()}

    async def run(self, epoch: int, resume_from: Path | None, engines: Callable[[str], list[Any]]) -> int:
        """Train to the end or until `stop`; the step reached. Raises the first failure, without waiting for ranks that
        hang on it. `engines` are a policy's.
        """
        try:
            await asyncio.gather(*(rank.ready.remote() for rank in self._ranks.values()))
            for name, rank in self._ranks.items():
                self._watchdog.watch(name, rank)
            where, runs = str(resume_from) if resume_from else None, []
            for policy, ranks in self._policies.items():
                master = await next(iter(ranks.values())).address.remote()
                runs += [rank.run.remote(epoch, where, master, engines(policy)) for rank in ranks.values()]
            return (await asyncio.gather(*map(result, runs)))[0]
        finally:
            for name in self._ranks:
                self._watchdog.forget(name)

    async def stop(self) -> None:
        """Finish the step under way, checkpoint, leave: the policy that assembles, after which the others do."""
        ranks = self._policies[POLICY].values()
        others = [rank for name, ranks in self._policies.items() if name != POLICY for rank in ranks.values()]
        calls = [*(rank.stop.remote() for rank in ranks), *(rank.leave.remote() for rank in others)]
        # A rank that has died meanwhile, or ended, need not hear it.
        await asyncio.gather(*map(result, calls), return_exceptions=True)

    def kill(self) -> None:
        for rank in self._ranks.values():
            ray.kill(rank)

    async def close(self) -> None:
        """End it after it has reached its step: what it published is removed."""
        await end(self._ranks.values())
