"""What the environment itself gave."""

from __future__ import annotations

from cluster.types import Group, Scores
from rewards.base import Services, Signal


class EnvironmentReward(Signal):
    """The environment's own reward of each rollout; failed where it gave none."""

    async def score(self, group: Group, services: Services) -> Scores:
        return Scores.of([r.reward for r in group.rollouts])
