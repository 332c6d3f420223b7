"""A scorer as signals see it: replicas that come and go, the one with the fewest passages in hand reads."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from rewards.scorers.types import ScorerReplica, ScorerUnavailable, TokenSequence, TokenStats

FULL_S = 0.5
"""Between two attempts where every replica's queue is full."""


class LogprobScorer:
    """Asks until the deadline is over: a replica that has ended, or is full, leaves the request to another."""

    def __init__(self, name: str, *, deadline_s: float) -> None:
        self.name, self._deadline_s = name, deadline_s
        self._replicas: dict[str, ScorerReplica] = {}
        self._in_hand: Counter[str] = Counter()
        self._changed = asyncio.Condition()
        self._num_passages, self._num_failed, self._latency_s = 0, 0, 0.0

    async def follow(self, replicas: dict[str, ScorerReplica]) -> None:
        """These are there now, and no others."""
        async with self._changed:
            self._replicas = replicas
            self._changed.notify_all()

    @property
    def replicas(self) -> dict[str, ScorerReplica]:
        return self._replicas

    async def read(self, passages: Sequence[TokenSequence]) -> list[TokenStats]:
        """One reading each, all under the same weights. Raises ScorerUnavailable, DataError."""
        begun = time.monotonic()
        last, tried = "no replica is there", set()
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    name, replica = await self._take(tried)
                    self._in_hand[name] += len(passages)
                    try:
                        left_s = self._deadline_s - (time.monotonic() - begun)
                        found = await replica.read(passages, left_s)
                        self._num_passages += len(passages)
                        self._latency_s = time.monotonic() - begun
                        return found
                    except ScorerUnavailable as error:
                        last = f"{name}: {error}"
                        tried.add(name)
                        if tried >= self._replicas.keys():
                            await asyncio.sleep(FULL_S)
                            tried.clear()
                    finally:
                        self._in_hand[name] -= len(passages)
        except TimeoutError:
            self._num_failed += len(passages)
            raise ScorerUnavailable(
                f"scorer '{self.name}': nothing within deadline_s = {self._deadline_s:g} s; {last}"
            ) from None

    async def _take(self, tried: set[str]) -> tuple[str, ScorerReplica]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._replicas)
            return min(self._replicas.items(), key=lambda item: (item[0] in tried, self._in_hand[item[0]]))

    def trouble(self) -> str:
        """Why nobody reads now, in words; nothing if somebody does."""
        return "" if self._replicas else f"scorer '{self.name}' has no replica"

    def snapshot(self) -> dict[str, float]:
        """Metrics by name."""
        return {
            f"scorer/{self.name}_num_passages": float(self._num_passages),
            f"scorer/{self.name}_num_failed": float(self._num_failed),
            f"scorer/{self.name}_latency_s": self._latency_s,
        }
