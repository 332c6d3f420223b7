"""One rank, from nothing to the training loop: engine, reference, publisher, plug-ins, state of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.buffer import Buffer, Members
from cluster.config import LearnerSection, RunConfig
from cluster.errors import ConfigError
from cluster.plugins import build
from cluster.process.disk import Written, written_at_once
from cluster.storage.group_archive import GroupArchive
from cluster.storage.samples import number, row_of
from cluster.types import AssembledBatch, Publication
from cluster.types.events import SampleShown
from learner.advantages.estimators import StepAdvantages, Undivided
from learner.advantages.multi_policy import AdvantagesByPolicy, OwnPart
from learner.advantages.registry import ADVANTAGES
from learner.batch.assemble import Assembler
from learner.batch.trained_logprobs import ArchiveGroups
from learner.controllers.apply import Arrange, Steering, memory_of
from learner.engine.deepspeed_engine import DeepSpeedEngine, join
from learner.losses.sequence_losses import build_sequence_losses
from learner.plugin_state import ADVANTAGE, PluginState, StateUpdates
from learner.publish.logprob_probe import Probe
from learner.publish.publishers import NcclPublisher, PullPublisher
from learner.reference import Following, reference_of
from learner.step_plugin import StepPlugin
from learner.step_replay import StepRecorder
from learner.throughput import Throughput, matrix_rate
from learner.train import LearnerRun, train
from learner.types import DTYPES, Engine, Mix, ReferenceModel, Select

UNSAVED_STEPS = 50
"""Steps whose groups stay in Redis where no checkpoint is made before the end."""
MASTER_PORT_OF_ENGINES = 1
"""The engines' NCCL group meets one port above the ranks' own."""


@dataclass(frozen=True)
class Rank:
    """What one rank of a learner is started with."""

    config: RunConfig
    model_dir: str
    run_id: str
    run_dir: Path
    policy: str
    """The policy that the learner trains."""
    rank: int
    epoch: int
    resume_from: Path | None
    master: tuple[str, int]
    """Address and port where the ranks meet."""
    policies: tuple[str, ...] = ()
    """Where several train on the same groups: all of them, the one whose learner assembles the batches first."""

    @property
    def assembles(self) -> bool:
        """Whether this learner assembles the batches that it trains on."""
        return self.batches_of == self.policy

    @property
    def batches_of(self) -> str:
        """The policy that claims the groups, whose learner assembles the batches."""
        return self.policies[0] if self.policies else self.policy


@dataclass(frozen=True)
class Services:
    """What the process around a rank does for it."""

    stop: Callable[[], bool]
    """Whether the run has been asked to stop."""
    save: Callable[[Any, int], None]
    """Save what an engine-like object has as the checkpoint of a step."""
    stage: Callable[[str], None]
    """Told what the rank does from now on, in words."""
    written: Written = written_at_once
    """Writes something again while the disk is full."""


def learn(
    rank: Rank,
    buffer: Buffer,
    arrange: Arrange,
    services: Services,
    *,
    stateful: Mapping[str, Any],
    rollout_actors: list[Any],
    plugins: Sequence[StepPlugin] = (),
) -> int:
    """Train to the last step or until asked to stop, saving as the recipe says; returns the step reached.

    `arrange` makes mixer and selection of a recipe, of another one each time that controllers change it. `stateful` are
    plug-ins of theirs that remember earlier steps, `plugins` step plug-ins that the process around the rank makes.
    """
    config, section = rank.config, rank.config.learner
    services.stage("joins the ranks")
    join(rank.rank, section.ranks, rank.master, timeout_s=section.collective_timeout_s)
    services.stage("loads the model")
    engine = DeepSpeedEngine(rank.model_dir, section, config.seed)
    if rank.rank == 0:
        engine.try_export()
    state = memory_of(config, stateful)
    # Without controllers mixer and selection are decided once, and every batch goes to them directly.
    steering = Steering(config, arrange, state) if config.controllers else None
    first = [StateUpdates(state, rank.rank, buffer.stored), *([steering] if steering else []), *plugins]
    if rank.resume_from is not None:
        engine.load(rank.resume_from / "learner")
    _check_appended_token(section, engine.vocab_size)
    reference = reference_of(config, rank.run_dir, rank.model_dir, engine)
    all_plugins = step_plugins(rank, buffer, engine, reference, services, first)
    if rank.resume_from is not None and rank.rank == 0:
        for plugin in all_plugins:
            plugin.load(rank.resume_from / "learner")
    members = Members(buffer, rank.batches_of, rank.epoch)
    return train(
        LearnerRun(
            section=section,
            engine=engine,
            buffer=buffer,
            publisher=_publisher(rank, buffer, engine, rollout_actors, state),
            policy=rank.policy,
            epoch=rank.epoch,
            assembler=assembler_of(rank, buffer, steering or arrange(config, state), state, all_plugins)
            if rank.assembles
            else None,
            batches_of=rank.batches_of,
            plugins=all_plugins,
            reference=reference,
            shares_prefixes=engine.shares_prefixes,
            max_positions=engine.max_positions,
            # Only the learner that assembles is asked to stop: it would wait for a member that left earlier.
            stop=services.stop if rank.assembles else lambda: members.left_at() == engine.step,
            stage=services.stage,
        )
    )


def assembler_of(
    rank: Rank,
    buffer: Buffer,
    arranged: Steering | tuple[Mix, Select | None],
    state: PluginState,
    plugins: Sequence[StepPlugin],
) -> Assembler:
    """Return what decides the batches of a run; `arranged` is mixer and selection, or what controllers make of them."""
    section = rank.config.learner
    if isinstance(arranged, Steering):
        mix, select = arranged.mix, arranged.select if rank.config.selectors else None
    else:
        mix, select = arranged
    estimator = build(ADVANTAGES, section.advantage.use, section.advantage.options, "learner.advantage")
    if section.value is not None:
        estimator = Undivided()  # the critic credits tokens once the step's weights are known
    given = estimator, section.advantage.use, lambda: state.of(ADVANTAGE)
    return Assembler(
        buffer,
        rank.batches_of,
        rank.epoch,
        mix,
        AdvantagesByPolicy(*given, policies=rank.policies) if rank.policies else StepAdvantages(*given),
        select=select,
        arrange=arranged.arranged if isinstance(arranged, Steering) else None,
        plugins=plugins,
    )


def step_plugins(
    rank: Rank,
    buffer: Buffer,
    engine: DeepSpeedEngine,
    reference: ReferenceModel | None,
    services: Services,
    first: Sequence[StepPlugin],
) -> list[StepPlugin]:
    """Return what a recipe adds to every step, in order: archived groups before the part that one policy trains on.

    Checkpoints come last, when every other plug-in has taken the step in. `first` stand in front of all.
    """
    config, section = rank.config, rank.config.learner
    leads = rank.rank == 0 and rank.assembles
    own_dir = rank.run_dir if rank.assembles else rank.run_dir / "policies" / rank.policy
    follows = reference if isinstance(reference, Following) else None
    recorder = StepRecorder(
        own_dir / "replay", engine, rank.epoch, config.checkpoint.record_every_steps, loss=section.loss.use,
        reference=(lambda: follows.directory) if follows else lambda: "", written=services.written,
    )  # fmt: skip
    plugins: list[StepPlugin] = [recorder, *first]
    if rank.rank == 0:
        rate = matrix_rate(engine.device, DTYPES[section.dtype])
        plugins.append(Throughput(engine.num_parameters, rate, section.passes_per_batch))
    if leads and rank.policies:
        plugins.append(Leave(Members(buffer, rank.batches_of, rank.epoch)))
    if leads and config.tracking.archived_groups:
        archive = GroupArchive(rank.run_dir / "groups", config.tracking.archived_groups, engine.step, services.written)
        plugins.append(ArchiveGroups(archive, buffer.stored, section, rank.policy if rank.policies else ""))
    if leads:
        plugins.append(Samples(buffer, config.tracking.samples_per_step))
        if not config.checkpoint.every_steps:
            plugins.append(Forget(buffer, rank.batches_of, rank.epoch))
    if rank.policies:
        plugins.append(OwnPart(rank.policy))
    saved = follows.move if follows else lambda: None
    return [*plugins, Checkpoints(engine, plugins, services, config.checkpoint.every_steps, saved)]


def _check_appended_token(section: LearnerSection, vocab_size: int) -> None:
    token = build_sequence_losses(section).appended_token
    if token is not None and token >= vocab_size:
        raise ConfigError(f"learner.sequence_losses append token {token}; the model has {vocab_size}. Name another.")


class Checkpoints(StepPlugin):
    """Save every `checkpoint.every_steps` steps and after the last one, each step at most once."""

    def __init__(
        self,
        engine: Engine,
        plugins: Sequence[StepPlugin],
        services: Services,
        every: int,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """`saved` is called on every rank once a checkpoint is committed."""
        self.rank, self.export, self.agree = engine.rank, engine.export, engine.agree
        self._engine, self._plugins, self._services = engine, plugins, services
        self._every, self._on_saved = every, saved
        self._saved = engine.step

    def after_release(self, done: int, batch: AssembledBatch) -> None:
        if self._every and done % self._every == 0:
            self.finish(done)

    def finish(self, done: int) -> None:
        if done > self._saved:
            self._services.stage(f"saves step {done}")
            self._saved = done
            self._services.save(self, done)
            self._engine.barrier()  # rank 0 alone commits it, and all ranks look for it
            self._on_saved()

    def save(self, directory: Path) -> None:
        """Write the engine and, on rank 0, what the other plug-ins keep."""
        self._engine.save(directory)
        if self.rank == 0:
            for plugin in self._plugins:
                plugin.save(directory)


class Forget(StepPlugin):
    """Delete trained groups from Redis in a run that makes no checkpoint before its end, `UNSAVED_STEPS` behind.

    A learner that dies later than that begins again at the run's first step with tasks that are claimed again.
    """

    def __init__(self, buffer: Buffer, policy: str, epoch: int) -> None:
        self._buffer, self._policy, self._epoch = buffer, policy, epoch

    def after_release(self, done: int, batch: AssembledBatch) -> None:
        if done > UNSAVED_STEPS:
            self._buffer.forget(self._policy, self._epoch, done - UNSAVED_STEPS)


class Leave(StepPlugin):
    """Tell the learners of other policies, which train on the same batches, that there are no more."""

    def __init__(self, members: Members) -> None:
        self._members = members

    def finish(self, done: int) -> None:
        self._members.leave(done)


class Samples(StepPlugin):
    """Emit some rollouts of each step for `samples.jsonl` and the console."""

    def __init__(self, buffer: Buffer, count: int) -> None:
        self._buffer, self._count = buffer, count
        self._batch: AssembledBatch | None = None

    def after_assemble(self, batch: AssembledBatch) -> AssembledBatch:
        self._batch = batch
        return batch

    def after_release(self, done: int, batch: AssembledBatch) -> None:
        assert self._batch is not None
        for row in samples(done, self._batch, self._count):
            self._buffer.emit(SampleShown(row=row))


def _publisher(
    rank: Rank, buffer: Buffer, engine: DeepSpeedEngine, actors: list[Any], state: PluginState
) -> PullPublisher | NcclPublisher:
    config = rank.config
    probe = Probe(engine.vocab_size, config.engine.max_model_len)
    published = 0

    def describe(engine: Engine, publication: Publication) -> Publication:
        nonlocal published
        published += 1
        # The first one always: it measures the precision's floor.
        measured = probe.measure(engine) if (published - 1) % config.weights.probe_every == 0 else None
        return replace(publication, probe=measured, settings=state.settings())

    if config.weights.transport == "pull":
        return PullPublisher(buffer, rank.policy, rank.epoch, run_id=rank.run_id, describe=describe)
    return NcclPublisher(
        buffer,
        rank.policy,
        rank.epoch,
        engine,
        handles=actors,
        workers_per_engine=config.engine.tensor_parallel,
        master=(rank.master[0], rank.master[1] + MASTER_PORT_OF_ENGINES),
        describe=describe,
    )


def samples(step: int, batch: AssembledBatch, count: int) -> list[dict[str, Any]]:
    """The first rollout of each of `count` trained groups and of `count` dropped ones, as plain values.

    A dropped group has the reason that it was dropped for, and no advantage.
    """
    record, rows = batch.record, []
    trained = list(zip(batch.groups, record.rewards, record.advantages, strict=True))
    for group, rewards, advantages in trained[:count]:
        row = row_of(step, group, batch.scores.get(group.id, {}), rewards[0])
        rows.append(row | {"advantage": number(np.mean(advantages[0]))})
    for out in batch.left_out[:count]:
        aggregated = replace(out, selected=None).rewards
        rows.append(row_of(step, out.group, out.scores, aggregated[0], reason=out.reason))
    return rows
