"""The whole rollout worker, groups put to a real Redis, against the bare AsyncLLM that it drives.

Both sides use one engine, with the same prompts, sampling parameters and requests in flight, and without a stop token,
so that each writes the same number of tokens.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure, alternate_here


@dataclass(frozen=True)
class Load:
    name: str
    model: str
    dtype: str
    threads: int
    max_tokens: int
    groups: int
    """That a repetition samples, of `group_size` rollouts each."""
    group_size: int
    max_num_seqs: int
    at_least: float | None

    @property
    def concurrent_groups(self) -> int:
        """Twice what the engine samples at once: it never waits for requests."""
        return 2 * self.max_num_seqs // self.group_size


LOADS = (
    Load("sampling", "smollm2", "bfloat16", 2, 32, groups=12, group_size=8, max_num_seqs=32, at_least=0.95),
    Load("sampling_1.4M", "tiny:addition", "float32", 1, 48, groups=48, group_size=16, max_num_seqs=256, at_least=None),
)


def measure() -> list[Figure]:
    return [asyncio.run(_measure(load)) for load in LOADS]


async def _measure(load: Load) -> Figure:
    # For the engine's processes, which inherit it.
    os.environ |= {"OMP_NUM_THREADS": str(load.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    from transformers import AutoTokenizer

    from actors.chat import Chat
    from actors.environments.single_turn import SingleTurn
    from actors.models import prepare
    from actors.rollout import INITIAL, RolloutWorker
    from actors.tasks import Addition
    from cluster.buffer import Buffer, Limits
    from cluster.buffer.server import Store
    from cluster.config import parse
    from cluster.types import Publication
    from tests.bench.engine import Endless

    config = parse(
        {
            "model": {"path": load.model, "dtype": load.dtype},
            "rollout": {
                "group_size": load.group_size,
                "max_tokens": load.max_tokens,
                "concurrent_groups": load.concurrent_groups,
            },
            "engine": {
                "max_model_len": 256,
                "max_num_seqs": load.max_num_seqs,
                "kv_cache_gib": 1.0,
            },
        }
    )
    model_dir = prepare(config.model, config.seed)
    chat, tasks = Chat(AutoTokenizer.from_pretrained(model_dir)), Addition().train()
    engine = Endless(model_dir, config, stop_tokens=[], version=INITIAL)
    await engine.start()
    with tempfile.TemporaryDirectory() as directory, Store(Path(directory)) as store:
        buffer = Buffer(store.url, "bench")
        buffer.configure(Limits(load.groups, 0))
        epoch = buffer.resume("policy", None)
        engine.version = f"{epoch}.0"
        buffer.announce(Publication("policy", epoch, 0))
        worker = RolloutWorker(
            "bench", policy="policy", engine=engine, chat=chat, environment=SingleTurn(),
            task_at=lambda position: tasks[position % len(tasks)], buffer=buffer, config=config, fetch=_never,
        )  # fmt: skip
        running = asyncio.create_task(worker.run())
        prompts = [chat.prompt(task.variants["orig"]) for task in tasks[: load.groups] for _ in range(load.group_size)]

        async def groups() -> Any:
            return await asyncio.to_thread(buffer.ready, "policy", epoch, 0, limit=load.groups, timeout_s=300.0)

        async def ours() -> float:
            begun = time.monotonic()
            # Dropping what is there admits as many again; the worker waits for nothing else.
            await asyncio.to_thread(buffer.drop, "policy", epoch, {s.group.id: "bench" for s in done})
            done[:] = await groups()
            return sum(r.num_tokens for s in done for r in s.group.rollouts) / (time.monotonic() - begun)

        async def other() -> float:
            begun = time.monotonic()
            return await _bare(engine._llm, prompts, load) / (time.monotonic() - begun)

        done = list(await groups())
        lengths = {r.num_tokens for s in done for r in s.group.rollouts}
        assert lengths == {load.max_tokens}, f"{load.name}: rollouts of {sorted(lengths)} tokens"
        rates = await alternate_here(ours, other)
        await worker.stop()
        await running
        buffer.close()
    await engine.close()
    details = {"model": load.model, "max_tokens": load.max_tokens, "rollouts": load.groups * load.group_size}
    return Figure(load.name, "tokens/s", *rates, load.at_least, details)


async def _bare(llm: Any, prompts: list[list[int]], load: Load) -> int:
    """Tokens sampled for these prompts, by as many requests at once as the worker keeps in flight."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        max_tokens=load.max_tokens, temperature=1.0, ignore_eos=True, logprobs=0, flat_logprobs=True, detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip
    places = asyncio.Semaphore(load.concurrent_groups * load.group_size)

    async def one(index: int) -> int:
        async with places:
            async for output in llm.generate(tokens_input(prompts[index]), params, request_id=f"bare-{index}"):
                final = output
        return len(final.outputs[0].token_ids)

    return sum(await asyncio.gather(*map(one, range(len(prompts)))))


async def _never(publication: Any) -> str:
    raise AssertionError(f"{publication} was fetched, but the engine has these weights")
