"""Advantages: what a reward is worth against the other rollouts of its group. Plug-ins, pure, numpy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from cluster.plugins import Plugin


class Advantage(Plugin):
    """Base of advantage estimators: one method, rewards [G] → advantages [G].

    A NaN reward is a rollout that is left out: it moves nobody's baseline and its advantage is NaN.
    """

    def advantages(self, rewards: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
        raise NotImplementedError


class GroupAdvantage(Advantage):
    """Reward minus the group's mean, in units of its standard deviation (GRPO, arXiv:2402.03300).

    Without `normalize_std` it is the estimator of Dr. GRPO (arXiv:2503.20783), which does not favour groups
    that are nearly all right or nearly all wrong.
    """

    normalize_std: bool = True
    eps: float = 1e-6

    def advantages(self, rewards: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
        known = np.isfinite(rewards)
        result = np.full(rewards.shape, np.nan)
        if not known.any():
            return result
        centred = rewards[known] - rewards[known].mean()
        if np.ptp(rewards[known]) == 0:
            centred[:] = 0.0  # rounding in the mean must not become a signal once divided by eps
        elif self.normalize_std:
            centred /= centred.std(ddof=1) + self.eps
        result[known] = centred
        return result


class LeaveOneOut(Advantage):
    """Reward minus the mean of the *other* rollouts' (RLOO, arXiv:2402.14740): unbiased, no division by a spread."""

    def advantages(self, rewards: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
        known = np.isfinite(rewards)
        result = np.full(rewards.shape, np.nan)
        count = int(known.sum())
        if count == 1:
            result[known] = 0.0  # nobody to compare with
        elif count > 1:
            result[known] = (rewards[known] - rewards[known].mean()) * count / (count - 1)
        return result


ADVANTAGES: dict[str, type[Advantage]] = {"group": GroupAdvantage, "leave_one_out": LeaveOneOut}
