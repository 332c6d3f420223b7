"""A run directory that an earlier version left with poison in every state is resumed, and ends as it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis

from cluster.buffer import Buffer
from cluster.buffer.server import Store
from cluster.storage import checkpoint
from cluster.types import BatchRecord, Claim, Event, Group, Publication, Scores, decode, encode
from tests.end_to_end import jobs

OVERRIDES = [
    *jobs.TINY, "engine.use=tests.fakes:FakeEngine", "learner.drop_zero_variance=false", "run.name=poisoned",
    "checkpoint.every_steps=2",
]  # fmt: skip
HALF = b"\xed\xa0\xbd"
"""Half a surrogate pair, as an encoder that does not look writes it."""


def wire(value: Any) -> Any:
    return msgspec.msgpack.decode(encode(value))


def rewritten(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def rewrite(data: bytes) -> bytes:
        tree = msgspec.msgpack.decode(data)
        change(tree)
        return msgspec.msgpack.encode(tree)

    return rewrite


def numbers_that_are_booleans(tree: Any) -> None:
    for rollout in tree["rollouts"]:
        rollout["reward"] = True
        rollout["events"] = [wire(Event("an end", 0)) | {"reward": True, "count": 1.0}]


def too_few_logprobs(tree: Any) -> None:
    tree["rollouts"][1]["logprobs"] = wire(np.zeros(1, np.float32))


def a_span_beyond_the_end(tree: Any) -> None:
    tree["rollouts"][0]["spans"][0]["end"] = 10**6


def no_reward(tree: Any) -> None:
    tree["rollouts"][0]["reward"] = {"score": 1.0}


def half_a_pair(data: bytes) -> bytes:
    marked = rewritten(lambda tree: tree["rollouts"][0].update(text="!!!"))(data)
    assert marked.count(b"!!!") == 1
    return marked.replace(b"!!!", HALF)


HARMLESS = [rewritten(numbers_that_are_booleans)]
UNREADABLE = [
    rewritten(too_few_logprobs),
    rewritten(a_span_beyond_the_end),
    rewritten(no_reward),
    half_a_pair,
    lambda data: data[: len(data) // 2],
    lambda data: b"",
]
BAD_SCORES = [
    rewritten(lambda tree: tree.update(provenance=[None])),
    rewritten(lambda tree: tree.update(provenance=[{"note": None, "attempt": True}])),
    rewritten(lambda tree: tree.update(tokens=[wire(np.zeros(3))] * len(tree["state"]))),
    rewritten(lambda tree: tree.update(tokens=[[0.5, 0.5]])),
    rewritten(lambda tree: tree.update(values=[True, False])),
    lambda data: b"no scores",
]


class Poisoned:
    """A stopped run's buffer, opened beside it."""

    def __init__(self, directory: Path, url: str) -> None:
        run_id = (directory / "id").read_text()
        self.redis, self.prefix = redis.Redis.from_url(url), f"kanabo:{{{run_id}}}:"
        self.buffer = Buffer(url, run_id)
        manifest = checkpoint.read(checkpoint.committed(directory / "checkpoints")[-1])
        self.step = manifest.step
        self.epoch = self.buffer.resume("policy", manifest)
        self.buffer.announce(Publication("policy", self.epoch, self.step))
        self.template = self._any_group()
        left = self.buffer.live("policy")
        self.buffer.drop("policy", self.epoch, dict.fromkeys((*left.pending, *left.ready), "late"), requeue=True)

    def _any_group(self) -> Group:
        """Any that the run has sampled, as a template."""
        keys = [key for key in self.redis.scan_iter(f"{self.prefix}group:*") if self.redis.hexists(key, "data")]
        data: Any = self.redis.hget(keys[0], "data")
        return decode(data, Group)

    def put(self, count: int, *, scored: bool) -> list[str]:
        """Store so many healthy groups; their ids."""
        ids = []
        for _ in range(count):
            engine = f"{self.epoch}.{self.step}"
            claim: Claim | None = self.buffer.claim("policy", worker="old", engine=engine, timeout_s=0)
            assert claim is not None
            self.buffer.put(replace(self.template, claim=claim))
            if scored:
                self.buffer.score(claim.id, {"exact": Scores.of([1.0, *[0.0] * (len(self.template) - 1)])})
            ids.append(claim.id)
        return ids

    def record(self, ids: list[str]) -> None:
        values = np.array([1.0, *[0.0] * (len(self.template) - 1)])
        credit = tuple(np.full(len(r.tokens), 0.1, np.float32) for r in self.template.rollouts)
        record = BatchRecord("policy", self.step, tuple(ids), (values,) * len(ids), (credit,) * len(ids))
        self.buffer.record(self.epoch, record)

    def poison(self, ids: list[str], kinds: list[Callable[[bytes], bytes]], field: str = "data") -> None:
        for id, kind in zip(ids, kinds, strict=False):
            key = f"{self.prefix}group:{id}"
            stored: Any = self.redis.hget(key, field)
            self.redis.hset(key, field, kind(stored))


@pytest.mark.job
@pytest.mark.verify
def test_a_run_with_poison_in_every_state_is_resumed_and_loses_nothing(tmp_path):
    log, run = tmp_path / "log", tmp_path / "poisoned"
    assert jobs.run([*OVERRIDES, f"run.dir={tmp_path}", "learner.steps=2"], log=log, timeout_s=240) == 0, jobs.tail(log)
    with Store(run / "redis") as store:
        old = Poisoned(run, store.url)
        recorded = old.put(8, scored=True)
        old.record(recorded)
        ready, pending = old.put(5, scored=True), old.put(3, scored=False)
        old.poison(recorded, [*HARMLESS, *UNREADABLE])
        old.poison(ready, [*HARMLESS, *UNREADABLE[:2]])
        old.poison(ready[3:], BAD_SCORES[:2], "s:exact")
        old.poison(recorded[1:], BAD_SCORES, "s:exact")
        old.poison(pending, [*HARMLESS, *UNREADABLE[3:5]])
        old.buffer.close()
    assert jobs.run([*OVERRIDES, f"run.dir={tmp_path}", "learner.steps=8"], log=log, timeout_s=240) == 0, jobs.tail(log)
    summary = jobs.summary(run)
    assert summary["steps"] == 8
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    last = {name: value for row in jobs.rows(run) for name, value in row.items()}
    assert last["failures/num_unreadable"] == len(UNREADABLE) + 2 + 2
    assert last["failures/num_infrastructure"] == 0
    assert summary["groups_dropped"]["unreadable"] == 4, "those that no step had recorded are sampled again"


def test_every_kind_of_poison_has_been_refused_by_its_reader():
    """What is called unreadable here is, and what is called harmless is not."""
    from tests.cluster.pipeline import RIGHT, group_of

    data = encode(group_of(Claim("policy/1/0", "policy", 1, 0, 0, 0, "token")))
    assert [r.reward for r in decode(HARMLESS[0](data), Group).rollouts] == [1.0, 1.0]
    for poison, type_ in [*((p, Group) for p in UNREADABLE), *((p, Scores) for p in BAD_SCORES)]:
        stored = poison(data if type_ is Group else encode(RIGHT))
        try:
            found = decode(stored, type_)
        except msgspec.ValidationError:
            continue
        assert type_ is Scores, "a group that can be read is no poison"
        assert len(found.values) == 2
