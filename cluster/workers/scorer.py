"""Models that read rollouts for rewards: an actor each, on a roster while it is there, with weights that are followed.

ScorerActor ── signs the roster ──► Redis ──► Scorers.follow ──► `Scorer`s of whoever asks (reward workers)
     ▲ publications ── the learner's file, brought to this node by a `WeightFetcher`
     ▲ an alias ────── a checkpoint's file: of `previous` the newest, of `previous@2` the one before
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError
from safetensors import safe_open

from cluster.buffer.discovery import Roster, keep_signing
from cluster.errors import DataError, one_line
from cluster.placement.groups import options
from cluster.placement.resources import openmp
from cluster.process.cleanup import remove_after_me, settle
from cluster.storage.model_aliases import behind
from cluster.workers.context import POLICY, RunContext, first_to_end, worker_name
from cluster.workers.weight_fetcher import WeightFetcher, shared_memory
from cluster.workers.weight_follower import WeightFollower
from rewards.judges.backends.discovery import FOLLOW_S
from rewards.scorers.pool import LogprobScorer
from rewards.scorers.types import INITIAL, ScorerReplica, ScorerUnavailable, TokenSequence, TokenStats

if TYPE_CHECKING:
    from cluster.storage.model_aliases import Model
    from rewards.scorers.forward import Forward

WAIT_S = 5.0
"""One wait for a publication."""
GONE_S = 0.2
"""Until a newer publication stands where the file of this one is gone."""


def roster(context: RunContext, scorer: str) -> Roster:
    return Roster(context.url, context.run_id, f"scorer:{scorer}", context.config.run.progress_timeout_s)


class ScorerActor:
    """One replica of `[scorers.NAME]`."""

    def __init__(self, context: RunContext, name: str) -> None:
        settle()
        self._context, self._name = context, name
        self._scorer = scorer_of(name)
        self._section = context.config.scorers[self._scorer]
        self._followed = WeightFollower(context, self._section.model) if self._section.model != POLICY else None
        """None where it reads as the live policy."""
        self._buffer = context.buffer()
        folder = Path(tempfile.mkdtemp(prefix=f"kanabo-{context.run_id[-6:]}-", dir=shared_memory()))
        remove_after_me(folder)
        self._fetcher = WeightFetcher(context.run_id, POLICY, folder)
        self._server: Any = None
        self._has_weights = asyncio.Event()
        self._stopping = asyncio.Event()

    async def ready(self) -> int:
        """Load the model; returns this actor's process id."""
        from rewards.scorers.server import ScoringServer

        forward = await asyncio.to_thread(self._forward)
        section = self._section
        self._server = ScoringServer(forward, batch_tokens=section.batch_tokens, max_queue=section.max_queue)
        if self._followed is not None:
            self._has_weights.set()
        return os.getpid()

    def _forward(self) -> Forward:
        from transformers import AutoTokenizer

        from actors.chat import Chat
        from rewards.scorers.forward import Forward

        section, context, followed = self._section, self._context, self._followed
        chat = Chat(AutoTokenizer.from_pretrained(context.model_dir))
        return Forward(
            followed.model.where if followed else context.model_dir,
            chat.prompt,
            dtype=section.dtype,
            batch_tokens=section.batch_tokens,
            version=_version(followed, followed.model, context) if followed else POLICY,
        )

    async def run(self) -> None:
        """Read until `stop`. Raises what the model and the buffer raise."""
        signing = keep_signing(roster(self._context, self._scorer), self._name, lambda: self._server.version)
        tasks = [asyncio.create_task(t) for t in (self._server.run(), signing)]
        if self._followed is None:
            tasks.append(asyncio.create_task(self._follow()))
        elif self._followed.moves:
            tasks.append(asyncio.create_task(self._followed.follow(self._load)))
        try:
            await first_to_end(asyncio.create_task(self._stopping.wait()), *tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # off the roster before this actor is ended

    async def stop(self) -> None:
        """What is read already is answered; the rest goes to another replica."""
        self._stopping.set()

    async def read(self, passages: Sequence[TokenSequence], timeout_s: float) -> list[TokenStats]:
        """Raises ScorerUnavailable, DataError."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_weights.wait()
        except TimeoutError:
            raise ScorerUnavailable("it waits for the policy's first publication") from None
        return await self._server.read(passages, timeout_s)

    async def waiting(self) -> str:
        return f"reads as version {self._server.version}, {self._server.num_waiting} passages wait"

    async def close(self) -> None:
        await self.stop()

    async def _follow(self) -> None:
        version = None
        while True:
            publication = await asyncio.to_thread(self._buffer.published, POLICY, other_than=version, timeout_s=WAIT_S)
            if publication is None:
                continue
            try:
                path = await self._fetcher.fetch(publication)
                await self._server.load(partial(_load_file, path, publication.version))
            except FileNotFoundError:  # there is, or will be, a newer one
                await asyncio.sleep(GONE_S)
                continue
            version = publication.version
            self._has_weights.set()

    async def _load(self, path: Path, model: Model) -> None:
        assert self._followed is not None
        await self._server.load(partial(_load_file, path, _version(self._followed, model, self._context)))


def _version(followed: WeightFollower, model: Model, context: RunContext) -> str:
    """Return the step that a moving alias stands at."""
    if not followed.moves:
        return followed.alias
    run = POLICY if behind(followed.alias) else followed.alias.rpartition("@")[0]
    return INITIAL if model.where == context.model_dir else f"{run}@{model.step}"


def _load_file(path: str | Path, version: str, forward: Forward) -> None:
    """Raises FileNotFoundError."""
    forward.load(_tensors_of(path), version)


def _tensors_of(path: str | Path) -> Iterator[tuple[str, Any]]:
    with safe_open(path, "pt") as file:  # stays readable while it is open, whoever removes it
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)


class Scorers:
    """A run's scorers, for one process that asks them."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self.pools = {n: LogprobScorer(n, deadline_s=s.deadline_s) for n, s in context.config.scorers.items()}

    def follow(self) -> list[asyncio.Task[None]]:
        """Tasks that let replicas join and leave; they end by an error or by being cancelled."""
        return [asyncio.create_task(self._follow(pool)) for pool in self.pools.values()]

    async def _follow(self, pool: LogprobScorer) -> None:
        signed = roster(self._context, pool.name)
        while True:
            there = await asyncio.to_thread(signed.there)
            if there.keys() != pool.replicas.keys():
                found = {name: await self._replica(name) for name in there}
                pool.set({name: replica for name, replica in found.items() if replica is not None})
            await asyncio.sleep(FOLLOW_S)

    async def _replica(self, name: str) -> ScorerReplica | None:
        try:
            return ActorReplica(await asyncio.to_thread(ray.get_actor, worker_name(self._context.run_id, name)))
        except ValueError:  # the roster still has one that has ended
            return None


class ActorReplica:
    """A `ScorerActor` as whoever asks it sees it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def read(self, passages: Sequence[TokenSequence], timeout_s: float) -> list[TokenStats]:
        asked = self._actor.read.remote(passages, timeout_s)
        try:
            return await asked
        except asyncio.CancelledError:
            ray.cancel(asked)
            raise
        except RayActorError as error:
            raise ScorerUnavailable(f"it has ended: {one_line(error)}") from error
        except (DataError, ScorerUnavailable):
            raise
        except RayError as error:
            raise ScorerUnavailable(one_line(error)) from error


def scorer_of(name: str) -> str:
    """The scorer whose replica has this name, `scorer:NAME-number`."""
    return name.partition(":")[2].rpartition("-")[0]


def place_scorer(context: RunContext, name: str) -> Any:
    section = context.config.scorers[scorer_of(name)]
    return (
        ray.remote(ScorerActor)
        .options(
            name=worker_name(context.run_id, name),
            max_concurrency=1000,
            runtime_env=openmp(max(1, int(section.cpus))),
            **options(context.config, context.run_id, f"scorer:{scorer_of(name)}"),
        )
        .remote(context, name)
    )
