"""The replicas of one judge: who may be asked now, and waiting until somebody may.

add ─► asked by whoever has the fewest calls ─► removed: asked no more, closed when its last call has ended
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rewards.judges.errors import JudgeAbsent, JudgeError, JudgeUnavailable
from rewards.judges.pool.circuit_breaker import CircuitBreaker
from rewards.judges.types import Call, Completion, Transport


@dataclass(eq=False)
class Replica:
    transport: Transport
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    in_flight: int = 0
    removed: bool = False


class Replicas:
    """Belongs to one event loop."""

    def __init__(
        self, transports: Sequence[Transport], breaker: Callable[[], CircuitBreaker], *, come_and_go: bool
    ) -> None:
        """`come_and_go`: while there is none, one may still appear, so a call waits for it."""
        self._new_breaker, self._come_and_go = breaker, come_and_go
        self._there = [Replica(t, breaker()) for t in transports]
        self._changed = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._there)

    def __len__(self) -> int:
        return len(self._there)

    def __getitem__(self, place: int) -> Replica:
        return self._there[place]

    def add(self, transport: Transport) -> None:
        self._there.append(Replica(transport, self._new_breaker()))
        self._notify()

    def remove(self, transport: Transport) -> None:
        for replica in [r for r in self._there if r.transport is transport]:
            self._there.remove(replica)
            replica.removed = True
            self._close_if_idle(replica)
        self._notify()

    async def take(self, tried: Sequence[Replica], until: float) -> Replica:
        """The least busy that may be asked, one not tried yet if there is any; waits for it until `until` (monotonic).

        Raises JudgeUnavailable, at once if no pause ends in time.
        """
        while True:
            ready = [r for r in self._there if r.breaker.ready()]
            if ready:
                return min(ready, key=lambda r: (r in tried, r.in_flight))
            left_s = until - time.monotonic()
            paused = [r.breaker.retry_in_s for r in self._there]
            hopeless = min(paused, default=math.inf) > left_s and not self._come_and_go
            if left_s <= 0 or hopeless:
                raise JudgeUnavailable(self.trouble())
            # A pause of 0 s is a trial under way, whose end is announced.
            pause_s = min((p for p in paused if p > 0), default=left_s)
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause_s, left_s)):
                    await changed.wait()

    async def call(self, replica: Replica, call: Call) -> Completion:
        """Raises JudgeError; what it means for the replica's circuit is settled here."""
        replica.breaker.begin()
        replica.in_flight += 1
        try:
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
            replica.in_flight -= 1
            self._close_if_idle(replica)
            self._notify()

    def untried(self, tried: Sequence[Replica]) -> bool:
        """Is there another that may be asked?"""
        return any(r.breaker.ready() for r in self._there if r not in tried)

    def trouble(self) -> str:
        """Why nobody answers; nothing if somebody does, or has not been asked yet."""
        if not self._there:
            return "none of its replicas is up" if self._come_and_go else "it has no replica"
        if not all(r.breaker.failing for r in self._there):
            return ""
        wait_s = min(r.breaker.retry_in_s for r in self._there)
        reasons = "; ".join(f"{r.transport.name}: {r.breaker.reason}" for r in self._there)
        return f"no replica answers, and none is asked for another {wait_s:.1f} s. {reasons}"

    async def close(self) -> None:
        await asyncio.gather(*self._closing, *(r.transport.close() for r in self._there))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _close_if_idle(self, replica: Replica) -> None:
        if replica.removed and not replica.in_flight:
            task = asyncio.create_task(replica.transport.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
