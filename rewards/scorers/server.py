"""Requests queue up. A worker thread scores them in batches and swaps weights between batches.

    read ─► queue (bounded, deadlines) ─► whole requests up to a batch ─► thread ─► answers
                                           ▲ load waits here for its turn, so a request has one version

Everything but the reading itself happens in the event loop of whoever owns the server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rewards.scorers.forward import Forward
from rewards.scorers.types import ScorerUnavailable, TokenSequence, TokenStats


@dataclass(slots=True, eq=False)
class _Asked:
    passages: Sequence[TokenSequence]
    rows: list[tuple[list[int], int]]
    answer: asyncio.Future[list[TokenStats]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def num_tokens(self) -> int:
        return sum(len(tokens) for tokens, _ in self.rows)


class ScoringServer:
    """Reads with one model. `batch_tokens`: of requests that are read together; `max_queue`: passages that may wait."""

    def __init__(self, forward: Forward, *, batch_tokens: int, max_queue: int) -> None:
        self._forward, self._batch_tokens, self._max_queue = forward, batch_tokens, max_queue
        self._queue: deque[_Asked] = deque()
        self._more = asyncio.Event()
        self._reading = asyncio.Lock()

    @property
    def version(self) -> str:
        return self._forward.version

    @property
    def num_waiting(self) -> int:
        """Passages that nobody reads yet."""
        return sum(len(asked.passages) for asked in self._queue)

    async def read(self, passages: Sequence[TokenSequence], timeout_s: float) -> list[TokenStats]:
        """All under the same weights. Raises ScorerUnavailable if the queue is full or the time is up, DataError."""
        if self.num_waiting + len(passages) > self._max_queue:
            raise ScorerUnavailable(
                f"{self.num_waiting} passages wait already and {len(passages)} more are beyond max_queue = "
                f"{self._max_queue}. Add replicas, or raise it."
            )
        asked = _Asked(passages, self._forward.rows(passages))
        self._queue.append(asked)
        self._more.set()
        try:
            return await asyncio.wait_for(asked.answer, timeout_s)
        except TimeoutError:
            raise ScorerUnavailable(f"nothing was read within {timeout_s:g} s. Add replicas.") from None
        finally:
            if asked in self._queue:
                self._queue.remove(asked)

    async def load(self, load: Callable[[Forward], None]) -> None:
        """New weights, between two batches."""
        async with self._reading:
            await asyncio.to_thread(load, self._forward)

    async def run(self) -> None:
        """Read until cancelled. Raises what the model raises: a model that cannot read one batch reads none."""
        while True:
            await self._more.wait()
            async with self._reading:
                batch = self._next()
                if batch:
                    passages = [p for asked in batch for p in asked.passages]
                    rows = [r for asked in batch for r in asked.rows]
                    readings = iter(await asyncio.to_thread(self._forward.read, passages, rows))
                    for asked in batch:
                        found = [next(readings) for _ in asked.passages]
                        if not asked.answer.done():
                            asked.answer.set_result(found)

    def _next(self) -> list[_Asked]:
        """Whole requests, the oldest first; those that nobody waits for any more are passed over."""
        batch: list[_Asked] = []
        num_tokens = 0
        while self._queue and (not batch or num_tokens + self._queue[0].num_tokens <= self._batch_tokens):
            asked = self._queue.popleft()
            if not asked.answer.done():
                batch.append(asked)
                num_tokens += asked.num_tokens
        if not self._queue:
            self._more.clear()
        return batch
