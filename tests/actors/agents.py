"""Agents and an engine for tests of the endpoint: the engine writes what a script says and records what it sampled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from openai import AsyncOpenAI

from actors.chat import Chat
from actors.endpoint import Endpoint
from actors.engine import Sample
from actors.episode import Limits, play_agents
from cluster.config import EndpointSection
from cluster.types import Rollout, Task, VersionSpan
from tests.actors.test_chat import CHATML, tokenizer

TASK = Task.of("t", "2+2?", "four")
LIMITS = Limits(max_tokens=64, max_turns=20, temperature=0.7)


class Scripted:
    """`write(prompt)` says what is sampled behind a prompt: text, which is tokenised letter by letter, and ends."""

    exact, version = True, "1.0"

    def __init__(self, chat: Chat, write: Callable[[str], str], *, max_model_len: int = 4096) -> None:
        self.chat, self.write, self.max_model_len = chat, write, max_model_len
        self.record: list[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]] = []
        """Of each sample: prompt, tokens, log-probs."""
        self.gate: asyncio.Event | None = None
        """What every sample waits for, if anything."""
        self.waiting = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def sample(self, prompt, *, max_tokens, temperature) -> Sample:
        if self.gate is not None:
            self.waiting.release()
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        text = self.write(self.chat._tokenizer.decode(prompt))
        letters = [i for c in text for i in self.chat.encode(c, first=False)]
        tokens = [*letters, self.chat.stop_tokens[-1]][:max_tokens]
        logprobs = [-0.001 * (len(self.record) * 1000 + i) for i in range(len(tokens))]
        self.record.append((tuple(prompt), tuple(tokens), tuple(logprobs)))
        finish = "stop" if len(tokens) > len(letters) else "length"
        spans = (VersionSpan(self.version, 0, len(tokens)),)
        return Sample(np.array(tokens, np.int32), np.array(logprobs, np.float32), spans, finish)


def chat(template: str | None = CHATML) -> Any:
    """A chat whose canonical tokens are longer than letters: text that is tokenised again gives other ids."""
    return Chat(merging(template))


def merging(template: str | None) -> Any:
    made = tokenizer(template)
    made.add_tokens(["four", "the", " is"])
    return made


async def played(
    engine: Any, environment: Any, limits: Limits = LIMITS, task: Task = TASK, variant: str = "orig"
) -> list[Rollout]:
    """One episode of an agent, with an endpoint of its own."""
    endpoint = Endpoint(engine, engine.chat, EndpointSection())
    try:
        return await play_agents(engine, engine.chat, environment, task, variant, limits, endpoint=endpoint)
    finally:
        await endpoint.close()


async def asks_once(client: AsyncOpenAI, task: Task) -> float:
    answer = await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": task.prompt}])
    return float(answer.choices[0].message.content == task.answer)


async def two_turns(client: AsyncOpenAI, task: Task) -> dict:
    messages: list[Any] = [{"role": "user", "content": task.prompt}]
    for _ in range(2):
        answer = await client.chat.completions.create(model="policy", messages=messages)
        messages += [answer.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": "Sure?"}]
    return {"reward": 0.5, "answer": messages[-2]["content"]}


async def never_asks(client: AsyncOpenAI, task: Task) -> float:
    return 1.0


async def raises(client: AsyncOpenAI, task: Task) -> float:
    await asks_once(client, task)
    raise KeyError("no such tool")


async def hangs(client: AsyncOpenAI, task: Task) -> float:
    await asks_once(client, task)
    await asyncio.sleep(3600)
    return 1.0


async def exits(client: AsyncOpenAI, task: Task) -> float:
    await asks_once(client, task)
    raise SystemExit(1)


async def sends_10_mb(client: AsyncOpenAI, task: Task) -> float:
    await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "a" * 10**7}])
    return 1.0


async def asks_for_top_p(client: AsyncOpenAI, task: Task) -> float:
    await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "?"}], top_p=0.5)
    return 1.0


async def closes_in_mid_stream(client: AsyncOpenAI, task: Task) -> float:
    messages: list[Any] = [{"role": "user", "content": task.prompt}]
    stream = await client.chat.completions.create(model="policy", messages=messages, stream=True)
    async for _ in stream:
        break
    await stream.close()
    return 0.5


async def goes_on_for_ever(client: AsyncOpenAI, task: Task) -> float:
    while True:
        await asks_once(client, task)


async def gives_infinity(client: AsyncOpenAI, task: Task) -> float:
    return await asks_once(client, task) + float("inf")


async def gives_text(client: AsyncOpenAI, task: Task) -> str:
    return str(await asks_once(client, task))


async def wrong_model(client: AsyncOpenAI, task: Task) -> float:
    await client.chat.completions.create(model="polcy", messages=[{"role": "user", "content": "?"}])
    return 1.0


def not_async(client, task) -> float:
    return 1.0


async def of_one(client) -> float:
    return 1.0


async def calls_tools(client: AsyncOpenAI, task: Task) -> dict:
    """Makes the policy's calls until a turn has none, and asks once more for a call that stayed text."""
    from tests.actors.test_tools import ADD

    messages: list[Any] = [{"role": "user", "content": task.prompt}]
    while True:
        answer = await client.chat.completions.create(model="policy", messages=messages, tools=[ADD])
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if "<tool_call>" in (message.content or ""):
            messages.append({"role": "user", "content": "This call cannot be read."})
        elif message.tool_calls:
            results = [(c.id, sum(json.loads(c.function.arguments).values())) for c in message.tool_calls]
            messages += [{"role": "tool", "tool_call_id": id, "content": str(result)} for id, result in results]
        else:
            return {"reward": 1.0, "answer": message.content}
