"""Event loops in threads of their own, for coroutines that are foreign code and may block.

    caller's loop                           thread
    run(key, work) ──────────────────────►  work(call)
        deadline ticks                          …
    call.outside(other) ◄─────────────────  await call.outside(other)
        deadline rests, other() runs            waits
    value, or DataError  ◄────────────────  returns or raises

All coroutines share one loop, so that what they hold in common (locks, sessions) belongs to one loop, until one of them
blocks it: then the others leave it and begin anew, and from there on each key has a loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from cluster.errors import DataError, KanaboError, located
from cluster.process.marks import Marks
from cluster.process.threads import MOST, Threads
from cluster.types import Claim, encode

log = logging.getLogger(__name__)
T = TypeVar("T")

TICK_S = 0.1
HELD_S = 1.0
"""A loop that does not answer for so long is blocked: everything else leaves it."""
MOST_LOOPS = 256
CLEAN_UP_S = 5.0
"""A call that was given up may block its loop for so long, and no longer than for an answer."""
RESTARTS = 8
"""So often a call whose loop is blocked by another one begins anew."""
CALL: contextvars.ContextVar[Call | None] = contextvars.ContextVar("call", default=None)
"""The call that a task, a callback or a thread belongs to."""


_UNFINISHED: list[asyncio.Task[Any]] = []
"""Tasks of loops that have ended. Python ends a coroutine that is collected where it stands, in the thread that happens
to collect it: the foreign code of its `finally` would run on the caller's loop."""


class Displaced(Exception):
    """The call's loop is blocked by another call: begin anew."""


class ForeignExit(Exception):
    """Foreign code raised SystemExit or KeyboardInterrupt in a task of its own."""


class _Interrupted(BaseException):
    """Raised in a thread that was given up: it ends what loops in Python; what sleeps in C it does not reach."""


class Call:
    """One foreign coroutine under way."""

    def __init__(self, key: object, timeout_s: float, late: str) -> None:
        self.key, self.timeout_s, self.late = key, timeout_s, late
        self.mark = encode(key) if isinstance(key, Claim) else b"-"
        self._outer = asyncio.get_running_loop()
        self.result: asyncio.Future[Any] = self._outer.create_future()
        self.waited_s = 0.0
        """Time that counts against the deadline: the call's own, since it began or came back from `outside`."""
        self.resting = self.given_up = False
        self.loop: _Loop | None = None
        self.task: asyncio.Task[Any] | None = None
        self._others: set[asyncio.Task[None]] = set()

    async def outside(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work()` gives on the caller's loop; the deadline rests meanwhile."""
        inner = asyncio.get_running_loop()
        answer: asyncio.Future[T] = inner.create_future()
        self._outer.call_soon_threadsafe(self._rest, work, inner, answer)
        return await answer

    def _rest(self, work: Callable[[], Awaitable[Any]], inner: asyncio.AbstractEventLoop, answer: Any) -> None:
        async def worked() -> None:
            value, error = None, None
            try:
                value = await work()
            except asyncio.CancelledError:
                error = DataError("the call was given up.")
            except Exception as failed:
                error = failed
                if isinstance(failed, KanaboError) and not isinstance(failed, DataError):
                    self.settle(None, failed)  # whatever the foreign code makes of it, this is not its failure
            self.resting, self.waited_s = False, 0.0
            with contextlib.suppress(RuntimeError):  # that loop has ended
                inner.call_soon_threadsafe(_answer, answer, value, error)

        if not self.given_up:
            self.resting = True
            task = asyncio.create_task(worked())
            self._others.add(task)
            task.add_done_callback(self._others.discard)

    def settle(self, value: Any, error: BaseException | None) -> None:
        """On the caller's loop: end the wait for this call."""
        if self.result.done():
            return
        if error is None:
            self.result.set_result(value)
        else:
            self.result.set_exception(error)

    def give_up(self) -> None:
        """Cancel it; it may clean up after itself for as long as it had for an answer."""
        if self.given_up:
            return
        self.leave()
        self.resting, self.waited_s = False, 0.0
        if self.loop is not None:
            self.loop.soon(self._cancel)

    def leave(self) -> None:
        """On the caller's loop: cancel what the call still asks for outside, which nothing waits for any more."""
        self.given_up = True
        for other in self._others:
            other.cancel()

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


async def outside_of_deadline(work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work()` gives on the caller's loop while the deadline of the foreign call that waits here rests.

    Where no foreign call is under way, on this loop.
    """
    call = CALL.get()
    return await (work() if call is None else call.outside(work))


class ForeignLoops:
    """Runs foreign coroutines beside the caller's event loop, each with a deadline.

    A coroutine that blocks its loop past its deadline fails; its thread is given up and counted, and every other call
    that was on that loop begins anew on another.
    """

    def __init__(self, what: str = "environment", marks: Marks | None = None) -> None:
        """With `marks`, each step of a call is marked with the call's key, encoded."""
        self.num_blocked = 0
        """Calls that blocked their loop past their deadline, since the start."""
        self._what, self._marks = what, marks
        self._threads = Threads(MOST, name=what)
        self._loops: list[_Loop] = []
        self._separate = self._ticking = self._closed = False
        self._ticked = 0.0

    @property
    def num_hung(self) -> int:
        """Threads that were given up and have not returned."""
        return self._threads.num_hung

    @property
    def num_replaced(self) -> int:
        """Threads that were given up since the start."""
        return self._threads.num_replaced

    async def run(self, key: object, work: Callable[[Call], Awaitable[T]], timeout_s: float, *, late: str) -> T:
        """Return what `work` gives on a loop of a thread. Raises DataError for whatever it raises.

        What an `outside` of the call raises passes as it is. `late` is said of a call that is past its deadline. Raises
        Displaced where another call blocked the loop: run it again.
        """
        call = Call(key, timeout_s, late)
        loop = self._place(key)
        loop.begin(call, work)
        self._tick_later()
        try:
            return await call.result
        finally:
            call.give_up()

    def close(self) -> None:
        """End the loops; what still runs on them is cancelled and not waited for."""
        self._closed = True
        for loop in self._loops:
            loop.end()
        self._loops = []
        self._threads.close()

    def _place(self, key: object) -> _Loop:
        if not self._separate:
            usable = self._loops[:1]
        else:
            usable = [o for o in self._loops if o.calls and all(c.key == key for c in o.calls)]
            usable = usable or [o for o in self._loops if not o.calls]
            if not usable and len(self._loops) >= MOST_LOOPS:
                usable = [min(self._loops, key=lambda o: len(o.calls))]
        if usable:
            return usable[0]
        loop = _Loop(self._threads, self._what, self._marks)
        self._loops.append(loop)
        return loop

    def _tick_later(self) -> None:
        if not self._ticking and not self._closed:
            self._ticking, self._ticked = True, time.monotonic()
            asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        passed = min(
            time.monotonic() - self._ticked, 2 * TICK_S
        )  # of a process that was stopped for a while no time counts
        self._ticking = False
        for loop in list(self._loops):
            self._look_at(loop, passed)
        if any(loop.calls for loop in self._loops):
            self._tick_later()

    def _look_at(self, loop: _Loop, passed: float) -> None:
        held_s = loop.held(passed)
        holder, where = loop.holder() if held_s else (None, "")
        if held_s > HELD_S and not self._separate:
            self._separate = True
            log.warning(
                "the %s blocks its event loop (%s); from now on each group has a thread. Code that blocks belongs into "
                "asyncio.to_thread",
                self._what, where or "unknown line",
            )  # fmt: skip
        for call in list(loop.calls):
            if call.resting or (call.given_up and call is not holder):
                continue
            if holder is not None and call is not holder:
                if held_s > HELD_S and call.key != holder.key:
                    loop.calls.discard(call)
                    call.settle(None, Displaced())
                continue
            call.waited_s += passed
            if call.waited_s < (min(call.timeout_s, CLEAN_UP_S) if call.given_up else call.timeout_s):
                continue
            blocks = held_s > min(HELD_S, call.timeout_s / 2)
            at = f" It blocks its event loop at {where}." if blocks and where else ""
            error = DataError(f"{call.late}{at}")
            call.settle(None, error)
            if blocks:
                self._replace(loop, call, error)
                return
            call.give_up()

    def _replace(self, loop: _Loop, holder: Call, error: DataError) -> None:
        self.num_blocked += 1
        self._loops.remove(loop)
        loop.abandon()
        for call in loop.calls - {holder}:
            # Other episodes of the group that has failed would block the next thread too.
            call.settle(None, error if call.key == holder.key else Displaced())
        loop.calls.clear()


class _Loop:
    """An event loop in a thread."""

    def __init__(self, threads: Threads, what: str, marks: Marks | None) -> None:
        self.calls: set[Call] = set()
        self._what = what
        self._outer = asyncio.get_running_loop()
        self._inner = asyncio.new_event_loop()
        self._inner.set_task_factory(partial(_task, marks))
        self._inner.set_default_executor(_Executor(threads, marks))
        self._asked, self._held_s = False, 0.0
        self._ident: int | None = None
        self._threads = threads
        self._job = threads.start(self._serve, self._ended)

    def begin(self, call: Call, work: Callable[[Call], Awaitable[Any]]) -> None:
        call.loop = self
        self.calls.add(call)
        context = contextvars.Context()
        context.run(CALL.set, call)
        self.soon(self._start, call, work, context=context)

    def soon(self, function: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended
            self._inner.call_soon_threadsafe(function, *args, context=context)

    def _start(self, call: Call, work: Callable[[Call], Awaitable[Any]]) -> None:
        if call.result.done():
            self._outer_soon(self._left, call, None, None)
        else:
            call.task = self._inner.create_task(self._work(call, work))

    async def _work(self, call: Call, work: Callable[[Call], Awaitable[Any]]) -> None:
        value, error = None, None
        try:
            value = await work(call)
        except KanaboError as failed:
            error = _bare(failed)
        except BaseException as failed:
            error = DataError(located(failed))
        self._outer_soon(self._left, call, value, error)

    def _left(self, call: Call, value: Any, error: BaseException | None) -> None:
        self.calls.discard(call)
        call.leave()  # its coroutine has ended, or its loop: there is nothing left to give up
        call.settle(value, error)

    def _outer_soon(self, function: Callable[..., Any], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the caller's loop has ended
            self._outer.call_soon_threadsafe(function, *args)

    def held(self, passed: float) -> float:
        """Return for how many seconds the loop has not answered; asks it again if it has."""
        if self._asked:
            self._held_s += passed
            return self._held_s
        self._asked, self._held_s = True, 0.0
        self.soon(self._answers)
        return 0.0

    def _answers(self) -> None:
        self._asked = False

    def holder(self) -> tuple[Call | None, str]:
        """Return the call whose code the thread runs now, and the line that it is at."""
        frame: FrameType | None = sys._current_frames().get(self._ident or -1)
        where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""
        while frame is not None:
            handle = frame.f_locals.get("self") if frame.f_code is _RUN else None
            if handle is not None:
                context = getattr(handle, "_context", None)
                return (context.get(CALL) if context else None), where
            frame = frame.f_back
        return None, ""

    def abandon(self) -> None:
        """Give up the thread: nothing waits for it any more, and it ends when it can."""
        self._threads.abandon(self._job)
        self.end()
        if self._ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._ident), ctypes.py_object(_Interrupted))

    def end(self) -> None:
        self.soon(self._inner.stop)

    def _serve(self) -> None:
        self._ident = threading.get_ident()
        asyncio.set_event_loop(self._inner)
        try:
            self._inner.run_forever()
            for task in asyncio.all_tasks(self._inner):
                task.cancel()
            self._inner.run_until_complete(self._inner.shutdown_asyncgens())
        finally:
            self._ident = None
            _UNFINISHED.extend(asyncio.all_tasks(self._inner))
            asyncio.set_event_loop(None)
            self._inner.close()

    def _ended(self, value: Any, error: BaseException | None) -> None:
        self._outer_soon(self._lost, error)

    def _lost(self, error: BaseException | None) -> None:
        why = f"the {self._what} ended its event loop: {located(error) if error else 'it was stopped.'}"
        for call in list(self.calls):
            self._left(call, None, DataError(why))


class _Executor(ThreadPoolExecutor):
    """What `asyncio.to_thread` uses on a foreign loop: daemon threads, as many as there are calls."""

    def __init__(self, threads: Threads, marks: Marks | None) -> None:
        super().__init__(1)
        self._daemons, self._marks = threads, marks

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def done(value: Any, error: BaseException | None) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        call, marks = CALL.get(), self._marks

        def work() -> T:
            with marks.during(call.mark) if marks and call else contextlib.nullcontext():
                return fn(*args, **kwargs)

        job = self._daemons.start(work, done)
        future.add_done_callback(lambda f: self._daemons.abandon(job) if f.cancelled() else None)
        return future


_RUN = asyncio.Handle._run.__code__


def _task(marks: Marks | None, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    inner, call = _guarded(coroutine), CALL.get()
    return asyncio.Task(_Marked(inner, marks, call.mark) if marks and call else inner, loop=loop, **options)


class _Marked(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are marked."""

    def __init__(self, inner: Coroutine[Any, Any, Any], marks: Marks, mark: bytes) -> None:
        self._inner, self._marks, self._mark = inner, marks, mark

    def send(self, value: Any) -> Any:
        with self._marks.during(self._mark):
            return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        with self._marks.during(self._mark):
            return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        return self._inner.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def _guarded(coroutine: Awaitable[Any]) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:  # a task that lets these through ends the event loop
        raise ForeignExit(located(error)) from error


def _answer(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _bare(error: BaseException) -> BaseException:
    """The error without the frames that it passed, whose objects belong to the thread."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
