"""Rewards of reasoning steps that cannot be farmed by repeating steps (Clip and Delta, arXiv:2410.15115). Pure.

q [K] is a process reward model's score of each prefix, 0 to 1. Their plain sum grows with the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def clipped_steps(q: Float[np.ndarray, " K"], eta: float = 0.5) -> Float[np.ndarray, " K"]:
    """min(q − η, 0): a good step earns nothing, a bad one costs. The paper's η is not known to us."""
    return np.minimum(q - eta, 0.0)


def step_deltas(u: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """u_k − u_{k+1}, but u_{K−1} at the last step but one and 0 at the last.

    What is still to come from step k < K is then u_k, however many steps follow.
    """
    following = np.append(u[1:], 0.0)
    following[-2:] = 0.0
    return np.append((u - following)[:-1], np.zeros(min(len(u), 1)))


def returns_to_go(rewards: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Undiscounted sum from each step to the end."""
    return np.cumsum(rewards[::-1])[::-1]


def token_rewards(
    steps: Float[np.ndarray, " K"], ends: Sequence[int], num_tokens: int, *, success: float, alpha: float = 0.1
) -> Float[np.ndarray, " T"]:
    """Each step's reward times α on its last token, and the outcome's on the last of all.

    `ends[k]` is one past the last token of step k, ascending. The paper's α is not known to us.
    """
    if len(ends) != len(steps) or any(a >= b for a, b in zip((0, *ends), (*ends, num_tokens + 1), strict=True)):
        raise ValueError(f"{len(steps)} steps end at {list(ends)} of {num_tokens} tokens: one ascending end per step.")
    rewards = np.zeros(num_tokens)
    rewards[np.array(ends, int) - 1] = alpha * steps
    rewards[-1] += success
    return rewards
