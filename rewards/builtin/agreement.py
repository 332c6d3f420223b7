"""How alike the rollouts of a group are: to be recorded (weight 0) beside a label-free reward, for its monitor."""

from __future__ import annotations

import math
from collections import Counter
from typing import ClassVar, Literal

import numpy as np

from cluster.types import ABSTAINED, SCORED, Group, Scores
from rewards.base import Reward, Services
from rewards.parsing.answers import votes_of


class AnswerEntropy(Reward):
    """−log of the share of the group's answers that are this rollout's, in nats: their mean is the answers' entropy.

    A rollout without an answer abstains and has no part in the shares.
    """

    scope: ClassVar = "group"
    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""

    async def score(self, group: Group, services: Services) -> Scores:
        answers = votes_of(group.rollouts, self.extract)
        votes = Counter(a for a in answers if a is not None)
        values = np.array([math.nan if a is None else math.log(votes.total() / votes[a]) for a in answers])
        return Scores(values, np.where(np.isnan(values), ABSTAINED, SCORED).astype(np.uint8))


class Duplicate(Reward):
    """1 where an earlier rollout of the group has the very same text, else 0: their mean is the rate of duplicates."""

    scope: ClassVar = "group"

    async def score(self, group: Group, services: Services) -> Scores:
        texts = [r.text for r in group.rollouts]
        return Scores.of([text in texts[:i] for i, text in enumerate(texts)])
