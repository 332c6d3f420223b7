"""An engine and the signals that grade its answers in one process, without a run."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.config import RunConfig
from cluster.errors import DataError
from cluster.process.foreign_loops import ForeignLoops
from cluster.types import Group, Rollout, Task
from cluster.workers.context import POLICY
from rewards.asking import ask

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Rollouts graded at a time."""


class Alone:
    """Raises ConfigError, also in `start`, for a model, tasks, an environment or a reward that there is not."""

    def __init__(self, settings: RunConfig) -> None:
        from transformers import AutoTokenizer

        from actors.chat import Chat
        from actors.engine import ENGINES
        from actors.environments import ENVIRONMENTS
        from actors.models import prepare
        from actors.rollout import INITIAL
        from actors.tasks import TASKS
        from cluster.plugins import build, lookup
        from rewards.base import Services
        from rewards.judges.factory import open_judges
        from rewards.judges.pool.archive import MemoryArchive
        from rewards.registry import build_reward

        self._settings = settings
        source = build(TASKS, settings.tasks.use, settings.tasks.options, "tasks")
        held_out = source.evaluation()
        self.held_out = len(held_out) > 0
        self._tasks = held_out if self.held_out else source.train()
        if not self.held_out:
            log.warning("tasks.use = '%s' holds nothing out: these are tasks to train on", settings.tasks.use)
        self.reward = settings.evaluation.reward or settings.reward_names[0]
        place = settings.reward_names.index(self.reward)
        self._signal = build_reward(settings.rewards[place], f"rewards[{place}]")
        self._timeout_s = settings.rewards[place].timeout_s
        environment = settings.rollout.environment
        self._environment = build(ENVIRONMENTS, environment.use, environment.options, "rollout.environment")
        self.failures = self.left_out = 0
        directory = prepare(settings.model, settings.seed)
        settings = _fitted(settings, directory)
        self._chat = Chat(
            AutoTokenizer.from_pretrained(directory),
            stop=settings.rollout.stop,
            tool_parser=settings.rollout.tool_parser,
        )
        self._services = Services(
            judges=open_judges(settings.judges, MemoryArchive()), text=self._chat.text, encode=self._chat.passage
        )
        engine = lookup(ENGINES, settings.engine.use, "engine")
        self._engine = engine(directory, settings, stop_tokens=self._chat.stop_tokens, version=INITIAL)

    async def start(self) -> None:
        await self._engine.start()
        await self._signal.prepare(self._services)

    def tasks(self, limit: int | None = None) -> Sequence[Task]:
        """Return the first `limit` tasks of those held out, or of all if none is.

        Those whose prompt fills the whole context are left out and counted in `left_out`.
        """
        tasks = list(self._tasks[:limit])
        if not self._environment.shows_task:
            return tasks
        kept = [task for task in tasks if self._fits(task)]
        self.left_out = len(tasks) - len(kept)
        return kept

    def _fits(self, task: Task) -> bool:
        try:
            return len(self._chat.prompt(task.variants["orig"])) < self._engine.max_model_len
        except (DataError, KeyError):  # named when the task is played
            return True

    async def play(self, tasks: Sequence[Task], temperature: float, played: Callable[[], None]) -> list[Group]:
        """A group of one rollout for each; failures are counted and left out."""
        from actors import episode
        from actors.endpoint import Endpoint
        from actors.evaluate import play_all

        section = self._settings.rollout
        limits = episode.Limits(section.max_tokens, section.max_turns, temperature, section.environment_timeout_s)
        loops = ForeignLoops()
        endpoint = Endpoint(self._engine, self._chat, self._settings.endpoint)

        async def one(task: Task) -> Rollout:
            return await episode.play(
                self._engine, self._chat, self._environment, task, "orig", limits, loops, endpoint
            )

        try:
            return await play_all(
                one,
                tasks,
                policy=POLICY,
                at_once=self._settings.engine.max_num_seqs,
                failed=self._failed,
                played=played,
            )
        finally:
            await endpoint.close()
            loops.close()

    async def grade(self, groups: Sequence[Group], graded: Callable[[], None]) -> list[float]:
        """The reward of each lone rollout; NaN if it is unknown."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one(group: Group) -> float:
            async with places:
                value = await self._score(group)
                graded()
                return value

        return await asyncio.gather(*map(one, groups))

    async def _score(self, group: Group) -> float:
        scores, failure = await ask(self._signal, group, self._services, self._timeout_s)
        if failure:
            self._failed(f"reward '{self.reward}' failed on task {group.task.id}: {failure:.200}")
        return float(scores.values[0])

    async def close(self) -> None:
        await self._services.close_judges()
        self._services.close()
        await self._engine.close()

    def _failed(self, what: str) -> None:
        self.failures += 1
        log.warning("%s", what)


def _fitted(settings: RunConfig, directory: Path) -> RunConfig:
    """With `engine.max_model_len` no longer than the model's context, unless the recipe sets it."""
    if "max_model_len" in settings.engine.model_fields_set:
        return settings
    context = json.loads((directory / "config.json").read_text()).get("max_position_embeddings")
    length = min(settings.engine.max_model_len, context or settings.engine.max_model_len)
    return settings.model_copy(update={"engine": settings.engine.model_copy(update={"max_model_len": length})})
