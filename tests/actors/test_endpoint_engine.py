"""An agent on OpenAI's client against the real engine: what is trained on is what the engine sampled."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from openai import AsyncOpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.chat import Chat
from actors.endpoint import Endpoint
from actors.engine import VllmEngine
from actors.environments.function import FunctionAgent
from actors.episode import Limits, play_agents
from cluster.config import EndpointSection, parse
from cluster.types import Task
from cluster.types.wire import consistent_rollout
from tests.actors.test_endpoint import check_sampled
from tests.actors.test_engine import logprobs_under
from tests.models import random_llama

CONFIG = parse({"engine": {"max_model_len": 448, "max_num_seqs": 32, "kv_cache_gib": 0.25}})
LIMITS = Limits(max_tokens=24, max_turns=8, temperature=1.0)


class Recording:
    """The engine, with a record of what it was asked and what it sampled."""

    exact, version, max_model_len = True, "0.0", 448

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.record: list[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]] = []

    async def sample(self, prompt, **options):
        sample = await self.engine.sample(prompt, **options)
        self.record.append((tuple(prompt), tuple(sample.tokens.tolist()), tuple(sample.logprobs.tolist())))
        return sample


async def talks(client: AsyncOpenAI, task: Task) -> float:
    """Three turns, then a history that is rewritten, two more, and two questions at once."""
    messages: list[Any] = [{"role": "system", "content": "be brief."}, {"role": "user", "content": task.prompt}]

    async def ask() -> None:
        answer = await client.chat.completions.create(model="policy", messages=messages)
        messages.append(answer.choices[0].message.model_dump(exclude_none=True))
        messages.append({"role": "user", "content": "and then?"})

    for _ in range(3):
        await ask()
    messages[1:-1] = [{"role": "user", "content": f"{task.prompt} in short: we talked."}]
    for _ in range(2):
        await ask()
    await asyncio.gather(ask(), ask())
    return float(len(messages))


@pytest.mark.engine
async def test_all_trained_tokens_of_an_agent_are_tokens_that_the_engine_sampled(tmp_path):
    directory = random_llama(tmp_path, tied=False, chat=True, scale=2.0)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    chat = Chat(tokenizer)
    engine = VllmEngine(directory, CONFIG, stop_tokens=list(range(2, 12)), version="0.0")
    await engine.start()
    environment = FunctionAgent(function="tests.actors.test_endpoint_engine:talks")
    endpoint = Endpoint(engine, chat, EndpointSection())
    try:
        for i in range(6):
            recording = Recording(engine)
            endpoint._engine = recording  # type: ignore[assignment]
            task = Task.of(f"t/{i}", f"what is {i} plus {i}?")
            rollouts = await play_agents(engine, chat, environment, task, "orig", LIMITS, endpoint=endpoint)
            check_sampled(rollouts, recording)  # type: ignore[arg-type]
            sampled = sum(len(tokens) for _, tokens, _ in recording.record)
            assert sum(r.num_tokens for r in rollouts) == sampled, "a sampled token is not trained on"
            assert len(rollouts) == 3, "the talk, the rewritten one, and the second of two questions"
            assert [len(r.turns) for r in rollouts] == [6, 6, 2]
            for rollout in rollouts:
                consistent_rollout(rollout)
                reference = logprobs_under(model, rollout.tokens)
                mask = rollout.loss_mask[1:]
                assert np.abs(reference - rollout.logprobs[1:])[mask].max() < 1e-3
    finally:
        await endpoint.close()
        await engine.close()
