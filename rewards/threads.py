"""Threads for code that blocks, replaced where a call never returns."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

SLOW_S = 1.0
"""A call that runs longer no longer takes a place from others: another thread is started beside it."""
MOST = 512
IDLE_S = 30.0
"""A thread without work ends after this time."""


@dataclass(eq=False)
class _Job:
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[tuple[Any, BaseException | None]]
    context: contextvars.Context
    started: float | None = None
    abandoned: bool = False
    done: bool = False


class Threads:
    """Runs functions in daemon threads, `num_fast` at a time; slow and hung calls get threads beside those.

    A call whose caller was cancelled while it ran is *hung* until it returns. Threads that never return hold up
    neither other calls nor the end of the process.
    """

    def __init__(self, num_fast: int = 16) -> None:
        self.num_replaced = 0
        """Threads that were given up, since the start."""
        self._num_fast = num_fast
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: set[_Job] = set()
        self._hung: set[_Job] = set()
        self._num_threads = 0
        self._closed = self._looking = False

    @property
    def num_hung(self) -> int:
        """Calls that were given up and have not returned."""
        return len(self._hung)

    async def run(self, function: Callable[[], T]) -> T:
        """`function()` in a thread; raises whatever the function raises, also SystemExit and the like."""
        loop = asyncio.get_running_loop()
        job = _Job(function, loop, loop.create_future(), contextvars.copy_context())
        self._queue.put(job)
        self._grow(loop)
        try:
            value, error = await job.future
        except asyncio.CancelledError:
            with self._lock:
                job.abandoned = True
                if job.started is not None and not job.done:
                    self._hung.add(job)
                    self.num_replaced += 1
            raise
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """Drop what waits and end the threads that are idle; a running call is not waited for."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        for _ in range(self._num_threads):
            self._queue.put(None)

    def _grow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start threads for what waits; looks again while calls wait behind slow ones."""
        with self._lock:
            slow = sum(time.monotonic() - (job.started or 0) > SLOW_S for job in self._running)
            idle = self._num_threads - len(self._running)
            missing = self._queue.qsize() - idle
            more = min(missing, self._num_fast + slow - self._num_threads, MOST - self._num_threads)
            for _ in range(more):
                self._num_threads += 1
                threading.Thread(target=self._work, name="reward", daemon=True).start()
        if self._queue.qsize() and not self._looking:
            self._looking = True
            loop.call_later(SLOW_S / 2, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking = False
        if not self._closed:
            self._grow(loop)

    def _work(self) -> None:
        try:
            while not self._closed:
                try:
                    job = self._queue.get(timeout=IDLE_S)
                except queue.Empty:
                    return
                if job is None:
                    return
                self._call(job)
                del job
        finally:
            with self._lock:
                self._num_threads -= 1

    def _call(self, job: _Job) -> None:
        with self._lock:
            if job.abandoned:
                return
            job.started = time.monotonic()
            self._running.add(job)
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = job.context.run(job.function), None
        except BaseException as error:  # handed to the caller as it is
            outcome = None, error
        with self._lock:
            job.done = True
            self._running.discard(job)
            self._hung.discard(job)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            job.loop.call_soon_threadsafe(_settle, job.future, outcome)


def _settle(future: asyncio.Future[Any], outcome: tuple[Any, BaseException | None]) -> None:
    if not future.done():
        future.set_result(outcome)
