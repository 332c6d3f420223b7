"""What the environment itself gave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cluster.types import Group, Rollout, Scores
from rewards.base import Reward, Services
from rewards.parsing.tokens import per_token


class EnvironmentReward(Reward):
    """The environment's own reward of each rollout; failed where it gave none.

    Where it rewards single turns (`Event.reward`), each turn's is at its end, and what the rollout got beyond them at
    the end of the last turn; of a chain of rollouts (`Rollout.chained`), at the end of its last rollout.
    """

    async def score(self, group: Group, services: Services) -> Scores:
        scores = Scores.of([r.reward for r in group.rollouts])
        if not any(event.reward for rollout in group.rollouts for event in rollout.events):
            return scores
        given = dict[object, float]()
        tokens = [per_token(r, np.array([event.reward for event in r.events])) for r in group.rollouts]
        episodes = [(r.variant, r.policy, r.agent, r.episode) if r.chained else i for i, r in enumerate(group.rollouts)]
        for episode, values in zip(episodes, tokens, strict=True):
            given[episode] = given.get(episode, 0.0) + values.sum()
        last = {episode: i for i, episode in enumerate(episodes)}
        for episode, i in last.items():
            tokens[i][_last(group.rollouts[i])] += group.rollouts[i].reward - given[episode]
        return replace(scores, tokens=tuple(tokens))


def _last(rollout: Rollout) -> int:
    """Return the place of the last token that the policy chose."""
    return max((turn.end for turn in rollout.turns if turn.role == "assistant"), default=len(rollout.tokens)) - 1
