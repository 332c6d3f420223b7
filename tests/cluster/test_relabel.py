"""Score versions: a stored group carries one whole version, the newest complete one; what is assembled stays."""

from __future__ import annotations

from uuid import uuid4

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.buffer import Buffer, Limits
from cluster.types import Scores
from tests.cluster.pipeline import Pipeline, connection_of, group_of

LIMITS = Limits(2, 1, blocking=("a", "b"), non_blocking=("late",))


def scores(value: float, version: str) -> Scores:
    return Scores.of([value, -value], version=version)


def carried(pipeline: Pipeline, id: str) -> dict[str, str]:
    stored = next(s for s in pipeline.ready() if s.group.id == id)
    return {name: s.version for name, s in stored.scores.items()}


def stored_group(pipeline: Pipeline) -> str:
    claim = pipeline.claim()
    assert claim
    pipeline.buffer.put(group_of(claim))
    return claim.id


def test_a_ready_group_keeps_its_scores_until_the_new_ones_are_complete(buffer: Buffer):
    pipeline = Pipeline(buffer, LIMITS)
    buffer.relabel({"a": "1", "b": "1"})
    id = stored_group(pipeline)
    stored_group(pipeline)
    buffer.score(id, {"a": scores(1, "1"), "b": scores(2, "1"), "late": scores(3, "0")})
    buffer.relabel({"a": "2", "b": "2"})
    assert next(s for s in pipeline.ready() if s.group.id == id).outdated
    assert id in [g.id for g in buffer.unscored("worker", 9, 0)], "it is handed out again"
    assert buffer.answered([id]) == [{("a", "1"), ("b", "1"), ("late", "0")}]
    buffer.score(id, {"a": scores(10, "2")})
    assert carried(pipeline, id) == {"a": "1", "b": "1", "late": "0"}
    buffer.score(id, {"b": scores(20, "2")})
    assert carried(pipeline, id) == {"a": "2", "b": "2", "late": "0"}
    found = next(s for s in pipeline.ready() if s.group.id == id)
    assert not found.outdated
    assert [found.scores[n].values[0] for n in ("a", "b", "late")] == [10, 20, 3]
    assert buffer.status("policy")["counters"]["relabelled"] == 1


def test_an_answer_of_the_version_before_completes_a_pending_group_and_spoils_no_new_one(buffer: Buffer):
    pipeline = Pipeline(buffer, LIMITS)
    buffer.relabel({"a": "1", "b": "1"})
    old, new = stored_group(pipeline), stored_group(pipeline)
    buffer.score(old, {"a": scores(1, "1")})
    buffer.relabel({"a": "2", "b": "2"})
    buffer.score(old, {"b": scores(1, "1")})
    assert carried(pipeline, old) == {"a": "1", "b": "1"}, "one whole version, if not the newest"
    buffer.score(new, {"a": scores(1, "2")})
    buffer.score(new, {"b": scores(1, "1")})
    assert new not in [s.group.id for s in pipeline.ready()], (
        "half of it is of version 2, so it waits for the other half"
    )
    buffer.score(new, {"b": scores(1, "2")})
    assert carried(pipeline, new) == {"a": "2", "b": "2"}
    assert buffer.status("policy")["counters"]["scores_outdated"] == 1


def test_a_change_on_the_way_to_a_change_starts_over(buffer: Buffer):
    pipeline = Pipeline(buffer, LIMITS)
    buffer.relabel({"a": "1", "b": "1"})
    id = stored_group(pipeline)
    buffer.score(id, {"a": scores(1, "1"), "b": scores(1, "1")})
    buffer.relabel({"a": "2", "b": "2"})
    buffer.score(id, {"a": scores(1, "2")})
    buffer.relabel({"a": "3", "b": "3"})
    buffer.score(id, {"b": scores(1, "3")})
    assert carried(pipeline, id) == {"a": "1", "b": "1"}
    buffer.score(id, {"a": scores(1, "3")})
    assert carried(pipeline, id) == {"a": "3", "b": "3"}


def test_a_version_that_comes_back_answers_anew(buffer: Buffer):
    pipeline = Pipeline(buffer, LIMITS)
    buffer.relabel({"a": "1", "b": "1"})
    id = stored_group(pipeline)
    for version, value in (("1", 1), ("2", 2), ("1", 3)):
        buffer.relabel({"a": version, "b": version})
        assert not {("a", version), ("b", version)} & buffer.answered([id])[0] or value == 1
        buffer.score(id, {"a": scores(value, version), "b": scores(value, version), "late": scores(0, "0")})
        found = next(s for s in pipeline.ready() if s.group.id == id)
        assert not found.outdated
        assert {name: s.values[0] for name, s in found.scores.items() if name != "late"} == {"a": value, "b": value}
    assert buffer.unscored("worker", 9, 0) == [], "nobody is asked again and again"


def test_a_cut_group_is_never_touched(buffer: Buffer):
    pipeline = Pipeline(buffer, LIMITS)
    buffer.relabel({"a": "1", "b": "1"})
    for id in (stored_group(pipeline), stored_group(pipeline)):
        buffer.score(id, {"a": scores(1, "1"), "b": scores(1, "1")})
    record = pipeline.assemble()
    before = connection_of(buffer).redis.hgetall(f"{connection_of(buffer).prefix}group:{record.groups[0]}")
    buffer.relabel({"a": "2", "b": "2"})
    buffer.score(record.groups[0], {"a": scores(5, "2"), "b": scores(5, "2"), "late": scores(5, "0")})
    assert connection_of(buffer).redis.hgetall(f"{connection_of(buffer).prefix}group:{record.groups[0]}") == before
    assert record.groups[0] not in [g.id for g in buffer.unscored("worker", 9, 0)]


def test_what_has_not_answered_is_handed_out_until_it_is_cut(buffer: Buffer):
    """A worker that died over a late reward is not the end of it."""
    pipeline = Pipeline(buffer, Limits(2, 1, blocking=("a",), non_blocking=("late",), score_deadline_s=0.02))
    id = stored_group(pipeline)
    assert [g.id for g in buffer.unscored("worker", 9, 0)] == [id]
    buffer.score(id, {"a": scores(1, "0")})
    assert [g.id for g in buffer.unscored("other", 9, timeout_s=1)] == [id]
    buffer.score(id, {"late": scores(1, "0")})
    assert buffer.unscored("other", 9, timeout_s=0.1) == []


MOVES = st.one_of(
    st.tuples(st.just("score"), st.integers(0, 1), st.sampled_from(["a", "b", "late"]), st.integers(0, 2)),
    st.tuples(st.just("relabel"), st.sampled_from([("a", "b"), ("a", "b", "late")]), st.just(0), st.just(0)),
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=st.lists(MOVES, min_size=5, max_size=40))
def test_no_order_of_answers_and_changes_makes_a_mixture(redis_url: str, moves):
    """Answers arrive in any order, of the current version and of the two before; labels always change together."""
    buffer = Buffer(redis_url, f"relabel-{uuid4().hex}")
    pipeline = Pipeline(buffer, LIMITS)
    version = 1
    buffer.relabel({"a": "1", "b": "1", "late": "1"})
    ids = [stored_group(pipeline), stored_group(pipeline)]
    for kind, what, name, behind in moves:
        if kind == "relabel":
            version += 1
            buffer.relabel(dict.fromkeys(("a", "b", "late"), str(version)))
        else:
            said = max(1, version - behind)
            buffer.score(ids[what], {name: scores(said, str(said))})
        for stored in pipeline.ready():
            versions = {s.version for s in stored.scores.values()}
            assert len(versions) == 1, f"{stored.group.id} carries {versions}"
            assert {float(s.values[0]) for s in stored.scores.values()} == {float(v) for v in versions}
            assert stored.outdated == (versions != {str(version)})
    for id in ids:  # and it always comes to the newest
        buffer.score(id, {n: scores(version, str(version)) for n in ("a", "b", "late")})
    for stored in pipeline.ready():
        assert {s.version for s in stored.scores.values()} == {str(version)}
        assert np.isfinite(stored.scores["late"].values).all()
    buffer.close()


def test_versions_of_long_ago_leave_redis(buffer: Buffer):
    """A reward model publishes a version with every few steps of a run."""
    Pipeline(buffer, Limits(2, 1))
    for version in range(250):
        buffer.relabel({"learned": str(version), "fixed": "1"})
    client, prefix = connection_of(buffer).redis, connection_of(buffer).prefix
    assert client.hlen(f"{prefix}last_eras") <= 101
    assert len(client.keys(f"{prefix}era:*")) <= 100
    assert client.hexists(f"{prefix}last_eras", "fixed\0001")
