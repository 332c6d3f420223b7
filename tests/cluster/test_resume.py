"""Crashes, resumes and roll-backs: no group is lost and none trained twice in the history that survives.

Any order of moves is `test_state_machine.py`; here is what each is for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from cluster.buffer import Buffer, Limits
from cluster.errors import LeaseLost
from cluster.types import Claim, Manifest
from tests.cluster.pipeline import RIGHT, Pipeline, connection_of, group_of, store_as_version_01

STEPS = 4


class Crashing:
    """A pipeline that can end between any two calls, with a checkpoint after every second step."""

    def __init__(self, buffer: Buffer, max_staleness: int) -> None:
        self.pipeline = Pipeline(buffer, Limits(2, max_staleness, blocking=("judge",)))
        self.manifest: Manifest | None = None
        self.held: list[Claim] = []

    def calls(self) -> Iterator[str]:
        """Each pause is a place to crash."""
        pipeline = self.pipeline
        yield "published"
        while pipeline.step < STEPS:
            while claim := pipeline.claim():
                self.held = [claim]
                yield "claimed"
                pipeline.buffer.put(group_of(claim))
                self.held = []
                yield "put"
            for group in pipeline.buffer.unscored("judge", 100, 0):
                yield "taken by a judge"
                pipeline.buffer.score(group.id, {"judge": RIGHT})
                yield "scored"
            ready = pipeline.ready(4)
            if len(ready) == 4:  # now and then a filtered group
                pipeline.buffer.drop(pipeline.policy, pipeline.epoch, {ready[-1].group.id: "filtered"})
                yield "filtered"
            pipeline.assemble()
            yield "assembled"
            pipeline.step += 1
            pipeline.publish()
            pipeline.step -= 1
            yield "stepped and published"
            pipeline.release()
            yield "released"
            if pipeline.step % 2 == 0:
                self.manifest = pipeline.snapshot()
                yield "manifest committed"
                pipeline.buffer.trim(self.manifest)
                yield "trimmed"

    def crash(self) -> None:
        """Learner and workers are gone; the driver starts again from the last manifest."""
        pipeline = self.pipeline
        pipeline.start(self.manifest)
        pipeline.buffer.forsake(pipeline.policy)
        for claim in self.held:
            with pytest.raises(LeaseLost):
                pipeline.buffer.put(group_of(claim))
        self.held = []


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_a_crash_at_any_point_of_the_lap_loses_nothing_and_trains_nothing_twice(redis_url: str, max_staleness: int):
    points = 0
    while True:
        run = Crashing(Buffer(redis_url, f"crash-{uuid4().hex}"), max_staleness)
        calls = run.calls()
        reached = [name for _, name in zip(range(points), calls, strict=False)]
        if len(reached) < points:
            break
        run.crash()
        run.pipeline.check_tasks()
        for _ in run.calls():
            pass
        run.pipeline.check_tasks()
        summary = run.pipeline.buffer.summary("policy")
        assert summary["groups_trained"] == 2 * STEPS, f"after a crash when {reached[-1:]}"
        run.pipeline.buffer.close()
        points += 1
    assert points > 30


def test_a_recorded_cut_is_cut_again_from_its_record(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 2))
    records = [pipeline.iteration() for _ in range(3)]
    pipeline.start(None)
    assert [buffer.recorded("policy", step) and lap_groups(buffer, step) for step in range(4)] == [
        *(r.groups for r in records),
        None,
    ]
    assert buffer.summary("policy")["groups_trained"] == 0, "they are outstanding again"
    assert buffer.status("policy")["groups"]["assembled"] == 6
    for record in records:
        assert pipeline.assemble().groups == record.groups
        assert len(buffer.load(record.groups)) == 2
        pipeline.release()
    assert pipeline.iteration().groups != records[-1].groups
    pipeline.check_tasks()


def lap_groups(buffer: Buffer, step: int) -> tuple[str, ...]:
    record = buffer.recorded("policy", step)
    assert record
    return record.groups


def test_synchronous_training_drops_the_groups_of_a_dead_epoch_and_repeats_their_tasks_in_order(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 0))
    pipeline.iteration()
    manifest = pipeline.snapshot()
    pipeline.iteration()
    pipeline.fill()
    pipeline.start(manifest)
    assert buffer.recorded("policy", 1) is None
    assert pipeline.requeued() == [2, 3, 4, 5]
    assert [c.task for c in pipeline.fill()] == [2, 3]
    assert buffer.summary("policy")["groups_dropped"] == {"dead_epoch": 4}
    pipeline.assemble()
    pipeline.release()
    pipeline.check_tasks()


def test_leases_of_dead_workers_run_on_and_living_ones_still_put(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 1, lease_s=0.8))
    living, dead = pipeline.claim(), pipeline.claim()
    assert living
    assert dead
    pipeline.start(None)
    pipeline.finish(living)
    time.sleep(0.85)
    assert [c.task for c in pipeline.claim_all()] == [dead.task, 2, 3]
    pipeline.check_tasks()


@pytest.mark.parametrize("trimmed", [True, False])
def test_rolling_back_drops_what_came_after_the_manifest_and_claims_its_tasks_again(buffer: Buffer, trimmed: bool):
    pipeline = Pipeline(buffer, Limits(2, 1))
    kept = {id: f"trained:{step}" for step in range(2) for id in pipeline.iteration().groups}
    manifest = pipeline.snapshot()
    outstanding = set(manifest.outstanding)
    for _ in range(3):
        pipeline.iteration()
    if trimmed:
        buffer.trim(pipeline.snapshot())
    held = pipeline.claim()
    assert held
    pipeline.start(manifest, rollback=True)
    assert pipeline.step == 2
    with pytest.raises(LeaseLost, match="rolled_back"):
        buffer.put(group_of(held))
    assert pipeline.requeued() == sorted(outstanding)
    summary = buffer.summary("policy")
    assert (summary["groups_trained"], summary["groups_lost"]) == (4, 0)
    assert {id: outcome for id, outcome in pipeline.outcomes().items() if outcome.startswith("trained")} == kept
    pipeline.check_tasks()
    for _ in range(3):
        pipeline.iteration()
    pipeline.check_tasks()
    assert buffer.summary("policy")["groups_trained"] == 10


def test_a_manifest_remembers_the_tasks_of_groups_that_a_record_still_holds(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 2))
    pipeline.iteration()
    manifest = pipeline.snapshot()
    pipeline.iteration()
    pipeline.iteration()
    pipeline.start(manifest)
    pipeline.assemble()
    pipeline.release()
    pipeline.start(pipeline.snapshot(), rollback=True)
    pipeline.check_tasks()


def test_a_manifest_older_than_what_was_trimmed_rolls_back_unasked(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 1))
    pipeline.iteration()
    old = pipeline.snapshot()
    pipeline.iteration()
    buffer.trim(pipeline.snapshot())
    pipeline.start(old)
    assert buffer.summary("policy")["groups_trained"] == 2
    pipeline.check_tasks()
    pipeline.iteration()
    pipeline.check_tasks()


def test_a_redis_that_lost_everything_is_rebuilt_from_the_manifest(buffer: Buffer, redis_url: str):
    pipeline = Pipeline(buffer, Limits(2, 1))
    pipeline.iteration()
    pipeline.claim()
    manifest = pipeline.snapshot()
    fresh = Pipeline(Buffer(redis_url, f"fresh-{uuid4().hex}"), pipeline.limits, manifest=manifest)
    assert fresh.epoch == manifest.epoch + 1
    status = fresh.buffer.status("policy")
    assert (status["version"], status["frontier"]) == (1, manifest.frontier)
    assert [c.task for c in fresh.claim_all()] == [*sorted(manifest.outstanding), manifest.frontier]


def test_a_redis_that_lost_its_tail_goes_back_to_the_manifest(buffer: Buffer):
    """As after a crash with appendfsync everysec: the manifest knows of steps that Redis does not."""
    pipeline = Pipeline(buffer, Limits(2, 1))
    first = pipeline.iteration()
    pipeline.fill()
    trained = tuple(s.group.id for s in pipeline.ready())
    manifest = Manifest("policy", 2, pipeline.epoch, 9, (), (6, 7, 8), first.groups + trained)
    pipeline.start(manifest)
    assert buffer.status("policy")["next_step"] == 2
    assert buffer.summary("policy")["groups_trained"] == 4
    assert pipeline.requeued() == [6, 7, 8]


def test_trimming_leaves_the_ledger_and_can_be_repeated(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 1))
    record = pipeline.iteration()
    pipeline.iteration()
    manifest, before = pipeline.snapshot(), buffer.summary("policy")
    buffer.trim(manifest)
    buffer.trim(manifest)
    assert buffer.summary("policy") == before
    assert buffer.recorded("policy", 0) is None
    assert pipeline.outcomes()[record.groups[0]] == "trained:0"
    keys = connection_of(buffer).redis.keys(f"{connection_of(buffer).prefix}group:*")
    assert len(keys) == before["groups_outstanding"]


def test_forgotten_groups_leave_redis_and_a_resume_from_before_claims_their_tasks_again(buffer: Buffer):
    """A run without checkpoints holds as much at step 60 as at step 20."""
    pipeline = Pipeline(buffer, Limits(2, 1))
    client, prefix = connection_of(buffer).redis, connection_of(buffer).prefix
    held = []
    for step in range(1, 61):
        pipeline.iteration()
        if step > 5:
            buffer.forget("policy", pipeline.epoch, step - 5)
        held.append(len(client.keys(f"{prefix}group:*")) + len(client.keys(f"{prefix}policy:policy:record:*")))
    assert held[19] == held[59]
    pipeline.check_tasks()
    pipeline.start(None)
    assert buffer.summary("policy")["groups_trained"] == 0
    pipeline.check_tasks()
    pipeline.iteration()
    assert {line.task for line in buffer.ledger("policy") if line.outcome == "trained:0"} == {0, 1}


def test_a_group_is_not_forgotten_before_every_policy_has_trained_it(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 1, members=("member",)))
    pipeline.fill()
    record = pipeline.assemble()
    buffer.release("policy", pipeline.epoch, 1)
    buffer.forget("policy", pipeline.epoch, 1)
    assert len(buffer.load(record.groups)) == 2
    buffer.release("policy", pipeline.epoch, 1, by="member")
    buffer.forget("policy", pipeline.epoch, 1)
    assert buffer.recorded("policy", 0) is None


def test_the_summary_can_tell_a_lost_group_and_one_trained_twice(buffer: Buffer):
    """The counts are not zero by construction."""
    pipeline = Pipeline(buffer, Limits(2, 1))
    pipeline.iteration()
    pipeline.iteration()
    client, prefix = connection_of(buffer).redis, connection_of(buffer).prefix
    live = next(id for id, outcome in pipeline.outcomes().items() if outcome == "live")
    client.delete(f"{prefix}group:{live}")
    assert buffer.summary("policy")["groups_lost"] == 1
    client.hset(f"{prefix}policy:policy:ledger", "policy/1/0", "0 1 0 assembled:0,1")
    client.hset(f"{prefix}policy:policy:ledger", "policy/1/1", "2 1 0 assembled:0")
    assert buffer.summary("policy")["groups_trained_twice"] == 2


def test_a_run_that_version_01_stored_is_resumed_where_it_was(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 1))
    pipeline.iteration()
    manifest = pipeline.snapshot()
    pipeline.iteration()
    pipeline.fill()
    record = pipeline.assemble()
    before = buffer.status("policy"), buffer.summary("policy"), pipeline.outcomes()
    store_as_version_01(buffer)
    assert buffer.summary("policy") != before[1]

    buffer.configure(pipeline.limits)
    buffer.configure(pipeline.limits)
    assert (buffer.status("policy"), buffer.summary("policy"), pipeline.outcomes()) == before
    pipeline.start(manifest)
    pipeline.iteration()
    assert pipeline.assemble().groups == record.groups, "a recorded batch is trained as it was recorded"
    pipeline.release()
    pipeline.check_tasks()
