"""Where the parts meet: Ray actors around plain classes, and what each is built from.

actors/, rewards/ and learner/ never import one another; only this file knows all three.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster import checkpoint
from cluster.buffer import Buffer
from cluster.config import RunConfig
from cluster.nodes import end_children_with_me, on_gpu, openmp, settle, threads
from cluster.types import Group, Publication

POLICY = "policy"
"""Name of the one policy a run has so far."""


@dataclass(frozen=True)
class Site:
    """What every actor of a run is told."""

    config: RunConfig
    model_dir: str
    url: str
    """Redis, password included."""
    run_id: str
    run_dir: str

    def buffer(self) -> Buffer:
        return Buffer(self.url, self.run_id, self.config.run.stall_s)  # what waits longer ends the run anyway


def learner_name(run_id: str, rank: int) -> str:
    return f"kanabo:{run_id}:{POLICY}:learner:{rank}"


def _engine(site: Site, stop_tokens: Sequence[int]) -> Any:
    from actors.engine import ENGINES
    from actors.rollout import INITIAL
    from cluster.plugins import lookup

    engine = lookup(ENGINES, site.config.engine.use, "engine")
    return engine(site.model_dir, site.config, stop_tokens=stop_tokens, version=INITIAL)


class RolloutActor:
    """A rollout worker, its engine, and the methods vLLM's stock trainer client calls."""

    def __init__(self, site: Site, name: str) -> None:
        from transformers import AutoTokenizer

        from actors.chat import Chat
        from actors.environments import ENVIRONMENTS
        from actors.rollout import RolloutWorker
        from actors.tasks import TASKS, order
        from cluster.plugins import build

        end_children_with_me()
        config = site.config
        source = build(TASKS, config.tasks.use, config.tasks.options, "tasks")
        tasks, self._heldout = source.train(), source.heldout()
        place = order(config.seed, len(tasks), config.tasks.shuffle)
        chat = Chat(AutoTokenizer.from_pretrained(site.model_dir))
        environment = config.rollout.environment
        self._engine = _engine(site, chat.stop_tokens)
        self._spool = Path(tempfile.mkdtemp(prefix="kanabo-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self._site = site
        self.worker = RolloutWorker(
            name,
            policy=POLICY,
            engine=self._engine,
            chat=chat,
            environment=build(ENVIRONMENTS, environment.use, environment.options, "rollout.environment"),
            task_at=lambda position: tasks[place(position)[1]],
            buffer=site.buffer(),
            config=config,
            fetch=self._fetch,
        )

    async def ready(self) -> int:
        """Bring the engine up; returns this actor's process id."""
        await self._engine.start()
        return os.getpid()

    async def run(self) -> None:
        await self.worker.run()

    async def stop(self) -> None:
        await self.worker.stop()

    async def waiting(self) -> str:
        return self.worker.waiting()

    async def catch_up(self, publication: Publication) -> None:
        """Sample with this publication from now on, whether or not the worker is running."""
        await self.worker.receive(publication)

    async def heldout(self, max_tasks: int, temperature: float) -> list[Group]:
        return await self.worker.heldout(self._heldout[:max_tasks], temperature)

    async def close(self) -> None:
        await self._engine.close()
        shutil.rmtree(self._spool)

    async def _fetch(self, publication: Publication) -> str:
        """The published file: linked on the learner's node, else through Ray's object store.

        Raises FileNotFoundError if newer versions have pushed it out.
        """
        path = Path(publication.info["path"])
        for old in self._spool.iterdir():
            old.unlink()
        if publication.info["host"] == socket.gethostname():
            # A link of our own: the publisher keeps few versions, and a file must not vanish while it is read.
            os.link(path, self._spool / path.name)
            return str(self._spool / path.name)
        learner: Any = ray.get_actor(learner_name(self._site.run_id, 0))
        data: np.ndarray = await learner.blob.remote(str(path))
        await asyncio.to_thread((self._spool / path.name).write_bytes, data.data)
        return str(self._spool / path.name)

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


def place_rollout(site: Site, name: str) -> Any:
    config = site.config
    return (
        ray.remote(RolloutActor)
        .options(
            num_cpus=1,
            num_gpus=config.engine.tensor_parallel if on_gpu() else 0,
            max_concurrency=1000,
            runtime_env=openmp(threads(config, "engine")),
        )
        .remote(site, name)
    )


class RewardActor:
    """A reward worker, and the same signals for held-out tasks."""

    def __init__(self, site: Site, name: str) -> None:
        from rewards.base import Services
        from rewards.judges.archive import RedisArchive
        from rewards.judges.open import open_judges
        from rewards.worker import RewardWorker

        judges = open_judges(site.config.judges, RedisArchive(site.url, site.run_id))
        services = Services(judges=judges)
        self._graded = site.config.evaluation.reward
        self._worker = RewardWorker(name, buffer=site.buffer(), config=site.config, services=services)

    def ready(self) -> int:
        return os.getpid()

    async def run(self) -> None:
        await self._worker.run()

    async def stop(self) -> None:
        await self._worker.stop()

    async def waiting(self) -> str:
        return self._worker.waiting()

    async def close(self) -> None:
        self._worker.close()

    async def grade(self, groups: list[Group]) -> float:
        """Mean of `evaluation.reward` over held-out rollouts; NaN if none could be scored."""
        name = self._graded or self._worker.names[0]
        scores = [(await self._worker.score(group, [name]))[name].values for group in groups]
        known = np.concatenate(scores) if scores else np.array([])
        known = known[np.isfinite(known)]
        return float(known.mean()) if len(known) else float("nan")


class LearnerActor:
    """One rank of a policy's learner: a DeepSpeed engine and the training loop."""

    def __init__(self, site: Site, rank: int) -> None:
        settle()
        self._site, self._rank = site, rank
        self._stopping = False
        self._stage, self._since = "has just started", time.monotonic()

    def address(self) -> tuple[str, int]:
        """Where the ranks meet: this node's address and a free port."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def ready(self) -> int:
        return os.getpid()

    def stop(self) -> None:
        """Finish the step under way, checkpoint, return."""
        self._stopping = True

    def waiting(self) -> str:
        return f"{self._stage} for {time.monotonic() - self._since:.0f} s"

    def _enter(self, stage: str) -> None:
        self._stage, self._since = stage, time.monotonic()

    def blob(self, path: str) -> np.ndarray:
        """A published file, for engines on other nodes."""
        return np.fromfile(path, np.uint8)

    def close(self) -> None:
        """Remove the published files; engines may fetch them until the run's last evaluation."""
        from learner.publish import weights_folder

        shutil.rmtree(weights_folder(self._site.run_id, POLICY), ignore_errors=True)

    def run(self, epoch: int, resume_from: str | None, master: tuple[str, int], rollout_actors: list[Any]) -> int:
        """Train from the checkpoint, or the initial model, to the end or until `stop`; returns the step reached."""
        from learner.start import Rank, learn

        site, buffer = self._site, self._site.buffer()
        told = Rank(
            config=site.config,
            model_dir=site.model_dir,
            run_id=site.run_id,
            run_dir=Path(site.run_dir),
            policy=POLICY,
            rank=self._rank,
            epoch=epoch,
            resume_from=Path(resume_from) if resume_from else None,
            master=master,
        )

        def save(engine: Any, step: int) -> None:
            target = Path(site.run_dir) / "checkpoints"
            checkpoint.save(target, engine, buffer, POLICY, epoch, step, site.config.checkpoint.keep_last)

        return learn(
            told,
            buffer,
            _mixer(site.config),
            rollout_actors=rollout_actors,
            stop=lambda: self._stopping,
            save=save,
            stage=self._enter,
        )


def _mixer(config: RunConfig) -> Any:
    from rewards.mix import Mixer

    return Mixer(config.rewards, config.reward_names, config.reward_workers.min_valid)


def place_reward(site: Site, name: str) -> Any:
    return ray.remote(RewardActor).options(num_cpus=0.1, max_concurrency=1000).remote(site, name)


def place_learner(site: Site, rank: int) -> Any:
    return (
        ray.remote(LearnerActor)
        .options(
            name=learner_name(site.run_id, rank),
            num_cpus=1,
            num_gpus=1 if on_gpu() else 0,
            max_concurrency=4,  # `run` holds one thread for good; stop, ready and blob need others
            runtime_env=openmp(threads(site.config, "learner")),
        )
        .remote(site, rank)
    )
