"""Where in a rollout a reward came."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from cluster.types import Rollout


def per_token(rollout: Rollout, rewards: Float[np.ndarray, " E"]) -> Float[np.ndarray, " T"]:
    """Rewards of a rollout's events, each at the last token of the policy's turn in which it came; 0 elsewhere.

    `Event.turn` counts the policy's turns. Raises ValueError if it has no such turn.
    """
    ends = [turn.end for turn in rollout.turns if turn.role == "assistant"]
    values = np.zeros(len(rollout.tokens))
    for event, reward in zip(rollout.events, rewards, strict=True):
        if not 0 <= event.turn < len(ends):
            raise ValueError(f"event {event.text!r:.60} is of turn {event.turn}, but the policy had {len(ends)} turns")
        values[ends[event.turn] - 1] += reward
    return values
