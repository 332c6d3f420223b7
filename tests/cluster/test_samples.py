"""`samples.jsonl` holds what was sampled, also what the buffer itself dropped, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.buffer import Buffer, Limits
from cluster.config import LearnerSection, RewardSection, TrackingSection, parse
from cluster.driver.event_consumer import EventConsumer
from cluster.observability.live_table import LiveTable
from cluster.observability.metrics import Recorder
from cluster.types import Claim, Scores
from learner.advantages.estimators import GroupAdvantage
from learner.rank import samples
from rewards.aggregation.mixer import Mixer
from tests.cluster.pipeline import Pipeline, group_of, record_of
from tests.learner.runs import assembler

KEPT = 16


def follower_of(buffer: Buffer, directory: Path, **tracking) -> EventConsumer:
    config = parse({"rewards": [{"use": "exact"}], "tracking": tracking})
    recorder = Recorder(directory, TrackingSection(tensorboard=False), "run", {})
    return EventConsumer(buffer, config, recorder, LiveTable("run", 1, False), lambda step: None)


async def rows(follower: EventConsumer, directory: Path) -> list[dict]:
    await follower.drain()
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]


def left_behind(buffer: Buffer, **limits) -> tuple[Pipeline, list[Claim]]:
    """A pipeline whose learner is a step ahead of groups that are stored, when the bound is 0."""
    pipeline = Pipeline(buffer, Limits(**{"groups_per_step": 2, "max_staleness": 0, "when_late": "drop", **limits}))
    claims = pipeline.claim_all()
    for claim in claims:
        buffer.put(group_of(claim))
    buffer.record(pipeline.epoch, record_of("policy", 0, ()))
    pipeline.release()
    return pipeline, claims


async def test_a_group_that_is_late_is_in_the_samples_with_its_text_and_scores(buffer, tmp_path):
    follower = follower_of(buffer, tmp_path)
    pipeline, (scored, pending) = left_behind(buffer, blocking=("exact",))
    buffer.score(scored.id, {"exact": Scores.of([1.0, 0.0])})
    pipeline.ready()
    found = {row["group"]: row for row in await rows(follower, tmp_path)}
    assert found[scored.id]["text"] == "4"
    assert found[scored.id]["scores"] == {"exact": 1.0}
    assert found[pending.id]["scores"] == {}
    assert all((row["reason"], row["trained"], row["advantage"]) == ("late", False, None) for row in found.values())


async def test_groups_of_a_dead_epoch_and_of_a_history_that_was_rolled_back_are_in_the_samples(buffer, tmp_path):
    follower = follower_of(buffer, tmp_path)
    _, claims = left_behind(buffer, max_staleness=1)
    buffer.resume("policy", None, rollback=True)
    found = await rows(follower, tmp_path)
    assert {(row["group"], row["reason"]) for row in found} == {(claim.id, "rolled_back") for claim in claims}


async def test_what_a_learner_drops_is_told_by_the_learner_alone(buffer, tmp_path):
    follower = follower_of(buffer, tmp_path)
    pipeline, (one, other, *_) = left_behind(buffer, max_staleness=1)
    buffer.drop("policy", pipeline.epoch, {one.id: "zero_variance"})
    buffer.record(pipeline.epoch, record_of("policy", 1, ()), {other.id: "truncated"})
    assert set(buffer.summary("policy")["groups_dropped"]) == {"zero_variance", "truncated"}
    assert await rows(follower, tmp_path) == []
    assert buffer.dropped(one.id) is None


async def test_dropped_groups_take_little_memory_and_few_lines(buffer, tmp_path):
    follower = follower_of(buffer, tmp_path, samples_per_step=2)
    pipeline, claims = left_behind(buffer, groups_per_step=3 * KEPT)
    pipeline.ready()
    assert sum(buffer.dropped(claim.id) is not None for claim in claims) == KEPT
    assert len(await rows(follower, tmp_path)) <= 2
    assert buffer.summary("policy")["groups_dropped"] == {"late": 3 * KEPT}


async def test_a_group_that_waited_past_its_deadline_is_in_the_samples_of_the_learner(buffer):
    """Its deadline makes it ready; what `missing` then makes of it is the mixer's reason."""
    pipeline = Pipeline(buffer, Limits(groups_per_step=1, max_staleness=0, blocking=("slow",), score_deadline_s=0.05))
    (claim,) = pipeline.claim_all()
    buffer.put(group_of(claim))
    sections = [RewardSection(use="exact", missing="wait")]
    mixer = Mixer(sections, ["slow"], 1)
    section = LearnerSection(groups_per_step=1, max_refills=0)
    found = assembler(buffer, pipeline.epoch, mixer.of_step, GroupAdvantage()).assemble(0, section)
    assert found is not None
    (row,) = samples(1, found, 4)
    assert (row["group"], row["trained"], row["reason"]) == (claim.id, False, "waited:slow")
