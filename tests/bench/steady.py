"""A run's buffer with many groups outstanding, worked on step by step by stand-ins; its cost in processor time."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import redis

from cluster.buffer import Buffer, Limits
from cluster.types import BatchRecord, Claim, Group, Publication, ScoredGroup, Scores, Task
from tests.learner.groups import rollout

POLICY = "policy"
REWARDER = "reward-0"


class Steady:
    """`outstanding` groups wait to be trained; a step trains `groups` of them and samples as many anew.

    A group has `size` rollouts of `tokens` tokens. Each call of the pipeline is made once for each group, as workers
    make it; the learner waits while its step's groups come in.
    """

    def __init__(self, url: str, run: str, *, outstanding: int, groups: int = 64, size: int = 8, tokens: int = 180):
        self.groups, self._step = groups, 0
        self.buffer = Buffer(url, run)
        self._client = redis.Redis.from_url(url, protocol=2)
        staleness = max(1, outstanding // groups - 1)
        self.buffer.configure(Limits(groups, staleness, blocking=("reward",), lease_s=36e3, score_deadline_s=36e3))
        self._epoch = self.buffer.resume(POLICY, None)
        self.buffer.announce(Publication(POLICY, self._epoch, 0))
        rng = np.random.default_rng(0)
        self.rollouts = tuple(rollout(20, max(1, tokens - 20), rng) for _ in range(size))
        self._scores = Scores.of(range(size))
        self.unfinished = [self.claim() for _ in range(groups * staleness)]
        for claim in self.unfinished:
            self.put(claim)
        self.take(len(self.unfinished))

    @property
    def version(self) -> str:
        """Of the weights that engines have."""
        return f"{self._epoch}.{self._step}"

    def claim(self) -> Claim:
        claim = self.buffer.claim(POLICY, worker="rollout-0", engine=self.version, timeout_s=10.0)
        assert claim is not None
        return claim

    def put(self, claim: Claim) -> None:
        self.buffer.put(Group(claim, Task.of("task", "?"), self.rollouts))

    def take(self, count: int) -> None:
        """Reward workers take groups in hand; they come again if they are not scored in time."""
        while count > 0:
            count -= len(self.buffer.unscored(REWARDER, min(count, 64), timeout_s=10.0))

    def score(self, claim: Claim) -> None:
        self.buffer.score(claim.id, {"reward": self._scores})

    def wait(self, timeout_s: float) -> list[ScoredGroup] | None:
        """The learner looks whether its step's groups are ready, as the assembler does."""
        return self.buffer.ready(POLICY, self._epoch, self._step, limit=self.groups, timeout_s=timeout_s, partial=False)

    def step(self) -> None:
        """Claim, put and score as many groups as a step trains, and train the oldest."""
        new = [self.claim() for _ in range(self.groups)]
        for claim in new:
            self.put(claim)
            self.take(1)
        self.unfinished += new
        done, self.unfinished = self.unfinished[: self.groups], self.unfinished[self.groups :]
        stored = None
        for claim in done:
            self.score(claim)
            stored = self.wait(timeout_s=0.0)
        assert stored is not None
        assert [s.group.id for s in stored] == [claim.id for claim in done]
        rewards, credit = np.arange(len(self.rollouts), dtype=float), (np.ones(1, np.float32),) * len(self.rollouts)
        ids = tuple(s.group.id for s in stored)
        record = BatchRecord(POLICY, self._step, ids, (rewards,) * len(ids), (credit,) * len(ids))
        self.buffer.record(self._epoch, record)
        self._step += 1
        self.buffer.announce(Publication(POLICY, self._epoch, self._step))
        self.buffer.release(POLICY, self._epoch, self._step)
        self.buffer.status(POLICY)

    def checkpoint(self) -> None:
        self.buffer.trim(self.buffer.snapshot(POLICY, self._epoch, self._step))

    def server_s(self) -> float:
        """Processor time that the server has used."""
        used: Any = self._client.info("cpu")
        return used["used_cpu_user"] + used["used_cpu_sys"]

    def server_bytes(self) -> int:
        memory: Any = self._client.info("memory")
        return memory["used_memory"]

    def answered_bytes(self) -> int:
        """Bytes that the server has sent."""
        stats: Any = self._client.info("stats")
        return stats["total_net_output_bytes"]

    def forget_answers(self) -> None:
        """Let the answers of calls expire that a repeated call would find for ten minutes."""
        for key in self._client.scan_iter("*:answer:*", count=1000):
            self._client.unlink(key)

    def commands(self) -> int:
        """Commands that the server has run, those inside scripts included."""
        stats: Any = self._client.info("commandstats")
        return sum(row["calls"] for name, row in stats.items() if name != "cmdstat_info")

    def close(self) -> None:
        self.buffer.close()
        self._client.flushall()
        self._client.close()


def own_s() -> float:
    """Processor time that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
