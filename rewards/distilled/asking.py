"""How a labeller speaks to a judge: one bare completion per question, at most so many at a time."""

from __future__ import annotations

import asyncio

from cluster.types import Message
from rewards.judges.pool import JudgePool
from rewards.judges.types import Call

MAX_TOKENS = 512
"""Knowledge, analysis and label."""
TEMPERATURE = 0.1
"""Of ONI's code (arXiv:2410.23022)."""


class Asking:
    """Implements `rewards.distilled.captions.Complete`. Belongs to one event loop."""

    def __init__(self, pool: JudgePool, max_in_flight: int) -> None:
        self._pool, self._free = pool, asyncio.Semaphore(max_in_flight)

    async def __call__(self, messages: tuple[Message, ...]) -> str | None:
        """The answer, cut short or not: without its label it cannot be read. Raises JudgeError."""
        async with self._free:
            completion = await self._pool.complete(Call(messages, MAX_TOKENS, TEMPERATURE))
        return completion.text
