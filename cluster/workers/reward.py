"""A reward worker with what its signals may call, as a Ray actor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from cluster.placement.groups import options
from cluster.process.cleanup import collect_less
from cluster.types import Group
from cluster.workers.context import RunContext, first_to_end
from cluster.workers.judge import Judges
from cluster.workers.scorer import Scorers
from rewards.monitors.anchor_tasks import Answers, answers

if TYPE_CHECKING:
    from actors.chat import Chat


class RewardActor:
    """A reward worker, and the same signals for evaluation tasks."""

    def __init__(self, context: RunContext, name: str) -> None:
        from rewards.base import Services
        from rewards.learned.factory import followers
        from rewards.worker import RewardWorker

        self._judges = Judges(context)
        self._following: list[asyncio.Task[None]] = []
        self._scorers = Scorers(context)
        chat = _chat(context.model_dir)
        services = Services(
            judges=self._judges.pools,
            reward_models=followers(context.config, context.url, context.run_id, context.model_dir),
            scorers=self._scorers.pools,
            text=lambda tokens: chat().text(tokens),
            encode=lambda messages: chat().passage(messages),
        )
        self._graded = context.config.evaluation.reward
        self._worker = RewardWorker(name, buffer=context.buffer(), config=context.config, services=services)

    async def ready(self) -> int:
        self._following = [*self._judges.follow(), *self._scorers.follow()]
        collect_less()
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

    async def count(self, groups: list[Group]) -> int:
        return len(groups)

    async def grade(self, groups: list[Group], index: int | None = None) -> tuple[list[float], Answers]:
        """Return known scores by `evaluation.reward` of all evaluation groups, or of one, and what they answered."""
        groups = groups if index is None else groups[index : index + 1]
        name = self._graded or self._worker.names[0]
        scores = [(await self._worker.score(group, [name]))[name].values for group in groups]
        return [float(value) for values in scores for value in values if np.isfinite(value)], answers(groups)


def _chat(model_dir: str) -> Callable[[], Chat]:
    """Return a function that loads the policy's tokenizer when it is first called, from whichever thread."""
    loading = Lock()

    @cache
    def load() -> Chat:
        from transformers import AutoTokenizer

        from actors.chat import Chat

        return Chat(AutoTokenizer.from_pretrained(model_dir))

    def chat() -> Chat:
        with loading:  # transformers' own imports fail where two threads begin them
            return load()

    return chat


def place_reward(context: RunContext, name: str) -> Any:
    where = options(context.config, context.run_id, "reward")
    return ray.remote(RewardActor).options(max_concurrency=1000, **where).remote(context, name)
