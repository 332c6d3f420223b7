"""Groups of several policies: whose rollout is whose, and what each learner is left with. Pure.

One cut is made for all: its record has every rollout, and advantages that compare a policy's rollouts with each other
alone. Each learner then takes its own part of that record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cluster.types import BatchRecord, Group, GroupReward
from learner.advantages.estimators import Advantage
from learner.advantages.returns import advantages_of, part_of, part_of_mixed, tells_nothing


@dataclass(frozen=True, slots=True)
class Share:
    """Of one policy in every cut."""

    policy: str
    policies: tuple[str, ...] = ()
    """Where there are several in the same groups: all of them, of which the first one's learner cuts."""

    @property
    def cuts(self) -> bool:
        return not self.policies or self.policy == self.policies[0]


def places(group: Group, policy: str) -> Int[np.ndarray, " N"]:
    """Where a policy's rollouts are in a group."""
    return np.flatnonzero([rollout.policy == policy for rollout in group.rollouts])


def owned(groups: Sequence[Group], record: BatchRecord, policy: str) -> tuple[list[Group], BatchRecord]:
    """The part of a cut that is this policy's; groups without a rollout of it are left out.

    A record of several policies has no pairs: selectors, which make them, are refused there.
    """
    assert not record.pairs, "pairs do not say whose they are"
    mine = [(i, places(group, policy)) for i, group in enumerate(groups)]
    mine = [(i, at) for i, at in mine if len(at)]
    weights = tuple(_taken(record.token_weights[i], at) for i, at in mine) if record.token_weights else ()
    return [part_of(groups[i], at) for i, at in mine], replace(
        record,
        groups=tuple(record.groups[i] for i, _ in mine),
        rewards=tuple(record.rewards[i][at] for i, at in mine),
        advantages=tuple(_taken(record.advantages[i], at) for i, at in mine),
        token_weights=weights,
    )


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


def advantages_among(
    policies: Sequence[str],
    advantage: Advantage,
    use: str,
    groups: Sequence[Group],
    returns_G: Sequence[Float[np.ndarray, "G K"]],
    mixed_G: Sequence[GroupReward] = (),
    memory: Any = None,
) -> tuple[tuple[Float[np.ndarray, " _"], ...], ...]:
    """Apply `advantages_of` to each of `policies` as if it were alone; without policies, to all groups at once."""
    if not policies:
        return advantages_of(advantage, use, groups, returns_G, mixed_G, memory)
    result: list[dict[int, np.ndarray]] = [{} for _ in groups]
    for policy in policies:
        having = [(i, at) for i, group in enumerate(groups) if len(at := places(group, policy))]
        parts = [part_of(groups[i], at) for i, at in having]
        mixed = [part_of_mixed(mixed_G[i], at) for i, at in having] if mixed_G else ()
        found = advantages_of(advantage, use, parts, [returns_G[i][at] for i, at in having], mixed)
        for (i, at), values in zip(having, found, strict=True):
            result[i] |= dict(zip(at.tolist(), values, strict=True))
    return tuple(tuple(found[k] for k in range(len(g))) for g, found in zip(groups, result, strict=True))


def no_gradient(policies: Sequence[str], group: Group, returns: Float[np.ndarray, "G K"]) -> bool:
    """Whether no policy's rollouts differ in what any turn of theirs returns."""
    if not policies:
        return tells_nothing(group, returns)
    parts = ((part_of(group, at), returns[at]) for at in (places(group, policy) for policy in policies))
    return all(tells_nothing(*part) for part in parts)


def _taken(values: Sequence[np.ndarray], at: Int[np.ndarray, " N"]) -> tuple[np.ndarray, ...]:
    return tuple(values[i] for i in at) if values else ()
