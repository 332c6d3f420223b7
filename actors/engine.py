"""The engine a rollout worker samples from: vLLM's AsyncLLM behind the few calls that sampling needs.

`Engine` is the contract; `VllmEngine` is the real one. `tests/fakes.py` has a bigram policy with the same calls for
tests of other parts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

import numpy as np

from actors.adapter import AdapterFolder
from cluster.config import EngineSection, RunConfig
from cluster.errors import ConfigError, InfrastructureError
from cluster.process.causes import failure, last_error, overheard, unless_logged
from cluster.process.failpoints import failpoint
from cluster.types import Publication, VersionSpan

REFUSED_SAMPLING = ("min_tokens", "bad_words", "structured_outputs", "top_p", "top_k", "min_p")
"""They renormalise what is sampled from, so the learner's log-probs would belong to another distribution."""


UPDATE_S = 300.0
"""An update that takes longer hangs."""
HANGS_S = 20.0
"""An engine that has logged an error answers within this time, or never."""
LAST_WORDS_S = 1.0
"""A process that dies writes its trace within this time."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation of a prompt."""

    tokens: np.ndarray
    """[T] int32, the stop token included."""
    logprobs: np.ndarray
    """[T] float32, nats, of the distribution that was sampled from."""
    spans: tuple[VersionSpan, ...]
    """Versions of the weights, in offsets of `tokens`."""
    finish: Literal["stop", "length", "abort"]
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    """[T] the likeliest tokens at each place and their log-probs, where they were asked for."""


@dataclass(slots=True)
class PrefixCounts:
    """Tokens of the prompts that an engine continued, and how many its prefix cache held already."""

    prompt_tokens: int = 0
    cached_tokens: int = 0

    def add(self, prompt_tokens: int, cached_tokens: int) -> None:
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens

    def take(self) -> tuple[int, int]:
        """Return both counts since the last call."""
        taken = self.prompt_tokens, self.cached_tokens
        self.prompt_tokens = self.cached_tokens = 0
        return taken


class Engine(Protocol):
    version: str
    """`epoch.step` of the weights it samples with now."""
    max_model_len: int
    exact: bool
    """Whether it samples from the learner's model, so that its log-probs can be probed."""

    async def start(self) -> None: ...

    async def sample(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        top_logprobs: int = 0,
        seed: int | None = None,
        stop_tokens: Sequence[int] = (),
    ) -> Sample: ...

    async def next_logprobs(self, prompts: Sequence[Sequence[int]], next_tokens: Sequence[int]) -> np.ndarray: ...

    async def update(self, publication: Publication, path: str) -> float: ...

    async def close(self) -> None: ...


def check_options(section: EngineSection) -> None:
    """Raises ConfigError for options with which an engine would sample from another distribution than it reports."""
    for option in REFUSED_SAMPLING:
        if option in section.options:
            raise ConfigError(
                f"engine.options.{option} changes the distribution that is sampled from, and the learner would "
                "correct for another one. Leave it out."
            )


class VllmEngine:
    """AsyncLLM with processed log-probs, version spans and weights that change in flight."""

    exact = True

    def __init__(self, model_dir: str | Path, config: RunConfig, *, stop_tokens: Sequence[int], version: str) -> None:
        check_options(config.engine)
        _settle_environment()
        from vllm import AsyncEngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.stats import stat_loggers

        self._nccl = config.weights.transport == "nccl"
        backend = "nccl" if self._nccl else _pull_backend()
        arguments: dict[str, Any] = {
            "model": str(model_dir),
            "skip_tokenizer_init": True,
            "dtype": config.model.dtype,
            "max_model_len": config.engine.max_model_len,
            "max_num_seqs": config.engine.max_num_seqs,
            "max_num_batched_tokens": config.engine.max_num_batched_tokens,
            "tensor_parallel_size": config.engine.tensor_parallel,
            "logprobs_mode": "processed_logprobs",
            "distributed_executor_backend": _executor(config),
            "weight_transfer_config": WeightTransferConfig(backend=backend),
            "worker_extension_cls": "actors.receive.Extension",
            "disable_log_stats": True,
            "served_model_name": config.run.name,  # a label of its metrics
            "seed": config.seed,
        }
        if _on_cpu():
            arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": int(config.engine.kv_cache_gib * 2**30)}
            if config.weights.pause_mode != "abort":  # what a generation has so far must be there when it is aborted
                arguments |= {"scheduler_cls": "actors.scheduler.FinalOutputScheduler"}
        else:
            arguments |= {"gpu_memory_utilization": config.engine.gpu_memory_frac}
        lora = config.learner.lora
        self._adapter = AdapterFolder(lora, model_dir) if lora else None
        arguments |= (self._adapter.arguments if self._adapter else {}) | config.engine.options
        self._what = f"model.path = '{config.model.path}': vLLM cannot run it"
        with overheard() as said:
            try:
                self._llm = AsyncLLM.from_engine_args(
                    AsyncEngineArgs(**arguments), stat_loggers=stat_loggers(config.tracking)
                )
            except Exception as error:
                failed = error
            else:
                failed = None
        if failed is not None:
            raise failure(self._what, failed, said.text) from failed
        self._stop_tokens = list(stop_tokens)
        self.prefixes = PrefixCounts()
        self._mode: Literal["keep", "wait", "abort"] = config.weights.pause_mode
        self._ready_to_receive = self._received = False
        self.max_model_len = config.engine.max_model_len
        self.version = version

    async def start(self) -> None:
        """Name the weights that were loaded, without which spans would say `default`, and sample one token.

        Some configurations load and then fail in the first forward pass. Raises StartFailed, InfrastructureError.
        """
        with overheard() as said:
            try:
                async with asyncio.timeout(UPDATE_S):
                    await unless_logged(self._first_token(), said, HANGS_S)
            except Exception as error:
                failed = error
                await asyncio.sleep(LAST_WORDS_S)  # its processes still write what they died of
            else:
                failed = None
        if failed is not None:
            # That the engine is dead is no cause: the log has it.
            told = None if isinstance(failed, InfrastructureError) and last_error(said.text) else failed
            raise failure(self._what, told, said.text) from failed

    async def _first_token(self) -> None:
        if self._adapter:
            await self._llm.add_lora(self._adapter.request(load_inplace=True))
        await self._llm.update_weight_version(self.version)
        await self._generate([0], max_tokens=1, temperature=1.0)

    async def sample(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        top_logprobs: int = 0,
        seed: int | None = None,
        stop_tokens: Sequence[int] = (),
    ) -> Sample:
        """Continue `prompt` by at most `max_tokens` tokens, or until the first of the model's or of these stop tokens.

        Raises InfrastructureError if the engine is dead.
        """
        answer = await self._request(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            stop_token_ids=[*self._stop_tokens, *stop_tokens],
            logprobs=top_logprobs,
            flat_logprobs=not top_logprobs,
        )
        self.prefixes.add(len(prompt), answer.num_cached_tokens or 0)
        output = answer.outputs[0]
        top = ()
        if top_logprobs:
            rows = output.logprobs
            logprobs = [row[token].logprob for row, token in zip(rows, output.token_ids, strict=True)]
            top = tuple(_likeliest(row, top_logprobs) for row in rows)
        else:
            logprobs = output.logprobs.logprobs
        return Sample(
            np.array(output.token_ids, np.int32),
            np.array(logprobs, np.float32),
            tuple(VersionSpan(s.version, s.start, s.end) for s in output.weight_versions or ()),
            output.finish_reason,
            top,
        )

    async def next_logprobs(self, prompts: Sequence[Sequence[int]], next_tokens: Sequence[int]) -> np.ndarray:
        """[N] nats: log-prob of `next_tokens[i]` after `prompts[i]`, at temperature 1, as a decoder sees it."""

        async def one(prompt: Sequence[int], token: int) -> float:
            output = await self._generate(prompt, max_tokens=1, temperature=1.0, logprob_token_ids=[token])
            return output.logprobs[0][token].logprob

        return np.array(await asyncio.gather(*map(one, prompts, next_tokens)), np.float32)

    async def update(self, publication: Publication, path: str) -> float:
        """Swap in published weights under running generations; returns the seconds they stood still.

        Raises InfrastructureError if that fails or takes too long; this engine must then be replaced. The first one
        raises StartFailed where the model does not take these weights: no engine would.
        """
        paused = 0.0
        with overheard() as said:
            try:
                async with asyncio.timeout(UPDATE_S):
                    work = (
                        self._swap(self._adapter, publication, path)
                        if self._adapter
                        else self._reload(publication, path)
                    )
                    paused = await (work if self._received else unless_logged(work, said, HANGS_S))
            except Exception as error:
                failed = error
            else:
                failed = None
        if failed is not None:
            # Not resumed: an engine with half its weights must not speak.
            what = f"version {publication.version} did not get into the engine"
            if self._received or isinstance(failed, (OSError, TimeoutError)):
                raise InfrastructureError(f"{what}: {failed or type(failed).__name__}") from failed
            raise failure(f"{what}, whose model does not take what the learner sends", failed, said.text) from failed
        self._received = True
        self.version = publication.version
        return paused

    async def _reload(self, publication: Publication, path: str) -> float:
        """Return the seconds that generations stood still. What can be staged is, while they run."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        if not self._ready_to_receive:
            await self.init_weight_transfer_engine({})
        parts = min(await self._llm.collective_rpc("staged_parts", args=(path,)))
        start = time.monotonic()
        if not parts:
            await self._llm.pause_generation(mode=self._mode, clear_cache=True)
        await self._llm.start_weight_update()
        failpoint("actor.mid_update")
        for part in range(parts or 1):  # steps of generation come between two parts
            info = {"path": path, "part": part, "parts": parts or 1}
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info=info))
        if parts:
            start = time.monotonic()
            await self._llm.pause_generation(mode=self._mode, clear_cache=True)
        await self._llm.finish_weight_update(publication.version)
        await self._llm.resume_generation()
        return time.monotonic() - start

    async def _swap(self, adapter: AdapterFolder, publication: Publication, path: str) -> float:
        start = time.monotonic()
        await self._llm.pause_generation(mode=self._mode, clear_cache=True)
        failpoint("actor.mid_update")
        adapter.hold(path)
        await self._llm.add_lora(adapter.request(load_inplace=True))
        await self._llm.update_weight_version(publication.version)
        await self._llm.resume_generation()
        return time.monotonic() - start

    async def close(self) -> None:
        self._llm.shutdown()
        if self._adapter:
            self._adapter.close()

    # What vLLM's stock trainer client (RayVLLMWeightSyncClient) calls on the actor, for the nccl transport.

    async def init_weight_transfer_engine(self, request: Any) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        if not isinstance(request, WeightTransferInitRequest):
            request = WeightTransferInitRequest(init_info=dict(request))
        await self._llm.init_weight_transfer_engine(request)
        self._ready_to_receive = True

    async def start_weight_update(self) -> None:
        await self._llm.pause_generation(mode=self._mode, clear_cache=True)
        await self._llm.start_weight_update()

    async def update_weights(self, request: Any) -> None:
        await self._llm.update_weights(request)

    async def finish_weight_update(self) -> None:
        try:
            await self._llm.finish_weight_update()
        finally:
            await self._llm.resume_generation()

    async def update_weight_version(self, version: str) -> None:
        await self._llm.update_weight_version(version)
        self.version = version

    async def shutdown_weight_transfer_engine(self) -> None:
        await self._llm.shutdown_weight_transfer_engine()

    async def _generate(self, prompt: Sequence[int], **sampling: Any) -> Any:
        return (await self._request(prompt, **sampling)).outputs[0]

    async def _request(self, prompt: Sequence[int], **sampling: Any) -> Any:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        adapter = self._adapter.request() if self._adapter else None
        params = SamplingParams(detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **sampling)
        try:
            async for output in self._llm.generate(
                tokens_input(list(prompt)), params, request_id=uuid4().hex, lora_request=adapter
            ):
                final = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise InfrastructureError(
                f"vLLM's engine stopped: {error}. Its log is in Ray's session directory."
            ) from error
        return final


ENGINES = {"vllm": VllmEngine}
"""Engines by name; your own is `package.module:Class` with the calls of `Engine`."""


def _likeliest(row: Any, count: int) -> tuple[tuple[int, float], ...]:
    """Return the likeliest tokens of one place with their log-probs, likeliest first, without a less likely token that
    was drawn."""
    return tuple(sorted(((t, p.logprob) for t, p in row.items()), key=lambda pair: -pair[1])[:count])


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def _executor(config: RunConfig) -> Any:
    """Return vLLM's way to run the model: inside the engine's core process on one CPU worker.

    A worker process of its own reads from the core through shared memory, and spins for a second after each message
    on cores that the engine could use. vLLM's configuration replaces the name `uni` on CPUs, because it cannot bind
    threads to cores then, which Kanabo does not do; it keeps the class.
    """
    parallel = {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"} & config.engine.options.keys()
    if config.engine.tensor_parallel > 1 or parallel or not _on_cpu():
        return "mp"
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return UniProcExecutor


def _pull_backend() -> str:
    from actors.receive import BACKEND

    return BACKEND


def _settle_environment() -> None:
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
