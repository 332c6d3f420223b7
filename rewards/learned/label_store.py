"""The label table in Redis, shared by all processes of a run. Each call is one script, atomic.

Keys, all under `kanabo:{RUN}:labels:NAME:`

    table      hash    key → label
    versions   hash    key → the version of that label
    backlog    zset    key → number of its submission
    in_flight  zset    key → when its time is up, in Redis' own milliseconds
    numbers    hash    key → number of its submission, of those in flight
    attempts   hash    key → how often it was taken
    counters   hash    seq, looked_up, found, pushed_out, expired
    shown      list    groups of texts, the newest first
    news       stream  every label, in the order in which they came
    bell       stream  of one entry, when the backlog has grown
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.buffer.connection import Connection
from cluster.types import decode, encode
from rewards.learned.labels import MAX_SHOWN, Label, LabelCounts, News, Order

PRELUDE = """
local run, call = KEYS[1], redis.call
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function count(what, by) return call('HINCRBY', run .. 'counters', what, by) end
local function push_out(max_backlog)
  local excess = call('ZCARD', run .. 'backlog') - max_backlog
  if excess > 0 then
    for _, key in ipairs(call('ZRANGE', run .. 'backlog', 0, excess - 1)) do
      call('ZREM', run .. 'backlog', key)
      call('HDEL', run .. 'attempts', key)
    end
    count('pushed_out', excess)
  end
end
local function wait_again(key)
  call('ZREM', run .. 'in_flight', key)
  call('ZADD', run .. 'backlog', call('HGET', run .. 'numbers', key), key)
  call('HDEL', run .. 'numbers', key)
end
local function ring() call('XADD', run .. 'bell', 'MAXLEN', 1, '*', 'rung', 1) end
local function expire(max_backlog)
  for _, key in ipairs(call('ZRANGEBYSCORE', run .. 'in_flight', '-inf', now)) do
    wait_again(key)
    count('expired', 1)
  end
  push_out(max_backlog)
end
"""

LOOK_UP = """
count('looked_up', #ARGV)
local found = {}
for i, key in ipairs(ARGV) do found[i] = call('HGET', run .. 'table', key) end
return found
"""

SUBMIT = """
local num_new = 0
expire(tonumber(ARGV[2]))
for i = 3, #ARGV do
  local key = ARGV[i]
  local labelled = call('HGET', run .. 'versions', key) == ARGV[1]
  if not labelled and not call('ZSCORE', run .. 'in_flight', key) then
    num_new = num_new + call('ZADD', run .. 'backlog', count('seq', 1), key)
  end
end
push_out(tonumber(ARGV[2]))
if num_new > 0 then ring() end
return num_new
"""

TAKE = """
expire(tonumber(ARGV[2]))
-- Among those taken the newest stands last, whichever end they are from.
local first, last = -ARGV[1], -1
if ARGV[4] == 'oldest' then first, last = 0, ARGV[1] - 1 end
local taken = {}
for _, key in ipairs(call('ZRANGE', run .. 'backlog', first, last)) do
  call('HSET', run .. 'numbers', key, call('ZSCORE', run .. 'backlog', key))
  call('ZREM', run .. 'backlog', key)
  call('ZADD', run .. 'in_flight', now + ARGV[3], key)
  taken[#taken + 1] = key
  taken[#taken + 1] = call('HINCRBY', run .. 'attempts', key, 1)
end
if #taken > 0 then return {taken} end
local last = call('XREVRANGE', run .. 'bell', '+', '-', 'COUNT', 1)
local due = call('ZRANGE', run .. 'in_flight', 0, 0, 'WITHSCORES')
return {taken, last[1] and last[1][1] or '0', due[2] and math.max(1, due[2] - now) or -1}
"""

ADD = """
for i = 1, #ARGV, 3 do
  local key, version, label = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if call('HGET', run .. 'versions', key) ~= version then
    call('HSET', run .. 'versions', key, version)
    call('HSET', run .. 'table', key, label)
    call('XADD', run .. 'news', '*', 'key', key, 'label', label)
  end
  for _, set in ipairs({'backlog', 'in_flight'}) do call('ZREM', run .. set, key) end
  for _, hash in ipairs({'numbers', 'attempts'}) do call('HDEL', run .. hash, key) end
end
"""

PUT_BACK = """
for i = 3, #ARGV do
  local key = ARGV[i]
  if call('ZSCORE', run .. 'in_flight', key) then
    wait_again(key)
    call('HINCRBY', run .. 'attempts', key, ARGV[1])
  end
end
push_out(tonumber(ARGV[2]))
ring()
"""

COUNTS = """
local function counted(what) return tonumber(call('HGET', run .. 'counters', what) or 0) end
return {call('HLEN', run .. 'table'), call('ZCARD', run .. 'backlog'), call('ZCARD', run .. 'in_flight'),
        counted('looked_up'), counted('found'), counted('pushed_out'), counted('expired')}
"""


class RedisLabels:
    """Implements `Labels`; see there. Raises BufferUnavailable if Redis stays away.

    A `take` whose reply got lost leaves its keys in flight until their time is up: they are asked late, not never.
    """

    def __init__(
        self,
        url: str,
        run: str,
        name: str,
        *,
        version: str = "0",
        max_backlog: int = 10_000,
        ttl_s: float = 120.0,
        order: Order = "newest",
    ) -> None:
        """`version` is that of judge and prompt. What is in flight for longer than `ttl_s` waits again (ONI: 120 s)."""
        self._args = (url, run, name, version, max_backlog, ttl_s, order)
        self._connection = Connection(url, run)
        self._prefix = f"{self._connection.prefix}labels:{name}:"
        self._order = order
        self._version, self._max_backlog, self._ttl_ms = version, max_backlog, max(1, round(ttl_s * 1000))
        self._scripts = {
            text: self._connection.redis.register_script(PRELUDE + text)
            for text in (LOOK_UP, SUBMIT, TAKE, ADD, PUT_BACK, COUNTS)
        }

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _again, self._args

    def close(self) -> None:
        self._connection.close()

    def look_up(self, keys: Sequence[str]) -> list[Label | None]:
        if not keys:
            return []
        found = self._call(LOOK_UP, *keys)
        labels = [decode(data, Label) if data else None for data in found]
        num_found = sum(label is not None and label.known for label in labels)
        self._connection.patiently(
            lambda: self._connection.redis.hincrby(f"{self._prefix}counters", "found", num_found)
        )
        return labels

    def submit(self, keys: Sequence[str]) -> int:
        return self._call(SUBMIT, self._version, self._max_backlog, *keys) if keys else 0

    def take(self, limit: int, timeout_s: float) -> dict[str, int]:
        until = time.monotonic() + timeout_s
        while True:
            taken, *empty = self._call(TAKE, limit, self._max_backlog, self._ttl_ms, self._order)
            left_s = until - time.monotonic()
            if taken or left_s <= 0:
                return {key.decode(): attempt for key, attempt in zip(taken[::2], taken[1::2], strict=True)}
            # The script named the last ring in the same atomic step in which it found nothing: no ring is missed.
            last, due_ms = empty
            wait_s = left_s if due_ms < 0 else min(left_s, due_ms / 1000)
            self._connection.listen(f"{self._prefix}bell", last, wait_s, limit=1)

    def add(self, labels: Mapping[str, Label]) -> None:
        if labels:
            self._call(ADD, *(x for key, label in labels.items() for x in (key, label.version, encode(label))))

    def put_back(self, keys: Sequence[str], *, counted: bool) -> None:
        if keys:
            self._call(PUT_BACK, 0 if counted else -1, self._max_backlog, *keys)

    def news(self, after: str, limit: int, timeout_s: float) -> list[News]:
        entries = self._connection.listen(f"{self._prefix}news", after, timeout_s, limit=limit)
        return [News(id.decode(), f[b"key"].decode(), decode(f[b"label"], Label)) for id, f in entries]

    def counts(self) -> LabelCounts:
        return LabelCounts(*self._call(COUNTS))

    def show(self, texts: Sequence[str]) -> None:
        redis, key = self._connection.redis, f"{self._prefix}shown"

        def push() -> None:
            # A repeated push, after a reply got lost, shows a group twice: it weighs more, no more than that.
            with redis.pipeline(transaction=True) as pipe:
                pipe.lpush(key, encode(tuple(texts)))
                pipe.ltrim(key, 0, MAX_SHOWN - 1)
                pipe.execute()

        self._connection.patiently(push)

    def shown(self) -> list[tuple[str, ...]]:
        key = f"{self._prefix}shown"
        found: Any = self._connection.patiently(lambda: self._connection.redis.lrange(key, 0, -1))
        return [decode(data, tuple[str, ...]) for data in found]

    def _call(self, text: str, *args: Any) -> Any:
        return self._connection.patiently(lambda: self._scripts[text](keys=[self._prefix], args=list(args)))


def _again(url: str, run: str, name: str, version: str, max_backlog: int, ttl_s: float, order: Order) -> RedisLabels:
    return RedisLabels(url, run, name, version=version, max_backlog=max_backlog, ttl_s=ttl_s, order=order)
