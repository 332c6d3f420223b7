"""The newest raw answers of a run's judges: append-only, so that a score can be read again or audited later."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from cluster.errors import BufferUnavailable
from cluster.types import Message, decode, encode
from rewards.judges.types import Completion

MAX_CONNECTIONS = 32
"""As many questions as the judges' queues hold may look here at once: they wait for a connection, none fails for it."""
PATIENCE_S = 60.0
"""A redis-server that starts again answers within it; the deadline of the request ends the wait earlier."""
KEPT_WITHIN_S = 0.05
"""Answers that come within it are written at once; little beside a judge's own time."""

KEEP = """
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('RPUSH', KEYS[2], KEYS[1])
while redis.call('LLEN', KEYS[2]) > tonumber(ARGV[2]) do redis.call('LPOP', redis.call('LPOP', KEYS[2])) end
"""
"""Appends an answer to its request's list, and removes the oldest answers beyond the limit."""


@dataclass(frozen=True, slots=True)
class Record:
    """One attempt at one request: what was asked and what came back, readable or not."""

    id: str
    """Unique; a record that was sent twice is one."""
    key: str
    judge: str
    template: str
    prompt_hash: str
    mode: str
    attempt: int
    messages: tuple[Message, ...]
    completions: tuple[Completion, ...]
    """One, or two in mode `reason`."""
    replica: str
    at_s: float
    """Unix time."""


class Archive(Protocol):
    async def append(self, record: Record) -> None: ...

    async def get(self, key: str) -> list[Record]:
        """All attempts at the request with this key, oldest first."""
        ...

    async def close(self) -> None: ...


class MemoryArchive:
    """For a process that is alone, and for tests."""

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = {}

    async def append(self, record: Record) -> None:
        self.records.setdefault(record.key, []).append(record)

    async def get(self, key: str) -> list[Record]:
        return list(self.records.get(key, ()))

    async def close(self) -> None:
        pass


class RedisArchive:
    """One list per request under the run's prefix; shared by all reward workers, which keep `limit` answers in all."""

    def __init__(self, url: str, run_id: str, limit: int, patience_s: float = PATIENCE_S) -> None:
        longest_backoff_s = 1.0
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            protocol=2,
            max_connections=MAX_CONNECTIONS,
            timeout=patience_s,
            socket_timeout=30.0,
            socket_connect_timeout=5.0,
            retry=Retry(ExponentialBackoff(cap=longest_backoff_s, base=0.05), round(patience_s / longest_backoff_s)),
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._looking, self._keeping = _Together(self._redis, 0.0), _Together(self._redis, KEPT_WITHIN_S)
        self._prefix = f"kanabo:{{{run_id}}}:judged:"
        self._order, self._limit = f"kanabo:{{{run_id}}}:judged_order", limit

    async def append(self, record: Record) -> None:
        try:
            await self._keeping("EVAL", KEEP, 2, self._prefix + record.key, self._order, encode(record), self._limit)
        except redis.exceptions.RedisError as error:
            raise BufferUnavailable(f"a judge's answer could not be kept: {error}.") from error

    async def get(self, key: str) -> list[Record]:
        try:
            rows = await self._looking("LRANGE", self._prefix + key, 0, -1)
        except redis.exceptions.RedisError as error:
            raise BufferUnavailable(f"the archive of judges' answers does not answer: {error}.") from error
        # A call whose reply was lost is repeated by the client.
        return list({record.id: record for record in (decode(row, Record) for row in rows)}.values())

    async def close(self) -> None:
        await self._redis.aclose()


class _Together:
    """Commands given within so many seconds, sent as one pipeline; 0 is one turn of the loop: a group asks at once."""

    def __init__(self, connection: redis.asyncio.Redis, within_s: float) -> None:
        self._redis, self._within_s = connection, within_s
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def __call__(self, *command: Any) -> Any:
        """Its reply. Raises RedisError."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, reply))
        if len(self._waiting) == 1:
            loop.call_later(self._within_s, self._flush)
        return await reply

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        task = asyncio.get_running_loop().create_task(self._send(waiting))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for command, _ in waiting:
                    pipe.execute_command(*command)
                replies = await pipe.execute(raise_on_error=False)
        except Exception as error:  # raised below by each of those who wait; nobody waits for this task
            replies = [error] * len(waiting)
        for (_, reply), said in zip(waiting, replies, strict=True):
            if reply.done():  # whoever asked has given up
                continue
            if isinstance(said, Exception):
                reply.set_exception(said)
            else:
                reply.set_result(said)
