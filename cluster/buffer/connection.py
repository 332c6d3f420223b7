"""One client's connection to Redis: scripts, retries, waiting. Redis' exceptions are translated here."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
)  # fmt: skip
from redis.retry import Retry

from cluster.errors import BufferUnavailable, ConfigError

log = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 20.0
"""An answer takes no longer, or the server hangs."""
MAX_BLOCK_S = 10.0
"""One blocking read; below the socket's time-out. Longer waits are several of them."""
PATIENCE_S = 30.0
"""How long a call waits for a Redis that is away or refuses writes; a run's actors wait `run.progress_timeout_s`."""
QUIET_S = 1.0
"""Trouble that is over sooner, such as a restart of an empty server, is not worth a line in the log."""
REPEAT_S = 30.0
"""Trouble that lasts is named so often."""

REFUSALS = {
    "OOM": (
        "is out of memory, and evicts nothing",
        "Raise maxmemory (CONFIG SET maxmemory …), or for the next start store less: fewer learner.groups_per_step, "
        "a smaller learner.max_staleness, checkpoints more often (they trim).",
    ),
    "MISCONF": ("cannot write its disk", "Free space there; its log says more."),
    "READONLY": ("is a replica", "buffer.url must name the primary."),
    "BUSY": ("is held up by a script", "If it is not one of ours, end it with SCRIPT KILL."),
}
"""What Redis says when it is there but does not write: its state, and the remedy."""

T = TypeVar("T")


@cache
def _source(name: str) -> str:
    return files("cluster.buffer").joinpath("scripts", f"{name}.lua").read_text("utf-8")


def address(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"


class Connection:
    """Thread-safe; connects at the first call. Repeats a call whose answer got lost: every script can be repeated.

    A Redis that is away, or refuses to write, is waited for up to `patience_s` a call: nothing fails, and so nothing is
    dropped, over what its operator can mend.
    """

    def __init__(self, url: str, run: str, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._closed = threading.Event()
        self._named_at = float("-inf")
        self.where = address(url)
        self.prefix = f"kanabo:{{{run}}}:"
        # redis-py's own retries nest (a dead server would be tried 121 times), so they are off and ours is around them.
        self.redis = redis.Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=5.0,
            socket_keepalive=True,
        )
        self._scripts: dict[str, tuple[str, str]] = {}

    def call(self, script: str, *args: Any) -> list[Any]:
        """Run one transition and return its reply, whose first element is a word such as `ok` or `wait`."""
        text, sha = self._script(script)
        keys_and_args = (1, self.prefix, *args)

        def run() -> Any:
            try:
                return self.redis.evalsha(sha, *keys_and_args)
            except NoScriptError:
                # A server that does not know the script has just started: deadlines first, then anything else.
                self._renew_deadlines("restarted")
                # Not SCRIPT LOAD: Redis 6 keeps that in its append-only file, and would know the script when it starts.
                return self.redis.eval(text, *keys_and_args)

        reply = self.patiently(run)
        return [reply[0].decode(), *reply[1:]]

    def call_when(self, timeout_s: float, script: str, *args: Any) -> list[Any]:
        """Run a transition until it has something to do, woken by its bell or the next deadline; `wait` on time-out."""
        until = time.monotonic() + timeout_s
        while True:
            reply = self.call(script, *args)
            left = until - time.monotonic()
            if reply[0] != "wait" or left <= 0:
                return reply
            _, _, bell, last, due_ms = reply
            # The script named the last ring in the same atomic step in which it found nothing: no ring is missed.
            self._block(bell, last, left if due_ms < 0 else min(left, due_ms / 1000))

    def listen(self, stream: bytes | str, after: bytes | str, timeout_s: float, limit: int) -> list[Any]:
        """Entries of a stream after an id; waits for the first."""
        until = time.monotonic() + timeout_s
        while True:
            entries = self._block(stream, after, until - time.monotonic(), limit)
            if entries or time.monotonic() >= until:
                return entries

    def _block(self, stream: bytes | str, after: bytes | str, timeout_s: float, limit: int = 1) -> list[Any]:
        block_ms = max(1, int(min(timeout_s, MAX_BLOCK_S) * 1000))
        reply: Any = self.patiently(lambda: self.redis.xread({stream: after}, count=limit, block=block_ms))
        return reply[0][1] if reply else []

    def patiently(self, call: Callable[[], T]) -> T:
        """Repeat while Redis is away, loads or refuses to write, and say so; BufferUnavailable when patience is over.

        ConfigError if it does not let us in.
        """
        begun = time.monotonic()
        backoff = ExponentialBackoff(cap=1.0, base=0.05)
        refused, failures = False, 0
        while True:
            try:
                if refused:
                    self._renew_deadlines("refused")
                return call()
            except redis.RedisError as error:
                state, remedy = self._trouble(error)
                refused = refused or not isinstance(error, (redis.ConnectionError, redis.TimeoutError))
                failures += 1
                self._wait(begun, backoff.compute(failures), f"Redis at {self.where} {state} ({error})", remedy, error)

    def _wait(self, begun: float, pause_s: float, what: str, remedy: str, error: Exception) -> None:
        now = time.monotonic()
        if now - begun >= self._patience_s or self._closed.is_set():
            raise BufferUnavailable(f"{what}, waited for {now - begun:.0f} s. {remedy}") from error
        if now - begun >= QUIET_S and now - self._named_at >= REPEAT_S:
            self._named_at = now
            log.warning(
                "%s. Waiting, for up to %.0f s; nothing is dropped meanwhile. %s", what, self._patience_s, remedy
            )
        self._closed.wait(pause_s)

    def _trouble(self, error: redis.RedisError) -> tuple[str, str]:
        """The state Redis is in, and the remedy. Raises what does not get better by waiting."""
        if isinstance(error, (AuthenticationError, NoPermissionError)) or re.search("NOAUTH|WRONGPASS", str(error)):
            raise ConfigError(
                f"Redis at {self.where} refuses us: {error}. Check the user and password in buffer.url."
            ) from error
        if isinstance(error, BusyLoadingError):
            return "is loading its data", "It answers once it has; its log says how far it is."
        if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
            return "does not answer", "Look at its log; the run continues from its last checkpoint once it is back."
        word = _refusal(error)
        if word is None:
            raise error
        return REFUSALS[word]

    def _renew_deadlines(self, why: str) -> None:
        """Renew deadlines after an outage, in which no worker could renew a lease or send a score: `restarted` or
        `refused`."""
        self.redis.eval(self._script("fresh")[0], 1, self.prefix, "", why)

    def _script(self, name: str) -> tuple[str, str]:
        """Text and SHA. The run's name is in it, so another run here does not hide a restart from this one."""
        if name not in self._scripts:
            text = f"-- {self.prefix}\n{_source('prelude')}\n{_source(name)}"
            self._scripts[name] = (text, sha1(text.encode()).hexdigest())
        return self._scripts[name]

    def close(self) -> None:
        """Give the connections back and end calls that wait for Redis to return; later ones do not wait for that."""
        self._closed.set()
        self.redis.close()


def _refusal(error: redis.RedisError) -> str | None:
    """The word with which Redis refuses to write; inside a script it stands in the middle of the message."""
    if isinstance(error, OutOfMemoryError):
        return "OOM"
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    found = re.search(rf"(?:^|[\s-])({'|'.join(REFUSALS)})\s", str(error))
    return found[1] if found else None
