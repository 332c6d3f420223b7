"""Weights of tokens by what a policy thinks of the parts of its answer (SRUM, arXiv:2510.12784), for text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import Field

from cluster.types import Group, GroupReward, Scores
from rewards.aggregation.selectors.base import Selector

BASE = 0.5
"""Weight of what no region scores, before the global factor."""


class Srum(Selector):
    """Token weights: ½ everywhere, at least q in a span that is scored q, all times the score of the whole answer.

    SRUM (arXiv:2510.12784, released code) scores regions of a generated image and its layout, both in [−1, 1], and
    weighs the loss of each place by max(½, (s + 1) / 2) · (g + 1) / 2. This is our analogue for text, without images: a
    span is what ends at a token with a score of the reward `spans`, such as a step of `step_scores`; q and the score of
    the reward `whole` are shares of a scale, which are (s + 1) / 2 and (g + 1) / 2. As in the release a bad span is
    never below ½. The term `weighted_nll` trains on the weights, and `[learner.demonstrations]` with `coef = 0.5` is
    the anchor. A rollout of which either is unknown is left out.
    """

    spans: str
    """Name of the reward with token scores in [0, 1]."""
    whole: str
    """Name of the reward for the whole answer, in [0, 1]."""
    base: float = Field(default=BASE, ge=0, le=1)
    """Least weight before the factor."""
    reward_fields: ClassVar[tuple[str, ...]] = ("spans", "whole")

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        spans, whole = scores.get(self.spans), scores.get(self.whole)
        if spans is None or spans.tokens is None or whole is None:
            return replace(mixed, rewards=np.full(mixed.rewards.shape, np.nan))
        weights = []
        for rollout, tokens, share in zip(group.rollouts, spans.tokens, whole.values, strict=True):
            ends = np.flatnonzero(np.isfinite(tokens))
            starts = [0, *(ends[:-1] + 1)]
            regions = [([(int(a), int(b) + 1)], float(2 * tokens[b] - 1)) for a, b in zip(starts, ends, strict=False)]
            found = score_map((len(rollout.tokens),), regions, 2 * share - 1, self.base)
            weights.append(np.where(rollout.loss_mask, found, 0.0))
        known = np.isfinite(whole.values) & np.isfinite(spans.values)
        rewards = np.where(known, mixed.rewards, np.nan)
        return replace(mixed, rewards=rewards, token_weights=tuple(weights))


Region = tuple[Sequence[tuple[int, int]], float]
"""(from, to) along each axis, and a score in [−1, 1]."""


def score_map(
    shape: tuple[int, ...], regions: Sequence[Region], layout: float, base: float = BASE
) -> Float[np.ndarray, "..."]:
    """Weights of every place: max(base, (s + 1) / 2) over the regions that hold it, times (layout + 1) / 2.

    A region that is empty along an axis is ignored.
    """
    weights = np.full(shape, base)
    for bounds, score in regions:
        if all(low < high for low, high in bounds):
            place = tuple(slice(low, high) for low, high in bounds)
            weights[place] = np.maximum(weights[place], (score + 1) / 2)
    return weights * (layout + 1) / 2
