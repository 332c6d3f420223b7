"""The parent's side of `host.py`: processes with places for objects, which episodes and rewards borrow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import DataError
from cluster.process.foreign_loops import outside_of_deadline

HOST = Path(__file__).with_name("host.py")


class ForeignError(DataError):
    """The object raised; `kind` is the class of what it raised."""

    def __init__(self, said: str, kind: str) -> None:
        super().__init__(f"{said}.")
        self.kind = kind


class Host:
    """One child process. Its methods block, and may be called from any thread; requests take turns."""

    def __init__(self, python: str, what: str) -> None:
        """`what` names in errors what runs in the process. Raises DataError if it cannot be started."""
        self.why_ended, self._what = "", what
        self._turn = threading.Lock()
        try:
            self._process = subprocess.Popen(
                [python, "-u", str(HOST)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,
                encoding="utf-8",
                errors="backslashreplace",
            )
        except OSError as error:
            raise DataError(f"the process of the {what} cannot be started: {error}.") from error

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, **request: Any) -> Any:
        """Return what `host.py` answers. Raises ForeignError for what the object raised, DataError if it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._turn:
            line = ""
            with contextlib.suppress(OSError, ValueError):  # it has died, or is being ended
                self._process.stdin.write(json.dumps(request, default=str) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError as error:
            code = self._process.wait()
            ended = f"the process of the {self._what} ended with exit code {code}."
            raise DataError(self.why_ended or ended) from error
        if "error" in answer:
            raise ForeignError(answer["error"], answer["kind"])
        return answer["value"]

    def end(self, why: str) -> None:
        """Kill the process and what it started."""
        self.why_ended = self.why_ended or why
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(OSError, ValueError):
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None and self._turn.acquire(blocking=False):
                    pipe.close()
                    self._turn.release()


@dataclass(eq=False)
class Place:
    """A place for one object in a process."""

    host: Host
    number: int
    made: bool = False
    busy: bool = False
    """Whether a call is under way."""


class Hosts:
    """Up to `processes` child processes with `places` objects each. An object is used by one episode after another."""

    def __init__(
        self, python: str, path: str, options: dict[str, Any], processes: int, places: int, what: str = "environment"
    ) -> None:
        self._python, self._path, self._options, self._what = python or sys.executable, path, options, what
        self._processes, self._places = processes, places
        self._lock = threading.Lock()
        self._hosts: list[Host] = []
        self._free: list[Place] = []
        self._numbers: dict[Host, int] = {}
        """Places of each process so far."""
        self._waiting: deque[Future[None]] = deque()
        weakref.finalize(self, _end, self._hosts)

    def _made_with(self) -> tuple[Any, ...]:
        return self._python, self._path, self._options, self._processes, self._places, self._what

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hosts) and self._made_with() == other._made_with()

    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return Hosts, self._made_with()  # another process has child processes of its own

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[HostedObject]:
        """Lend an object to one episode, made if there is none; wait for one outside of the episode's deadline.

        A process whose call is given up half-way is killed: nothing else ends code that hangs.
        """
        while isinstance(place := self._take(), Future):
            waiter = place
            try:
                await outside_of_deadline(lambda waiter=waiter: asyncio.wrap_future(waiter))
            except BaseException:
                if not waiter.cancel():  # a place is free, and this episode does not want it any more
                    self._wake()
                raise
        try:
            hosted = HostedObject(place)
            if not place.made:
                await hosted.ask(do="make", path=self._path, options=self._options, import_path=import_path())
                place.made = True
            yield hosted
        except DataError:
            place.made = False  # whatever state the object is in, the next episode gets a new one
            raise
        finally:
            self._give_back(place)

    def _take(self) -> Place | Future[None]:
        """A free place, or what ends when there may be one."""
        with self._lock:
            for host in [h for h in self._hosts if not h.alive]:
                self._forget(host)
            if self._free:
                return self._free.pop()
            if len(self._hosts) < self._processes:
                host = Host(self._python, self._what)
                self._hosts.append(host)
                self._numbers[host] = 0
            else:
                host = min(self._hosts, key=self._numbers.__getitem__)
            if self._numbers[host] == self._places:
                waiter: Future[None] = Future()
                self._waiting.append(waiter)
                return waiter
            self._numbers[host] += 1
            return Place(host, self._numbers[host])

    def _give_back(self, place: Place) -> None:
        with self._lock:
            if place.busy:
                place.host.end(f"the process of the {self._what} was ended, because a call in it was given up.")
            if place.host in self._numbers and place.host.alive:
                self._free.append(place)
            elif place.host in self._numbers:
                self._forget(place.host)
        self._wake()

    def _forget(self, host: Host) -> None:
        self._hosts.remove(host)
        del self._numbers[host]
        self._free = [place for place in self._free if place.host is not host]

    def _wake(self) -> None:
        with self._lock:
            while self._waiting:
                waiter = self._waiting.popleft()
                if waiter.set_running_or_notify_cancel():
                    waiter.set_result(None)
                    return


def _end(hosts: list[Host]) -> None:
    for host in hosts:
        host.end("the worker ends.")


class HostedObject:
    """An object in a child process, as the episode that has borrowed it sees it."""

    def __init__(self, place: Place) -> None:
        self._place = place

    async def call(self, method: str, *args: Any, lenient: bool = False, **options: Any) -> Any:
        """Return what a method returns, as JSON has it. With `lenient`, options that it has no parameter for are left
        out. Raises ForeignError for what it raises, DataError if its process dies."""
        return await self.ask(do="call", method=method, args=args, options=options, lenient=lenient)

    async def ask(self, **request: Any) -> Any:
        place = self._place
        place.busy = True
        try:
            answer = await asyncio.to_thread(place.host.ask, object=place.number, **request)
        except DataError:
            place.busy = False
            raise
        place.busy = False  # a call that is cancelled goes on
        return answer


def import_path() -> list[str]:
    """Where a user's modules lie: of this process's path all but what its own virtual environment has."""
    inside = (sys.prefix, sys.base_prefix)
    here = [entry or os.getcwd() for entry in sys.path]
    return [e for e in here if not e.startswith(inside) and "site-packages" not in e] + [os.getcwd()]
