"""A reward worker with what its rewards may call, as a Ray actor."""

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
from rewards.aggregation.voting import GradedSample
from rewards.base import Services
from rewards.monitors.anchor_tasks import Answers, answers
from rewards.parsing.answers import answer_of
from rewards.worker import RewardWorker

if TYPE_CHECKING:
    from actors.chat import Chat
    from rewards.worker import RewardWorker


class RewardActor:
    """A reward worker, and the same rewards for evaluation tasks."""

    def __init__(self, context: RunContext, name: str) -> None:
        from rewards.learned.factory import followers

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
        self._context, self._name, self._services = context, name, services
        self._named: dict[int, RewardWorker] = {}
        """Ask the rewards of `[[evaluations]]`, by place; they share what this worker's own rewards call."""
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

    async def grade_named(self, place: int, groups: list[Group], index: int | None = None) -> list[GradedSample]:
        """Return every sample of `evaluations[place]`, or one, as its rewards grade it."""
        config = self._context.config
        section = config.evaluations[place]
        worker = await self._worker_of(place)
        graded = section.graded_by(config.evaluation, config.rewards)
        found = []
        for group in groups if index is None else groups[index : index + 1]:
            scores = await worker.score(group)
            reward, value = float(scores[graded].values[0]), float(scores[section.by or graded].values[0])
            found.append(GradedSample(group.task.id, reward, answer_of(group.rollouts[0]), value))
        return found

    async def _worker_of(self, place: int) -> RewardWorker:
        if place not in self._named:
            config = self._context.config
            asked = config.evaluations[place].asked(config.evaluation, config.rewards)
            own = config.model_copy(update={"rewards": asked})
            worker = RewardWorker(self._name, buffer=self._context.buffer(), config=own, services=self._services)
            await worker.prepare()
            self._named[place] = worker
        return self._named[place]


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
