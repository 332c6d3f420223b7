"""Several policies that train on the same groups: the rules of the pipeline hold for all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.buffer import Buffer, Limits, Members
from cluster.errors import KanaboError, StaleEpoch
from cluster.storage import checkpoint
from cluster.types import Manifest, Publication
from tests.cluster.pipeline import Pipeline
from tests.cluster.test_buffer import answer, in_background

TWO = Limits(groups_per_step=2, max_staleness=1, members=("other",))


def release(pipeline: Pipeline, who: str, version: int) -> None:
    pipeline.buffer.announce(Publication(who, pipeline.epoch, version))
    pipeline.buffer.release("policy", pipeline.epoch, version, by=who)


def assemble(pipeline: Pipeline, step: int) -> None:
    """What rank 0 of the policy that assembles does; nothing is released."""
    pipeline.step = step
    for claim in pipeline.claim_all():
        pipeline.finish(claim)
    pipeline.assemble()


def version(buffer: Buffer) -> int:
    return buffer.status("policy")["version"]


def test_the_version_is_the_slowest_policys(buffer: Buffer):
    pipeline = Pipeline(buffer, TWO)
    assemble(pipeline, 0)
    release(pipeline, "policy", 1)
    assert version(buffer) == 0
    pipeline.engine = f"{pipeline.epoch}.1"
    assert pipeline.claim() is None, "a claim would be admitted by one policy alone"
    assemble(pipeline, 1)
    release(pipeline, "policy", 2)
    pipeline.engine = f"{pipeline.epoch}.2"
    assert (version(buffer), pipeline.claim()) == (0, None), "whoever is ahead waits"
    release(pipeline, "other", 1)
    assert version(buffer) == 1
    assert [c.version for c in pipeline.claim_all()] == [1, 1]
    release(pipeline, "other", 1)
    assert version(buffer) == 1, "a repeated release is answered, and changes nothing"
    release(pipeline, "other", 2)
    assert version(buffer) == 2
    assert buffer.summary("policy")["groups_lost"] == 0


def test_no_policy_releases_what_was_not_assembled_or_leaves_a_version_out(buffer: Buffer):
    pipeline = Pipeline(buffer, TWO)
    with pytest.raises(KanaboError, match="cannot follow 0"):
        buffer.release("policy", pipeline.epoch, 1, by="other")
    assemble(pipeline, 0)
    assemble(pipeline, 1)
    with pytest.raises(KanaboError, match="cannot follow 0"):
        buffer.release("policy", pipeline.epoch, 2, by="other")


def test_a_new_epoch_is_every_policys(buffer: Buffer):
    pipeline = Pipeline(buffer, TWO)
    buffer.announce(Publication("other", pipeline.epoch, 0))
    assemble(pipeline, 0)
    release(pipeline, "policy", 1)
    members = Members(buffer, "policy", pipeline.epoch)
    members.saved("other", 1)
    members.leave(1)
    epoch = buffer.resume("policy", None)
    assert buffer.published("other") is None, "engines may hold a dead history's weights"
    again = Members(buffer, "policy", epoch)
    assert again.left_at() is None
    assert not again.all_saved(1, timeout_s=0)
    for call in (
        lambda: release(pipeline, "other", 1),
        lambda: members.saved("other", 1),
        lambda: members.leave(1),
        members.left_at,
    ):
        with pytest.raises(StaleEpoch):
            call()
    buffer.announce(Publication("other", epoch, 0))
    publication = buffer.published("other")
    assert publication
    assert publication.version == f"{epoch}.0"
    buffer.release("policy", epoch, 1, by="other")
    assert version(buffer) == 0, "what was released in the dead epoch does not count"


def test_a_checkpoint_waits_for_every_members_part(buffer: Buffer):
    limits = Limits(groups_per_step=2, max_staleness=1, members=("other", "third"))
    pipeline = Pipeline(buffer, limits)
    assemble(pipeline, 0)
    for who in ("policy", "other", "third"):
        release(pipeline, who, 1)
    members = Members(buffer, "policy", pipeline.epoch)
    members.saved("other", 1)
    thread, answers = in_background(lambda: members.all_saved(1, timeout_s=5))
    members.saved("third", 1)
    assert answer(thread, answers) is True
    assert not members.all_saved(2, timeout_s=0), "an older step's part is none of this one"
    manifest = buffer.snapshot("policy", pipeline.epoch, 1)
    assert isinstance(manifest, Manifest)
    buffer.trim(manifest)


def test_members_learn_where_the_steps_end(buffer: Buffer):
    pipeline = Pipeline(buffer, TWO)
    members = Members(buffer, "policy", pipeline.epoch)
    assert members.left_at() is None
    members.leave(7)
    assert members.left_at() == 7


class Weights:
    """An engine with nothing but a name to save."""

    rank = 0

    def __init__(self, name: str) -> None:
        self.name = name

    def save(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "state").write_text(self.name)

    def export(self, directory: Path) -> None:
        (directory / "config.json").write_text(self.name)

    def agree(self, flag: bool) -> bool:
        return flag


def test_a_checkpoint_commits_everybodys_weights_or_nobodys(buffer: Buffer, tmp_path: Path):
    pipeline = Pipeline(buffer, TWO)
    assemble(pipeline, 0)
    release(pipeline, "policy", 1)
    release(pipeline, "other", 1)
    half = tmp_path / "saving" / "other"
    half.mkdir(parents=True)
    (half / "leftover").write_text("of a learner that died")
    thread, _ = in_background(
        lambda: checkpoint.save(tmp_path, Weights("policy"), buffer, "policy", pipeline.epoch, 1, 2, ("other",))
    )
    assert not checkpoint.committed(tmp_path)
    checkpoint.save_part(tmp_path, Weights("other"), buffer, "policy", pipeline.epoch, 1, "other")
    thread.join(5)
    (target,) = checkpoint.committed(tmp_path)
    part = checkpoint.part(target, "other", "policy")
    assert sorted(path.name for path in part.rglob("*")) == ["config.json", "learner", "state"]
    assert [(p / "learner" / "state").read_text() for p in (target, part)] == ["policy", "other"]
    assert checkpoint.part(target, "policy", "policy") == target
    assert buffer.summary("policy")["groups_trained_twice"] == 0


def test_a_dead_learner_commits_no_checkpoint_with_its_successors_part(buffer: Buffer, tmp_path: Path):
    pipeline = Pipeline(buffer, TWO)
    assemble(pipeline, 0)
    release(pipeline, "policy", 1)
    release(pipeline, "other", 1)
    buffer.resume("policy", None)
    with pytest.raises(StaleEpoch):
        checkpoint.save(tmp_path, Weights("policy"), buffer, "policy", pipeline.epoch, 1, 2, ("other",))
    with pytest.raises(StaleEpoch):
        checkpoint.save_part(tmp_path, Weights("other"), buffer, "policy", pipeline.epoch, 1, "other")
    assert not checkpoint.committed(tmp_path)
