"""Checkers in child processes that can be killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

START_S = 60.0
"""A child may need so long to start and import; a call's own time begins after that."""
MEMORY_BYTES = 4 << 30
"""Address space of a child: `10**10**10` ends as a MemoryError, not with the machine."""


class VerifierError(Exception):
    """What a checker raised, as text: the exception itself may not survive pickling."""


class Verifier:
    """A few child processes, started when first needed, one call at a time in each."""

    def __init__(self, num_processes: int | None = None) -> None:
        self._free: asyncio.Queue[_Child] = asyncio.Queue()
        self._children: list[_Child] = []
        self._limit = num_processes or min(4, max(1, (os.cpu_count() or 1) // 2))

    async def call(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> Any:
        """Raises TimeoutError after `timeout_s` (waiting for a free process not counted), or VerifierError."""
        child = await self._take()
        try:
            succeeded, result = await asyncio.to_thread(child.call, function, args, timeout_s)
        except BaseException:
            # Also when this coroutine was cancelled: the thread may still be reading from that pipe.
            child.kill()
            raise
        finally:
            self._free.put_nowait(child)
        if not succeeded:
            raise VerifierError(result)
        return result

    def close(self) -> None:
        for child in self._children:
            child.kill()

    async def _take(self) -> _Child:
        if self._free.empty() and len(self._children) < self._limit:
            self._children.append(_Child())
            return self._children[-1]
        return await self._free.get()


class _Child:
    """One process and the pipe to it; started again after it was killed."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Any = None

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> tuple[bool, Any]:
        if self._process is None or not self._process.is_alive():
            self._start()
        pipe = self._pipe
        try:
            pipe.send((function, args, timeout_s))
            begun = pipe.poll(START_S) and pipe.recv()
            if not begun or not pipe.poll(timeout_s):
                raise TimeoutError(f"{function.__name__} did not end within {timeout_s:g} s and was killed")
            return pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise VerifierError(f"the process of {function.__name__} died") from error

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _start(self) -> None:
        # Spawned: the fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def _serve(pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    while True:
        try:
            function, args, timeout_s = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        pipe.send(True)
        # The parent kills a child that takes too long; should the parent be dead, the kernel does.
        signal.setitimer(signal.ITIMER_REAL, timeout_s + 5)
        try:
            answer = (True, function(*args))
        except Exception as error:  # whatever foreign text made it raise is its answer
            answer = (False, f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(answer)
