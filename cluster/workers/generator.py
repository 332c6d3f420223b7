"""A model that is asked and never trained: an old checkpoint, the first weights, another run's, as a Ray actor."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.engine import ENGINES
from cluster.errors import DataError, InfrastructureError
from cluster.placement.groups import options
from cluster.placement.ray_runtime import CreatedSegments, remove_segments_after_me
from cluster.placement.resources import openmp, threads
from cluster.plugins import lookup
from cluster.process.cleanup import end_children_with_me, remove_after_me
from cluster.process.foreign_loops import ForeignLoops
from cluster.process.replica_pool import ReplicaPool
from cluster.storage.model_aliases import Model
from cluster.types import Publication, Rollout, Task
from cluster.workers.context import RunContext, first_to_end, worker_name
from cluster.workers.weight_follower import WeightFollower

SUCCESSORS = 16
"""So many lives of a generator may pass between two looks for it."""
LOOK_S = 1.0
"""How often one is looked for while it is not there."""


class GeneratorActor:
    """The engine of `[generators.NAME]`: plays the tasks that rollout workers hand it."""

    def __init__(self, context: RunContext, name: str) -> None:
        from transformers import AutoTokenizer

        from actors import episode
        from actors.chat import Chat
        from actors.endpoint import Endpoint
        from actors.environments.builder import EnvironmentBuilder

        end_children_with_me()
        spool = Path(tempfile.mkdtemp(prefix="kanabo-"))  # short, because a socket's path may have 107 characters
        remove_after_me(spool)
        os.environ["VLLM_RPC_BASE_PATH"] = str(spool)  # a killed engine leaves its sockets behind
        self._name = generator_of(name)
        self._followed = WeightFollower(context, context.config.generators[self._name].model)
        model = self._followed.model
        section = context.config.rollout
        self._chat = Chat(
            AutoTokenizer.from_pretrained(context.model_dir), stop=section.stop, tool_parser=section.tool_parser
        )
        # Engines of one seed and one model would say the same.
        number = len(context.config.policy_names) + list(context.config.generators).index(self._name)
        config = context.config.model_copy(update={"seed": context.config.seed + number})
        with CreatedSegments() as created:
            self._engine: Any = lookup(ENGINES, config.engine.use, "engine")(
                model.where, config, stop_tokens=self._chat.stop_tokens, version=f"0.{model.step}"
            )
        remove_segments_after_me(created.found)
        self._limits = episode.Limits(
            section.max_tokens, section.max_turns, section.temperature, section.environment_timeout_s
        )
        self._loops = ForeignLoops()
        self._endpoint = Endpoint(self._engine, self._chat, context.config.endpoint, model=self._name)
        self._environment = EnvironmentBuilder(section.environment, self._loops, section.environment_timeout_s)
        self._stopping = asyncio.Event()

    async def ready(self) -> int:
        with CreatedSegments() as created:
            await self._engine.start()
        remove_segments_after_me(created.found)
        return os.getpid()

    async def run(self) -> None:
        """Answer until `stop`; an alias that moves, `previous` or `…@latest`, is followed."""
        following = [asyncio.create_task(self._followed.follow(self._load))] if self._followed.moves else []
        try:
            await first_to_end(asyncio.create_task(self._stopping.wait()), *following)
        finally:
            for task in following:
                task.cancel()

    async def _load(self, path: Path, model: Model) -> None:
        await self._engine.update(Publication(self._name, 0, model.step), str(path))

    async def play(self, task: Task) -> list[Rollout]:
        """One episode. Raises DataError."""
        from actors import episode

        environment = await self._environment.get()
        rollouts = await episode.play_agents(
            self._engine, self._chat, environment, task, "orig", self._limits, self._loops, task.id, self._endpoint
        )
        return [replace(rollout, policy=self._name) for rollout in rollouts]

    async def stop(self) -> None:
        self._stopping.set()

    async def waiting(self) -> str:
        model = self._followed.model
        return f"answers as '{self._followed.alias}' ({model.where}, step {model.step})"

    async def close(self) -> None:
        await self._endpoint.close()
        await self._engine.close()


class Generators:
    """A run's generators, for a rollout worker that asks each for its share of every group."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self.shares: Mapping[str, int] = {name: section.rollouts for name, section in context.config.generators.items()}
        self._number = dict.fromkeys(self.shares, 0)
        """Number of the newest worker of each role: a replacement has a higher one."""
        self._pools = {name: ReplicaPool(partial(self._look, name), look_s=LOOK_S) for name in self.shares}

    async def play(self, name: str, task: Task) -> list[Rollout]:
        """One episode of that generator; one that has died is waited for, as long as a group's lease.

        Raises DataError, or InfrastructureError where no worker of it is there for so long.
        """
        lease_s = self._context.config.rollout.lease_s

        async def ask(worker: str, actor: Any) -> list[Rollout]:
            return await actor.play.remote(task)

        try:
            return await self._pools[name].ask(ask, gone=(RayActorError,), timeout_s=lease_s)
        except RayTaskError as error:
            if isinstance(error.cause, DataError):
                raise error.cause from error
            raise
        except TimeoutError as error:
            raise InfrastructureError(
                f"no worker of generator '{name}' was there within rollout.lease_s = {lease_s:g} s."
            ) from error

    async def _look(self, name: str) -> dict[str, Any]:
        return await asyncio.to_thread(self._actors, name)

    def _actors(self, name: str) -> dict[str, Any]:
        """The generator's worker by its name; none while it is being replaced."""
        for number in range(self._number[name], self._number[name] + SUCCESSORS):
            worker = f"generator:{name}-{number}"
            with suppress(ValueError):
                actor = ray.get_actor(worker_name(self._context.run_id, worker))
                self._number[name] = number
                return {worker: actor}
        return {}


def generator_of(name: str) -> str:
    """`past` of the worker `generator:past-0`."""
    return name.partition(":")[2].rpartition("-")[0]


def place_generator(context: RunContext, name: str) -> Any:
    return (
        ray.remote(GeneratorActor)
        .options(
            name=worker_name(context.run_id, name),
            max_concurrency=1000,
            runtime_env=openmp(threads(context.config, "engine")),
            **options(context.config, context.run_id, name.rpartition("-")[0]),
        )
        .remote(context, name)
    )
