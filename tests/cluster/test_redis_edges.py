"""A Redis that is there and refuses to write: the pipeline waits, says so, drops nothing, and goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from cluster.buffer import Buffer, Limits, connection
from cluster.buffer.server import Store
from cluster.errors import BufferUnavailable
from tests.cluster.pipeline import RIGHT, Pipeline, group_of

LEASE_S = 1.0
LIMITS = Limits(2, 0, blocking=("judge",), lease_s=LEASE_S, score_deadline_s=LEASE_S)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Its own server: its limits are changed."""
    with Store(tmp_path / "redis") as store:
        redis.Redis.from_url(store.url).config_set("appendfsync", "everysec")
        yield store


def fill_memory(admin: redis.Redis) -> Callable[[], object]:
    admin.config_set("maxmemory", 1)
    return lambda: admin.config_set("maxmemory", 0)


def become_replica(admin: redis.Redis) -> Callable[[], object]:
    """The same refusal as of a full disk (MISCONF, see below), without one: no write at all passes."""
    admin.replicaof("127.0.0.1", "1")
    return lambda: admin.replicaof("NO", "ONE")


def in_background(*calls: Callable[[], object]) -> tuple[list[threading.Thread], list[object]]:
    answers: list[object] = []
    threads = [threading.Thread(target=lambda call=call: answers.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    return threads, answers


@pytest.mark.parametrize(
    ("refuse", "state", "remedy"),
    [(fill_memory, "out of memory", "Raise maxmemory"), (become_replica, "is a replica", "name the primary")],
)
def test_the_lap_waits_longer_than_its_leases_and_drops_nothing(
    store: Store, caplog: pytest.LogCaptureFixture, refuse, state: str, remedy: str
):
    pipeline = Pipeline(Buffer(store.url, "run", patience_s=60), LIMITS)
    judged, sampled = pipeline.claim_all()
    pipeline.buffer.put(group_of(judged))
    lift = refuse(redis.Redis.from_url(store.url))
    threads, answers = in_background(
        lambda: pipeline.buffer.put(group_of(sampled)),
        lambda: pipeline.buffer.score(judged.id, {"judge": RIGHT}),
        lambda: pipeline.ready(timeout_s=20),
    )
    time.sleep(3 * LEASE_S)
    assert not answers
    lift()
    for thread in threads[:2]:
        thread.join()
    pipeline.buffer.score(sampled.id, {"judge": RIGHT})
    threads[2].join()
    pipeline.assemble()
    pipeline.release()
    pipeline.iteration()
    summary = pipeline.buffer.summary("policy")
    assert (summary["groups_trained"], summary["groups_dropped"]) == (4, {})
    assert "overdue" not in pipeline.buffer.status("policy")["counters"]
    pipeline.check_tasks()
    (said,) = [r.getMessage() for r in caplog.records if r.name == connection.__name__]
    assert state in said
    assert remedy in said


def test_while_memory_is_short_leases_move_on_so_whoever_calls_first_afterwards_finds_them(store: Store):
    pipeline = Pipeline(Buffer(store.url, "run", patience_s=60), LIMITS)
    first, second = pipeline.claim_all()
    lift = fill_memory(redis.Redis.from_url(store.url))
    threads, _ = in_background(lambda: pipeline.buffer.put(group_of(first)))
    time.sleep(2 * LEASE_S)
    threads[0].join(0)
    assert threads[0].is_alive()
    bystander = Buffer(store.url, "run")  # it was never refused, so it knows of no outage
    lift()
    assert bystander.claim("policy", worker="other", engine=pipeline.engine, timeout_s=0) is None
    pipeline.buffer.put(group_of(second))
    threads[0].join()
    assert set(pipeline.outcomes().values()) == {"live"}


def test_a_dead_workers_lease_still_passes_after_memory_was_short(store: Store):
    pipeline = Pipeline(Buffer(store.url, "run", patience_s=60), LIMITS)
    dead, alive = pipeline.claim_all()
    lift = fill_memory(redis.Redis.from_url(store.url))
    threads, _ = in_background(lambda: pipeline.buffer.put(group_of(alive)))
    time.sleep(2 * LEASE_S)
    lift()
    threads[0].join()
    assert pipeline.claim(timeout_s=5)
    assert pipeline.outcomes()[dead.id] == "dropped:lease_expired"


def test_what_is_read_is_read_without_memory_and_trimming_makes_room(store: Store):
    pipeline = Pipeline(Buffer(store.url, "run", patience_s=0), Limits(2, 1))
    for _ in range(3):
        pipeline.iteration()
    manifest, admin = pipeline.snapshot(), redis.Redis.from_url(store.url)
    fill_memory(admin)
    assert pipeline.buffer.summary("policy")["groups_trained"] == 6
    assert pipeline.buffer.status("policy")["groups"]["trained_untrimmed"] == 6
    pipeline.buffer.trim(manifest)
    assert pipeline.buffer.status("policy")["groups"]["trained_untrimmed"] == 0
    with pytest.raises(BufferUnavailable, match="maxmemory"):
        pipeline.publish()


def test_patience_ends_with_the_remedy_and_closing_ends_it_at_once(store: Store):
    pipeline = Pipeline(Buffer(store.url, "run", patience_s=0.5), LIMITS)
    claim = pipeline.claim()
    assert claim
    fill_memory(redis.Redis.from_url(store.url))
    with pytest.raises(BufferUnavailable, match="Raise maxmemory"):
        pipeline.buffer.put(group_of(claim))
    patient = Buffer(store.url, "run", patience_s=60)

    def put() -> str:
        try:
            patient.put(group_of(claim))
        except BufferUnavailable as error:
            return str(error)
        return "stored"

    threads, answers = in_background(put)
    time.sleep(0.3)
    patient.close()
    threads[0].join(2)
    assert "out of memory" in str(answers)


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("MISCONF Errors writing to the AOF file: No space left on device", "MISCONF"),
        ("Error running script (call to f_1): @user_script:1: @user_script: 1: -MISCONF Errors writing", "MISCONF"),
        ("Error running script (call to f_1): @user_script:1: -OOM command not allowed when used", "OOM"),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL", "BUSY"),
        ("WRONGTYPE Operation against a key that holds no ZOOM list", None),
    ],
)
def test_a_refusal_is_known_by_the_word_redis_says(message: str, word: str | None):
    """Messages of Redis 6.2, as it says them outside and inside of scripts."""
    assert connection._refusal(redis.ResponseError(message)) == word
