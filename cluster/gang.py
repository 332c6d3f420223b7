"""The learner's ranks: one life of them, from their placing to the step they reach. They live and die together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import ray

from cluster import topology
from cluster.nodes import end, result
from cluster.topology import Site
from cluster.watch import Watchdog


class Gang:
    def __init__(self, site: Site, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._ranks = {
            f"learner-{rank}": topology.place_learner(site, rank) for rank in range(site.config.learner.ranks)
        }

    async def run(self, epoch: int, resume_from: Path | None, engines: list[Any]) -> int:
        """Train to the end or until `stop`; the step reached. Raises the first failure, without waiting for ranks that
        hang on it.
        """
        try:
            await asyncio.gather(*(rank.ready.remote() for rank in self._ranks.values()))
            for name, rank in self._ranks.items():
                self._watchdog.watch(name, rank)
            master = await next(iter(self._ranks.values())).address.remote()
            where = str(resume_from) if resume_from else None
            runs = [rank.run.remote(epoch, where, master, engines) for rank in self._ranks.values()]
            return (await asyncio.gather(*map(result, runs)))[0]
        finally:
            for name in self._ranks:
                self._watchdog.forget(name)

    async def stop(self) -> None:
        """Finish the step under way, checkpoint, leave."""
        # A rank that has died meanwhile, or ended, need not hear it.
        await asyncio.gather(*(result(rank.stop.remote()) for rank in self._ranks.values()), return_exceptions=True)

    def kill(self) -> None:
        for rank in self._ranks.values():
            ray.kill(rank)

    async def close(self) -> None:
        """End it after it has reached its step: what it published is removed."""
        await end(self._ranks.values())
