"""What rewards call: a function, or a program, on foreign text in a child that lives for that call."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import ConfigError
from rewards.sandbox.launch import SandboxError, SandboxLost, Started, find, framed, launch, refusal, roots

IMPORTS_S = 120.0
"""A zygote may take so long to start and import; a call's own time begins after that."""
LATE_S = 10.0
"""Beyond a call's time: the zygote ends it at its time, and is ended itself if it does not."""
MEMORY_BYTES = 2 << 30
"""Address space of a call."""
MAX_ANSWER_BYTES = 4 << 20


@dataclass(frozen=True)
class Target:
    """A function by its module and name; `file` where the module is a file that no import finds."""

    module: str
    name: str
    file: str = ""
    warm: bool = False
    """The module's `warm()` is called once, before the first call."""

    @staticmethod
    def of(function: Callable[..., Any]) -> Target:
        return Target(function.__module__, function.__qualname__, warm=True)


@dataclass(frozen=True)
class Outcome:
    """What a call wrote and how it ended, as its zygote saw it."""

    output: bytes
    how: str
    """`end`, `time` or `lost`."""
    code: int
    """Exit status; a signal's number, negative, where one ended it."""
    cut: bool = False
    """It wrote more than it may, and was killed."""

    def trouble(self) -> str:
        """Why the output cannot be relied upon, in words; empty for a process that ended by itself."""
        if self.cut:
            return "wrote more than it may and was killed"
        if self.how == "end" and self.code == 0:
            return ""
        if self.how == "end":
            return f"was ended by signal {-self.code}" if self.code < 0 else f"ended with exit status {self.code}"
        return {"time": "did not end in time", "lost": "was lost with its sandbox"}.get(self.how, f"had {self.how}")


class Sandbox:
    """Zygotes, one for each module that holds checkers, and a few calls at a time over all of them."""

    def __init__(self, num_processes: int | None = None) -> None:
        self._limit = num_processes or min(4, max(1, (os.cpu_count() or 1) // 2))
        self._free: asyncio.Semaphore | None = None
        self._zygotes: dict[tuple[str, str], _Zygote] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def prepare(self, function: Callable[..., Any] | Target) -> None:
        """Start and import now what calls of this function need. Raises ConfigError."""
        target = function if isinstance(function, Target) else Target.of(function)
        try:
            await self._zygote(target).ready()
        except (SandboxError, OSError) as error:
            raise ConfigError(refusal() or f"'{target.name}' cannot be imported in the sandbox: {error}") from error

    async def call(
        self,
        function: Callable[..., Any] | Target,
        args: Sequence[Any],
        timeout_s: float,
        options: Mapping[str, Any] | None = None,
        *,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Any:
        """What the function returns, as JSON keeps it: the caller checks that it is what it expects.

        Raises TimeoutError after `timeout_s` (waiting for a place and imports not counted), and SandboxError with what
        the function raised or how its process ended.
        """
        target = function if isinstance(function, Target) else Target.of(function)
        outcome = await self.run(target, args, timeout_s, options=options, memory_bytes=memory_bytes)
        return _value(target, outcome, timeout_s)

    async def call_beside(
        self,
        target: Target,
        args: Sequence[Any],
        beside: Target,
        beside_args: Sequence[Any],
        timeout_s: float,
        *,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Any:
        """What the function returns that talks with another call, in a process of its own, over one socket.

        Both find it as file descriptor 4. The other call is ended with this one. Raises as `call` does.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            first, second = self._zygote(target), self._zygote(beside)
            assert self._free is not None
            async with self._free:
                await first.ready()
                await second.ready()
                other = asyncio.create_task(
                    second.exchange(_message(beside, beside_args), timeout_s, memory_bytes, MAX_ANSWER_BYTES, theirs)
                )
                try:
                    outcome = await first.exchange(
                        _message(target, args), timeout_s, memory_bytes, MAX_ANSWER_BYTES, ours
                    )
                finally:
                    other.cancel()
                    await asyncio.gather(other, return_exceptions=True)
        return _value(target, outcome, timeout_s)

    async def run(
        self,
        target: Target,
        args: Sequence[Any],
        timeout_s: float,
        *,
        options: Mapping[str, Any] | None = None,
        stdin: bytes = b"",
        memory_bytes: int = MEMORY_BYTES,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Outcome:
        """Call the function and return whatever was written to its socket; `stdin` follows the request there."""
        message = _message(target, args, options) + stdin
        zygote = self._zygote(target)
        assert self._free is not None
        async with self._free:
            await zygote.ready()
            return await zygote.exchange(message, timeout_s, memory_bytes, max_bytes)

    def close(self) -> None:
        for zygote in self._zygotes.values():
            zygote.close()
        self._zygotes.clear()

    def _zygote(self, target: Target) -> _Zygote:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another loop than before: sockets and locks belong to one
            self.close()
            self._loop, self._free = loop, asyncio.Semaphore(self._limit)
        key = (target.module, target.file)
        if key not in self._zygotes:
            self._zygotes[key] = _Zygote(target)
        return self._zygotes[key]


@dataclass
class _Call:
    ended: asyncio.Future[tuple[str, int]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Zygote:
    """One bubblewrap and its calls; started when first needed, and again after it was lost."""

    def __init__(self, target: Target) -> None:
        self._import = {"module": target.module, "file": target.file, "warm": target.warm}
        self._started: Started | None = None
        self._starting = asyncio.Lock()
        self._numbers = itertools.count()
        self._calls: dict[int, _Call] = {}

    async def ready(self) -> None:
        """Raises SandboxError with what it said, and ConfigError without a bubblewrap."""
        async with self._starting:
            if self._started is not None:
                return
            imported, file = dict(self._import), self._import["file"]
            paths = roots()
            if file:  # a file of the user's own, seen while it is imported
                paths = [*(p for p in paths if p != os.path.dirname(file)), os.path.dirname(file)]
                imported["file"] = f"/preload/{len(paths) - 1}/{os.path.basename(file)}"
            started = launch(find(), [imported], paths)
            started.control.setblocking(False)
            try:
                async with asyncio.timeout(IMPORTS_S):
                    first = await _first(started.control)
                answer = json.loads(first or b"{}")
                if not answer.get("ready"):
                    started.end()
                    raise SandboxError(answer.get("refused") or started.said())
            except BaseException as error:
                started.kill()
                if isinstance(error, TimeoutError):
                    raise SandboxError(f"imports of {self._import['module']} took over {IMPORTS_S:g} s") from error
                raise
            self._started = started
            asyncio.get_running_loop().add_reader(started.control, self._hear)

    async def exchange(
        self,
        message: bytes,
        timeout_s: float,
        memory_bytes: int,
        max_bytes: int,
        peer: socket.socket | None = None,
    ) -> Outcome:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        number, call = next(self._numbers), _Call()
        self._calls[number] = call
        try:
            with theirs:
                settings = {"call": number, "timeout_s": timeout_s, "memory_bytes": memory_bytes}
                self._tell(settings, theirs, *([peer] if peer else []))
            sending = asyncio.create_task(_send(ours, message))
            try:
                async with asyncio.timeout(timeout_s + LATE_S):
                    output = await _receive(ours, max_bytes + 1)
                    if cut := len(output) > max_bytes:
                        self._tell({"kill": number})
                    how, code = await call.ended
            except TimeoutError:
                self._lose()  # it should have ended the call; whatever holds it up is gone with it
                return Outcome(b"", "lost", 0)
            finally:
                sending.cancel()
            return Outcome(output[:max_bytes], how, code, cut)
        finally:
            if not call.ended.done():
                self._tell({"kill": number})
            del self._calls[number]
            ours.close()

    def close(self) -> None:
        self._lose()

    def _tell(self, message: dict[str, Any], *passed: socket.socket) -> None:
        if self._started is None:
            return
        fds = [sock.fileno() for sock in passed]
        try:
            socket.send_fds(self._started.control, [json.dumps(message).encode()], fds)
        except OSError:  # it has died, or hears nothing any more
            self._lose()

    def _hear(self) -> None:
        """How a call ended; nothing at all if the zygote has."""
        assert self._started is not None
        try:
            message = self._started.control.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._lose()
            return
        end = json.loads(message)
        call = self._calls.get(end["call"])
        if call is not None and not call.ended.done():
            call.ended.set_result((end["how"], end["code"]))

    def _lose(self) -> None:
        started, self._started = self._started, None
        if started is not None:
            _forget(started)
            started.kill()
        for call in self._calls.values():
            if not call.ended.done():
                call.ended.set_result(("lost", 0))


def _message(target: Target, args: Sequence[Any], options: Mapping[str, Any] | None = None) -> bytes:
    request = {"module": target.module, "name": target.name, "args": list(args), "options": dict(options or {})}
    return framed(json.dumps(request).encode())


def _value(target: Target, outcome: Outcome, timeout_s: float) -> Any:
    """What a call returned. Raises TimeoutError and SandboxError."""
    if outcome.how == "time":
        raise TimeoutError(f"{target.name} did not end within {timeout_s:g} s and was killed")
    if outcome.how != "end":
        raise SandboxLost(f"the process of {target.name} {outcome.trouble()}")
    try:
        answer = json.loads(outcome.output)
        # A call may write what it likes into its socket.
        known = isinstance(answer, dict) and (answer.keys() == {"value"} or isinstance(answer.get("error"), str))
    except (ValueError, RecursionError):
        answer, known = {}, False
    if not known or outcome.cut:
        said = outcome.trouble() or "answered with something else than JSON"
        raise SandboxError(f"the process of {target.name} {said}")
    if "error" in answer:
        raise SandboxError(answer["error"])
    return answer["value"]


def _forget(started: Started) -> None:
    with contextlib.suppress(RuntimeError):  # closed from outside of a loop
        asyncio.get_running_loop().remove_reader(started.control)


async def _first(control: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(control, 1 << 16)
    except ConnectionError:
        return b""


async def _send(sock: socket.socket, message: bytes) -> None:
    try:
        await asyncio.get_running_loop().sock_sendall(sock, message)
        sock.shutdown(socket.SHUT_WR)
    except OSError:  # it does not read, or has ended: its answer tells
        pass


async def _receive(sock: socket.socket, limit: int) -> bytes:
    """All that is written until the other end is closed, at most `limit` bytes."""
    loop, parts, size = asyncio.get_running_loop(), [], 0
    while size < limit:
        try:
            part = await loop.sock_recv(sock, min(1 << 16, limit - size))
        except ConnectionError:
            break
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)
