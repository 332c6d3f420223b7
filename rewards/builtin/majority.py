"""Majority vote as reward (TTRL, arXiv:2504.16084; MM-UPT, arXiv:2505.22453).

Label-free: it rewards agreement, which is not truth.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal

from pydantic import Field

from cluster.types import Group, Scores
from rewards.base import Reward, Services
from rewards.parsing.answers import votes_of


class Majority(Reward):
    """1 where a rollout gives the most common answer of its group, else 0.

    `1/2`, `0.5` and `\\frac{1}{2}` are one answer (`rewards.parsing.equality`). Of equally common answers the one that
    came first wins. A rollout without an answer, or with an empty one (`\\boxed{}`), has no vote and gets 0. Without
    any answer the group is unknown; the papers call it 0: `missing = 0.0`.
    """

    scope: ClassVar = "group"
    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""
    min_share: float = Field(default=0.0, ge=0, le=1)
    """With a smaller share of the votes the whole group is unknown."""

    count_missing: bool = False
    """No answer is an answer like any other, as in MM-UPT's released code, for comparison: a group that mostly fails to
    answer is then rewarded for it."""

    async def score(self, group: Group, services: Services) -> Scores:
        answers = votes_of(group.rollouts, self.extract)
        votes = Counter(a for a in answers if a is not None or self.count_missing).most_common(1)
        if not votes or votes[0][1] < self.min_share * len(answers):
            return Scores.abstained(len(group), f"no answer has a share of {self.min_share:g}")
        return Scores.of([a == votes[0][0] for a in answers])
