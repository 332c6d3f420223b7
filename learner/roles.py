"""A running baseline for each role: what self-play compares with (SPIRAL, arXiv:2506.24119)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cluster.types import Group, Rollout

Baselines = dict[str, float]
"""By game and seat."""


def role_advantages(
    keys_G: Sequence[Sequence[str]], rewards_G: Sequence[Float[np.ndarray, " G"]], before: Baselines, decay: float
) -> tuple[list[Float[np.ndarray, " G"]], Baselines]:
    """Advantages, one rollout after the other, and the baselines after the last. A NaN moves none and stays NaN."""
    baselines, advantages_G = dict(before), []
    for keys, rewards in zip(keys_G, rewards_G, strict=True):
        advantages = np.full(len(rewards), np.nan)
        for i, (key, reward) in enumerate(zip(keys, rewards, strict=True)):
            if np.isfinite(reward):
                baseline = baselines.get(key, 0.0)
                advantages[i] = reward - baseline
                baselines[key] = decay * baseline + (1 - decay) * float(reward)
        advantages_G.append(advantages)
    return advantages_G, baselines


def discounted(rollout: Rollout, advantage: float, gamma: float) -> Float[np.ndarray, " T"]:
    """The advantage of each token: less by γ for every turn of this seat that came after its own."""
    ours = [turn for turn in rollout.turns if turn.role == "assistant"]
    result = np.full(len(rollout.tokens), np.nan if np.isnan(advantage) else 0.0)
    for k, turn in enumerate(ours):
        result[turn.start : turn.end] = advantage * gamma ** (len(ours) - 1 - k)
    return result


def keys_of(groups: Sequence[Group]) -> list[list[str]]:
    """Game and seat of every rollout."""
    return [[f"{g.task.source or 'task'}_{r.role or 'alone'}" for r in g.rollouts] for g in groups]
