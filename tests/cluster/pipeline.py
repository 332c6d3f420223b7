"""A pipeline without models: claims, groups and batches of a policy, driven by hand."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import numpy as np

from cluster.buffer import Buffer, Limits
from cluster.buffer.connection import Connection
from cluster.types import (
    BatchRecord,
    Claim,
    Group,
    Manifest,
    Publication,
    Rollout,
    ScoredGroup,
    Scores,
    Task,
    VersionSpan,
)

RIGHT = Scores.of([1.0, 0.0])
_connections: WeakKeyDictionary[Buffer, Connection] = WeakKeyDictionary()


def run_of(buffer: Buffer) -> str:
    """The name of its run, as another process is told it."""
    _, (_, run, _) = buffer.__reduce__()
    return run


def connection_of(buffer: Buffer) -> Connection:
    """A second connection to the Redis and the keys of a buffer's run."""
    if buffer not in _connections:
        _, address = buffer.__reduce__()
        _connections[buffer] = Connection(*address)
    return _connections[buffer]


def group_of(claim: Claim, num_tokens: int = 8) -> Group:
    """Two rollouts on the claim's task."""
    tokens = np.arange(num_tokens, dtype=np.int32)
    rollout = Rollout(
        tokens=tokens,
        loss_mask=tokens > 2,
        logprobs=np.zeros(num_tokens, np.float32),
        text="4",
        turns=(),
        spans=(VersionSpan(f"{claim.epoch}.{claim.version}", 0, num_tokens),),
        finish="stop",
    )
    return Group(claim, Task.of(str(claim.task), "2 + 2"), (rollout, rollout))


def record_of(policy: str, step: int, ids: Iterable[str]) -> BatchRecord:
    ids = tuple(ids)
    return BatchRecord(
        policy, step, ids, (np.array([1.0, 0.0]),) * len(ids), ((np.ones(1, np.float32),) * 2,) * len(ids)
    )


def store_as_version_01(buffer: Buffer) -> None:
    """Give what the policy has stored the names of version 0.1: a batch was cut, and `next_cut` was the next step."""
    client, own = connection_of(buffer).redis, f"{connection_of(buffer).prefix}policy:policy:"
    for id in client.zrange(f"{own}assembled", 0, -1):  # type: ignore[union-attr]
        client.hset(f"{connection_of(buffer).prefix}group:{id.decode()}", "state", "cut")
    client.rename(f"{own}assembled", f"{own}cut")
    for id, line in client.hgetall(f"{own}ledger").items():  # type: ignore[union-attr]
        client.hset(f"{own}ledger", id, line.replace(b" assembled:", b" cut:"))
    client.hset(f"{own}state", "next_cut", client.hget(f"{own}state", "next_step"))  # type: ignore[arg-type]
    client.hdel(f"{own}state", "next_step")


class Pipeline:
    """One policy's learner, and workers that do everything at once."""

    def __init__(
        self, buffer: Buffer, limits: Limits, *, policy: str = "policy", manifest: Manifest | None = None
    ) -> None:
        self.buffer, self.limits, self.policy = buffer, limits, policy
        buffer.configure(limits)
        self.start(manifest)

    def start(self, manifest: Manifest | None, *, rollback: bool = False) -> None:
        self.epoch = self.buffer.resume(self.policy, manifest, rollback=rollback)
        self.step = manifest.step if manifest else 0
        self.publish()

    def publish(self) -> None:
        self.engine = f"{self.epoch}.{self.step}"
        self.buffer.announce(Publication(self.policy, self.epoch, self.step))

    def claim(self, worker: str = "worker", timeout_s: float = 0.0) -> Claim | None:
        return self.buffer.claim(self.policy, worker=worker, engine=self.engine, timeout_s=timeout_s)

    def claim_all(self) -> list[Claim]:
        """As many as are admitted."""
        return list(iter(self.claim, None))

    def finish(self, claim: Claim) -> None:
        """Put and score."""
        self.buffer.put(group_of(claim))
        for reward in self.limits.blocking:
            self.buffer.score(claim.id, {reward: RIGHT})

    def fill(self) -> list[Claim]:
        claims = self.claim_all()
        for claim in claims:
            self.finish(claim)
        return claims

    def ready(self, limit: int | None = None, timeout_s: float = 0.0) -> list[ScoredGroup]:
        limit = self.limits.groups_per_step if limit is None else limit
        return self.buffer.ready(self.policy, self.epoch, self.step, limit=limit, timeout_s=timeout_s)

    def assemble(self, limit: int | None = None) -> BatchRecord:
        """The step's record: what was decided before, or what is ready."""
        existing = self.buffer.recorded(self.policy, self.step)
        ids = [s.group.id for s in self.ready(limit)]
        return existing or self.buffer.record(self.epoch, record_of(self.policy, self.step, ids))

    def release(self) -> None:
        self.step += 1
        self.publish()
        self.buffer.release(self.policy, self.epoch, self.step)

    def iteration(self) -> BatchRecord:
        self.fill()
        record = self.assemble()
        self.release()
        return record

    def snapshot(self) -> Manifest:
        return self.buffer.snapshot(self.policy, self.epoch, self.step)

    def outcomes(self) -> dict[str, str]:
        return {line.id: line.outcome for line in self.buffer.ledger(self.policy)}

    def check_tasks(self) -> None:
        """Nothing lost, nothing twice; each task below the frontier is in one place."""
        summary = self.buffer.summary(self.policy)
        assert summary["groups_lost"] == 0
        assert summary["groups_trained_twice"] == 0
        assert summary["max_staleness_observed"] <= self.limits.max_staleness
        lines = list(self.buffer.ledger(self.policy))
        live = [line.task for line in lines if line.outcome == "live"]
        trained = [line.task for line in lines if line.outcome.startswith("trained")]
        final = {line.task for line in lines if line.outcome in ("dropped:filtered", "dropped:data_failure")}
        requeued = self.requeued()
        assert len({*live, *trained, *requeued}) == len(live) + len(trained) + len(requeued)
        frontier = self.buffer.status(self.policy)["frontier"]
        assert {*live, *trained, *requeued} | final == set(range(frontier)) | final

    def requeued(self) -> list[int]:
        connection = connection_of(self.buffer)
        return [
            int(task) for task in connection.redis.lrange(f"{connection.prefix}policy:{self.policy}:requeued", 0, -1)
        ]
