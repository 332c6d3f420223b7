"""The value head in the training step (`learner.value`): its values credit tokens, and it learns returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from cluster.config import ValueSection
from learner.advantages.gae import Credited, credit
from learner.batch.pack import whole_batch
from learner.step_plugin import Outputs, StepPlugin, Update
from learner.tensors import TokenBatch
from learner.types import Engine, ReferenceModel


class ValueLoss(StepPlugin):
    """Replace a step's advantages by generalised ones (GAE, arXiv:1506.02438) and add the value head's loss."""

    needs_values = True
    uses_equal_rewards = True

    def __init__(self, section: ValueSection) -> None:
        self._section = section
        self._credited: list[Credited] = []

    def before_updates(self, updates: Sequence[Update], engine: Engine, reference: ReferenceModel | None) -> None:
        """Credit the whole step's tokens at once: advantages are whitened over it, not over a mini-batch."""
        batches = [update.batch for update in updates]
        references = [logprobs for update in updates for logprobs in update.references]
        self._credited = credit(whole_batch(batches), self._section, engine, references).split(batches)
        for update, credited in zip(updates, self._credited, strict=True):
            update.batch = replace(update.batch, micros=tuple(credited.micros))

    def before_update(self, update: Update, engine: Engine, reference: ReferenceModel | None) -> dict[str, float]:
        return self._credited[update.number].metrics

    def loss(self, update: Update, i: int, tokens: TokenBatch, outputs: Outputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert outputs.values is not None
        loss, metrics = self._credited[update.number].value_loss(i, outputs.values, tokens)
        return loss / update.denominator, metrics
