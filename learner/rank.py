"""One rank, from nothing to the training loop: engine, reference, publisher, and the state it continues from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.buffer import Buffer, Members
from cluster.config import RunConfig
from cluster.errors import ConfigError
from cluster.storage.group_archive import GroupArchive
from cluster.storage.samples import number, row_of
from learner.advantages.multi_policy import Share, owned, spread
from learner.batch.trained_logprobs import Hindsight
from learner.controllers.apply import Arrange, Steering, memory_of
from learner.engine.deepspeed_engine import DeepSpeedEngine, join
from learner.losses.sequence_losses import build_terms
from learner.plugin_state import PluginState, WithPluginState
from learner.publish.parity_probe import Probe
from learner.publish.publishers import NcclPublisher, PullPublisher
from learner.reference import Following, reference_of
from learner.step_replay import StepRecorder
from learner.train import train
from learner.types import AssembledBatch, Engine, Hooks

MASTER_PORT_OF_ENGINES = 1
"""The engines' NCCL group meets one port above the ranks' own."""


@dataclass(frozen=True)
class Rank:
    """What one rank of a learner is told."""

    config: RunConfig
    model_dir: str
    run_id: str
    run_dir: Path
    policy: str
    """Whose learner it is."""
    rank: int
    epoch: int
    resume_from: Path | None
    master: tuple[str, int]
    """Address and port where the ranks meet."""
    policies: tuple[str, ...] = ()
    """Where several train on the same groups: all of them, the one that cuts first."""

    @property
    def share(self) -> Share:
        return Share(self.policy, self.policies)

    @property
    def lap(self) -> str:
        """The policy that claims and cuts."""
        return self.policies[0] if self.policies else self.policy


def learn(
    told: Rank,
    buffer: Buffer,
    arrange: Arrange,
    *,
    remembering: Mapping[str, Any],
    rollout_actors: list[Any],
    stop: Callable[[], bool],
    save: Callable[[Any, int], None],
    stage: Callable[[str], None],
) -> int:
    """Train to the last step or until `stop`, saving as the recipe says; returns the step reached.

    `arrange` makes mixer and selection of a recipe: of another one each time that controllers change it.
    `remembering` are plug-ins of theirs that have a memory.
    """
    config, section = told.config, told.config.learner
    stage("joins the ranks")
    join(told.rank, section.ranks, told.master, timeout_s=section.collective_timeout_s)
    stage("loads the model")
    engine = DeepSpeedEngine(told.model_dir, section, config.seed)
    if told.rank == 0:
        engine.try_export()
    memory = memory_of(config, remembering)
    if told.resume_from is not None:
        engine.load(told.resume_from / "learner")
        if told.rank == 0:
            memory.load(told.resume_from / "learner")
    token = build_terms(section).appended_token
    if token is not None and token >= engine.vocab_size:
        raise ConfigError(f"learner.terms append the token {token}; the model has {engine.vocab_size}. Name another.")
    reference = reference_of(config, told.run_dir, told.model_dir, engine)
    follows = reference if isinstance(reference, Following) else None
    publisher = _publisher(told, buffer, engine, rollout_actors, memory)
    saver = _Saver(
        engine,
        lambda engine, step: save(WithPluginState(engine, memory), step),
        config.checkpoint.every_steps,
        saved=follows.move if follows else lambda: None,
    )
    kept = config.tracking.archived_groups
    leads = told.share.cuts
    members = Members(buffer, told.lap, told.epoch)
    keeper = (
        GroupArchive(told.run_dir / "groups", kept, done=engine.step) if told.rank == 0 and leads and kept else None
    )
    hindsight = Hindsight() if keeper else None
    every = config.checkpoint.record_every_steps
    own = told.run_dir if leads else told.run_dir / "policies" / told.policy
    recorder = StepRecorder(
        own / "replay", engine, told.epoch, every, loss=section.loss.use,
        reference=(lambda: follows.directory) if follows else lambda: "",
    )  # fmt: skip
    hooks = Hooks(
        # Nobody but the one that cuts is asked to stop: a member that left earlier would be waited for.
        stop=stop if leads else lambda: members.left_at() == engine.step,
        stage=stage,
        before_step=recorder.before,
        after_step=recorder.after,
        logprobs=hindsight.hear if hindsight else Hooks().logprobs,
        at_step=lambda done, cut: _tell(told, buffer, keeper, hindsight, done, cut),
        checkpoint=saver.when_due,
    )
    steering = Steering(config, arrange, memory)
    train(
        section, buffer, engine, publisher, steering.mix,
        policy=told.lap, epoch=told.epoch, select=steering.select if config.selectors else None, memory=memory,
        share=told.share, reference=reference, hooks=hooks, max_positions=engine.max_positions,
    )  # fmt: skip
    if told.rank == 0 and leads and told.policies:
        members.leave(engine.step)
    if keeper:
        keeper.finish()
    stage(f"saves step {engine.step}")
    saver.at_the_end()
    return engine.step


class _Saver:
    """Checkpoints, each step at most once. Collective."""

    def __init__(
        self, engine: Engine, save: Callable[[Engine, int], None], every: int, saved: Callable[[], None]
    ) -> None:
        self._engine, self._save, self._every, self._told = engine, save, every, saved
        self._saved = engine.step

    def when_due(self, done: int) -> None:
        if self._every and done % self._every == 0:
            self.at_the_end()

    def at_the_end(self) -> None:
        if self._engine.step > self._saved:
            self._saved = self._engine.step
            self._save(self._engine, self._saved)
            self._engine.barrier()  # rank 0 alone commits it, and all ranks look for it
            self._told()


def _tell(
    told: Rank, buffer: Buffer, keeper: GroupArchive | None, hindsight: Hindsight | None, done: int, cut: AssembledBatch
) -> None:
    """What a step trained on, for the console and for `samples.jsonl`; rank 0 does."""
    if keeper and hindsight:
        # A cut that is repeated after a crash knows rewards alone; its evidence is still stored.
        scores = cut.scores or {s.group.id: s.scores for s in buffer.stored(cut.record.groups)}
        own = owned(cut.groups, cut.record, told.policy) if told.policies else (cut.groups, cut.record)
        logprobs = hindsight.take(*own, told.config.learner)
        if told.policies:
            logprobs = spread(cut.groups, told.policy, logprobs)
        keeper.add(done, cut.groups, cut.record, scores, logprobs)
    if told.rank == 0 and told.share.cuts:
        for row in samples(done, cut, told.config.tracking.samples_per_step):
            buffer.emit("sample", row)


def _publisher(
    told: Rank, buffer: Buffer, engine: DeepSpeedEngine, actors: list[Any], memory: PluginState
) -> PullPublisher | NcclPublisher:
    config = told.config
    probe = Probe(engine.vocab_size, config.engine.max_model_len)
    published = 0

    def describe(engine: Engine) -> dict[str, Any]:
        nonlocal published
        published += 1
        # The first one always: it measures the precision's floor.
        probed = {"probe": probe.measure(engine)} if (published - 1) % config.weights.probe_every == 0 else {}
        return probed | {"settings": memory.settings()}

    if config.weights.transport == "pull":
        return PullPublisher(buffer, told.policy, told.epoch, run_id=told.run_id, describe=describe)
    return NcclPublisher(
        buffer,
        told.policy,
        told.epoch,
        engine,
        handles=actors,
        workers_per_engine=config.engine.tensor_parallel,
        master=(told.master[0], told.master[1] + MASTER_PORT_OF_ENGINES),
        describe=describe,
    )


def samples(step: int, cut: AssembledBatch, count: int) -> list[dict[str, Any]]:
    """The first rollout of each of `count` trained groups and of `count` dropped ones, as plain values.

    A dropped group has the reason that it was dropped for, and no advantage.
    """
    record, rows = cut.record, []
    trained = list(zip(cut.groups, record.rewards, record.advantages, strict=True))
    for group, rewards, advantages in trained[:count]:
        row = row_of(step, group, cut.scores.get(group.id, {}), rewards[0])
        rows.append(row | {"advantage": number(np.mean(advantages[0]))})
    rows += [row_of(step, out.group, out.scores, out.rewards[0], reason=out.reason) for out in cut.left_out[:count]]
    return rows
