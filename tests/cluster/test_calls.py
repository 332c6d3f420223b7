"""Calls that are repeated, refused or not answered at all."""

from __future__ import annotations

import pickle
import time

import pytest
import redis
from redis.backoff import NoBackoff

from cluster.buffer import Buffer, Limits, connection
from cluster.errors import BufferUnavailable, ConfigError, StaleEpoch
from cluster.types.events import StepTaken
from tests.cluster.pipeline import RIGHT, Pipeline, group_of, record_of

JUDGED = Limits(groups_per_step=2, max_staleness=1, blocking=("judge", "length"))
PLAIN = Limits(groups_per_step=2, max_staleness=1)


def test_everything_a_dead_learner_says_is_refused_and_counted(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    pipeline.fill()
    ids = [s.group.id for s in pipeline.ready()]
    buffer.resume("policy", None)
    for call in (
        lambda: pipeline.ready(),
        lambda: buffer.drop("policy", pipeline.epoch, {ids[0]: "filtered"}),
        lambda: buffer.record(pipeline.epoch, record_of("policy", 0, ids)),
        pipeline.publish,
        lambda: buffer.release("policy", pipeline.epoch, 1),
        pipeline.snapshot,
    ):
        with pytest.raises(StaleEpoch):
            call()
    assert buffer.summary("policy")["calls_refused"] == {"stale_epoch": 6}
    assert buffer.status("policy")["groups"]["ready"] == 4


def test_a_repeated_put_is_answered_as_before_even_if_its_group_has_left(buffer: Buffer):
    pipeline = Pipeline(buffer, PLAIN)
    claim = pipeline.claim()
    assert claim
    buffer.put(group_of(claim))
    buffer.put(group_of(claim))
    buffer.drop("policy", pipeline.epoch, {claim.id: "filtered"})
    buffer.put(group_of(claim))
    assert pipeline.ready() == []
    assert pipeline.outcomes() == {claim.id: "dropped:filtered"}


def script_of_a_lap(buffer: Buffer) -> tuple[object, ...]:
    """Every transition once or more; returns what can be seen of it."""
    pipeline = Pipeline(buffer, JUDGED)
    claims = pipeline.claim_all()
    buffer.give_up(claims[3], "data_failure", requeue=True)
    buffer.renew(claims[0])
    for claim in claims[:3]:
        buffer.put(group_of(claim))
    seen = [g.id for g in buffer.unscored("judge", 2, 0)], [g.id for g in buffer.unscored("judge", 2, 0)]
    for claim in claims[:3]:
        buffer.score(claim.id, {"judge": RIGHT, "length": RIGHT})
    buffer.drop("policy", pipeline.epoch, {claims[0].id: "filtered"})
    record = pipeline.assemble()
    pipeline.release()
    manifest = pipeline.snapshot()
    buffer.trim(manifest)
    buffer.emit(StepTaken(policy="policy", epoch=1, step=1, metrics={}))
    pipeline.start(manifest)
    pipeline.iteration()
    events = [event for _, event in buffer.events()]
    return seen, record.groups, manifest, pipeline.outcomes(), buffer.summary("policy"), buffer.status("policy"), events


def test_a_call_whose_answer_was_lost_answers_as_before_and_changes_nothing_more(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "ExponentialBackoff", lambda **_: NoBackoff())
    plain, lossy = Buffer(redis_url, "plain"), Buffer(redis_url, "lossy")
    client = lossy._redis.redis
    evaluate, evalsha, lost = client.eval, client.evalsha, []

    def lose_every_other_answer(answer: object) -> object:
        lost.append(len(lost) % 2 == 0)
        if lost[-1]:
            raise redis.ConnectionError("the answer got lost")
        return answer

    monkeypatch.setattr(client, "eval", lambda *args: lose_every_other_answer(evaluate(*args)))
    monkeypatch.setattr(client, "evalsha", lambda *args: lose_every_other_answer(evalsha(*args)))
    assert script_of_a_lap(lossy) == script_of_a_lap(plain)
    assert sum(lost) > 40


def test_a_buffer_travels_as_its_address(buffer: Buffer):
    Pipeline(buffer, PLAIN)
    assert pickle.loads(pickle.dumps(buffer)).status("policy")["epoch"] == 1


def test_redis_that_is_away_or_refuses_is_named_without_its_password(redis_url: str):
    with pytest.raises(BufferUnavailable, match=r"127\.0\.0\.1:1") as away:
        Buffer("redis://:secret@127.0.0.1:1", "run", patience_s=0.5).status("policy")
    assert "secret" not in str(away.value)
    start = time.monotonic()
    with pytest.raises(ConfigError, match="password"):
        Buffer(redis_url.replace("redis://:", "redis://:x"), "run").status("policy")
    assert time.monotonic() - start < 1, "a wrong password does not get better by waiting"
