"""What a failure of a process really was: the root of its exceptions, the last error of its log, and whether the same
call would fail in the same way again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cluster.errors import InfrastructureError, StartFailed

ERROR_LINE = re.compile(
    r"^(?:.*?\s)??((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Failed|Refused): \S.*)$"
)
"""The last line of a Python trace, after whatever a logger or a multiprocessing parent has put before it."""
REFERRED = re.compile(
    r"see (root cause|stack trace|above|the stack)|initialization failed|failed core proc", re.IGNORECASE
)
"""Error lines that only point at another one."""
POINTER = re.compile(r",? *(?:please )?(?:check|see) the stack trace above for the root cause\.?$", re.IGNORECASE)
"""The end of an error line that sends its reader elsewhere."""
TRANSIENT = re.compile(
    r"out of memory|OutOfMemory|cannot allocate memory|no space left|address already in use|connection (refused|reset)"
    r"|timed? ?out|timeout|too many open files|resource temporarily unavailable|died unexpectedly|SIGKILL"
    r"|killed by signal"
    r"|InfrastructureError|EngineDeadError|BufferUnavailable|CUDA error|NCCL error|broken pipe",
    re.IGNORECASE,
)
"""What another try, or another machine, may not meet."""
LONGEST = 600
"""Characters of a cause: some libraries put a whole configuration into theirs."""
LOOK_S = 1.0
"""How often a log is looked at for an error."""

T = TypeVar("T")


def root_of(error: BaseException) -> BaseException:
    """The exception inside nested groups that explains them: one that is not of infrastructure, if there is one."""
    while isinstance(error, BaseExceptionGroup):
        leaves = [root_of(e) for e in error.exceptions]
        error = next((e for e in leaves if not isinstance(e, InfrastructureError)), leaves[0])
    return error


def last_error(log: str) -> str:
    """The last error that a log tells, without what the logger put before it; empty if it tells none."""
    found = [match[1] for line in log.splitlines() if (match := ERROR_LINE.match(line.strip()))]
    told = [line for line in found if not REFERRED.search(line)]
    return POINTER.sub("", (told or found or [""])[-1])[:LONGEST].rstrip(".")


def is_transient(text: str) -> bool:
    """Whether a failure with this text may not come again."""
    return bool(TRANSIENT.search(text))


def failure(what: str, error: BaseException | None, log: str = "") -> InfrastructureError | StartFailed:
    """The error to raise for a start that failed: InfrastructureError where another try may succeed, else StartFailed.

    The message is one line: `what`, then the last error of `log`, or `error` where the log tells none.
    """
    own = (
        "" if error is None else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:LONGEST].rstrip(".")
    )
    cause = last_error(log) or own
    if not cause:
        lines = [line for line in log.strip().splitlines() if line.strip()]
        cause = lines[-1].strip()[:LONGEST].rstrip(".") if lines else "it said nothing"
        return InfrastructureError(f"{what}: {cause}.")  # killed, most likely
    kind = InfrastructureError if is_transient(cause) or isinstance(error, InfrastructureError) else StartFailed
    return kind(f"{what}: {cause}.")


class Said:
    """What this process and its children have written to standard output and error, as far as it can be read back."""

    def __init__(self, starts: dict[tuple[int, int], tuple[int, int]]) -> None:
        self._starts, self._text = starts, None

    @property
    def text(self) -> str:
        """So far, or up to the end of the context."""
        if self._text is not None:
            return self._text
        text = ""
        for number, size in self._starts.values():
            with contextlib.suppress(OSError), open(f"/proc/self/fd/{number}", "rb") as file:
                file.seek(size)
                text += file.read().decode("utf-8", errors="replace")
        return text

    def end(self) -> None:
        self._text = self.text


class Hangs(Exception):
    """A call that has not returned although an error was logged."""


async def unless_logged(work: Awaitable[T], said: Said, patience_s: float) -> T:
    """The result of `work`, which is given up when an error was logged and it has not returned `patience_s` later.

    A process may log what it died of and leave its parent waiting. Raises Hangs.
    """
    task = asyncio.ensure_future(work)
    logged: float | None = None
    try:
        while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
            if logged is None and last_error(said.text):
                logged = time.monotonic()
            if logged is not None and time.monotonic() - logged > patience_s:
                raise Hangs(f"no answer {patience_s:g} s after an error was logged")
        return task.result()
    finally:
        task.cancel()


@contextmanager
def overheard() -> Iterator[Said]:
    """What is written to standard output and error in this context, children included, where they are files.

    In a Ray worker they are. On a terminal nothing is overheard: the user has read it.
    """
    starts: dict[tuple[int, int], tuple[int, int]] = {}
    for number in (1, 2):
        with contextlib.suppress(OSError):
            status = os.fstat(number)
            if stat.S_ISREG(status.st_mode):
                starts.setdefault((status.st_dev, status.st_ino), (number, status.st_size))
    said = Said(starts)
    try:
        yield said
    finally:
        said.end()
