"""The replicas of one judge: which may be asked now, and waiting until one may.

add ─► asked while it has the fewest calls ─► removed: asked no more, closed when its last call has ended
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from cluster.process.replica_pool import ReplicaPool
from rewards.judges.errors import JudgeAbsent, JudgeError, JudgeUnavailable
from rewards.judges.pool.circuit_breaker import CircuitBreaker
from rewards.judges.types import Call, Completion, Transport


@dataclass(eq=False)
class Replica:
    name: str
    """Unique among all that the judge ever had."""
    transport: Transport
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    removed: bool = False


class Replicas:
    """Belongs to one event loop."""

    def __init__(
        self, transports: Sequence[Transport], breaker: Callable[[], CircuitBreaker], *, come_and_go: bool
    ) -> None:
        """`come_and_go`: while there is none, one may still appear, so a call waits for it."""
        self._new_breaker, self._come_and_go, self._numbers = breaker, come_and_go, count()
        self._pool: ReplicaPool[Replica] = ReplicaPool(usable=lambda replica: replica.breaker.ready())
        self._closing: set[asyncio.Task[None]] = set()
        for transport in transports:
            self.add(transport)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._pool.replicas.values())

    def __len__(self) -> int:
        return len(self._pool.replicas)

    def __getitem__(self, place: int) -> Replica:
        return list(self)[place]

    def in_flight(self, replica: Replica) -> int:
        return self._pool.in_flight(replica.name)

    def add(self, transport: Transport) -> None:
        name = f"{transport.name}#{next(self._numbers)}"
        self._pool.add(name, Replica(name, transport, self._new_breaker()))

    def remove(self, transport: Transport) -> None:
        for replica in [r for r in self if r.transport is transport]:
            self._pool.remove(replica.name)
            replica.removed = True
            self._close_if_idle(replica)

    async def take(self, tried: Sequence[Replica], until: float) -> Replica:
        """The least busy that may be asked, one not tried yet if there is any; waits for it until `until` (monotonic).

        Raises JudgeUnavailable, at once if no pause ends in time.
        """
        names = {replica.name for replica in tried}
        while True:
            if (found := self._pool.least_busy(names)) is not None:
                return found[1]
            left_s = until - time.monotonic()
            paused = [r.breaker.retry_in_s for r in self]
            hopeless = min(paused, default=math.inf) > left_s and not self._come_and_go
            if left_s <= 0 or hopeless:
                raise JudgeUnavailable(self.trouble())
            # A pause of 0 s is a trial under way, whose end is announced.
            pause_s = min((p for p in paused if p > 0), default=left_s)
            await self._pool.changed(min(pause_s, left_s))

    async def call(self, replica: Replica, call: Call) -> Completion:
        """Raises JudgeError; what it means for the replica's circuit is settled here."""
        replica.breaker.begin()
        try:
            with self._pool.busy(replica.name):
                completion = await replica.transport.complete(call)
        except JudgeError as error:
            if error.blames_replica:
                replica.breaker.failure(str(error), absent=isinstance(error, JudgeAbsent))
            else:
                replica.breaker.undecided()
            raise
        except asyncio.CancelledError:
            replica.breaker.failure("a call had to be given up")
            raise
        else:
            replica.breaker.success()
            return completion
        finally:
            self._close_if_idle(replica)
            self._pool.notify()

    def untried(self, tried: Sequence[Replica]) -> bool:
        """Is there another that may be asked?"""
        return any(r.breaker.ready() for r in self if r not in tried)

    def trouble(self) -> str:
        """Return why no replica answers; nothing where one does, or has not been asked yet."""
        if not len(self):
            return "none of its replicas is up" if self._come_and_go else "it has no replica"
        if not all(r.breaker.failing for r in self):
            return ""
        wait_s = min(r.breaker.retry_in_s for r in self)
        reasons = "; ".join(f"{r.transport.name}: {r.breaker.reason}" for r in self)
        return f"no replica answers, and none is asked for another {wait_s:.1f} s. {reasons}"

    async def close(self) -> None:
        await asyncio.gather(*self._closing, *(r.transport.close() for r in self))

    def _close_if_idle(self, replica: Replica) -> None:
        if replica.removed and not self.in_flight(replica):
            task = asyncio.create_task(replica.transport.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
