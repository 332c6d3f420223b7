"""Sequences that nobody sampled: −log π(token) of given conversations, alone or beside the rollouts of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cluster.config import POLICY, LearnerSection
from cluster.types import AssembledBatch, Batch, BatchRecord, Group, Pair
from learner.pack import pack
from learner.step_plugin import StepPlugin, Update
from learner.types import Engine, ReferenceModel


class Imitation:
    """−Σ log π(token) / tokens over all trained tokens of the batch, nats, times `coef`."""

    def __init__(self, coef: float = 1.0) -> None:
        self._coef = coef

    def accumulate(
        self, batch: Batch, engine: Engine, references: Sequence[Tensor | None], *, grad: bool
    ) -> dict[str, float]:
        total = 0.0
        with torch.set_grad_enabled(grad):
            for micro in batch.micros:
                logprobs = engine.logprobs(micro)[0]
                mask = torch.from_numpy(micro.loss_mask).to(logprobs.device)
                loss = -(logprobs * mask).sum() / batch.num_tokens
                if grad:
                    engine.backward(self._coef * loss)
                total += float(loss.detach())
        return engine.total({"loss/nll_nats": total})


class DemonstrationLoss(StepPlugin):
    """Conversations that each update trains on beside its rollouts, packed apart from them, at temperature 1.

    Their gradient is that of the same sequences in a batch of their own, whatever the micro-batches and ranks.
    """

    def __init__(
        self, coef: float, rows: Callable[[int], tuple[list[Group], list[str]]], section: LearnerSection
    ) -> None:
        """`rows` gives the groups of a batch by its number, and why rows were left out (`actors.demonstrations`)."""
        self._imitation, self._rows, self._section = Imitation(coef), rows, section

    def configure(self, section: LearnerSection, batch: AssembledBatch) -> LearnerSection:
        """Take the weight that a controller has set for the step."""
        if section.demonstrations is not None:
            self._imitation = Imitation(section.demonstrations.coef)
        return section

    def before_update(self, update: Update, engine: Engine, reference: ReferenceModel | None) -> dict[str, float]:
        """Add the gradient of the update's share of the demonstrations. Every pass sees the same ones."""
        groups, left_out = self._rows(engine.step * self._section.updates_per_batch + update.number)
        batch = batch_of(groups, (), self._section, engine)
        metrics = {"learner/num_left_out_rows": float(len(left_out))}
        if batch.num_tokens:
            found = self._imitation.accumulate(batch, engine, [None] * len(batch.micros), grad=True)
            metrics["loss/demonstrations_nats"] = found["loss/nll_nats"]
        return metrics


def batch_of(groups: Sequence[Group], pairs: tuple[Pair, ...], section: LearnerSection, engine: Engine) -> Batch:
    """What this rank trains on of these groups, in each of which the rollouts of `pairs` are compared."""
    zeros = [np.zeros(len(group)) for group in groups]
    record = BatchRecord(
        POLICY,
        engine.step,
        tuple(group.id for group in groups),
        rewards=tuple(zeros),
        advantages=tuple(tuple(np.zeros(1, np.float32) for _ in group.rollouts) for group in groups),
        pairs=tuple(pairs for _ in groups) if pairs else (),
    )
    return pack(groups, record, section, engine.rank, engine.world)
