"""The request queue: a bounded queue in front of a bounded number of calls, where equal questions are asked once.

    submit ─► same key waiting or in flight? join it
              else queue (full: the oldest is pushed out, or the newcomer refused) ─► slot ─► job, at most `ttl_s`

Who stops waiting leaves a job that has begun alone: its answer still goes to the archive. A job nobody waits for any
more is not begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from rewards.judges.errors import JudgeOverflow, JudgeTimeout

T = TypeVar("T")
Order = Literal["newest", "oldest"]


@dataclass(eq=False)
class _Entry(Generic[T]):
    key: str
    job: Callable[[], Awaitable[T]]
    future: asyncio.Future[T]
    since: float
    """When it was asked, by the loop's clock."""
    waiters: int = 0
    begun: bool = False


class RequestQueue(Generic[T]):
    def __init__(self, *, max_in_flight: int, max_queue: int, order: Order, ttl_s: float) -> None:
        """`ttl_s`: a job in flight for longer is given up and its key is free again (ONI's code: after 120 s)."""
        self._slots, self._max_queue, self._order, self._ttl_s = max_in_flight, max_queue, order, ttl_s
        self._queue: deque[_Entry[T]] = deque()
        self._entries: dict[str, _Entry[T]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.num_joined = 0
        """Requests that found their question asked already."""
        self.num_overflowed = 0
        self._longest_s = 0.0

    @property
    def queue_depth(self) -> int:
        return len(self._queue)

    @property
    def queue_age_s(self) -> float:
        """How long the oldest has waited; 0 with nobody waiting."""
        return asyncio.get_running_loop().time() - self._queue[0].since if self._queue else 0.0

    def longest_wait_s(self) -> float:
        """Return the longest wait since the last call: between two bursts the queue itself is empty."""
        longest_s, self._longest_s = max(self._longest_s, self.queue_age_s), 0.0
        return longest_s

    @property
    def in_flight(self) -> int:
        return len(self._running)

    async def submit(self, key: str, job: Callable[[], Awaitable[T]]) -> T:
        """The result of `job`, or of the job submitted under the same key.

        Raises what the job raises, JudgeTimeout after `ttl_s` in flight, JudgeOverflow.
        """
        entry = self._entries.get(key)
        if entry is None:
            entry = self._enter(key, job)
        else:
            self.num_joined += 1
        entry.waiters += 1
        try:
            return await asyncio.shield(entry.future)
        finally:
            entry.waiters -= 1
            if not entry.waiters and not entry.begun and not entry.future.done():
                self._queue.remove(entry)
                self._forget(entry)

    async def close(self) -> None:
        """Give up what is in flight or waiting."""
        for entry in list(self._queue):
            entry.future.cancel()
            self._forget(entry)
        self._queue.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _enter(self, key: str, job: Callable[[], Awaitable[T]]) -> _Entry[T]:
        if len(self._queue) >= self._max_queue and len(self._running) >= self._slots:
            self.num_overflowed += 1
            problem = JudgeOverflow(
                f"{self._max_queue} requests are waiting already, and the {self._order} go first. "
                "Add replicas, or raise max_in_flight or max_queue."
            )
            if self._order == "oldest" or not self._queue:
                raise problem
            oldest = self._queue.popleft()
            self._forget(oldest)
            oldest.future.set_exception(problem)
        loop = asyncio.get_running_loop()
        entry = _Entry(key, job, loop.create_future(), loop.time())
        entry.future.add_done_callback(_seen)
        self._entries[key] = entry
        self._queue.append(entry)
        self._fill()
        return entry

    def _fill(self) -> None:
        while self._queue and len(self._running) < self._slots:
            entry = self._queue.pop() if self._order == "newest" else self._queue.popleft()
            entry.begun = True
            self._longest_s = max(self._longest_s, asyncio.get_running_loop().time() - entry.since)
            task = asyncio.create_task(self._run(entry))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._fill()

    async def _run(self, entry: _Entry[T]) -> None:
        try:
            async with asyncio.timeout(self._ttl_s):
                result = await entry.job()
        except TimeoutError:
            entry.future.set_exception(JudgeTimeout(f"no verdict within {self._ttl_s:g} s in flight; given up."))
        except asyncio.CancelledError:
            entry.future.cancel()
            raise
        except Exception as error:  # the waiters', all of them
            entry.future.set_exception(error)
        else:
            entry.future.set_result(result)
        finally:
            self._forget(entry)

    def _forget(self, entry: _Entry[T]) -> None:
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]


def _seen(future: asyncio.Future[Any]) -> None:
    """A failure after everybody left is no surprise."""
    if not future.cancelled():
        future.exception()
