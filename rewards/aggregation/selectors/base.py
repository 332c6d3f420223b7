"""What a selector is: a pure choice of the rollouts and pairs that are trained on, made when a batch is assembled.

It runs after the scores were mixed and shaped; what it decides is part of the batch's record, so a resumed step trains
on the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from cluster.plugins import Plugin
from cluster.types import Group, GroupReward, Pair, Scores


class Selector(Plugin):
    """Base of selectors: a group with its evidence and mixed rewards → the same with fewer rewards, or with pairs.

    A reward of NaN leaves its rollout out, `drop` the whole group. Who needs to see the whole step overrides `of_step`.
    """

    reward_fields: ClassVar[tuple[str, ...]] = ()
    """Its fields that name a reward, or nothing."""

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        """Select within one group, by what is known of it alone."""
        raise NotImplementedError

    def of_step(
        self, groups: Sequence[Group], scores: Sequence[Mapping[str, Scores]], mixed: Sequence[GroupReward]
    ) -> list[GroupReward]:
        """Select within all groups that a step could train on, in their order."""
        return [self.select(*found) for found in zip(groups, scores, mixed, strict=True)]


def with_pairs(mixed: GroupReward, pairs: Iterable[Pair]) -> GroupReward:
    """With these pairs behind those of the selectors before."""
    return replace(mixed, pairs=(*(mixed.pairs or ()), *pairs))


def values_of(reward: str, scores: Mapping[str, Scores], mixed: GroupReward) -> Float[np.ndarray, " G"]:
    """Scores of a reward, or the mixed rewards where `reward` is empty; NaN for rollouts that are left out.

    A reward that has not answered yet is unknown everywhere.
    """
    if not reward:
        return mixed.rewards
    found = scores.get(reward)
    values = np.full(mixed.rewards.shape, np.nan) if found is None else found.values
    return np.where(np.isfinite(mixed.rewards), values, np.nan)
