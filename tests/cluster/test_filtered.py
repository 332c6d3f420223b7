"""Groups filtered while a batch is assembled leave with it, so that what is in flight always finds its place."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.buffer import Buffer, Limits
from cluster.types import BatchRecord, Group, Publication, Rollout, Task

GROUPS_PER_STEP = 4


def put(buffer: Buffer, version: str) -> int:
    """Sample everything that may be claimed; returns how many."""
    count = 0
    while claim := buffer.claim("policy", worker="w", engine=version, timeout_s=0.0):
        tokens = np.zeros(2, np.int32)
        rollout = Rollout(tokens, tokens > -1, np.zeros(2, np.float32), "", (), (), "stop")
        buffer.put(Group(claim, Task.of(str(claim.task), ""), (rollout,)))
        count += 1
    return count


def release(buffer: Buffer, epoch: int, step: int) -> None:
    buffer.announce(Publication("policy", epoch, step))
    buffer.release("policy", epoch, step)


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_short_cuts_never_leave_a_group_that_is_too_late(buffer: Buffer, max_staleness: int):
    buffer.configure(Limits(GROUPS_PER_STEP, max_staleness))
    epoch = buffer.resume("policy", None)
    buffer.announce(Publication("policy", epoch, 0))
    for step in range(12):
        put(buffer, f"{epoch}.{step}")
        ids = [s.group.id for s in buffer.ready("policy", epoch, step, limit=GROUPS_PER_STEP, timeout_s=1.0)]
        assert len(ids) == GROUPS_PER_STEP
        kept = ids[: step % GROUPS_PER_STEP]
        record = BatchRecord("policy", step, tuple(kept), (np.ones(1),) * len(kept), ((np.ones(1),),) * len(kept))
        buffer.record(epoch, record, dict.fromkeys(ids[len(kept) :], "zero_variance"))
        assert put(buffer, f"{epoch}.{step}") == 0, "a filtered group admits nothing that has no place left"
        release(buffer, epoch, step + 1)
    summary = buffer.summary("policy")
    assert set(summary["groups_dropped"]) == {"zero_variance"}
    assert summary["max_staleness_observed"] <= max_staleness
    assert summary["groups_lost"] == 0


def test_a_repeated_record_filters_once(buffer: Buffer):
    buffer.configure(Limits(GROUPS_PER_STEP, 1))
    epoch = buffer.resume("policy", None)
    buffer.announce(Publication("policy", epoch, 0))
    put(buffer, f"{epoch}.0")
    ids = [s.group.id for s in buffer.ready("policy", epoch, 0, limit=GROUPS_PER_STEP, timeout_s=1.0)]
    record = BatchRecord("policy", 0, (ids[0],), (np.ones(1),), ((np.ones(1),),))
    for _ in range(2):
        buffer.record(epoch, record, {ids[1]: "zero_variance"})
    assert buffer.summary("policy")["groups_dropped"] == {"zero_variance": 1}
