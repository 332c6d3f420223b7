"""An engine, and the rewards and scorers that grade its answers, in one process, without a run."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors.engine import ENGINES
from actors.models import prepare
from cluster.config import RunConfig
from cluster.errors import ConfigError, DataError, nearest, one_line
from cluster.plugins import build, lookup
from cluster.process.foreign_loops import ForeignLoops
from cluster.types import Group, Rollout, Task
from cluster.workers.context import POLICY
from cluster.workers.judge import completion_of
from rewards.asking import ask
from rewards.base import Services
from rewards.judges.errors import JudgeRejected
from rewards.judges.factory import open_judges
from rewards.judges.pool.archive import MemoryArchive
from rewards.judges.types import Call, Completion
from rewards.registry import build_reward
from rewards.scorers.pool import LogprobScorer

if TYPE_CHECKING:
    from actors.chat import Chat
    from actors.speaker import Speaker
    from rewards.base import Reward
    from rewards.scorers.pool import LogprobScorer
    from rewards.scorers.server import ScoringServer

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Rollouts graded at a time."""


class Alone:
    """Raises ConfigError, also in `start`, for a model, tasks, an environment or a reward that there is not."""

    def __init__(self, settings: RunConfig, further: str = "") -> None:
        """`further` names a reward that is asked beside the one that grades."""
        from transformers import AutoTokenizer

        from actors.chat import Chat
        from actors.environments import ENVIRONMENTS
        from actors.rollout import INITIAL
        from actors.speaker import Speaker
        from actors.tasks import TASKS

        self._settings = settings
        source = build(TASKS, settings.tasks.use, settings.tasks.options, "tasks")
        held_out = source.evaluation()
        self.held_out = len(held_out) > 0
        self._tasks = held_out if self.held_out else source.train()
        if not self.held_out:
            log.warning("tasks.use = '%s' holds nothing out: these are tasks to train on", settings.tasks.use)
        self.reward = settings.evaluation.reward or settings.reward_names[0]
        self._rewards: dict[str, tuple[Reward, float]] = {}
        for name in {self.reward, further} - {""}:
            place = settings.reward_names.index(name)
            section = settings.rewards[place]
            self._rewards[name] = (build_reward(section, f"rewards[{place}]"), section.timeout_s)
        environment = settings.rollout.environment
        self._environment = build(ENVIRONMENTS, environment.use, environment.options, "rollout.environment")
        self.failures = self.left_out = 0
        self._servers: list[asyncio.Task[None]] = []
        directory = prepare(settings.model, settings.seed)
        settings = _fitted(settings, directory)
        self._chat = Chat(
            AutoTokenizer.from_pretrained(directory),
            stop=settings.rollout.stop,
            tool_parser=settings.rollout.tool_parser,
        )
        read = {name for reward, _ in self._rewards.values() for name in reward.scorers()}
        self._reading = [_reading(name, settings, directory, self._chat) for name in sorted(read)]
        judges = open_judges(settings.judges, MemoryArchive())
        self._services = Services(
            judges=judges,
            scorers={scorer.name: scorer for scorer, _ in self._reading},
            text=self._chat.text,
            encode=self._chat.passage,
        )
        engine = lookup(ENGINES, settings.engine.use, "engine")
        self._engine = engine(directory, settings, stop_tokens=self._chat.stop_tokens, version=INITIAL)
        itself = _Itself(Speaker(self._engine, self._chat, settings.engine.max_num_seqs))
        for name, section in settings.judges.items():
            if section.kind == "policy":
                judges[name].replicas.add(itself)
                judges[name].saw(INITIAL)

    async def start(self) -> None:
        await self._engine.start()
        for scorer, server in self._reading:
            self._servers.append(asyncio.create_task(server.run()))
            scorer.set({"here": server})
        for reward, _ in self._rewards.values():
            await reward.prepare(self._services)

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

    async def grade(self, groups: Sequence[Group], graded: Callable[[], None], reward: str = "") -> list[float]:
        """The reward of each lone rollout, by default the one that grades; NaN if it is unknown."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one(group: Group) -> float:
            async with places:
                value = await self._score(group, reward or self.reward)
                graded()
                return value

        return await asyncio.gather(*map(one, groups))

    async def _score(self, group: Group, name: str) -> float:
        reward, timeout_s = self._rewards[name]
        scores, failure = await ask(reward, group, self._services, timeout_s)
        if failure:
            self._failed(f"reward '{name}' failed on task {group.task.id}: {failure:.200}")
        return float(scores.values[0])

    async def close(self) -> None:
        for server in self._servers:
            server.cancel()
        await asyncio.gather(*self._servers, return_exceptions=True)
        await self._services.close_judges()
        self._services.close()
        await self._engine.close()

    def _failed(self, what: str) -> None:
        self.failures += 1
        log.warning("%s", what)


class _Itself:
    """The model that is evaluated as a replica of a judge of kind `policy`."""

    name = "policy"

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker

    async def complete(self, call: Call) -> Completion:
        """`call.choices` is not enforced, as in a run."""
        try:
            answer = await self._speaker.answer(
                call.messages,
                max_tokens=call.max_tokens,
                temperature=call.temperature,
                seed=call.seed,
                top_logprobs=call.top_logprobs,
            )
        except DataError as error:
            raise JudgeRejected(f"the model that is evaluated: {one_line(error)}") from error
        return completion_of(answer)

    async def tokens(self, text: str) -> None:
        """Return nothing, as in a run."""

    async def close(self) -> None:
        """The engine is not a judge's to end."""


def _reading(name: str, settings: RunConfig, directory: Path, chat: Chat) -> tuple[LogprobScorer, ScoringServer]:
    """The scorer of `[scorers.NAME]` with its one replica, which reads with the evaluated model or a directory's.

    Raises ConfigError for a model that only a run knows.
    """
    from rewards.scorers.forward import Forward
    from rewards.scorers.server import ScoringServer

    if name not in settings.scorers:
        near = nearest(name, settings.scorers)
        raise ConfigError(f"a reward reads with the scorer '{name}'. {near}Add a section [scorers.{name}].")
    section = settings.scorers[name]
    itself = section.model in (POLICY, "initial")
    if not itself and not (Path(section.model) / "config.json").is_file():
        raise ConfigError(
            f"scorers.{name}.model = '{section.model}' is known in a run alone. Name 'policy', which is the model that "
            "is evaluated, or a directory."
        )
    forward = Forward(
        directory if itself else section.model, chat.prompt, dtype=section.dtype, batch_tokens=section.batch_tokens,
        version=section.model,
    )  # fmt: skip
    server = ScoringServer(forward, batch_tokens=section.batch_tokens, max_queue=section.max_queue)
    return LogprobScorer(name, deadline_s=section.deadline_s), server


def _fitted(settings: RunConfig, directory: Path) -> RunConfig:
    """With `engine.max_model_len` no longer than the model's context, unless the recipe sets it."""
    if "max_model_len" in settings.engine.model_fields_set:
        return settings
    context = json.loads((directory / "config.json").read_text()).get("max_position_embeddings")
    length = min(settings.engine.max_model_len, context or settings.engine.max_model_len)
    return settings.model_copy(update={"engine": settings.engine.model_copy(update={"max_model_len": length})})
