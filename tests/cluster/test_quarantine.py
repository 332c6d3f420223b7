"""Stored bytes that cannot be read cost their own group: it is kept aside and its task is claimed again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import redis

from cluster.buffer import Buffer, Limits
from cluster.buffer.browse import look
from cluster.types import BatchRecord, Scores, encode
from learner.batch.assemble import wait_for_record
from tests.cluster.pipeline import RIGHT, Pipeline, connection_of, group_of, run_of

PLAIN = Limits(groups_per_step=2, max_staleness=1)
JUDGED = Limits(groups_per_step=2, max_staleness=1, blocking=("judge",))


def field(buffer: Buffer, url: str, id: str, name: str, value: bytes) -> None:
    """Overwrite one field of a stored group, as a run of an earlier version could have left it."""
    client = redis.Redis.from_url(url)
    (key,) = (k for k in client.scan_iter(f"*{run_of(buffer)}*group:{id}"))
    assert client.hexists(key, name)
    client.hset(key, name, value)


def wire(value: Any) -> Any:
    return msgspec.msgpack.decode(encode(value))


def poisoned(buffer: Buffer, pipeline: Pipeline, kind: str) -> bytes:
    """What stands in place of a group: bytes, a group without a field, one that contradicts itself."""
    tree = wire(group_of(pipeline.claim() or pytest.fail("no claim")))
    rollout = tree["rollouts"][0]
    match kind:
        case "garbage":
            return b"\x93\xff\x00 no group"
        case "empty":
            return b""
        case "no rollouts field":
            del tree["rollouts"]
        case "wrong length":
            rollout["logprobs"] = wire(np.zeros(3, np.float32))
        case "span outside":
            rollout["spans"][0]["end"] = 99
        case "text for tokens":
            rollout["tokens"] = "1 2 3"
    return msgspec.msgpack.encode(tree)


KINDS = ["garbage", "empty", "no rollouts field", "wrong length", "span outside", "text for tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_cannot_be_read_is_dropped_and_its_task_claimed_again(buffer: Buffer, redis_url: str, kind: str):
    pipeline = Pipeline(buffer, replace(PLAIN, groups_per_step=3))
    data = poisoned(buffer, pipeline, kind)
    claims = pipeline.fill()
    field(buffer, redis_url, claims[0].id, "data", data)
    found = pipeline.ready()
    assert claims[0].id not in {s.group.id for s in found}
    assert pipeline.outcomes()[claims[0].id] == "dropped:unreadable"
    ((id, why),) = buffer.quarantine()
    assert id == claims[0].id
    assert why
    again = pipeline.claim_all()
    assert claims[0].task in {c.task for c in again}
    assert buffer.summary("policy")["groups_dropped"] == {"unreadable": 1}
    assert buffer.summary("policy")["groups_lost"] == 0


def test_ready_waits_for_others_in_place_of_a_group_that_cannot_be_read(buffer: Buffer, redis_url: str):
    """An answer that is short at once would tell the learner that the tasks have run out."""
    pipeline = Pipeline(buffer, PLAIN)
    claims = pipeline.fill()
    field(buffer, redis_url, claims[0].id, "data", b"garbage")
    assert [s.group.id for s in pipeline.ready(limit=2)] == [claims[1].id, claims[2].id]


def test_a_reward_worker_passes_over_a_group_that_cannot_be_read(buffer: Buffer, redis_url: str):
    pipeline = Pipeline(buffer, JUDGED)
    claims = pipeline.claim_all()
    for claim in claims:
        buffer.put(group_of(claim))
    field(buffer, redis_url, claims[0].id, "data", b"garbage")
    groups = buffer.unscored("judge-0", 10, 0)
    assert [g.id for g in groups] == [c.id for c in claims[1:]]


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        encode(Scores.of([1.0, 0.0, 0.5])),
        encode(replace(RIGHT, tokens=(np.zeros(3), np.zeros(3)))),
        msgspec.msgpack.encode({"values": [1, 2]}),
    ],
    ids=["garbage", "another length", "token values of another length", "no arrays"],
)
def test_scores_that_cannot_be_read_have_not_arrived(buffer: Buffer, redis_url: str, data: bytes):
    pipeline = Pipeline(buffer, JUDGED)
    claims = pipeline.fill()
    field(buffer, redis_url, claims[0].id, "s:judge", data)
    first, second = pipeline.ready(limit=2)
    assert first.group.id == claims[0].id
    assert first.scores == {}
    assert set(second.scores) == {"judge"}
    assert pipeline.outcomes()[claims[0].id] == "live"


def test_a_recorded_group_that_cannot_be_read_is_left_out_of_the_step_on_every_rank(buffer: Buffer, redis_url: str):
    pipeline = Pipeline(buffer, PLAIN)
    pipeline.fill()
    record = pipeline.assemble()
    field(buffer, redis_url, record.groups[0], "data", b"garbage")
    batches = [wait_for_record(buffer, "policy", 0, stop=lambda: False) for _ in range(2)]
    for batch in batches:
        assert batch is not None
        assert [g.id for g in batch.groups] == list(record.groups[1:]) == list(batch.record.groups)
        assert len(batch.record.rewards) == len(batch.record.advantages) == 1
    pipeline.release()
    pipeline.iteration()
    assert buffer.summary("policy")["groups_lost"] == 0


def test_a_run_that_resumes_with_poison_trains_on(buffer: Buffer, redis_url: str):
    """Pending, ready and recorded groups that cannot be read, and a killed learner: the next steps are taken."""
    pipeline = Pipeline(buffer, PLAIN)
    claims = pipeline.fill()
    recorded = pipeline.assemble()
    for id in (recorded.groups[1], claims[-1].id):
        field(buffer, redis_url, id, "data", b"garbage")
    pipeline.start(None)
    for _ in range(4):
        record: BatchRecord | None = buffer.recorded("policy", pipeline.step)
        if record is not None:
            found = wait_for_record(buffer, "policy", pipeline.step, stop=lambda: False)
            assert found is not None
            pipeline.release()
        else:
            pipeline.iteration()
    assert pipeline.step == 4
    assert buffer.summary("policy")["groups_lost"] == 0


@pytest.mark.parametrize("num_records", [1, 2])
def test_a_record_that_cannot_be_read_is_forgotten_and_its_step_cut_anew(
    buffer: Buffer, redis_url: str, num_records: int
):
    pipeline = Pipeline(buffer, PLAIN)
    pipeline.fill()
    manifest = pipeline.snapshot()
    for _ in range(num_records):
        pipeline.iteration()
    pipeline.fill()
    pipeline.start(manifest)
    client = redis.Redis.from_url(redis_url)
    (key,) = client.scan_iter(f"*{run_of(buffer)}*:record:0")
    client.set(key, b"no record")
    assert buffer.recorded("policy", 0) is None
    pipeline.fill()
    for _ in range(4):
        pipeline.iteration()
    pipeline.check_tasks()
    assert buffer.summary("policy")["groups_trained"] == 8


def test_a_look_at_groups_shows_those_that_cannot_be_read_as_empty(buffer: Buffer, redis_url: str):
    pipeline = Pipeline(buffer, PLAIN)
    claims = pipeline.fill()
    field(buffer, redis_url, claims[0].id, "data", b"garbage")
    seen = {one.id: one for one in look(connection_of(buffer))}
    assert seen[claims[0].id].group is None
    assert seen[claims[1].id].group is not None


def test_only_the_newest_are_kept_aside(buffer: Buffer, redis_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.buffer.client.KEPT_ASIDE", 2)
    pipeline = Pipeline(buffer, replace(PLAIN, groups_per_step=4))
    claims = pipeline.fill()
    for claim in claims[:3]:
        field(buffer, redis_url, claim.id, "data", b"garbage")
    pipeline.ready()
    assert len(buffer.quarantine()) == 2
