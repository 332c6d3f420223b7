"""`[model]` and `[engine]`: what samples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from cluster.config.base import Section


class ModelSection(Section):
    path: str = "tiny:addition"
    """Directory or Hugging Face id; `tiny:NAME` and `smollm2` are made on the spot and cached."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the engines' weights; `learner.dtype` is the learner's."""
    options: dict[str, Any] = {}
    """For `tiny:NAME`: the fields of its recipe in actors/tiny/."""


class EngineSection(Section):
    use: str = "vllm"
    """Or `package.module:Class` with the calls of `actors.engine.Engine`."""
    max_model_len: PositiveInt = 2048
    """Tokens of prompt and answers together; a longer prompt is a data failure."""
    max_num_seqs: PositiveInt = 256
    """Rollouts that one engine samples at once."""
    max_num_batched_tokens: PositiveInt = 8192
    """Tokens of one forward pass of the engine."""
    kv_cache_gib: PositiveFloat = 1.0
    """Key-value cache of a CPU engine."""
    tensor_parallel: PositiveInt = 1
    """GPUs of one engine."""
    gpu_memory_frac: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that its engine takes."""
    threads: NonNegativeInt = 0
    """CPU threads of one engine; 0 shares the cores out evenly among engines and ranks."""
    options: dict[str, Any] = {}
    """Further fields of vLLM's AsyncEngineArgs."""


class EndpointSection(Section):
    """The policy behind OpenAI's API, for environments that are agents."""

    enabled: bool = False
    """Serve every engine from the start, also where no environment needs it."""
    host: str = "127.0.0.1"
    """Where it listens. Every request needs a key: that of an episode, or $KANABO_ENDPOINT_KEY."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port, or the next free one where it is taken; 0 is any."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which clients may reach it, besides loopback names and `host`; `*.domain` stands for all below."""
    aliases: tuple[str, ...] = ()
    """Further names of the model, for agents that ask for one of their own, such as `gpt-4o`."""
    max_body_mib: PositiveFloat = 4.0
    """Most bytes of a request; a larger one is refused."""
