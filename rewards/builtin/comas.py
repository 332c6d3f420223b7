"""What the agents of a discussion owe each other (CoMAS, arXiv:2510.08529); `actors/environments/comas.py` holds it.

A score τ of 1 to 3 divides one unit between a solution and its evaluation, so that together they gain nothing by
praise: the mean of solutions stays near 0.5 in a healthy run and drifts to about 0.8 where evaluation or scoring fails.
"""

from __future__ import annotations

import math
import re
from typing import ClassVar, Literal

import numpy as np

from cluster.thoughts import spoken, spoken_by
from cluster.types import ABSTAINED, SCORED, Group, Provenance, Scores
from rewards.base import Reward, Services

SCORE = "score"
"""Variant of the rollouts that score; their `parent` is the evaluation, and its parent the solution."""


def interaction_rewards(score: int | None) -> tuple[float, float, float]:
    """(solution, evaluation, scorer) = ((τ−1)/2, (3−τ)/2, 0); without a readable score (NaN, NaN, −1): what it was to
    judge is unknown, which is our reading of the paper."""
    if score is None:
        return math.nan, math.nan, -1.0
    return (score - 1) / 2, (3 - score) / 2, 0.0


def read_score(text: str, tag: str) -> int | None:
    """The last 1, 2 or 3 in tags, after any thoughts; None if what stands in the last tags is something else.

    Without a tag the whole text must be the number: for models that write no more than a few characters.
    """
    text = spoken(text)
    found = re.findall(rf"<{re.escape(tag)}>([^<]*)</{re.escape(tag)}>", text) if tag else [text]
    said = found[-1].strip() if found else ""
    return int(said) if said in ("1", "2", "3") else None


class CoMasReward(Reward):
    """By a scorer's τ: its solution gets (τ−1)/2, its evaluation (3−τ)/2, the scorer itself 0, or −1 where no score can
    be read, which leaves the other two unknown."""

    scope: ClassVar = "group"
    tag: str = "score"
    """Name of the tags around a score; empty if the score is the whole text."""
    of: Literal["all", "solution", "evaluation", "score"] = "all"
    """Rewards of these alone, the others abstain: `solution`, recorded with weight 0, shows a drift from 0.5."""

    async def score(self, group: Group, services: Services) -> Scores:
        values = np.full(len(group), np.nan)
        notes = [""] * len(group)
        for i, rollout in enumerate(group.rollouts):
            if rollout.variant != SCORE or rollout.parent is None:
                continue
            evaluation = rollout.parent
            solution = group.rollouts[evaluation].parent
            assert solution is not None, f"rollout {evaluation} of group {group.id} evaluates nothing"
            said = read_score(spoken_by(rollout), self.tag)
            for place, value in zip((solution, evaluation, i), interaction_rewards(said), strict=True):
                values[place] = value
                notes[place] = f"score: {said}"
        if self.of != "all":
            values[[r.variant != self.of for r in group.rollouts]] = np.nan
        state = np.where(np.isnan(values), ABSTAINED, SCORED).astype(np.uint8)
        return Scores(values, state, tuple(Provenance(note=note) for note in notes))
