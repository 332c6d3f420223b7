"""Short answers are worth more, but only right ones: shapers of a verifier's score by the lengths in its group."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from cluster.types import Group
from rewards.aggregation.shaping.base import Shaper, StepShaper
from rewards.aggregation.shaping.par import sigmoid


class Concise(Shaper):
    """1 + λ · (longest − length) / (longest − shortest) over the right rollouts of a group; wrong ones get 0.

    Self-Rewarded Efficiency RL (arXiv:2506.15647): the group's own shortest right answer is the target. The abstract
    gives the idea; this form and λ are ours. A single right rollout, or equal lengths, get 1: nothing to compare with.
    """

    bonus: float = Field(default=0.5, ge=0)
    """λ: what the shortest right rollout gets on top of 1."""
    correct: float = 1.0
    """Scores from here on are right."""

    def shape(self, values: Float[np.ndarray, " G"], group: Group) -> Float[np.ndarray, " G"]:
        return _known(values, concise_rewards(values >= self.correct, lengths_of(group), self.bonus))


class LengthSwitch(Shaper):
    """1 − α · σ((length − mean) / std) for the right rollouts of a group that is solved, else 1; wrong ones get 0.

    GRPO-λ (arXiv:2505.18086) with another switch: there the fifth of the step's groups with the most right answers is
    pressed for brevity (`switched_rewards`), here those with `min_accuracy`, which a group knows by itself. Mean and
    deviation are of the lengths of the right ones. A solved group then has a gradient where it had none.
    """

    alpha: float = Field(default=0.6, ge=0, le=1)
    """What brevity is worth. The paper's value is not known to us; 0.6 is from another implementation."""
    min_accuracy: float = Field(default=1.0, gt=0, le=1)
    """Share of right rollouts among the known ones from which length counts."""
    correct: float = 1.0
    """Scores from here on are right."""

    def shape(self, values: Float[np.ndarray, " G"], group: Group) -> Float[np.ndarray, " G"]:
        right, known = values >= self.correct, np.isfinite(values)
        solved = right.any() and right[known].mean() >= self.min_accuracy
        return _known(values, brief_rewards(right, lengths_of(group), self.alpha) if solved else right.astype(float))


class StepLengthSwitch(StepShaper):
    """GRPO-λ (arXiv:2505.18086): of the groups of a step those with the most right answers are pressed for brevity.

    A right rollout of theirs is worth 1 − α · σ((length − mean) / std), mean and deviation being of the lengths of the
    group's right ones; right ones of all other groups are worth 1, wrong ones 0. How many a step presses is fixed, so
    brevity never takes over while the policy still errs elsewhere.
    """

    top_frac: float = Field(default=0.2, gt=0, le=1)
    """λ: the share of the step's groups, rounded up, that is pressed."""
    alpha: float = Field(default=0.6, ge=0, le=1)
    """What brevity is worth. The paper's value is not known to us; 0.6 is from another implementation."""
    correct: float = 1.0
    """Scores from here on are right."""

    def shape(
        self, values_G: Sequence[Float[np.ndarray, " G"]], groups: Sequence[Group]
    ) -> list[Float[np.ndarray, " G"]]:
        known_G = [np.isfinite(v) for v in values_G]
        right_G = [(v >= self.correct)[k] for v, k in zip(values_G, known_G, strict=True)]
        lengths_G = [lengths_of(g)[k] for g, k in zip(groups, known_G, strict=True)]
        rewards_G = switched_rewards(right_G, lengths_G, top_frac=self.top_frac, alpha=self.alpha)
        shaped_G = [np.full(v.shape, np.nan) for v in values_G]
        for shaped, known, rewards in zip(shaped_G, known_G, rewards_G, strict=True):
            shaped[known] = rewards
        return shaped_G


def lengths_of(group: Group) -> Float[np.ndarray, " G"]:
    """Tokens that the policy chose."""
    return np.array([r.num_tokens for r in group.rollouts], np.float64)


def concise_rewards(
    right: Bool[np.ndarray, " G"], lengths: Float[np.ndarray, " G"], bonus: float
) -> Float[np.ndarray, " G"]:
    """See `Concise`."""
    if not right.any() or np.ptp(lengths[right]) == 0:
        return right.astype(float)
    longest = lengths[right].max()
    return np.where(right, 1 + bonus * (longest - lengths) / np.ptp(lengths[right]), 0.0)


def brief_rewards(
    right: Bool[np.ndarray, " G"], lengths: Float[np.ndarray, " G"], alpha: float
) -> Float[np.ndarray, " G"]:
    """GRPO-λ's reward of an efficiency-first group: the deviation is the population's, at least 1e-4 tokens."""
    if not right.any():
        return right.astype(float)
    z = (lengths - lengths[right].mean()) / max(lengths[right].std(), 1e-4)
    return np.where(right, 1 - alpha * sigmoid(z), 0.0)


def switched_rewards(
    right_G: Sequence[Bool[np.ndarray, " G"]],
    lengths_G: Sequence[Float[np.ndarray, " G"]],
    *,
    top_frac: float = 0.2,
    alpha: float = 0.6,
) -> list[Float[np.ndarray, " G"]]:
    """GRPO-λ over all groups of a step (arXiv:2505.18086).

    The ⌈top_frac · groups⌉ with the most right answers, at least one and the earlier of equals, are efficiency-first
    (`brief_rewards`); the others, and those without a right answer, get 0 and 1.
    """
    accuracy = np.array([right.mean() if len(right) else -1.0 for right in right_G])
    count = max(1, math.ceil(top_frac * len(right_G) - 1e-9))  # 0.07 · 100 is a little more than 7
    chosen = set(np.argsort(-accuracy, kind="stable")[:count].tolist())
    return [
        brief_rewards(right, lengths, alpha) if i in chosen else right.astype(float)
        for i, (right, lengths) in enumerate(zip(right_G, lengths_G, strict=True))
    ]


def _known(values: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), rewards, np.nan)
