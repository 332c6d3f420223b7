"""Preference as reward: the chance to beat reference responses (PAR, arXiv:2502.18770)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveFloat

from cluster.types import Group
from rewards.aggregation.shaping.base import Shaper, reference_scores


class Par(Shaper):
    """Mean over the task's M reference responses of σ(k · (score − reference score − shift)), in (0, 1).

    Bounded, steep at first, and a function of the *centred* score: the probability under the reward model's own
    Bradley-Terry link that the response beats the references. Those are sampled and scored once, before training, from
    the untrained model: references of the current policy would make it ½ on average. A task without any is unknown.

    Set `learner.advantage.options.normalize_std = false`: where all responses beat the references clearly, their
    shaped scores differ by a thousandth, and a division by the group's deviation blows that up to unit scale again,
    which undoes the bound. A large `eps` there (0.05) does much the same.
    """

    references: str = "extra_info.reference_scores"
    """Where in the task's meta their scores stand: a list of numbers, or one."""
    k: PositiveFloat = 1.0
    """Steepness, per unit of the score."""
    shift: float = 0.0
    """What the score must exceed them by to be worth ½; 3 is the rival that the paper calls slow, then fast."""
    token_penalty: float = Field(default=0.0, ge=0)
    """Taken off the score before shaping, for every token beyond `free_tokens`; 0.01 in the released code."""
    free_tokens: NonNegativeInt = 300
    """Tokens that a rollout may have before `token_penalty` applies."""

    def shape(self, values: Float[np.ndarray, " G"], group: Group) -> Float[np.ndarray, " G"]:
        beyond = np.array([max(r.num_tokens - self.free_tokens, 0) for r in group.rollouts])
        references = reference_scores(group, self.references) + self.shift
        return preference_reward(values - self.token_penalty * beyond, references, self.k)


def preference_reward(
    values: Float[np.ndarray, " G"], references: Float[np.ndarray, " M"], k: float
) -> Float[np.ndarray, " G"]:
    """Mean over the references of σ(k · (value − reference)); NaN without references."""
    if len(references) == 0:
        return np.full(values.shape, np.nan)
    return sigmoid(k * (values[:, None] - references)).mean(1)


def sigmoid(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """1 / (1 + e^−x), without overflow."""
    return 0.5 * (1 + np.tanh(x / 2))
