"""What foreign coroutines may raise is kept from the event loop, and which reward holds the loop is known.

A task whose coroutine raises SystemExit or KeyboardInterrupt ends asyncio's event loop, and with it the worker. Tasks
made while `contain` is in force raise `PluginExit` instead.
"""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

TEXT_CHARS = 20_000
"""Longer notes and messages are cut."""
TICK_S = 0.25
ARM_S = 1.0
"""The timer that ends a process whose interpreter stands still starts anew so often."""

Asked = tuple[str, str]
"""A reward's name and a group's id."""
ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)
"""What this task, and each that it starts, is about."""
_holding: dict[asyncio.AbstractEventLoop, Asked | None] = {}


class PluginExit(Exception):
    """A plug-in called `sys.exit()`, or raised KeyboardInterrupt."""


class _Contained(Coroutine[Any, Any, Any]):
    """A coroutine that raises PluginExit where it would end the event loop."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop, self._asked = inner, loop, ASKED.get()

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._inner.throw, *error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        return self._inner.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _step(self, step: Callable[..., Any], *values: Any) -> Any:
        _holding[self._loop] = self._asked
        try:
            return step(*values)
        except (SystemExit, KeyboardInterrupt) as error:
            raise PluginExit(described(error)) from error
        finally:
            _holding[self._loop] = None


def contain(loop: asyncio.AbstractEventLoop) -> None:
    """From now on no task of this loop ends it. A task factory that is there already is left alone."""
    if loop.get_task_factory() is None:
        loop.set_task_factory(_task)


def _task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    return asyncio.Task(_Contained(coroutine, loop), loop=loop, **options)


class LoopWatch:
    """A thread that notices when the event loop stands still, and says which reward holds it.

    Where a reward holds the interpreter lock no thread of Python's gets on: a timer in C then ends the process.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit_s: Callable[[Asked], float],
        held: Callable[[Asked, str], None],
        exit_s: float,
    ) -> None:
        """`held(asked, where)` is called from the thread when a reward holds the loop for over `limit_s(asked)`.

        The process ends, and writes what its threads do to its standard error, when the interpreter lock is held for
        over `exit_s`.
        """
        self._loop, self._limit_s, self._held, self._exit_s = loop, limit_s, held, exit_s
        self._beats, self._ended = 0, threading.Event()
        self._thread_id = threading.get_ident()
        self._beat()
        threading.Thread(target=self._watch, name="loop watch", daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()
        _holding.pop(self._loop, None)

    def _beat(self) -> None:
        self._beats += 1
        if not self._ended.is_set() and not self._loop.is_closed():
            self._loop.call_later(TICK_S / 2, self._beat)

    def _watch(self) -> None:
        seen, held_s, told = self._beats, 0.0, False
        armed = float("-inf")
        while not self._ended.is_set():
            begun = time.monotonic()
            if begun - armed > ARM_S:
                faulthandler.dump_traceback_later(self._exit_s, exit=True, file=2)
                armed = begun
            self._ended.wait(TICK_S)
            asked = _holding.get(self._loop)
            if self._beats != seen or asked is None:
                seen, held_s, told = self._beats, 0.0, False
                continue
            # Of a process that was stopped for a while no time is counted.
            held_s += min(time.monotonic() - begun, 2 * TICK_S)
            if not told and held_s > self._limit_s(asked):
                told = True
                self._held(asked, self._where())

    def _where(self) -> str:
        frame = sys._current_frames().get(self._thread_id)
        if frame is None:
            return ""
        last = traceback.extract_stack(frame)[-1]
        return f"{last.filename}:{last.lineno}"


def described(error: BaseException) -> str:
    """Class and message of whatever a plug-in raised, also where the message itself cannot be made."""
    inner = error
    while isinstance(inner, BaseExceptionGroup) and inner.exceptions:
        inner = inner.exceptions[0]
    name = readable(type(error).__name__)
    if inner is not error:
        return f"{name} of {len(error.exceptions)}, the first: {described(inner)}"  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return readable(f"{name}: {error}")
    except BaseException as second:  # its __str__ is foreign code too
        return f"{name} (its message cannot be read: {type(second).__name__})"


def shown(value: Any, most: int = 80) -> str:
    """`repr` of whatever a plug-in returned, cut."""
    try:
        text = repr(value)
    except BaseException as error:  # its __repr__ is foreign code too
        return f"an unprintable {readable(type(value).__name__)} ({type(error).__name__})"
    return readable(text, most)


def readable(text: str, most: int = TEXT_CHARS) -> str:
    """The text, cut, as one that every encoder and terminal takes: half surrogate pairs are written as `\\udXXX`."""
    text = str.__str__(text)
    text = text if len(text) <= most else text[: most - 1] + "…"
    return str(text.encode("utf-8", "backslashreplace"), "utf-8")
