"""The buffer's transitions against plain Redis commands that carry the same bytes and promise nothing.

A step of the pipeline: `groups` groups are claimed, put and scored by sixteen threads, as many as a rollout worker has,
then read, recorded and released. The bare side has the same bytes encoded beforehand, and either sends each phase as
one pipeline, which no set of separate workers could, or each command as a call of its own from the same threads. The
server is the run's own: it syncs its file before it answers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import redis

from cluster.buffer import Buffer, Limits
from cluster.buffer.server import Store
from cluster.types import BatchRecord, Claim, Group, Publication, Scores, Task, encode
from tests.bench.figures import Figure, alternate
from tests.learner.groups import rollout

GROUPS, GROUP_SIZE, TOKENS = 64, 8, 180
"""About 16 kB a group."""
STEPS = 4
"""In a repetition."""
THREADS = 16
OPERATIONS = STEPS * (3 * GROUPS + 3)
"""claim, put and score a group; ready, record and release a step."""


def measure() -> list[Figure]:
    with (
        tempfile.TemporaryDirectory() as directory,
        Store(Path(directory)) as store,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        pipeline, plain = Pipeline(store.url, threads), Plain(store.url, threads)
        details = {"groups": GROUPS, "bytes_per_group": plain.num_bytes, "threads": THREADS}
        return [
            Figure("buffer_vs_redis", "ops/s", *alternate(_rate(pipeline.step), _rate(plain.pipelined)), None, details),
            Figure("buffer_vs_calls", "ops/s", *alternate(_rate(pipeline.step), _rate(plain.called)), None, details),
        ]


def _rate(step: Callable[[], object]) -> Callable[[], float]:
    def side() -> float:
        begun = time.monotonic()
        for _ in range(STEPS):
            step()
        return OPERATIONS / (time.monotonic() - begun)

    return side


def _group(claim: Claim, rng: np.random.Generator) -> Group:
    return Group(claim, Task.of("task", "?"), tuple(rollout(20, TOKENS - 20, rng) for _ in range(GROUP_SIZE)))


def _record(step: int, ids: Iterable[str]) -> BatchRecord:
    ids = tuple(ids)
    rewards, credit = np.arange(GROUP_SIZE, dtype=float), (np.ones(1, np.float32),) * GROUP_SIZE
    return BatchRecord("policy", step, ids, (rewards,) * len(ids), (credit,) * len(ids))


SCORES = Scores.of(range(GROUP_SIZE))


class Pipeline:
    """The verbs, one call each."""

    def __init__(self, url: str, threads: ThreadPoolExecutor) -> None:
        self._buffer, self._threads, self._step = Buffer(url, "bench"), threads, 0
        self._buffer.configure(Limits(GROUPS, 0, blocking=("reward",)))
        self._epoch = self._buffer.resume("policy", None)
        self._buffer.announce(Publication("policy", self._epoch, 0))
        self._rollouts = _group(Claim("", "policy", 1, 0, 0, 0, ""), np.random.default_rng(0)).rollouts

    def step(self) -> None:
        buffer, epoch = self._buffer, self._epoch
        list(self._threads.map(self._one, range(GROUPS)))
        stored = buffer.ready("policy", epoch, self._step, limit=GROUPS, timeout_s=10.0)
        assert len(stored) == GROUPS
        buffer.record(epoch, _record(self._step, [s.group.id for s in stored]))
        self._step += 1
        buffer.announce(Publication("policy", epoch, self._step))
        buffer.release("policy", epoch, self._step)

    def _one(self, _: int) -> None:
        claim = self._buffer.claim("policy", worker="bench", engine=f"{self._epoch}.{self._step}", timeout_s=10.0)
        assert claim is not None
        self._buffer.put(Group(claim, Task.of("task", "?"), self._rollouts))
        self._buffer.score(claim.id, {"reward": SCORES})


class Plain:
    """Commands with the same bytes: no leases, no order, no second thoughts."""

    def __init__(self, url: str, threads: ThreadPoolExecutor) -> None:
        self._redis, self._threads, self._step = redis.Redis.from_url(url, protocol=2), threads, 0
        claim = Claim("policy/1/0", "policy", 1, 0, 0, 0, "token" * 6)
        self._claim, self._scores = encode(claim), encode(SCORES)
        self._data = encode(_group(claim, np.random.default_rng(0)))
        self._record = encode(_record(0, [f"policy/1/{i}" for i in range(GROUPS)]))
        self.num_bytes = len(self._data)

    def _keys(self) -> list[str]:
        self._step += 1
        return [f"plain:{self._step}:{i}" for i in range(GROUPS)]

    def pipelined(self) -> None:
        keys = self._keys()
        for field, value in (("claim", self._claim), ("data", self._data), ("scores", self._scores)):
            with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hset(key, field, value)
                pipe.execute()
        self._read(keys)

    def called(self) -> None:
        def one(key: str) -> None:
            for field, value in (("claim", self._claim), ("data", self._data), ("scores", self._scores)):
                self._redis.hset(key, field, value)

        keys = self._keys()
        list(self._threads.map(one, keys))
        self._read(keys)

    def _read(self, keys: list[str]) -> Any:
        with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(key)
            pipe.execute()
        self._redis.set(f"plain:{self._step}:record", self._record)
        self._redis.set("plain:published", self._step)
        return self._redis.set("plain:version", self._step)
