"""The answer of a group by a vote whose weights come from a ranking (Borda voting, arXiv:2502.18581, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from cluster.types import Group, GroupReward, Scores
from rewards.aggregation.selectors.base import Selector, values_of
from rewards.parsing.answers import votes_of


class Borda(Selector):
    """Keeps the first rollout of the answer that wins the vote and leaves out the others; where nobody answers, all.

    The N rollouts of known score are ranked by it, the best being 1, and one of rank r votes for its answer with
    (N − r + 1)^p. p = 0 is a majority vote; the paper suggests about 0.3 where N is small, 0.7 to 1.2 where it is
    large. A rollout without an answer takes its rank and has no vote. The term `nll` trains on what is left.
    """

    reward: str = ""
    """Name of the reward that ranks, by default the mixed reward; the paper's is `self_certainty`."""
    power: float = Field(default=0.5, ge=0)
    """p; the default is the released code's."""
    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""
    reward_fields: ClassVar[tuple[str, ...]] = ("reward",)

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        answers = votes_of(group.rollouts, self.extract)
        winner = borda_winner(values_of(self.reward, scores, mixed), answers, self.power)
        keep = np.arange(len(group)) == (-1 if winner is None else winner)
        return replace(mixed, rewards=np.where(keep, mixed.rewards, np.nan))


def borda_votes(values: Float[np.ndarray, " G"], answers: Sequence[str | None], power: float) -> dict[str, float]:
    """Votes of each answer, in the order in which they came; an unknown value (NaN) has neither rank nor vote."""
    known = np.isfinite(values)
    # Rank of the best is 1; of equals the earlier is the better.
    rank = np.empty(len(values))
    rank[np.argsort(np.where(known, -values, np.inf), kind="stable")] = np.arange(1, len(values) + 1)
    votes: dict[str, float] = {}
    for answer, r, counts in zip(answers, rank, known, strict=True):
        if answer is not None and counts:
            votes[answer] = votes.get(answer, 0.0) + float((known.sum() - r + 1) ** power)
    return votes


def borda_winner(values: Float[np.ndarray, " G"], answers: Sequence[str | None], power: float) -> int | None:
    """Place of the first rollout, among those of known value, of the answer with the most votes; None without votes."""
    votes = borda_votes(values, answers, power)
    if not votes:
        return None
    best = max(votes, key=lambda answer: votes[answer])
    return next(i for i, answer in enumerate(answers) if answer == best and np.isfinite(values[i]))


def weighted_winner(values: Float[np.ndarray, " G"], answers: Sequence[str | None]) -> int | None:
    """Place of the first rollout of the answer with the most weight; None where no known weight is above 0.

    A rollout weighs its value, cut to [0, 1]; one of unknown value (NaN) or without an answer has no weight.
    """
    weights = np.where(np.isfinite(values), np.clip(values, 0, 1), 0.0)
    votes: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None and weight > 0:
            votes[answer] = votes.get(answer, 0.0) + float(weight)
    if not votes:
        return None
    best = max(votes, key=lambda answer: votes[answer])
    return next(i for i, answer in enumerate(answers) if answer == best and weights[i] > 0)
