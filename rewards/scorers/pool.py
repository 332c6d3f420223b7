"""A scorer as rewards see it: replicas that come and go, the one with the fewest sequences in hand reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from cluster.process.replica_pool import ReplicaPool
from rewards.scorers.types import ScorerReplica, ScorerUnavailable, TokenSequence, TokenStats


class LogprobScorer:
    """Asks until the deadline is over: a replica that has ended, or is full, leaves the request to another."""

    def __init__(self, name: str, *, deadline_s: float) -> None:
        self.name, self._deadline_s = name, deadline_s
        self._pool: ReplicaPool[ScorerReplica] = ReplicaPool()
        self._num_passages, self._num_failed, self._latency_s = 0, 0, 0.0

    def set(self, replicas: Mapping[str, ScorerReplica]) -> None:
        """Let the scorer consist of these replicas and no others."""
        self._pool.set(replicas)

    @property
    def replicas(self) -> Mapping[str, ScorerReplica]:
        return self._pool.replicas

    async def read(self, passages: Sequence[TokenSequence]) -> list[TokenStats]:
        """One reading each, all under the same weights. Raises ScorerUnavailable, DataError."""
        begun = time.monotonic()
        last = "no replica is there"

        async def read(name: str, replica: ScorerReplica) -> list[TokenStats]:
            nonlocal last
            try:
                return await replica.read(passages, self._deadline_s - (time.monotonic() - begun))
            except ScorerUnavailable as error:
                last = f"{name}: {error}"
                raise

        try:
            async with asyncio.timeout(self._deadline_s):
                found = await self._pool.ask(read, full=(ScorerUnavailable,), load=len(passages))
        except TimeoutError:
            self._num_failed += len(passages)
            raise ScorerUnavailable(
                f"scorer '{self.name}': nothing within deadline_s = {self._deadline_s:g} s; {last}"
            ) from None
        self._num_passages += len(passages)
        self._latency_s = time.monotonic() - begun
        return found

    def trouble(self) -> str:
        """Return why no replica reads now, in words; nothing where one does."""
        return "" if self._pool.replicas else f"scorer '{self.name}' has no replica"

    def snapshot(self) -> dict[str, float]:
        """Metrics by name."""
        return {
            f"scorer/{self.name}_num_passages": float(self._num_passages),
            f"scorer/{self.name}_num_failed": float(self._num_failed),
            f"scorer/{self.name}_latency_s": self._latency_s,
        }
