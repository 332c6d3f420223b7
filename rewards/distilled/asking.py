"""How a labeller speaks to a judge: one bare completion per question, at most so many at a time."""

from __future__ import annotations

import asyncio

from cluster.types import Message
from rewards.distilled.captions import MAX_TOKENS, TEMPERATURE
from rewards.judges.pool import JudgePool
from rewards.judges.types import Call


class Asking:
    """Implements `rewards.distilled.captions.Complete`. Belongs to one event loop."""

    def __init__(self, pool: JudgePool, max_in_flight: int) -> None:
        self._pool, self._free = pool, asyncio.Semaphore(max_in_flight)

    async def __call__(
        self, messages: tuple[Message, ...], /, *, max_tokens: int = MAX_TOKENS, temperature: float = TEMPERATURE
    ) -> str | None:
        """The answer, cut short or not: without its label it cannot be read. Raises JudgeError."""
        async with self._free:
            completion = await self._pool.complete(Call(messages, max_tokens, temperature))
        return completion.text
