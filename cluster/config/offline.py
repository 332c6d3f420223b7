"""What a recipe of `kanabo sft` and `kanabo dpo` may say: a model, rows of a file, and a learner without engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from cluster.config.base import Section
from cluster.config.engines import ModelSection
from cluster.config.learner import LearnerSection, RowsSection, SequenceLossSection
from cluster.config.run_config import CheckpointSection, RunConfig, TrackingSection

UNUSED = (
    "groups_per_step", "max_staleness", "when_late", "max_refills", "updates_per_batch", "passes_per_batch",
    "drop_zero_variance", "drop_truncated", "advantage", "value", "experience_replay", "turn_discount", "loss",
    "demonstrations",
)  # fmt: skip
"""Keys of `[learner]` that are about rollouts."""
INSTEAD = {"groups_per_step": "data.batch_size", "passes_per_batch": "data.epochs"}


class OfflineRunSection(Section):
    name: str = Field(default="sft", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Letters, digits, dots, dashes and underscores."""
    dir: str = "runs"
    """Runs live in `dir/name`; where the key is not set, in $KANABO_RUNS if there is one."""


class DataSection(RowsSection):
    """`[data]`: which rows are trained on. A row of `kanabo sft` is a conversation that ends with the assistant, or a
    prompt and its completion; one of `kanabo dpo` has a chosen and a rejected completion of one prompt."""

    evaluation_path: str | None = None
    """Rows that are only evaluated on."""
    evaluation_split: str = "test"
    """Split of `evaluation_path`."""
    num_evaluation: NonNegativeInt = 0
    """Without `evaluation_path`: so many rows at the end of `path` are held out."""
    rejected_key: str = "rejected"
    """Column of the worse completion of a pair."""
    epochs: PositiveFloat = 1.0
    """Passes over the rows, where `learner.steps` is not set."""


class OfflineConfig(Section):
    """A recipe of `kanabo sft` or `kanabo dpo`."""

    seed: NonNegativeInt = 0
    """Seed of the order of rows, of new adapters and of models that Kanabo makes."""
    run: OfflineRunSection = OfflineRunSection()
    model: ModelSection = ModelSection()
    data: DataSection
    learner: LearnerSection = LearnerSection()
    """As in a run with rollouts; keys that are about rollouts are refused."""
    evaluate_every_steps: NonNegativeInt = 0
    """0: only before the first and after the last step."""
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _no_rollouts(self) -> OfflineConfig:
        for key in UNUSED:
            if key in self.learner.model_fields_set:
                instead = f"Set {INSTEAD[key]}." if key in INSTEAD else "Leave it out."
                raise ValueError(f"learner.{key} is about rollouts, and a recipe with [data] has none. {instead}")
        if self.checkpoint.record_every_steps:
            raise ValueError("checkpoint.record_every_steps is about steps on rollouts. Leave it out.")
        return self

    def of(self, objective: str) -> OfflineConfig:
        """The recipe with the losses of `objective`, `sft` or `dpo`, where it names none. Raises ValueError."""
        losses = self.learner.sequence_losses
        if objective == "sft" and losses:
            raise ValueError("learner.sequence_losses are of kanabo dpo; kanabo sft minimises −log π(token).")
        if objective == "dpo" and not losses:
            losses = (SequenceLossSection(use="dpo"),)
        loss = self.learner.loss.model_copy(update={"coef": 0.0})
        return self.model_copy(
            update={"learner": self.learner.model_copy(update={"sequence_losses": losses, "loss": loss})}
        )

    def as_run(self) -> RunConfig:
        """What the commands on run directories read: the sections that recipes with rollouts have too."""
        shared: Mapping[str, Any] = self.model_dump(include={"seed", "run", "model", "checkpoint", "tracking"})
        learner = self.learner.model_dump(exclude={"loss", "sequence_losses"}, exclude_unset=True)
        return RunConfig.model_validate({**shared, "learner": learner})
