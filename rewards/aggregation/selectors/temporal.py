"""Pairs whose rejected side is anchored in the past, and whose chosen side may come from the future."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from cluster.types import Group, GroupReward, Scores
from rewards.aggregation.preferences import pairs_of
from rewards.aggregation.selectors.base import Selector, values_of, with_pairs


class Temporal(Selector):
    """One pair a group: the best of now or of a better future, and the worst of a worse past or of now.

    Temporal Self-Rewarding (arXiv:2508.06026, by a write-up of it): responses of the policy as it is, of the initial
    model and of a throw-away future one, all scored by the policy. As both sides of ordinary self-rewarding improve
    together, their difference and the gradient of DPO vanish; an anchored rejected side keeps it. Where a response
    comes from is its rollout's policy name; in a group without past or future the pair is the best and worst of now.
    The paper trains twice, the second time with the future's responses there: the same selector with them in the group.
    `[generators.initial]` and `[generators.future]` write them, the latter from a checkpoint of a run that went ahead.
    In later iterations, whose `model.path` is where the one before ended, the initial model is still the first one's:
    `[generators.initial] model = "RUN@initial"`, RUN being the first iteration's directory.
    """

    reward: str = ""
    """Name of the reward whose scores decide, by default the mixed reward."""
    past: str = "initial"
    """Policy name of the initial model's rollouts,"""
    future: str = "future"
    """and of the future model's."""
    reward_fields: ClassVar[tuple[str, ...]] = ("reward",)

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        values = values_of(self.reward, scores, mixed)
        names = np.array([r.policy for r in group.rollouts])
        past, future = names == self.past, names == self.future
        only = [np.where(which, values, np.nan) for which in (~past & ~future, past, future)]
        pair = temporal_pair(*only)
        return with_pairs(mixed, pairs_of([pair] if pair else [], values, "temporal"))


def temporal_pair(
    now: Float[np.ndarray, " G"], past: Float[np.ndarray, " G"], future: Float[np.ndarray, " G"]
) -> tuple[int, int] | None:
    """(chosen, rejected) by the scores of each time, NaN at rollouts of another; None unless the chosen scores more.

    chosen: the best of now, or the future's best if that is better. rejected: the worst of the past if it is worse than
    the worst of now, else that.
    """
    if not np.isfinite(now).any():
        return None
    chosen, best = int(np.nanargmax(now)), np.nanmax(now)
    rejected, worst = int(np.nanargmin(now)), np.nanmin(now)
    if np.isfinite(past).any() and np.nanmin(past) < worst:
        rejected, worst = int(np.nanargmin(past)), np.nanmin(past)
    if np.isfinite(future).any() and np.nanmax(future) > best:
        chosen, best = int(np.nanargmax(future)), np.nanmax(future)
    return (chosen, rejected) if best > worst else None
