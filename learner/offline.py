"""Training on conversations of a file, without engines: supervised fine-tuning, and losses of preference pairs.

The batch, its packing, the engine, the losses and the checkpoints are those of the loop in `learner.train`; a row
stands for a group whose rollouts nobody sampled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from cluster.config import LearnerSection
from cluster.errors import KanaboError
from cluster.types import Batch, Group, Pair
from learner.losses.demonstrations import batch_of
from learner.losses.sequence_losses import Terms
from learner.types import Engine, ReferenceModel

MAX_IN_VAIN = 3
"""Steps in a row that train on nothing, or whose gradient is not finite, before the run fails."""


class Objective(Protocol):
    """What an offline step minimises."""

    def accumulate(
        self, batch: Batch, engine: Engine, references: Sequence[Tensor | None], *, grad: bool
    ) -> dict[str, float]:
        """Return metrics of a batch of all ranks; with `grad` its gradient is added. Collective."""
        ...


class Preference:
    """The losses of `learner.sequence_losses` on the batch's pairs."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    def accumulate(
        self, batch: Batch, engine: Engine, references: Sequence[Tensor | None], *, grad: bool
    ) -> dict[str, float]:
        credits = self._terms.credits(batch, engine, references)
        for micro in batch.micros if grad else ():
            logprobs = engine.logprobs(micro)[0]
            engine.backward(credits.surrogate(micro, logprobs, logprobs))
        return credits.metrics


@dataclass(frozen=True, slots=True)
class OfflineRun:
    """One rank of an offline run."""

    section: LearnerSection
    engine: Engine
    objective: Objective
    reference: ReferenceModel | None
    rows: Callable[[int], tuple[list[Group], list[str]]]
    """Step → its groups, and why rows were left out."""
    held_out: tuple[Sequence[Group], int]
    """Groups to evaluate on, and how many of them are looked at together."""
    evaluate_every_steps: int
    pairs: tuple[Pair, ...]
    """What is compared in each group."""
    record: Callable[[int, dict[str, float], Sequence[str]], None]
    """Told of each step's metrics and of rows that were left out."""
    after_step: Callable[[int], None]
    """Called after each step, on every rank; saves checkpoints."""
    stop: Callable[[], bool]

    def train(self) -> int:
        """Train from the engine's step to `learner.steps`, or until a stop; returns the step reached. Collective.

        Raises KanaboError after `MAX_IN_VAIN` steps in a row that changed nothing.
        """
        last, in_vain, skipped = self.section.steps, 0, self.engine.num_skipped
        if self.engine.step == 0:
            self.evaluate()
        while self.engine.step < last and not self.engine.agree(self.stop()):
            groups, left_out = self.rows(self.engine.step)
            metrics = self.optimize(groups)
            step = self.engine.step
            self.record(step, {**metrics, "learner/num_left_out_rows": float(len(left_out))}, left_out)
            learnt = metrics["learner/tokens"] > 0 and self.engine.num_skipped == skipped
            in_vain, skipped = 0 if learnt else in_vain + 1, self.engine.num_skipped
            if in_vain == MAX_IN_VAIN:
                raise KanaboError(_cause(left_out))
            if step == last or (self.evaluate_every_steps and step % self.evaluate_every_steps == 0):
                self.evaluate()
            self.after_step(step)
        return self.engine.step

    def optimize(self, groups: Sequence[Group]) -> dict[str, float]:
        """Take one optimizer step on these groups; a step without any passes with a count. Collective."""
        batch = batch_of(groups, self.pairs, self.section, self.engine)
        counts = {"learner/tokens": float(batch.num_tokens), "learner/rollouts": float(batch.num_rollouts)}
        if not batch.num_tokens:
            self.engine.skip_step()
            return {**counts, "learner/num_empty_steps": 1.0}
        found = self.objective.accumulate(batch, self.engine, self._references(batch), grad=True)
        return {**counts, **found, **self.engine.optimizer_step()}

    def evaluate(self) -> None:
        """Record the objective's metrics on the held-out rows, means over their batches. Collective."""
        groups, size = self.held_out
        sums: dict[str, float] = defaultdict(float)
        for start in range(0, len(groups), size):
            part = groups[start : start + size]
            batch = batch_of(part, self.pairs, self.section, self.engine)
            found = self.objective.accumulate(batch, self.engine, self._references(batch), grad=False)
            weight = len(part) if self.pairs else batch.num_tokens
            sums["weight"] += weight
            for name, value in found.items():
                sums[name] += weight * value
        weight = sums.pop("weight", 0.0)
        if weight:
            values = {f"eval/{name.replace('/', '_')}": value / weight for name, value in sums.items()}
            self.record(self.engine.step, values, ())

    def _references(self, batch: Batch) -> list[Tensor | None]:
        return [self.reference.logprobs(micro) if self.reference else None for micro in batch.micros]


def _cause(left_out: Sequence[str]) -> str:
    """Why the last steps changed nothing."""
    why = f"no row could be trained on: {left_out[0]}" if left_out else "their gradient was not finite"
    return f"{MAX_IN_VAIN} steps in a row changed nothing; {why}"
