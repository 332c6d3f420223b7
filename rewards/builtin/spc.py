"""What a critic of steps won in the game `sneaky_critic`, and how often it is right (SPC, arXiv:2504.19162)."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

import numpy as np
from pydantic import PrivateAttr

from cluster.types import Group, Provenance, Scores
from rewards.base import Reward, Services

KINDS = {"correct step": "correct", "error step": "error"}
"""Events of the game that say which kind of step the critic was shown."""
REMEMBERED = 1000
"""Verdicts of each kind that the accuracies are over."""


def critic_accuracy(correct: float, error: float) -> tuple[float, float]:
    """Return the average and the harmonic mean of the accuracies on correct steps and on steps with an error.

    The harmonic mean is 0 where the critic always says the same (SPC, arXiv:2504.19162, as in ProcessBench).
    """
    return (correct + error) / 2, 2 * correct * error / (correct + error) if correct + error else 0.0


class Spc(Reward):
    """+1 and −1 of the game `sneaky_critic`, unknown without a verdict; `spc_average` and `spc_harmonic` are logged.

    The accuracies are over the last verdicts that this reward worker saw, and those on correct steps and on errors
    count alike. One that stays near 1 or near 0 says that the game is not balanced: lower the stronger side's rate.
    """

    _right: dict[str, deque[bool]] = PrivateAttr(
        default_factory=lambda: {kind: deque(maxlen=REMEMBERED) for kind in KINDS.values()}
    )

    scope: ClassVar = "rollout"

    async def score(self, group: Group, services: Services) -> Scores:
        for rollout in group.rollouts:
            kinds = [KINDS[e.text] for e in rollout.events if e.text in KINDS]
            if kinds and np.isfinite(rollout.reward):
                self._right[kinds[0]].append(rollout.reward > 0)
        if all(self._right.values()):
            average, harmonic = critic_accuracy(*(float(np.mean(self._right[kind])) for kind in KINDS.values()))
            services.log("spc_average", average)
            services.log("spc_harmonic", harmonic)
        return Scores.of([r.reward for r in group.rollouts], Provenance(note="no verdict, or no valid error"))
