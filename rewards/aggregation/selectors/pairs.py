"""Pairs of a group by its scores, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat

from cluster.types import Group, GroupReward, Scores
from rewards.aggregation.preferences import large_margin_pairs, pairs_of
from rewards.aggregation.selectors.base import Selector, values_of, with_pairs


class BestWorst(Selector):
    """The best and the worst rollout of a group, the earlier of equals; no pair where all are equal (online DPO)."""

    reward: str = ""
    """Name of the reward whose scores decide, by default the mixed reward."""
    min_margin: NonNegativeFloat = 0.0
    """What the best must be better by."""
    reward_fields: ClassVar[tuple[str, ...]] = ("reward",)

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        values = values_of(self.reward, scores, mixed)
        if not np.isfinite(values).any():
            return with_pairs(mixed, ())
        best, worst = int(np.nanargmax(values)), int(np.nanargmin(values))
        margin = values[best] - values[worst]
        indices = [(best, worst)] if margin > 0 and margin >= self.min_margin else []
        return with_pairs(mixed, pairs_of(indices, values, "best_worst"))


class Neighbours(Selector):
    """The first and the second known rollout of a group, the third and the fourth, and so on, whatever their rewards.

    For losses that say themselves which one of a pair is the better, such as `scir`.
    """

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        known = np.flatnonzero(np.isfinite(mixed.rewards)).tolist()
        return with_pairs(mixed, pairs_of(zip(known[::2], known[1::2], strict=False), mixed.rewards, "neighbours"))


class LargeMargin(Selector):
    """All pairs of a group with a good chosen one and a large margin (DNO, arXiv:2404.03715, section 5.1).

    The defaults are for scores of 0 to 6 points; see `rewards.aggregation.preferences.large_margin_pairs`.
    """

    reward: str = ""
    """Name of the reward whose scores decide, by default the mixed reward."""
    floor: float = 5.0
    """The chosen one has at least so many points."""
    margin: NonNegativeFloat = 2.0
    """So many more than the rejected has a chosen one of a teacher,"""
    student_margin: NonNegativeFloat = 1.0
    """and so many one of the policy's own."""
    teacher: str = "teacher"
    """Policy name of rollouts that a teacher wrote."""
    reward_fields: ClassVar[tuple[str, ...]] = ("reward",)

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        values = values_of(self.reward, scores, mixed)
        student = np.array([r.policy != self.teacher for r in group.rollouts])
        indices = large_margin_pairs(
            values, student, floor=self.floor, margin=self.margin, student_margin=self.student_margin
        )
        return with_pairs(mixed, pairs_of(indices, values, "large_margin"))


class Likeliest(Selector):
    """Gives each pair a third rollout: the group's most probable one per token under the weights that sampled.

    It stands for the greedy answer that SELM (arXiv:2405.19332) presses down; among few rollouts it is only near it.
    """

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        if not mixed.pairs:
            return mixed
        known = np.isfinite(mixed.rewards)
        means = [
            float(r.logprobs[r.loss_mask].mean()) if k and r.loss_mask.any() else -np.inf
            for r, k in zip(group.rollouts, known, strict=True)
        ]
        third = int(np.argmax(means))
        return replace(mixed, pairs=tuple(replace(p, third=third) for p in mixed.pairs))


class TokenWeights(Selector):
    """Token scores of a reward as the weights that terms such as `t_reg` ask for, clipped to ±`bound`."""

    reward: str
    """Name of the reward; `weight = 0` records it without making it part of the reward."""
    bound: float = Field(default=0.5, gt=0)
    """Largest absolute weight of a token."""
    reward_fields: ClassVar[tuple[str, ...]] = ("reward",)

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        found = scores.get(self.reward)
        if found is None or found.tokens is None:
            return mixed
        return replace(mixed, token_weights=tuple(np.clip(t, -self.bound, self.bound) for t in found.tokens))


class Best(Selector):
    """Keeps the `count` best rollouts of a group and leaves out the others (best of N), the earlier of equals."""

    reward: str = ""
    """Name of the reward whose scores decide, by default the mixed reward."""
    count: int = Field(default=1, ge=1)
    """Rollouts of a group that are kept."""
    reward_fields: ClassVar[tuple[str, ...]] = ("reward",)

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        values = values_of(self.reward, scores, mixed)
        order = np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")
        keep = np.zeros(len(values), bool)
        keep[order[: self.count]] = True
        return replace(mixed, rewards=np.where(keep & np.isfinite(values), mixed.rewards, np.nan))
