"""Terms that bring sequences of their own, written from the rollouts of the step.

    before_step      rollouts of every mini-batch, as text
    before_update    questions of each term ─► sequences of tokens, packed apart ─► their log-probs
                     terms ─► derivatives by the rollouts' sums (as `Terms` has them) and by these log-probs
                     Σ derivative · log-prob of each sequence ─► its gradient

The gradient is that of the terms through the same sequences in a batch of their own, whatever the micro-batches and
ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from cluster.config import LearnerSection
from cluster.errors import DataError
from cluster.types import AssembledBatch, Claim, Group, Message, Rollout, Task
from learner.losses.demonstrations import batch_of
from learner.losses.sequence_losses.base import Question, Terms
from learner.losses.sequence_losses.registry import terms_of
from learner.losses.sequence_sums import sums_of
from learner.pack import parts_of, rollouts_of
from learner.step_plugin import Update
from learner.types import Engine, ReferenceModel

Write = Callable[[Sequence[Message], str], Rollout]
"""(messages, reply) → the sequence, of which the reply's tokens are trained on. Raises DataError for one that cannot be
made or is too long."""


class AskingTerms(Terms):
    """The terms of a recipe that bring sequences of their own."""

    total: ClassVar[str] = "loss/asking"

    def __init__(self, section: LearnerSection, write: Write) -> None:
        self._write = write
        self._build(section)

    def _build(self, section: LearnerSection) -> None:
        super().__init__(terms_of(section))
        self._terms = [term for term in terms_of(section) if term[2].asks]
        self._section, self._rollouts = section, []

    def configure(self, section: LearnerSection, batch: AssembledBatch) -> LearnerSection:
        """Take the step's own settings, such as a coefficient that a controller has set."""
        if section != self._section:
            self._build(section)
        return section

    def before_step(self, step: int, batch: AssembledBatch) -> None:
        """Keep the rollouts of each mini-batch that trains on anything, which `Update.number` counts."""
        parts = (rollouts_of(*part, self._section) for part in parts_of(batch.groups, batch.record, self._section))
        self._rollouts = [rollouts for rollouts in parts if rollouts]

    def before_update(self, update: Update, engine: Engine, reference: ReferenceModel | None) -> dict[str, float]:
        """Differentiate the terms, and add the gradient of the sequences that they bring. Collective."""
        sums = sums_of(update.batch, engine, self._references[update.number])
        asked = [term.questions(self._rollouts[update.number], sums.pairs) for _, _, term in self._terms]
        written = [[self._written(question) for question in questions] for questions in asked]
        sequences = [rollout for of_term in written for rollout in of_term if rollout is not None]
        batch = batch_of([_group(sequences, engine.step)] if sequences else [], (), self._section, engine)
        logprobs = sums_of(batch, engine, [None] * len(batch.micros)).logprobs.detach()
        brought, start = {}, 0
        for place, of_term in enumerate(written):
            known = torch.tensor([rollout is not None for rollout in of_term], dtype=torch.bool)
            values = torch.zeros(len(of_term), dtype=torch.float64)
            values[known] = logprobs[start : start + int(known.sum())]
            brought[place] = (values.requires_grad_(), known)
            start += int(known.sum())
        self._credits, derivatives = self._differentiated(sums, brought)
        by_sequence = torch.cat([by[known] for by, (_, known) in zip(derivatives, brought.values(), strict=True)])
        for micro in batch.micros:
            found = engine.logprobs(micro)[0]
            credit = by_sequence[torch.tensor(micro.rollout).clamp(min=0)] if len(by_sequence) else torch.zeros(())
            engine.backward(((credit * torch.tensor(micro.loss_mask)).to(found) * found).sum())
        count = sum(map(len, written))
        known_frac = {"learner/asked_known_frac": len(sequences) / count} if count else {}
        return {**self._credits.metrics, "learner/num_asked": float(count), **known_frac}

    def _written(self, question: Question) -> Rollout | None:
        try:
            return self._write(question.messages, question.reply)
        except DataError:  # counted in learner/asked_known_frac
            return None


def _group(sequences: Sequence[Rollout], step: int) -> Group:
    """The sequences as one group, which is how they are packed."""
    claim = Claim(f"asking/1/{step}", "policy", 1, 0, 0, step, "")
    return Group(claim, Task.of("asking", "", source="asking"), tuple(replace(s, temperature=1.0) for s in sequences))
