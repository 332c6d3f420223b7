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
class Job:
    """A call under way in a thread."""

    function: Callable[[], Any]
    done: Callable[[Any, BaseException | None], None]
    """Called in that thread with what the function returned or raised."""
    context: contextvars.Context
    started: float | None = None
    abandoned: bool = False
    finished: bool = False


class Threads:
    """Runs functions in daemon threads, `num_fast` at a time; slow and hung calls get threads beside those.

    A call whose caller was cancelled while it ran is *hung* until it returns. Threads that never return hold up
    neither other calls nor the end of the process.
    """

    def __init__(self, num_fast: int = 16, *, name: str = "reward") -> None:
        self.num_replaced = 0
        """Threads that were given up, since the start."""
        self._num_fast, self._name = num_fast, name
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: set[Job] = set()
        self._hung: set[Job] = set()
        self._num_threads = self._num_waiting = 0
        self._closed = self._looking = False

    @property
    def num_hung(self) -> int:
        """Calls that were given up and have not returned."""
        return len(self._hung)

    async def run(self, function: Callable[[], T]) -> T:
        """`function()` in a thread; raises whatever the function raises, also SystemExit and the like."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

        def done(value: Any, error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_settle, future, (value, error))

        job = self.start(function, done)
        if self._queue.qsize() and not self._looking:
            self._looking = True
            loop.call_later(SLOW_S / 2, self._look, loop)
        try:
            value, error = await future
        except asyncio.CancelledError:
            self.abandon(job)
            raise
        if error is not None:
            raise error
        return value

    def start(self, function: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> Job:
        """Begin a call; in its thread `done` gets what it returned or raised."""
        job = Job(function, done, contextvars.copy_context())
        with self._lock:
            self._num_waiting += 1
        self._queue.put(job)
        self._grow()
        return job

    def abandon(self, job: Job) -> None:
        """Wait for a call no longer: it is hung until it returns, and one that has not begun never does."""
        with self._lock:
            job.abandoned = True
            if job.started is not None and not job.finished and job not in self._hung:
                self._hung.add(job)
                self.num_replaced += 1

    def close(self) -> None:
        """Drop what waits and end the threads that are idle; a running call is not waited for."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        for _ in range(self._num_threads):
            self._queue.put(None)

    def _grow(self) -> None:
        """Start threads for what waits."""
        with self._lock:
            slow = sum(time.monotonic() - (job.started or 0) > SLOW_S for job in self._running)
            idle = self._num_threads - len(self._running)
            missing = self._num_waiting - idle
            more = min(missing, self._num_fast + slow - self._num_threads, MOST - self._num_threads)
            for _ in range(more):
                self._num_threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Grow again, for as long as calls wait behind slow ones."""
        self._looking = False
        if self._closed:
            return
        self._grow()
        if self._queue.qsize():
            self._looking = True
            loop.call_later(SLOW_S / 2, self._look, loop)

    def _work(self) -> None:
        while True:
            try:
                job = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                job = None
            with self._lock:
                # Under the lock: a call that was put in a moment ago counts this thread as one that will take it.
                if self._closed or (job is None and not self._queue.qsize()):
                    self._num_threads -= 1
                    return
            if job is not None:
                self._call(job)
            del job

    def _call(self, job: Job) -> None:
        with self._lock:
            self._num_waiting -= 1
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
            job.finished = True
            self._running.discard(job)
            self._hung.discard(job)
        job.done(*outcome)


def _settle(future: asyncio.Future[Any], outcome: tuple[Any, BaseException | None]) -> None:
    if not future.done():
        future.set_result(outcome)
