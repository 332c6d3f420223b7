"""One client's connection to Redis: scripts, retries, waiting. Redis' exceptions are translated here."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, NoScriptError, OutOfMemoryError, ReadOnlyError
from redis.retry import Retry

from cluster.errors import BufferUnavailable, ConfigError

SOCKET_TIMEOUT_S = 20.0
"""An answer takes no longer, or the server hangs."""
MAX_BLOCK_S = 10.0
"""One blocking read; below the socket's time-out. Longer waits are several of them."""
PATIENCE_S = 30.0
"""A restarting Redis is waited for so long."""

T = TypeVar("T")


@cache
def _source(name: str) -> str:
    return files("cluster.buffer").joinpath("scripts", f"{name}.lua").read_text("utf-8")


def address(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"


class Connection:
    """Thread-safe; connects at the first call. Repeats a call whose answer got lost: every script can be repeated."""

    def __init__(self, url: str, run: str) -> None:
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
                self.redis.eval(self._script("restarted")[0], 1, self.prefix, "")
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
        """Repeat while Redis is away or loading, then raise BufferUnavailable. ConfigError if it does not let us in."""
        until = time.monotonic() + PATIENCE_S
        retry = Retry(ExponentialBackoff(cap=4.0, base=0.05), 10, (redis.ConnectionError, redis.TimeoutError))

        def may_repeat(error: Exception) -> bool:
            return not isinstance(error, AuthenticationError) and time.monotonic() < until

        try:
            return retry.call_with_retry(call, lambda _: None, may_repeat)
        except (AuthenticationError, NoPermissionError) as error:
            raise self._refused(error) from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise BufferUnavailable(
                f"Redis at {self.where} does not answer ({error}), tried for up to {PATIENCE_S:.0f} s. "
                "Look at its log; the run continues from its last checkpoint once the server is back."
            ) from error
        except redis.ResponseError as error:
            raise self._translated(error) from error

    def _translated(self, error: redis.ResponseError) -> Exception:
        text = str(error)
        if isinstance(error, OutOfMemoryError) or "OOM" in text:
            return BufferUnavailable(
                f"Redis at {self.where} is out of memory ({text}). Nothing was evicted or written. Raise maxmemory, "
                "or store less: fewer groups_per_step, a smaller max_staleness, checkpoints more often (they trim)."
            )
        if "MISCONF" in text:
            return BufferUnavailable(f"Redis at {self.where} cannot write its disk ({text}). Free space there.")
        if isinstance(error, ReadOnlyError) or "READONLY" in text:
            return BufferUnavailable(f"Redis at {self.where} is a replica ({text}). buffer.url must name the primary.")
        if "NOAUTH" in text or "WRONGPASS" in text:
            return self._refused(error)
        return error

    def _refused(self, error: Exception) -> ConfigError:
        return ConfigError(f"Redis at {self.where} refuses us: {error}. Check the user and password in buffer.url.")

    def script_text(self, name: str) -> str:
        """For use in a MULTI block, where `call` cannot go."""
        return self._script(name)[0]

    def _script(self, name: str) -> tuple[str, str]:
        """Text and SHA. The run's name is in it, so another run here does not hide a restart from this one."""
        if name not in self._scripts:
            text = f"-- {self.prefix}\n{_source('prelude')}\n{_source(name)}"
            self._scripts[name] = (text, sha1(text.encode()).hexdigest())
        return self._scripts[name]

    def close(self) -> None:
        self.redis.close()
