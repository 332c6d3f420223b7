"""A reward worker with what its signals may call, as a Ray actor."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
import ray

from cluster.placement import options
from cluster.topology.judge import Judges
from cluster.topology.site import Site, first_to_end
from cluster.types import Group
from rewards.anchors import Answers, answers


class RewardActor:
    """A reward worker, and the same signals for held-out tasks."""

    def __init__(self, site: Site, name: str) -> None:
        from rewards.base import Services
        from rewards.distilled.open import followers
        from rewards.worker import RewardWorker

        self._judges = Judges(site)
        self._following: list[asyncio.Task[None]] = []
        distilled = followers(site.config, site.url, site.run_id, site.model_dir)
        services = Services(judges=self._judges.pools, distilled=distilled)
        self._graded = site.config.evaluation.reward
        self._worker = RewardWorker(name, buffer=site.buffer(), config=site.config, services=services)

    async def ready(self) -> int:
        self._following = self._judges.follow()
        return os.getpid()

    async def run(self) -> None:
        working = asyncio.create_task(self._worker.run())
        await first_to_end(working, *self._following)
        for task in self._following:
            task.cancel()

    async def stop(self) -> None:
        await self._worker.stop()

    async def waiting(self) -> str:
        return self._worker.waiting()

    async def close(self) -> None:
        self._worker.close()

    async def grade(self, groups: list[Group]) -> tuple[float, Answers]:
        """Mean of `evaluation.reward` over held-out rollouts, NaN if none could be scored; and what was answered."""
        name = self._graded or self._worker.names[0]
        scores = [(await self._worker.score(group, [name]))[name].values for group in groups]
        known = np.concatenate(scores) if scores else np.array([])
        known = known[np.isfinite(known)]
        return float(known.mean()) if len(known) else float("nan"), answers(groups)


def place_reward(site: Site, name: str) -> Any:
    where = options(site.config, site.run_id, "reward")
    return ray.remote(RewardActor).options(max_concurrency=1000, **where).remote(site, name)
