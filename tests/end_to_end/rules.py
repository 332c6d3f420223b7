"""A rule that even untrained rollouts keep now and then: for iterations without an engine."""

from __future__ import annotations

from cluster.types import Group, Scores
from rewards.base import Reward, Services


class LowDigits(Reward):
    """1 where a text has a digit below 5, else 0."""

    async def score(self, group: Group, services: Services) -> Scores:
        return Scores.of([any(c in rollout.text for c in "01234") for rollout in group.rollouts])
