"""The GPU transport on a CPU: our publisher and vLLM's trainer engine broadcast into a running engine, over gloo."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.engine import VllmEngine
from cluster.config import parse
from cluster.types import Publication
from learner.publish.publishers import NcclPublisher
from tests.models import random_llama

CONFIG = parse(
    {
        "engine": {
            "max_model_len": 320, "max_num_seqs": 8, "kv_cache_gib": 0.25,
            "options": {"worker_extension_cls": "tests.gloo_worker.Extension"},
        },
        "weights": {"transport": "nccl"},
    }
)  # fmt: skip
PROMPT = [5, 9, 17, 30, 8]


class Learner:
    """What a publisher asks of a learner's engine, with one rank."""

    rank = 0

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def metadata(self) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
        for name, tensor in self.weights():
            yield name, tensor.dtype, tuple(tensor.shape)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach()

    def change(self) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))

    def logprobs(self) -> np.ndarray:
        """[V] nats, of the token behind the prompt."""
        with torch.no_grad():
            return self.model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1).numpy()


class Handle:
    """An engine in this process under the calls of a Ray actor; `ray.get` below waits for their answers."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine, self._loop = engine, asyncio.get_running_loop()

    def __getattr__(self, method: str) -> SimpleNamespace:
        call = getattr(self._engine, method)
        return SimpleNamespace(remote=lambda *asked: asyncio.run_coroutine_threadsafe(call(*asked), self._loop))


async def apart(engine: VllmEngine, learner: Learner) -> float:
    """Largest difference in nats between engine and learner, over every token that may come next."""
    expected = learner.logprobs()
    tokens = range(len(expected))
    found = await engine.next_logprobs([PROMPT] * len(expected), tokens)
    return float(np.abs(found - expected).max())


@pytest.mark.engine
async def test_broadcast_weights_are_what_the_running_engine_samples_from(tmp_path, monkeypatch):
    from tests import gloo_nccl  # imports vLLM, which the tests beside this one do without

    gloo_nccl.install(monkeypatch.setattr)
    monkeypatch.setattr(ray, "get", lambda references: [reference.result(120) for reference in references])
    directory = random_llama(tmp_path / "model", tied=False, scale=2.0)
    learner = Learner(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = ("127.0.0.1", probe.getsockname()[1])
    announced: list[tuple[str, str]] = []
    engine = VllmEngine(directory, CONFIG, stop_tokens=[2], version="1.0")
    handle = Handle(engine)

    def announce(publication: Publication) -> None:
        announced.append((publication.version, engine.version))

    def open_publisher() -> NcclPublisher:
        announcer: Any = SimpleNamespace(announce=announce)
        asked: Any = learner
        return NcclPublisher(
            announcer, "policy", 1, asked, handles=[handle], workers_per_engine=1, master=master
        )  # fmt: skip

    try:
        await engine.start()
        assert await apart(engine, learner) < 1e-3
        publisher = await asyncio.to_thread(open_publisher)
        for step in (1, 2):
            learner.change()
            assert await apart(engine, learner) > 0.1, "the change is too small to be seen"
            await asyncio.to_thread(publisher.publish, learner, step)
            assert await apart(engine, learner) < 1e-3
            sample = await engine.sample(PROMPT, max_tokens=4, temperature=1.0)
            assert {span.version for span in sample.spans} == {f"1.{step}"}
        await asyncio.to_thread(publisher.close)
        await engine.shutdown_weight_transfer_engine()
    finally:
        await engine.close()
    assert announced == [("1.1", "1.1"), ("1.2", "1.2")], "a version is announced once the engine has it"
