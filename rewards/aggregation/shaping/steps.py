"""Rewards of reasoning steps that cannot be farmed by repeating steps (Clip and Delta, arXiv:2410.15115).

q [K] is a process reward model's score of each prefix, 0 to 1. Their plain sum grows with the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from pydantic import Field

from cluster.types import Group
from rewards.aggregation.shaping.base import TokenShaper


class ClipDelta(TokenShaper):
    """q_k, what a reward says at the last token of each step → d = Delta(Clip(q)), each at the same token; 0 elsewhere.

    Clip: c_k = min(q_k − η, 0). Delta: d_k = u_k − u_{k+1} for k < K − 1, d_{K−1} = u_{K−1}, d_K = 0. What is still to
    come from a step k < K is then u_k, in [−η, 0], however many steps follow: no step is worth repeating. α is the
    reward's `weight` (0.1 is ours), the success reward another `[[rewards]]`, and each token's return is what the
    advantage `token_returns` makes of them. A rollout none of whose steps is known stays unknown. Source:
    arXiv:2410.15115 by a write-up of it; its η is not known to us.
    """

    eta: float = Field(default=0.5, ge=0, le=1)
    """η: from here on a step is good."""
    clip: bool = True
    """Apply Clip: no step is worth more than 0."""
    delta: bool = True
    """Both off is the raw sum, which the paper shows to be farmed."""

    def shape(self, tokens_G: Sequence[Float[np.ndarray, " T"]], group: Group) -> list[Float[np.ndarray, " T"]]:
        return [self._shaped(tokens) for tokens in tokens_G]

    def _shaped(self, tokens: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        ends = np.flatnonzero(np.isfinite(tokens))
        if len(ends) == 0:
            return tokens
        steps = clipped_steps(tokens[ends], self.eta) if self.clip else tokens[ends]
        rewards = np.zeros(len(tokens))
        rewards[ends] = step_deltas(steps) if self.delta else steps
        return rewards


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
