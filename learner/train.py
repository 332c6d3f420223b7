"""The learner's loop: assemble → step → publish → release, on every rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cluster.config import LearnerSection
from cluster.process.failpoints import failpoint
from learner.batch.assemble import Assembler, wait_for_record
from learner.batch.pack import mini_batches, without_overlong
from learner.step_plugin import StepPlugin
from learner.types import AssembledBatch, Engine, LoopBuffer, Publisher, ReferenceModel
from learner.update import Objective, optimize


def train(run: LearnerRun) -> int:
    """Train from the engine's step to `learner.steps` or until a stop; returns the step reached. Collective.

    The buffer has been resumed, so its epoch is current and its version is the engine's step.
    """
    run.publish()  # also after a resume: engines may hold a dead history's weights
    while (batch := run.assemble()) is not None:  # waits for groups_per_step scored groups, or for a stop
        run.optimize(batch)
        run.publish()  # returns once rollouts sample with the weights, or know where to fetch them
        # Release after publishing, not after the step: a task claimed in between would be sampled with old weights
        # and count as one version fresher than it is.
        run.release(batch)  # only now may new tasks be claimed
        run.after_step(batch)  # plug-ins: archive, samples, checkpoint
    for plugin in run.plugins:
        plugin.finish(run.engine.step)
    return run.engine.step


@dataclass(slots=True)
class LearnerRun:
    """One rank of a learner in the training loop: its parts, and one method for each step of the pipeline."""

    section: LearnerSection
    engine: Engine
    buffer: LoopBuffer
    publisher: Publisher
    policy: str
    """The policy that the learner trains."""
    epoch: int
    assembler: Assembler | None = None
    """What decides the batches, on rank 0; None where the learner of another policy decides them."""
    batches_of: str = ""
    """The policy whose batches this learner trains on; its own by default."""
    plugins: Sequence[StepPlugin] = ()
    """What the recipe adds to a step, in the order in which hooks are called."""
    reference: ReferenceModel | None = None
    max_positions: int | None = None
    """Rollouts with more tokens are left out and counted; None leaves none out."""
    stop: Callable[[], bool] = lambda: False
    """Asked while the learner waits for groups: whether to leave before the next step."""
    stage: Callable[[str], None] = lambda what: None
    """Told what the loop does from now on, in words."""
    objective: Objective = field(init=False)
    """What the last step minimised, or the next one will unless a plug-in configures it otherwise."""
    _clock: Clock = field(init=False)
    _metrics: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.batches_of = self.batches_of or self.policy
        self.objective, self._clock = Objective.of(self.section), Clock()

    def publish(self) -> None:
        """Hand the weights of the engine's step to the engines that sample."""
        self.stage(f"publishes version {self.engine.step}")
        self.publisher.publish(self.engine, self.engine.step)

    def assemble(self) -> AssembledBatch | None:
        """Return what this learner trains on in the next step; None after the last step, or at a stop."""
        step = self.engine.step
        if step >= self.section.steps:
            return None
        self._clock = Clock()
        self.stage(f"waits for the groups of step {step + 1}")
        batch = self._agreed(step)
        if batch is None:
            return None
        append = self.objective.append
        record, overlong = without_overlong(batch.groups, batch.record, self.max_positions, append=append)
        self._metrics = {"learner/num_overlong_rollouts": float(overlong)} if overlong else {}
        batch = replace(batch, record=record)
        for plugin in self.plugins:
            batch = plugin.after_assemble(batch)
        failpoint("learner.after_cut")
        self._clock.lap("cut")
        return batch

    def optimize(self, batch: AssembledBatch) -> None:
        """Take the step's optimizer steps, one for each mini-batch and pass."""
        step, engine = batch.record.step, self.engine
        self.stage(f"trains step {step + 1}")
        section = self.section
        for plugin in self.plugins:
            section = plugin.configure(section, batch)
        if section != self.objective.section:
            self.objective = Objective.of(section)
        batches = mini_batches(
            batch.groups, batch.record, section, engine.rank, engine.world,
            epoch=self.epoch, append=self.objective.append,
        )  # fmt: skip
        self._clock.lap("pack")
        for plugin in self.plugins:
            plugin.before_step(step, batch)
        metrics = optimize(batches, self.objective, engine, self.reference, self.plugins)
        for plugin in self.plugins:
            plugin.after_step(step, batch, metrics)
        self._metrics |= metrics
        failpoint("learner.after_step")
        self._clock.lap("optimize")

    def release(self, batch: AssembledBatch) -> None:
        """Make the published version current, which admits more claims, and emit the step's row of metrics."""
        failpoint("learner.after_publish")
        done = self.engine.step
        if self.engine.rank == 0:
            self.buffer.release(self.batches_of, self.epoch, done, by=self.policy)
            failpoint("learner.after_release")
        self._clock.lap("publish")
        if self.engine.rank == 0:
            decided = batch.record.metrics if self.assembler is not None else {}
            row = {**decided, **self._metrics, **self._clock.seconds(), "learner/wait_s": batch.wait_s}
            self.buffer.emit("step", {"policy": self.policy, "epoch": self.epoch, "step": done, "metrics": row})

    def after_step(self, batch: AssembledBatch) -> None:
        """Let plug-ins look at the step that was released."""
        for plugin in self.plugins:
            plugin.after_release(self.engine.step, batch)

    def _agreed(self, step: int) -> AssembledBatch | None:
        """The step's batch: rank 0 of the learner that decides makes it, the others fetch it; None on all at a stop."""
        fetch = partial(wait_for_record, self.buffer, self.batches_of, step)
        if self.assembler is not None and self.engine.rank == 0:
            batch = self.assembler.assemble(step, self.objective.filtering(self.assembler.estimator), self.stop)
        else:
            batch = fetch(stop=self.stop)
        # Rank 0 alone knows whether there is a batch; a rank told to stop a moment earlier fetches it all the same.
        if not self.engine.agree(self.engine.rank == 0 and batch is not None):
            return None
        batch = batch or fetch(stop=lambda: False)
        assert batch is not None
        return batch


class Clock:
    """Seconds of each stage of a step."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps[f"learner/{name}_s"] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {**self._laps, "learner/step_s": self._last - self._start}
