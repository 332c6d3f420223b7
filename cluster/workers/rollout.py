"""A rollout worker with its engine, as a Ray actor."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.engine import ENGINES
from cluster.buffer import witness
from cluster.buffer.discovery import Roster, keep_signing
from cluster.config import RunConfig
from cluster.placement.groups import options
from cluster.placement.ray_runtime import CreatedSegments, remove_segments_after_me
from cluster.placement.resources import openmp, threads
from cluster.plugins import build, lookup
from cluster.process.cleanup import collect_less, end_children_with_me, remove_after_me
from cluster.process.marks import Marks
from cluster.types import Group, Message, Publication, Rollout, Task
from cluster.workers.context import POLICY, RunContext, first_to_end, policy_of, rollout_role, worker_name
from cluster.workers.generator import Generators
from cluster.workers.judge import roster
from cluster.workers.peer_policies import PeerPolicyClient, players_roster
from cluster.workers.weight_fetcher import WeightFetcher, shared_memory

if TYPE_CHECKING:
    from actors.chat import Chat
    from actors.speaker import Answer
    from cluster.workers.critics import RewardCritics

MIN_HANG_S, HANG_SHARE = 5.0, 0.4
"""A worker ends when an environment holds its interpreter for this share of `run.heartbeat_timeout_s` or of
`rollout.lease_s`."""


def _engine(context: RunContext, policy: str, config: RunConfig, stop_tokens: Sequence[int]) -> Any:
    from actors.rollout import INITIAL

    engine = lookup(ENGINES, config.engine.use, "engine")
    # Engines of one seed and one model would say the same.
    config = config.model_copy(update={"seed": config.seed + context.config.policy_names.index(policy)})
    return engine(context.model_of(policy), config, stop_tokens=stop_tokens, version=INITIAL)


def _critics(context: RunContext, chat: Chat) -> tuple[RewardCritics | None, Callable[[], list[asyncio.Task[None]]]]:
    """Return the critics of a worker whose environment searches, and the function that follows what they ask."""
    from actors.environments import ENVIRONMENTS
    from actors.environments.search import SearchEnvironment

    environment = lookup(ENVIRONMENTS, context.config.rollout.environment.use, "rollout.environment")
    if not (isinstance(environment, type) and issubclass(environment, SearchEnvironment)):
        return None, list
    from cluster.workers.critics import critics_of

    return critics_of(context, chat)


def endpoints_roster(context: RunContext) -> Roster:
    """Return the line of every engine that serves the policy: JSON with `address`, `key` and `policy`."""
    return Roster(context.url, context.run_id, "endpoints", context.config.run.progress_timeout_s)


class RolloutActor:
    """A rollout worker, its engine, and the methods vLLM's stock trainer client calls."""

    def __init__(self, context: RunContext, name: str) -> None:
        from transformers import AutoTokenizer

        from actors.chat import Chat
        from actors.rollout import RolloutWorker
        from actors.speaker import Speaker
        from actors.tasks import TASKS, order, without

        end_children_with_me()
        self._policy = policy = policy_of(name)
        config = context.config.of_policy(policy)
        source = build(TASKS, config.tasks.use, config.tasks.options, "tasks")
        tasks = without(source.train(), context.left_out.train)
        self._evaluation = without(source.evaluation(), context.left_out.evaluation)
        self._named: dict[int, Sequence[Task]] = {}
        """Tasks of `[[evaluations]]` that have a source of their own, by place."""
        self._environment = config.rollout.environment
        place = order(config.seed, len(tasks), config.tasks.shuffle)
        chat = Chat(
            AutoTokenizer.from_pretrained(context.model_of(policy)),
            stop=config.rollout.stop,
            tool_parser=config.rollout.tool_parser,
        )
        # Short, because a socket's path may have 107 characters.
        self._spool = Path(tempfile.mkdtemp(prefix=f"kanabo-{context.run_id[-6:]}-", dir=shared_memory()))
        remove_after_me(self._spool)
        sockets = self._spool / "sockets"
        sockets.mkdir()
        os.environ["VLLM_RPC_BASE_PATH"] = str(sockets)  # a killed engine leaves them behind
        with CreatedSegments() as created:
            self._engine = _engine(context, policy, config, chat.stop_tokens)
        remove_segments_after_me(created.found)
        self._context, self._name = context, name
        # The policy that judges is the one whose workers claim.
        judging = config.judges.items() if policy == POLICY else ()
        shares = {n: j.engine_share for n, j in judging if j.kind == "policy"}
        self._judges = list(shares)
        self._speaker = Speaker(self._engine, chat, max(1, int(sum(shares.values()) * config.engine.max_num_seqs)))
        self._signing: list[asyncio.Task[None]] = []
        critics, self._follow_critics = _critics(context, chat) if policy == POLICY else (None, list)
        self.worker = RolloutWorker(
            name,
            policy=policy,
            engine=self._engine,
            chat=chat,
            environment=config.rollout.environment,
            task_at=lambda position: tasks[place(position)[1]],
            buffer=context.buffer(),
            config=config,
            fetch=WeightFetcher(context.run_id, self._policy, self._spool / "weights").fetch,
            claims=policy == POLICY,
            others={other: PeerPolicyClient(context, other).play for other in context.config.policies}
            if policy == POLICY
            else {},
            generators=Generators(context) if config.generators else None,
            marks=self._witnessed(config),
            critics=critics,
        )

    def _witnessed(self, config: RunConfig) -> Marks | None:
        """Start a process that sees an environment of the user's own hold the interpreter, where this one cannot."""
        from actors.environments import ENVIRONMENTS

        environment = config.rollout.environment
        inner = environment.options.get("inner", {})  # a search plays the environment of this name
        if environment.use in ENVIRONMENTS and inner.get("use", "single_turn") in ENVIRONMENTS:
            return None
        marks = Marks(self._spool / "marks")
        # Sooner than the driver ends a worker that does not answer, and than its groups are handed to another one.
        hang_s = HANG_SHARE * min(config.run.heartbeat_timeout_s, config.rollout.lease_s)
        limit_s = max(MIN_HANG_S, min(hang_s, config.rollout.environment_timeout_s))
        witness.start(self._spool / "marks", self._name, self._context.buffer(), limit_s)
        return marks

    async def ready(self) -> int:
        """Bring the engine up; returns this actor's process id."""
        with CreatedSegments() as created:
            await self._engine.start()
        remove_segments_after_me(created.found)
        for judge in self._judges:
            signing = keep_signing(roster(self._context, judge), self._name, lambda: self._engine.version)
            self._signing.append(asyncio.create_task(signing))
        self._signing += self._follow_critics()
        if self._context.config.endpoint.enabled:
            endpoint = self.worker.endpoint
            await endpoint.start()
            says = json.dumps({"address": endpoint.address, "key": endpoint.key, "policy": self._policy})
            signing = keep_signing(endpoints_roster(self._context), self._name, lambda: says)
            self._signing.append(asyncio.create_task(signing))
        if self._policy != POLICY:
            signing = keep_signing(
                players_roster(self._context, self._policy), self._name, lambda: self._engine.version
            )
            self._signing.append(asyncio.create_task(signing))
        collect_less()
        return os.getpid()

    async def run(self) -> None:
        working = asyncio.create_task(self.worker.run())
        await first_to_end(working, *self._signing)
        for signing in self._signing:
            signing.cancel()
        await asyncio.gather(*self._signing, return_exceptions=True)  # off the roster before this actor is ended

    async def stop(self) -> None:
        await self.worker.stop()

    async def answer(self, messages: Sequence[Message], **how: Any) -> Answer:
        """Judge with the weights of now; takes no more of the engine than `judges.NAME.engine_share`."""
        return await self._speaker.answer(messages, **how)

    async def play(self, task: Task, count: int, at_least: str) -> tuple[Rollout, ...]:
        """This policy's part of a group that another one's worker has claimed."""
        return await self.worker.play(task, count, at_least)

    async def waiting(self) -> str:
        return self.worker.waiting()

    async def catch_up(self, publication: Publication) -> None:
        """Sample with this publication from now on, whether or not the worker is running."""
        await self.worker.receive(publication)

    async def evaluate(self, max_tasks: int, temperature: float) -> list[Group]:
        return await self.worker.evaluate(self._evaluation[:max_tasks], temperature)

    async def evaluate_named(self, place: int) -> list[Group]:
        """Return a group of one rollout for each sample of `evaluations[place]`, those of a task apart."""
        section = self._context.config.evaluations[place]
        tasks = list(self._tasks_of(place)[: section.max_tasks])
        return await self.worker.evaluate(
            tasks * section.samples, section.sampling_temperature, section.environment or self._environment
        )

    def _tasks_of(self, place: int) -> Sequence[Task]:
        from actors.tasks import TASKS

        section = self._context.config.evaluations[place].tasks
        if section is None:
            return self._evaluation
        if place not in self._named:
            source = build(TASKS, section.use, section.options, f"evaluations[{place}].tasks")
            held_out = source.evaluation()
            self._named[place] = held_out if len(held_out) else source.train()
        return self._named[place]

    async def close(self) -> None:
        await self._engine.close()
        shutil.rmtree(self._spool, ignore_errors=True)  # vLLM removes its sockets at the same time

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self._engine.init_weight_transfer_engine(request)

    async def start_weight_update(self) -> None:
        await self._engine.start_weight_update()

    async def update_weights(self, request: Any) -> None:
        await self._engine.update_weights(request)

    async def finish_weight_update(self) -> None:
        await self._engine.finish_weight_update()

    async def update_weight_version(self, version: str) -> None:
        await self._engine.update_weight_version(version)

    async def shutdown_weight_transfer_engine(self) -> None:
        await self._engine.shutdown_weight_transfer_engine()


def place_rollout(context: RunContext, name: str, *, beside: bool = False) -> Any:
    """`beside`: in one of the places that the layout reserves beside the learner."""
    policy = policy_of(name)
    return (
        ray.remote(RolloutActor)
        .options(
            name=worker_name(context.run_id, name),
            max_concurrency=1000,
            runtime_env=openmp(threads(context.config, "engine", policy)),
            **options(context.config, context.run_id, rollout_role(policy), beside=beside),
        )
        .remote(context, name)
    )
