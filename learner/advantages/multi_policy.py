"""Groups of several policies: whose rollout is whose, and what each learner is left with. Pure.

One batch is assembled for all learners: its record has every rollout, and advantages that compare a policy's rollouts
with each other alone. Each learner then takes its own part of that record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cluster.types import AssembledBatch, BatchRecord, Group, ScoredGroup
from learner.advantages.estimators import Advantage, StepAdvantages, part_of
from learner.step_plugin import StepPlugin


def places(group: Group, policy: str) -> Int[np.ndarray, " N"]:
    """Where a policy's rollouts are in a group."""
    return np.flatnonzero([rollout.policy == policy for rollout in group.rollouts])


def owned(groups: Sequence[Group], record: BatchRecord, policy: str) -> tuple[list[Group], BatchRecord]:
    """Return the part of a batch that is this policy's; groups without a rollout of it are left out.

    A record of several policies has no pairs: selectors, which make them, are refused there.
    """
    assert not record.pairs, "pairs do not say whose they are"
    mine = [(i, places(group, policy)) for i, group in enumerate(groups)]
    mine = [(i, at) for i, at in mine if len(at)]
    weights = tuple(_taken(record.token_weights[i], at) for i, at in mine) if record.token_weights else ()
    return [_part(groups[i], at) for i, at in mine], replace(
        record,
        groups=tuple(record.groups[i] for i, _ in mine),
        rewards=tuple(record.rewards[i][at] for i, at in mine),
        advantages=tuple(_taken(record.advantages[i], at) for i, at in mine),
        token_weights=weights,
    )


def _part(group: Group, at: Int[np.ndarray, " N"]) -> Group:
    return replace(group, rollouts=tuple(group.rollouts[i] for i in at))


def spread(
    groups: Sequence[Group], policy: str, parts: Sequence[Sequence[Float[np.ndarray, " T"]]]
) -> list[tuple[Float[np.ndarray, " T"], ...]]:
    """Values of the tokens of a policy's own part, as `owned` orders it, in the whole groups; NaN for the others'."""
    result = [[np.full(len(r.tokens), np.nan, np.float32) for r in group.rollouts] for group in groups]
    having = [(found, at) for found, group in zip(result, groups, strict=True) if len(at := places(group, policy))]
    for (found, at), values in zip(having, parts, strict=True):
        for place, value in zip(at, values, strict=True):
            found[place] = value
    return [tuple(found) for found in result]


class AdvantagesByPolicy(StepAdvantages):
    """Advantages where several policies have rollouts in one group: each policy is compared with itself alone."""

    def __init__(
        self, estimator: Advantage, use: str, state: Callable[[], Any] = lambda: None, *, policies: Sequence[str]
    ) -> None:
        super().__init__(estimator, use, state)
        self.policies = policies

    def of(self, groups: Sequence[ScoredGroup], discount: float) -> tuple[tuple[Float[np.ndarray, " _"], ...], ...]:
        """Return advantages per group and rollout. Raises KeyError for a rollout of a policy that is not listed."""
        result: list[dict[int, np.ndarray]] = [{} for _ in groups]
        for policy in self.policies:
            having = [(i, at) for i, scored in enumerate(groups) if len(at := places(scored.group, policy))]
            advantages = super().of([part_of(groups[i], at) for i, at in having], discount)
            for (i, at), values in zip(having, advantages, strict=True):
                result[i] |= dict(zip(at.tolist(), values, strict=True))
        return tuple(tuple(row[k] for k in range(len(s.group))) for s, row in zip(groups, result, strict=True))

    def all_equal(self, scored: ScoredGroup, discount: float) -> bool:
        """Whether no policy's rollouts differ in what any turn of theirs returns."""
        parts = (part_of(scored, at) for policy in self.policies if len(at := places(scored.group, policy)))
        return all(super(AdvantagesByPolicy, self).all_equal(part, discount) for part in parts)


class OwnPart(StepPlugin):
    """Train on one policy's rollouts of a batch that holds those of several (`[policies]`)."""

    def __init__(self, policy: str) -> None:
        self._policy = policy

    def after_assemble(self, batch: AssembledBatch) -> AssembledBatch:
        groups, record = owned(batch.groups, batch.record, self._policy)
        return replace(batch, groups=groups, record=record)


def _taken(values: Sequence[np.ndarray], at: Int[np.ndarray, " N"]) -> tuple[np.ndarray, ...]:
    return tuple(values[i] for i in at) if values else ()
