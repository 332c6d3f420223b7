"""What the question adds to an answer's likelihood (Self-Aligned Reward, arXiv:2509.05489)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from cluster.types import Group, Rollout, Scores
from rewards.base import Reward, Services
from rewards.scorers.passages import chosen, passage_of, scores_of, without_query
from rewards.scorers.types import TokenStats

EPS = 1e-9


class SelfAligned(Reward):
    """max((p_a − p_q) / (p_a + 10⁻⁹), −1), in [−1, 1): the share of an answer's perplexity that the question removes.

    p_q = exp(−mean_t log p(y_t | x, y_<t)) over the T tokens that the policy chose; p_a the same with the user's
    messages emptied, system message and chat template kept. Both are read under the same weights, at temperature 1.
    An answer that would be as likely without the question (memorised, or padded with what says nothing) gets 0.

    A complement of a verifier, not a reward of its own: alone it favours answers that copy the question. The paper's
    reward is 1.0 · correct + 0.2 · this, for right and wrong answers alike, with GRPO that does not divide by the
    deviation. Source: the released code, `verl/utils/reward_score/efficiency_reward.py`. Where a task has no user's
    message there is nothing to take away: the reward abstains.
    """

    scope: ClassVar = "rollout"
    services: ClassVar = ("scorer",)
    scorer: str = "scorer"
    """Its section's name, `[scorers.NAME]`; the paper's is the live policy."""

    async def prepare(self, services: Services) -> None:
        services.scorer(self.scorer)

    async def score(self, group: Group, services: Services) -> Scores:
        variants = [group.task.variants[r.variant] for r in group.rollouts]
        if not all(any(m.role == "user" for m in messages) for messages in variants):
            return Scores.abstained(len(group), f"task {group.task.id} has no user's message to leave out")
        asked = [passage_of(r) for r in group.rollouts]
        alone = [passage_of(r, without_query(v)) for r, v in zip(group.rollouts, variants, strict=True)]
        readings = await services.scorer(self.scorer).read([*asked, *alone])
        with_query, without = (
            np.array([_mean(*found) for found in zip(group.rollouts, half, strict=True)])
            for half in (readings[: len(group)], readings[len(group) :])
        )
        return scores_of(self_aligned(with_query, without), self.scorer, readings)


def _mean(rollout: Rollout, reading: TokenStats) -> float:
    mask = chosen(rollout)
    return float(reading.logprobs[mask].mean()) if mask.any() else float("nan")


def self_aligned(with_query: Float[np.ndarray, " G"], without: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
    """From mean log-probs of each answer in nats, with the query and without it; NaN stays NaN."""
    conditioned, alone = np.exp(-with_query), np.exp(-without)
    return np.maximum((alone - conditioned) / (alone + EPS), -1.0)
