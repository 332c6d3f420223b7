"""What the environment itself gave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from cluster.types import Group, Rollout, Scores
from rewards.base import Reward, Services
from rewards.parsing.tokens import per_token


class EnvironmentReward(Reward):
    """The environment's own reward of each rollout; failed where it gave none.

    Where it rewards single turns (`Event.reward`), each turn's is at its end, and what the rollout got beyond them at
    the end of the last turn.
    """

    async def score(self, group: Group, services: Services) -> Scores:
        scores = Scores.of([r.reward for r in group.rollouts])
        if not any(event.reward for rollout in group.rollouts for event in rollout.events):
            return scores
        return replace(scores, tokens=tuple(map(_tokens, group.rollouts)))


def _tokens(rollout: Rollout) -> Float[np.ndarray, " T"]:
    values = per_token(rollout, np.array([event.reward for event in rollout.events]))
    last = max((turn.end for turn in rollout.turns if turn.role == "assistant"), default=len(values))
    values[last - 1] += rollout.reward - values.sum()
    return values
