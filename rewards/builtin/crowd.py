"""A vote of several policies, each weighed by its own consistency (RLCCF, arXiv:2508.12338).

Formulas as third parties state them; the paper's own text was not at hand. Label-free: it rewards agreement, which is
not truth. One over-confident policy can decide every vote (`crowd_share`), and policies that come to agree on all are
one voter (`crowd_agreement`): record both beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import ClassVar, Literal

from cluster.types import Group, Scores
from rewards.base import Reward, Services
from rewards.parsing.answers import votes_of

Answers = Mapping[str, Sequence[str | None]]
"""Policy → the answers of its K rollouts, None where one gives none."""


def consistency(answers: Sequence[str | None]) -> float:
    """SC = max_a count(a) / K. A missing answer agrees with nobody and counts in K: our reading, no source says."""
    votes = Counter(a for a in answers if a is not None)
    return max(votes.values(), default=0) / len(answers)


def weighted_votes(answers: Answers) -> dict[str, float]:
    """Σ_n Σ_k SC_n·1[a_{n,k} = a] of every answer a, in the order in which they first came."""
    votes: dict[str, float] = {}
    for given in answers.values():
        weight = consistency(given)
        for answer in given:
            if answer is not None:
                votes[answer] = votes.get(answer, 0.0) + weight
    return votes


def largest_share(answers: Answers) -> float:
    """Return the largest share of the vote's weight that one policy has: 1/N if all are alike."""
    weights = [consistency(given) * sum(a is not None for a in given) for given in answers.values()]
    return max(weights) / sum(weights) if sum(weights) else float("nan")


def pairwise_agreement(answers: Answers) -> float:
    """Share of the pairs of policies whose most common answers are the same; NaN without two that have one."""
    tops = [Counter(a for a in given if a is not None).most_common(1) for given in answers.values()]
    pairs = list(combinations([top[0][0] for top in tops if top], 2))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else float("nan")


class _OfCrowd(Reward):
    scope: ClassVar = "group"
    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""

    def _answers(self, group: Group) -> dict[str, list[str | None]]:
        found: dict[str, list[str | None]] = {}
        for rollout, answer in zip(group.rollouts, votes_of(group.rollouts, self.extract), strict=True):
            found.setdefault(rollout.policy, []).append(answer)
        return found


class Crowd(_OfCrowd):
    """1 where a rollout gives the answer that wins the vote of all policies, else 0; a vote weighs what its policy's
    answers agree among themselves.

    Of answers with equal weight the one that came first wins. A rollout without an answer has no vote and gets 0;
    without any answer the group is unknown.
    """

    async def score(self, group: Group, services: Services) -> Scores:
        votes = weighted_votes(self._answers(group))
        if not votes:
            return Scores.abstained(len(group), "no policy gives an answer")
        winner = max(votes, key=lambda answer: votes[answer])
        return Scores.of([answer == winner for answer in votes_of(group.rollouts, self.extract)])


class CrowdShare(_OfCrowd):
    """The largest part of a vote's weight that one policy has, for every rollout: to be recorded (weight 0) beside
    `crowd`. Near 1 it decides alone."""

    async def score(self, group: Group, services: Services) -> Scores:
        return _of_all(group, largest_share(self._answers(group)))


class CrowdAgreement(_OfCrowd):
    """The share of pairs of policies with the same most common answer, for every rollout: to be recorded (weight 0)
    beside `crowd`. At 1 they have become one voter."""

    async def score(self, group: Group, services: Services) -> Scores:
        return _of_all(group, pairwise_agreement(self._answers(group)))


def _of_all(group: Group, value: float) -> Scores:
    if value != value:
        return Scores.abstained(len(group), "too few policies give an answer")
    return Scores.of([value] * len(group))
