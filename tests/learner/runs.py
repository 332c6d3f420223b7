"""A learner's run for tests: one rank, parts given or made by default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.config import LearnerSection
from cluster.plugins import build
from cluster.types import AssembledBatch
from learner.advantages.estimators import Advantage, StepAdvantages
from learner.advantages.multi_policy import AdvantagesByPolicy
from learner.advantages.registry import ADVANTAGES
from learner.batch.assemble import Assembler
from learner.plugin_state import ADVANTAGE, PluginState, StateUpdates
from learner.step_plugin import StepPlugin
from learner.train import LearnerRun
from learner.types import Mix, Select


def assembler(
    buffer: Any,
    epoch: int,
    mix: Mix,
    estimator: Advantage,
    *,
    use: str = "group",
    policies: Sequence[str] = (),
    state: PluginState | None = None,
    select: Select | None = None,
    plugins: Sequence[StepPlugin] = (),
) -> Assembler:
    """What decides the batches of `policy`, with one estimator."""
    given = estimator, use, lambda: state and state.of(ADVANTAGE)
    advantages = AdvantagesByPolicy(*given, policies=policies) if policies else StepAdvantages(*given)
    return Assembler(buffer, "policy", epoch, mix, advantages, select=select, plugins=plugins)


def run_of(
    section: LearnerSection,
    buffer: Any,
    engine: Any,
    publisher: Any,
    mix: Mix,
    *,
    epoch: int = 1,
    select: Select | None = None,
    state: PluginState | None = None,
    plugins: Sequence[StepPlugin] = (),
    **fields: Any,
) -> LearnerRun:
    """The run of `policy` with the estimator that `section` names; `state` is kept as in a real run."""
    use, options = section.advantage.use, section.advantage.options
    estimator = build(ADVANTAGES, use, options, "learner.advantage")
    plugins = [*([StateUpdates(state, engine.rank, buffer.stored)] if state else []), *plugins]
    deciding = assembler(buffer, epoch, mix, estimator, use=use, state=state, select=select, plugins=plugins)
    return LearnerRun(
        section, engine, buffer, publisher, "policy", epoch, assembler=deciding, plugins=plugins, **fields
    )


class Calls(StepPlugin):
    """Calls what a test gives after each released step."""

    def __init__(self, *, at_step: Any = None, checkpoint: Any = None) -> None:
        self._at_step, self._checkpoint = at_step, checkpoint

    def after_release(self, done: int, batch: AssembledBatch) -> None:
        if self._at_step:
            self._at_step(done, batch)
        if self._checkpoint:
            self._checkpoint(done)
