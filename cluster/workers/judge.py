"""Judges that the run places: a `vllm serve` child in an actor of its own, or the engines that sample.

JudgeActor, RolloutActor ── sign the roster ──► Redis ──► Judges.follow ──► pools of whoever asks (reward workers)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError

from actors.models import load_tokenizer, prepare
from cluster.buffer.discovery import Roster, keep_signing
from cluster.config import JudgeSection, ModelSection
from cluster.errors import DataError, InfrastructureError, one_line
from cluster.placement.groups import options
from cluster.placement.ray_runtime import CreatedSegments, available_bytes, remove_segments_after_me
from cluster.placement.resources import openmp
from cluster.process.cleanup import settle
from cluster.storage.model_aliases import Registry, is_alias
from cluster.workers.context import RunContext, first_to_end, worker_name
from rewards.judges.backends.discovery import Connect, follow
from rewards.judges.backends.vllm_server import VllmServer, client_of
from rewards.judges.errors import JudgeAbsent, JudgeRejected, JudgeServerError
from rewards.judges.factory import open_judges
from rewards.judges.pool.archive import RedisArchive
from rewards.judges.pool.pool import Split
from rewards.judges.types import Call, Completion, Token, Transport

if TYPE_CHECKING:
    from actors.speaker import Answer

LEAVE_S = 2.0
"""Until those who follow the roster have seen that a replica left; then what it has under way ends."""


def roster(context: RunContext, judge: str) -> Roster:
    return Roster(context.url, context.run_id, judge, context.config.run.progress_timeout_s)


class JudgeActor:
    """One replica of a judge: a server that lives and dies with this actor, on the roster while it answers."""

    def __init__(self, context: RunContext, name: str) -> None:
        settle()
        self._context, self._name = context, name
        self._judge = judge_of(name)
        self._section = context.config.judges[self._judge]
        self._server: VllmServer | None = None
        self._signing: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def ready(self) -> int:
        """Bring the server up; returns this actor's process id. Raises ConfigError, InfrastructureError."""
        section = self._section
        split = {"tensor_parallel_size": len(ray.get_gpu_ids())} if len(ray.get_gpu_ids()) > 1 else {}
        self._server = VllmServer(
            await asyncio.to_thread(_model, self._context, section),
            Path(self._context.run_dir) / "judges",
            served_name=section.model,
            host=ray.util.get_node_ip_address(),
            options=_memory(section) | split | _revision(section) | section.options,
        )
        with CreatedSegments() as created:
            await self._server.start(section.start_s)
            created.look(self._server.pid)
        remove_segments_after_me(created.found)
        url = self._server.url
        self._signing = asyncio.create_task(keep_signing(roster(self._context, self._judge), self._name, lambda: url))
        return os.getpid()

    async def run(self) -> None:
        """Answer until `stop`, then end what is under way. Raises InfrastructureError if the server ends by itself."""
        assert self._server is not None
        assert self._signing is not None
        ended = asyncio.create_task(self._server.ended())
        await first_to_end(asyncio.create_task(self._stopping.wait()), ended, self._signing)
        self._signing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._signing
        if not self._stopping.is_set():
            raise InfrastructureError(f"{self._name}: its server ended. {self._server.last_words()}")
        await asyncio.sleep(LEAVE_S)
        await self._server.drain(self._section.in_flight_ttl_s)
        await self._server.stop()

    async def stop(self) -> None:
        """Take no new questions; those under way are answered first."""
        self._stopping.set()

    async def key(self, url: str) -> str | None:
        """What the server at `url` must be shown, None if it is another one. For requests, not for log or disk."""
        return self._server.key if self._server is not None and self._server.url == url else None

    async def waiting(self) -> str:
        assert self._server is not None
        return f"answers for '{self._section.model}' at {self._server.url}"

    async def close(self) -> None:
        if self._signing is not None:
            self._signing.cancel()
        if self._server is not None:
            await self._server.stop()


class Judges:
    """A run's judges, for one process that asks them."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        sections = context.config.judges
        split = {name: found for name, s in sections.items() if (found := _split(context, s)) is not None}
        archive = RedisArchive(context.url, context.run_id, context.config.tracking.archived_answers)
        self.pools = open_judges(sections, archive, split)

    def follow(self) -> list[asyncio.Task[None]]:
        """Tasks that let the replicas the run places join and leave; they end by an error or by being cancelled."""
        kinds: dict[str, Connect] = {}
        for name, section in self._context.config.judges.items():
            if section.kind == "vllm":
                kinds[name] = partial(_server, self._context, section)
            elif section.kind == "policy":
                kinds[name] = partial(_policy, self._context)
        follows = (follow(self.pools[name], roster(self._context, name), connect) for name, connect in kinds.items())
        return [asyncio.create_task(task) for task in follows]


class PolicyTransport:
    """An engine of the run as a replica of a judge."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name, self._actor = name, actor

    async def complete(self, call: Call) -> Completion:
        """`call.choices` is not enforced: an engine that samples for training has no grammar."""
        asked = self._actor.answer.remote(
            call.messages,
            max_tokens=call.max_tokens,
            temperature=call.temperature,
            seed=call.seed,
            top_logprobs=call.top_logprobs,
        )
        try:
            answer = await asked
        except asyncio.CancelledError:
            ray.cancel(asked)
            raise
        except RayActorError as error:
            raise JudgeAbsent(f"{self.name} has ended: {one_line(error)}") from error
        except DataError as error:
            raise JudgeRejected(f"{self.name}: {one_line(error)}") from error
        except RayError as error:
            raise JudgeServerError(f"{self.name}: {one_line(error)}") from error
        return completion_of(answer)

    async def tokens(self, text: str) -> None:
        """Return nothing: the callers have the policy's tokenizer."""

    async def close(self) -> None:
        """The engine is not ours to end."""


def completion_of(answer: Answer) -> Completion:
    """What the policy wrote, as a judge's pool reads it."""
    return Completion(
        answer.text,
        answer.finish,
        "policy",
        tuple(Token(t.text, t.logprob, t.top) for t in answer.tokens),
        answer.num_prompt_tokens,
        answer.num_tokens,
        answer.version,
    )


async def _server(context: RunContext, section: JudgeSection, name: str, url: str) -> Transport:
    try:
        key = await (await _actor(context, name)).key.remote(url)
    except RayActorError as error:
        raise JudgeAbsent(f"{name} has ended: {one_line(error)}") from error
    if key is None:  # the roster still has one of an earlier life of the run
        raise JudgeAbsent(f"{name} is not at {url}")
    return client_of(
        url,
        key,
        section.model,
        revision=section.revision,
        timeout_s=section.in_flight_ttl_s,
        max_connections=section.max_in_flight,
    )


async def _policy(context: RunContext, name: str, _version: str) -> Transport:
    return PolicyTransport(name, await _actor(context, name))


async def _actor(context: RunContext, name: str) -> Any:
    """Raises JudgeAbsent."""
    try:
        return await asyncio.to_thread(ray.get_actor, worker_name(context.run_id, name))
    except ValueError as error:
        raise JudgeAbsent(f"{name} has ended: {one_line(error)}") from error


def _split(context: RunContext, section: JudgeSection) -> Split | None:
    """The judge's tokenizer, so that labels are checked before it is up; None where the run does not place it."""
    if section.kind == "policy" or is_alias(section.model):
        tokenizer = load_tokenizer(ModelSection(path=context.model_dir), context.config.seed, online=False)
    elif section.kind == "vllm" and not section.revision:
        tokenizer = load_tokenizer(ModelSection(path=section.model), context.config.seed, online=True)
    else:
        return None
    if tokenizer is None:
        return None

    async def split(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))

    return split


def _model(context: RunContext, section: JudgeSection) -> str:
    """A revision is vLLM's to fetch, an alias is a checkpoint; all else is made or downloaded as the policy's model."""
    if is_alias(section.model):
        return Registry(context.config, Path(context.run_dir), context.model_dir).directory(section.model).where
    return section.model if section.revision else str(prepare(ModelSection(path=section.model), context.config.seed))


def _memory(section: JudgeSection) -> dict[str, int]:
    """Room for the key-value cache of a judge on CPUs: vLLM would ask for 92 % of the host's memory.

    Nothing where the recipe, or the environment, says how much.
    """
    told = {"kv_cache_memory_bytes", "gpu_memory_utilization", "num_gpu_blocks_override"} & section.options.keys()
    if ray.get_gpu_ids() or told or "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        return {}
    return {"kv_cache_memory_bytes": kv_cache_bytes(available_bytes())}


def kv_cache_bytes(available: int) -> int:
    """Return the bytes of a judge's key-value cache: a quarter of the host's free memory, at most 4 GiB."""
    return min(available // 4, 4 * 2**30)


def _revision(section: JudgeSection) -> dict[str, str]:
    return {"revision": section.revision} if section.revision else {}


def judge_of(name: str) -> str:
    """The judge whose replica has this name, `judge:NAME-number`."""
    return name.partition(":")[2].rpartition("-")[0]


def place_judge(context: RunContext, name: str) -> Any:
    judge = judge_of(name)
    return (
        ray.remote(JudgeActor)
        .options(
            name=worker_name(context.run_id, name),
            max_concurrency=100,
            runtime_env=openmp(max(1, int(context.config.judges[judge].cpus))),
            **options(context.config, context.run_id, f"judge:{judge}"),
        )
        .remote(context, name)
    )
