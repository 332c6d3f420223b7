"""The learner's loop: assemble → step → publish → release, on every rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cluster.config import LearnerSection
from cluster.plugins import build
from cluster.process.failpoints import failpoint
from learner.advantages.estimators import ADVANTAGES, Advantage, Undivided
from learner.advantages.multi_policy import Share, owned
from learner.batch.assemble import assemble, wait_for_record
from learner.batch.pack import mini_batches, without_overlong
from learner.controllers.apply import steered
from learner.plugin_state import NO_STATE, PluginState
from learner.types import NO_HOOKS, AssembledBatch, Engine, Hooks, LoopBuffer, Mix, Publisher, ReferenceModel, Select
from learner.update import Objective, optimize


def train(
    section: LearnerSection,
    buffer: LoopBuffer,
    engine: Engine,
    publisher: Publisher,
    mix: Mix,
    *,
    policy: str,
    epoch: int,
    select: Select | None = None,
    memory: PluginState = NO_STATE,
    share: Share | None = None,
    reference: ReferenceModel | None = None,
    hooks: Hooks = NO_HOOKS,
    max_positions: int | None = None,
) -> int:
    """Train from `engine.step` to the end or until `hooks.stop`; returns the step reached.

    The buffer has been resumed, so `epoch` is current and its version is `engine.step`. `policy` claims and cuts; where
    several train on its groups, `share` says whose rollouts are trained on here, and whether this learner cuts.
    Rollouts longer than `max_positions` tokens are left out and counted.
    """
    recipe, settings = section, {}
    share = share or Share(policy)
    advantage: Advantage = build(ADVANTAGES, section.advantage.use, section.advantage.options, "learner.advantage")
    if section.value is not None:
        advantage = Undivided()  # the critic credits tokens once the step's weights are known
    objective = Objective.of(section)
    hooks.stage(f"publishes version {engine.step}")
    publisher.publish(engine, engine.step)  # also after a resume: engines may hold a dead history's weights
    for step in range(engine.step, recipe.steps):
        clock = Clock()
        hooks.stage(f"waits for the groups of step {step + 1}")
        decide = partial(
            assemble, buffer, policy, epoch, step, mix, advantage, objective.filtering(advantage),
            select=select, policies=share.policies, memory=memory,
        )  # fmt: skip
        whole = _same_on_all(
            engine, decide if share.cuts else None, partial(wait_for_record, buffer, policy, step), hooks.stop
        )
        if whole is None:
            break
        record, overlong = without_overlong(whole.groups, whole.record, max_positions, append=objective.append)
        whole = replace(whole, record=record)
        now = _own_part(whole, share)
        failpoint("learner.after_cut")
        clock.lap("cut")
        hooks.stage(f"trains step {step + 1}")
        if now.record.settings != settings:  # controllers have changed something since the step before
            settings = now.record.settings
            objective = Objective.of(steered(recipe, settings))
        batches = mini_batches(
            now.groups, now.record, objective.section, engine.rank, engine.world, epoch=epoch, append=objective.append
        )
        clock.lap("pack")
        hooks.before_step(step, now)
        metrics = optimize(batches, objective, engine, reference, heard=hooks.logprobs)
        hooks.after_step(step, now, metrics)
        if engine.rank == 0:
            if memory.reads_scores and not now.scores:  # a repeated step: its evidence is still stored
                now.scores.update({s.group.id: s.scores for s in buffer.stored(now.record.groups)})
            memory.after(now)
        failpoint("learner.after_step")
        clock.lap("optimize")
        hooks.stage(f"publishes version {step + 1}")
        publisher.publish(engine, step + 1)
        failpoint("learner.after_publish")
        # Release after publishing, not after the step: a task claimed in between would be sampled with old weights
        # and count as one version fresher than it is.
        if engine.rank == 0:
            buffer.release(policy, epoch, step + 1, by=share.policy)
            failpoint("learner.after_release")
        clock.lap("publish")
        if engine.rank == 0:
            decided = now.record.metrics if share.cuts else {}
            row = {**decided, **metrics, **clock.seconds(), "learner/wait_s": now.wait_s}
            row |= {"learner/num_overlong_rollouts": float(overlong)} if overlong else {}
            buffer.emit("step", {"policy": share.policy, "epoch": epoch, "step": step + 1, "metrics": row})
        hooks.at_step(step + 1, whole)
        hooks.stage(f"saves step {step + 1}")
        hooks.checkpoint(step + 1)
    return engine.step


def _same_on_all(
    engine: Engine,
    decide: Callable[..., AssembledBatch | None] | None,
    fetch: Callable[..., AssembledBatch | None],
    stop: Callable[[], bool],
) -> AssembledBatch | None:
    """The step's batch: rank 0 of the policy that decides makes it, the others fetch it; None on all at a stop."""
    now = decide(stop=stop) if decide is not None and engine.rank == 0 else fetch(stop=stop)
    # Rank 0 alone knows whether there is a batch; a rank told to stop a moment earlier fetches it all the same.
    if not engine.agree(engine.rank == 0 and now is not None):
        return None
    now = now or fetch(stop=lambda: False)
    assert now is not None
    return now


def _own_part(now: AssembledBatch, share: Share) -> AssembledBatch:
    if not share.policies:
        return now
    groups, record = owned(now.groups, now.record, share.policy)
    return replace(now, groups=groups, record=record)


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
