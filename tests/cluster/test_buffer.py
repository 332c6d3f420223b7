"""The rules of the pipeline, on a real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from cluster.buffer import Buffer, Limits
from cluster.errors import DataError, KanaboError, LeaseLost
from cluster.types import Publication, Scores, encode
from cluster.types.events import LogprobDiff, RewardReport, decode_event, encode_event
from tests.cluster.pipeline import RIGHT, Pipeline, group_of, record_of

JUDGED = Limits(groups_per_step=2, max_staleness=1, blocking=("judge", "length"))
PLAIN = Limits(groups_per_step=2, max_staleness=1)


def in_background(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive(), "it should still be waiting"
    return thread, answers


def answer(thread: threading.Thread, answers: list[object]) -> Any:
    """What a waiting call says when it is woken, which is long before its time-out."""
    thread.join(timeout=2)
    assert not thread.is_alive(), "nobody rang"
    return answers[0]


def test_a_claim_is_admitted_while_it_can_still_be_trained_within_the_bound(buffer: Buffer):
    pipeline = Pipeline(buffer, JUDGED)
    claims = pipeline.claim_all()
    assert [c.task for c in claims] == [0, 1, 2, 3]
    for claim in claims:
        pipeline.finish(claim)
    assert pipeline.claim() is None
    pipeline.assemble()
    assert pipeline.claim() is None, "a batch alone admits nothing: the weights are still the old ones"
    pipeline.release()
    assert [c.version for c in pipeline.claim_all()] == [1, 1]


def test_a_group_is_ready_when_every_blocking_reward_has_answered_even_with_failure(buffer: Buffer):
    pipeline = Pipeline(buffer, JUDGED)
    claim = pipeline.claim()
    assert claim
    buffer.put(group_of(claim))
    assert [g.id for g in buffer.unscored("judge-0", 10, 0)] == [claim.id]
    buffer.score(claim.id, {"judge": Scores.failed(2, "timeout"), "late": RIGHT})
    assert pipeline.ready() == []
    buffer.score(claim.id, {"length": RIGHT})
    (stored,) = pipeline.ready()
    assert set(stored.scores) == {"judge", "length", "late"}
    assert not stored.overdue
    assert stored.group.rollouts[0].tokens.tolist() == list(range(8))


def test_a_passed_score_deadline_makes_a_group_ready_and_overdue(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(1, 0, blocking=("judge",), score_deadline_s=0.1))
    claim = pipeline.claim()
    assert claim
    buffer.put(group_of(claim))
    start = time.monotonic()
    (stored,) = pipeline.ready(timeout_s=5)
    assert stored.overdue
    assert stored.scores == {}
    assert time.monotonic() - start < 1, "the waiting learner notices by itself"


def test_an_expired_lease_frees_its_place_and_its_task_is_claimed_first(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 0, lease_s=0.1))
    dead = pipeline.claim()
    assert dead
    pipeline.finish(pipeline.claim() or pytest.fail("two are admitted"))
    again = pipeline.claim(timeout_s=5)
    assert again
    assert (again.task, again.id != dead.id) == (dead.task, True)
    with pytest.raises(LeaseLost, match="lease_expired"):
        buffer.put(group_of(dead))
    with pytest.raises(LeaseLost):
        buffer.renew(dead)
    summary = buffer.summary("policy")
    assert summary["groups_dropped"] == {"lease_expired": 1}
    assert summary["calls_refused"] == {"lease_lost": 2}


def test_a_renewed_lease_outlives_its_first_period(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(1, 0, lease_s=1))
    claim = pipeline.claim()
    assert claim
    for _ in range(3):
        time.sleep(0.4)
        buffer.renew(claim)
    buffer.put(group_of(claim))
    buffer.renew(claim)  # a heartbeat that comes after the group is no error


def test_a_worker_known_to_be_dead_is_not_waited_for(buffer: Buffer):
    pipeline = Pipeline(buffer, JUDGED)
    kept, first, second = pipeline.claim("alive"), pipeline.claim("dead"), pipeline.claim("dead")
    assert kept
    assert first
    assert second
    buffer.forsake("policy", "dead")
    assert [c.task for c in pipeline.claim_all()] == [first.task, second.task, 3]
    buffer.put(group_of(kept))
    assert len(buffer.unscored("judge-0", 1, 0)) == 1
    assert buffer.unscored("judge-1", 1, 0) == []
    buffer.forsake("policy", "judge-0")
    assert len(buffer.unscored("judge-1", 1, 0)) == 1


def test_giving_up_drops_for_good_and_requeues_only_if_asked(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    faulty, leaving = pipeline.claim(), pipeline.claim()
    assert faulty
    assert leaving
    buffer.give_up(faulty, "data_failure", requeue=False)
    buffer.give_up(leaving, "worker_left", requeue=True)
    assert [c.task for c in pipeline.claim_all()] == [1, 2, 3, 4]
    assert buffer.summary("policy")["groups_dropped"] == {"data_failure": 1, "worker_left": 1}


def test_a_filtered_group_admits_another_and_its_task_does_not_return(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    pipeline.fill()
    first, second = (s.group.id for s in pipeline.ready())
    waiting, answers = in_background(lambda: pipeline.claim(timeout_s=5))
    buffer.drop("policy", pipeline.epoch, {first: "filtered"})
    assert answer(waiting, answers).task == 4
    buffer.drop("policy", pipeline.epoch, {first: "filtered", second: "too_slow"}, requeue=True)
    assert [c.task for c in pipeline.claim_all()] == [1]
    record = pipeline.assemble()
    buffer.drop("policy", pipeline.epoch, {record.groups[0]: "filtered"})
    assert len(buffer.load(record.groups)) == 2, "an assembled group is not dropped any more"
    pipeline.check_tasks()


def test_a_waiting_reward_worker_is_woken_and_gets_nothing_that_is_assembled(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    waiting, answers = in_background(lambda: buffer.unscored("judge", 8, 5))
    claims = pipeline.claim_all()
    pipeline.finish(claims[0])
    assert [g.id for g in answer(waiting, answers)] == [claims[0].id]
    for claim in claims[1:]:
        pipeline.finish(claim)
    pipeline.assemble()
    assert [g.id for g in buffer.unscored("judge", 8, 0)] == [claims[2].id, claims[3].id]


def test_what_a_dead_reward_worker_took_is_handed_out_again(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(1, 0, blocking=("judge",), score_deadline_s=1))
    buffer.put(group_of(pipeline.claim() or pytest.fail("one is admitted")))
    assert len(buffer.unscored("dead", 8, 0)) == 1
    assert buffer.unscored("other", 8, 0) == []
    assert len(buffer.unscored("other", 8, 2)) == 1


def test_the_first_score_of_a_version_stays_and_a_new_version_replaces_it(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    claim = pipeline.claim()
    assert claim
    pipeline.finish(claim)

    def score(value: float, version: str) -> float:
        buffer.score(claim.id, {"judge": Scores.of([value, value], version=version)})
        return pipeline.ready()[0].scores["judge"].values[0]

    assert [score(1, "a"), score(2, "a"), score(3, "b"), score(1, "a")] == [1, 1, 3, 3]


def test_ready_never_passes_over_an_older_version_but_takes_any_order_within_one(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    slow, *quick = pipeline.claim_all()
    for claim in quick:
        pipeline.finish(claim)
    assert [s.group.claim.seq for s in pipeline.ready()] == [1, 2]
    pipeline.assemble()
    pipeline.release()
    pipeline.fill()
    assert [s.group.claim.seq for s in pipeline.ready()] == [3], "seqs 4 and 5 are younger than the slow 0"
    pipeline.finish(slow)
    assert [s.group.claim.seq for s in pipeline.ready()] == [0, 3]


def test_with_when_late_drop_a_late_group_is_dropped_and_its_task_requeued(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 1, when_late="drop"))
    slow, *quick = pipeline.claim_all()
    for claim in quick:
        pipeline.finish(claim)
    for expected in ([1, 2], [3, 4]):
        pipeline.fill()
        assert [int(id.rsplit("/")[-1]) for id in pipeline.assemble().groups] == expected
        pipeline.release()
    assert [s.group.claim.seq for s in pipeline.ready()] == [5]
    with pytest.raises(LeaseLost, match="late"):
        buffer.put(group_of(slow))
    assert pipeline.fill()[0].task == slow.task
    pipeline.check_tasks()


def test_a_short_batch_keeps_the_bound_and_admission_makes_up_for_it(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    for limit in (0, 1, 2, 0, 0, 2, 1, 2):
        pipeline.fill()
        record = pipeline.assemble(limit)
        assert all(pipeline.step - g.version in (0, 1) for g in buffer.load(record.groups))
        pipeline.release()
        groups = buffer.status("policy")["groups"]
        assert groups["ready"] <= 4
    pipeline.check_tasks()


def test_a_step_has_one_record_and_its_groups_leave_at_once(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    pipeline.fill()
    ids = [s.group.id for s in pipeline.ready(4)]
    waiting, answers = in_background(lambda: buffer.recorded("policy", 0, timeout_s=5))
    first = buffer.record(pipeline.epoch, record_of("policy", 0, ids[:2]))
    assert buffer.record(pipeline.epoch, record_of("policy", 0, ids[2:])).groups == first.groups == tuple(ids[:2])
    assert answer(waiting, answers).groups == first.groups
    assert [s.group.id for s in pipeline.ready(4)] == ids[2:]
    assert [g.id for g in buffer.load(first.groups)] == ids[:2]
    with pytest.raises(KanaboError, match="not ready"):
        buffer.record(pipeline.epoch, record_of("policy", 1, ids[:2]))
    with pytest.raises(KanaboError, match="not the next"):
        buffer.record(pipeline.epoch, record_of("policy", 3, ids[2:]))
    assert buffer.recorded("policy", 1) is None


def test_an_engine_behind_the_published_weights_claims_nothing_until_it_has_updated(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    pipeline.fill()
    pipeline.assemble()
    pipeline.step = 1
    old, pipeline.engine = pipeline.engine, "1.1"
    pipeline.publish()
    start = time.monotonic()
    assert buffer.claim("policy", worker="w", engine=old, timeout_s=5) is None
    assert time.monotonic() - start < 1, "at once: it must update, not wait"
    waiting, answers = in_background(lambda: pipeline.claim(timeout_s=5))
    buffer.release("policy", pipeline.epoch, 1)
    assert answer(waiting, answers).version == 1
    pipeline.fill()
    waiting, answers = in_background(lambda: pipeline.claim(timeout_s=5))
    buffer.announce(Publication("policy", pipeline.epoch, 2))
    assert answer(waiting, answers) is None, "an engine that falls behind while it waits is told at once"


def test_published_waits_for_another_version(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    assert buffer.published("policy", other_than="1.0", timeout_s=0.05) is None
    waiting, answers = in_background(lambda: buffer.published("policy", other_than="1.0", timeout_s=5))
    pipeline.step = 1
    pipeline.publish()
    assert answer(waiting, answers).version == "1.1"
    buffer.resume("policy", None)
    assert buffer.published("policy") is None, "weights of a dead history are not published"


def test_the_frontier_ends_and_the_learner_is_not_kept_waiting_for_more(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(2, 1, num_tasks=3))
    claims = pipeline.claim_all()
    assert [c.task for c in claims] == [0, 1, 2]
    buffer.give_up(claims[1], "worker_left", requeue=True)
    claims[1] = pipeline.claim() or pytest.fail("a requeued task can be claimed")
    for claim in claims:
        pipeline.finish(claim)
    pipeline.assemble()
    pipeline.release()
    assert len(pipeline.ready(2, timeout_s=60)) == 1


def test_two_policies_of_a_run_do_not_disturb_one_another(buffer: Buffer):
    one, two = Pipeline(buffer, JUDGED, policy="attacker"), Pipeline(buffer, JUDGED, policy="defender")
    one.iteration()
    one.iteration()
    two.start(None)
    assert (two.epoch, two.step, one.epoch, one.step) == (2, 0, 1, 2)
    assert [c.task for c in two.claim_all()] == [0, 1, 2, 3]
    one.iteration()
    assert buffer.summary("attacker")["groups_trained"] == 6
    assert buffer.summary("defender")["groups_claimed"] == 4
    one.check_tasks()
    two.check_tasks()


def test_what_is_emitted_once_is_handed_on_a_single_time(buffer):
    for number in (1, 2):
        buffer.emit(RewardReport(worker="w", data_failures=number), once="group policy/1/0")
    buffer.emit(RewardReport(worker="w", data_failures=3), once="group policy/1/1")
    events = buffer.events()
    assert [event.data_failures for _, event in events if isinstance(event, RewardReport)] == [1, 3]
    assert buffer.newest_event() == events[-1][0]


def test_an_event_of_an_unknown_kind_or_with_unknown_fields_is_an_error():
    event = LogprobDiff(policy="policy", version="1.2", mean=0.5, max=float("nan"), floor=False)
    assert str(decode_event(encode_event(event))) == str(event)
    for fields in (
        {"kind": "gossip"},
        {"message": "no kind"},
        {"kind": "judges", "worker": "w", "metrics": {"a": "b"}},
    ):
        with pytest.raises(DataError, match="an event of the run cannot be read"):
            decode_event(encode(fields))
