"""Weights from the learner into a running engine, against a memory copy of the same bytes.

The 135M parameters of SmolLM2 in bf16, through shared memory, while the engine samples: the copy is made under the
same load. `pause_s` is how long generations stood still; an engine on a CPU loads the file in parts before that, each
between two steps, and `longest_part_s` is the longest time that one of them took, with the step before it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure, alternate_here

MODEL, DTYPE, IN_FLIGHT = "smollm2", "bfloat16", 32


class Held:
    """The part of a learner's engine that a publisher uses: a model's weights, a tied head under its own name too."""

    rank = 0

    def __init__(self, model: Any) -> None:
        from learner.engine.forward import tied_head

        self.tensors = {name: p.detach() for name, p in model.named_parameters()}
        if tied := tied_head(model):
            self.tensors[tied[0]] = self.tensors[tied[1]]

    def weights(self) -> Iterator[tuple[str, Any]]:
        yield from self.tensors.items()

    def metadata(self) -> list[tuple[str, Any, tuple[int, ...]]]:
        return [(name, t.dtype, tuple(t.shape)) for name, t in self.tensors.items()]


def measure() -> list[Figure]:
    os.environ |= {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "PASSIVE"}
    return [asyncio.run(_measure())]


async def _measure() -> Figure:
    from transformers import AutoModelForCausalLM

    from actors.models import prepare
    from actors.rollout import INITIAL
    from cluster.buffer import Buffer, Limits
    from cluster.buffer.server import Store
    from cluster.config import parse
    from learner.publish.publishers import PullPublisher
    from tests.bench.engine import Endless

    config = parse(
        {
            "model": {"path": MODEL, "dtype": DTYPE},
            "rollout": {"max_tokens": 64},
            "engine": {"max_model_len": 256, "max_num_seqs": IN_FLIGHT},
        }
    )
    model_dir = prepare(config.model, config.seed)
    learner: Any = Held(AutoModelForCausalLM.from_pretrained(model_dir, dtype=DTYPE))
    num_bytes = sum(t.nbytes for t in learner.tensors.values())
    engine = Endless(model_dir, config, stop_tokens=[], version=INITIAL)
    await engine.start()
    parts = _timed_parts(engine)
    writes: list[float] = []
    pauses: list[float] = []
    with tempfile.TemporaryDirectory() as directory, Store(Path(directory)) as store:
        buffer = Buffer(store.url, "bench")
        buffer.configure(Limits(1, 0))
        epoch = buffer.resume("policy", None)
        publisher = PullPublisher(buffer, "policy", epoch, run_id=f"bench-{os.getpid()}")

        async def ours() -> float:
            begun = time.monotonic()
            await asyncio.to_thread(publisher.publish, learner, len(writes))
            writes.append(time.monotonic() - begun)
            publication = await asyncio.to_thread(buffer.published, "policy", other_than=engine.version, timeout_s=10.0)
            assert publication is not None
            pauses.append(await engine.update(publication, publication.file.path))
            return num_bytes / 1e6 / (time.monotonic() - begun)

        async def other() -> float:
            begun = time.monotonic()
            await asyncio.to_thread(lambda: [t.clone() for t in learner.tensors.values()])
            return num_bytes / 1e6 / (time.monotonic() - begun)

        sampling = [asyncio.create_task(_sample_on(engine, [3 + i] * 16)) for i in range(IN_FLIGHT)]
        try:
            rates = await alternate_here(ours, other)
        finally:
            for task in sampling:
                task.cancel()
            publisher.close()
            await engine.close()
        buffer.close()
    details = {
        "megabytes": round(num_bytes / 1e6),
        "write_s": statistics.median(writes[1:]),
        "pause_s": statistics.median(pauses[1:]),
        "longest_pause_s": max(pauses[1:]),
        "longest_part_s": max(parts),
        "in_flight": IN_FLIGHT,
    }
    return Figure("publish", "MB/s", *rates, None, details)


def _timed_parts(engine: Any) -> list[float]:
    """Return a list to which the engine adds the seconds that each part of the weights takes to be loaded."""
    load, parts = engine._llm.update_weights, []

    async def timed(request: Any) -> None:
        begun = time.monotonic()
        await load(request)
        parts.append(time.monotonic() - begun)

    engine._llm.update_weights = timed
    return parts


async def _sample_on(engine: Any, prompt: list[int]) -> None:
    while True:
        await engine.sample(prompt, max_tokens=200, temperature=1.0)
