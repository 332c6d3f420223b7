"""The best distinct rollouts above a threshold, as many a group as a step of a given size needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from pydantic import PositiveInt

from cluster.types import Group, GroupReward, Scores
from rewards.aggregation.selectors.base import Selector

NOTHING = "below_threshold"


class Threshold(Selector):
    """Keeps rollouts whose reward is above `threshold`, each text once, the best first; a group without any is dropped.

    With `target` at most m a group, m being the smallest number with which the step keeps so many, or all there are
    (B-STaR, arXiv:2412.17256, released code, which counts over its whole pool and puts the reference solution into each
    query; here over the step, and without references). Train on them with `learner.loss.coef = 0` and the term `nll`.
    """

    threshold: float = 0.0
    """Reward that a rollout must exceed to be kept."""
    target: PositiveInt | None = None
    """Rollouts that the whole step should keep; by default all above the threshold."""

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        return self.of_step([group], [scores], [mixed])[0]

    def of_step(
        self, groups: Sequence[Group], scores: Sequence[Mapping[str, Scores]], mixed: Sequence[GroupReward]
    ) -> list[GroupReward]:
        above = [
            distinct([r.text for r in group.rollouts], found.rewards) & (found.rewards > self.threshold)
            for group, found in zip(groups, mixed, strict=True)
        ]
        most = share([int(a.sum()) for a in above], self.target)
        return [_kept(found, best(found.rewards, a, most)) for found, a in zip(mixed, above, strict=True)]


def distinct(texts: Sequence[str], rewards: Float[np.ndarray, " G"]) -> Bool[np.ndarray, " G"]:
    """True at the first rollout of every text whose reward is known."""
    seen: set[str] = set()
    result = np.zeros(len(texts), bool)
    for i, text in enumerate(texts):
        if np.isfinite(rewards[i]) and text not in seen:
            seen.add(text)
            result[i] = True
    return result


def share(counts: Sequence[int], target: int | None) -> int:
    """The smallest m with Σ min(count, m) ≥ `target`; the largest count where that is never reached, or not asked."""
    largest = max(counts, default=0)
    if target is None:
        return largest
    return next((m for m in range(1, largest + 1) if sum(min(c, m) for c in counts) >= target), largest)


def best(rewards: Float[np.ndarray, " G"], among: Bool[np.ndarray, " G"], most: int) -> Bool[np.ndarray, " G"]:
    """The `most` highest of those, the earlier of equals."""
    order = np.argsort(np.where(among, -rewards, np.inf), kind="stable")[: min(most, int(among.sum()))]
    result = np.zeros(len(rewards), bool)
    result[order] = True
    return result


def _kept(mixed: GroupReward, keep: Bool[np.ndarray, " G"]) -> GroupReward:
    rewards = np.where(keep, mixed.rewards, np.nan)
    return replace(mixed, rewards=rewards, drop=mixed.drop or (None if keep.any() else NOTHING))
