"""What a recipe may add to a training step: one protocol of hooks, called in the order in which this file lists them.

assemble    before_record ─► after_assemble
step        configure ─► before_step ─► before_updates ─► per mini-batch: before_update
                                         per micro-batch: on_logprobs ─► change_tokens ─► loss ─► further_losses
            after_step
publish, release
afterwards  after_release ─► … after the last step: finish
checkpoint  save, load
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from cluster.config import LearnerSection
from cluster.types import AssembledBatch, Batch, BatchRecord, Group, MicroBatch
from learner.pack import TokenBatch
from learner.types import Considered, Engine, ReferenceModel


@dataclass(slots=True)
class Update:
    """A mini-batch of a step, on which one optimizer step of each pass trains."""

    number: int
    """Place among the step's mini-batches, from 0."""
    batch: Batch
    denominator: float
    """What the batch's sum of losses is divided by: equal on every rank, whatever the micro-batches."""
    references: Sequence[Float[Tensor, "B L"] | None]
    """One per micro-batch: log-probs of the reference model at the sampling temperature, nats."""
    proximal: Sequence[Float[Tensor, "B L"] | None]
    """One per micro-batch: log-probs before the step's first update, nats; None in a step of one update."""


class Outputs(NamedTuple):
    """What the model in training says about one micro-batch."""

    logprobs: Float[Tensor, "B L"]
    """Log-prob of each trained token at its sampling temperature, nats, with gradient."""
    entropy: Float[Tensor, "B L"]
    """Entropy there, nats."""
    values: Float[Tensor, "B L+1"] | None
    """What the value head says (`ValueHead.values`); None unless a plug-in has `needs_values`."""


class StepPlugin:
    """Base of what a recipe adds to the training step. Every hook does nothing unless a subclass overrides it.

    Hooks run on every rank of the learner, in the order of `LearnerRun.plugins`, unless they say otherwise. A hook that
    raises ends the run. What a plug-in keeps from step to step must be in `save` and `load`.
    """

    appended_token: int | None = None
    """A token to put behind every rollout, whose log-prob the plug-in reads."""
    needs_reference: bool = False
    """Whether it reads the reference model's log-probs."""
    needs_values: bool = False
    """Whether it reads `Outputs.values`, which needs `learner.value`."""
    uses_equal_rewards: bool = False
    """Whether it has a gradient for a group whose rewards are all equal, so that such a group is worth keeping."""

    def before_record(self, record: BatchRecord, groups: Sequence[Group], considered: Considered) -> BatchRecord:
        """Return the decided batch as it is to be recorded, which is what every rank and a repeated step read.

        Rank 0 of the learner that assembles calls this, once for a step; a repeated step reads the record instead.
        """
        return record

    def after_assemble(self, batch: AssembledBatch) -> AssembledBatch:
        """Return what this learner trains on of the recorded batch. Pure: a repeated step calls it again."""
        return batch

    def configure(self, section: LearnerSection, batch: AssembledBatch) -> LearnerSection:
        """Return the settings of this step; the objective is built anew where they differ from the last step's."""
        return section

    def before_step(self, step: int, batch: AssembledBatch) -> None:
        """Called before the first update of step number `step`, from 0, with the weights that the step begins with."""

    def before_updates(self, updates: Sequence[Update], engine: Engine, reference: ReferenceModel | None) -> None:
        """Compute what must be known under the weights before the step's first update. Collective."""

    def before_update(self, update: Update, engine: Engine, reference: ReferenceModel | None) -> dict[str, float]:
        """Compute what one optimizer step needs of its whole mini-batch; returns metrics. Collective."""
        return {}

    def on_logprobs(self, micro: MicroBatch, logprobs: Float[Tensor, "B L"]) -> None:
        """See each micro-batch once, its rollouts numbered through the step, with log-probs before the first update."""

    def change_tokens(self, update: Update, micro: MicroBatch, tokens: TokenBatch) -> TokenBatch:
        """Return what the policy loss is to see of a micro-batch, for example with other advantages."""
        return tokens

    def loss(self, update: Update, i: int, tokens: TokenBatch, outputs: Outputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return what micro-batch i adds to the step's loss, and metrics as sums over trained tokens.

        The loss is this micro-batch's share of the mean: a sum over tokens is divided by `update.denominator` here.
        """
        return outputs.logprobs.new_zeros(()), {}

    def further_losses(self, update: Update, micro: MicroBatch, engine: Engine) -> Iterator[Tensor]:
        """Yield losses that need forward passes of their own; each is differentiated before the next is computed."""
        return iter(())

    def after_step(self, step: int, batch: AssembledBatch, metrics: dict[str, float]) -> None:
        """Called after the last update of step number `step`, before its weights are published."""

    def after_release(self, done: int, batch: AssembledBatch) -> None:
        """Called after `done` steps, the last one published and released, before the next batch is assembled."""

    def finish(self, done: int) -> None:
        """Called after the last step of the run, or after a stop."""

    def save(self, directory: Path) -> None:
        """Write what a resumed run needs into a checkpoint's directory. Rank 0 calls this."""

    def load(self, directory: Path) -> None:
        """Read what `save` wrote. Rank 0 calls this, before the first step. Raises ConfigError where it is missing."""
