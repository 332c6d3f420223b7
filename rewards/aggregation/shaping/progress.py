"""Progress from one attempt to the next as reward (SCoRe, arXiv:2409.12917)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from cluster.types import Group, Rollout
from rewards.aggregation.shaping.base import TokenShaper


class Progress(TokenShaper):
    """Rewards of two attempts that score r₁ and r₂:

        stage 1    R₁ = 0     R₂ = r₂                   the second attempt is learnt, while a KL penalty holds the first
        stage 2    R₁ = r₁    R₂ = r₂ + α (r₂ − r₁)     a correction is worth α, spoiling a right answer costs as much

    each at the last token of its turn: with `learner.turn_discount = 0` every turn is credited with its own. The
    controller `stages` sets `stage = 2` after some steps. By re-implementations that agree with the paper's equations;
    there is no authors' code.
    """

    alpha: float = 10.0
    """α: weight of the difference between the second and the first attempt, in stage 2."""
    stage: Literal[1, 2] = 1
    """Which of the two stages above holds; the controller `stages` changes it during the run."""

    def shape(self, tokens_G: Sequence[Float[np.ndarray, " T"]], group: Group) -> list[Float[np.ndarray, " T"]]:
        return [self._shaped(values, rollout) for values, rollout in zip(tokens_G, group.rollouts, strict=True)]

    def _shaped(self, values: Float[np.ndarray, " T"], rollout: Rollout) -> Float[np.ndarray, " T"]:
        ends = [turn.end - 1 for turn in rollout.turns if turn.role == "assistant"]
        shaped = np.where(np.isfinite(values), 0.0, np.nan)
        if len(ends) == 2 and np.isfinite(values).all():
            shaped[ends] = progress(values[ends[0]], values[ends[1]], self.stage, self.alpha)
        return shaped


def progress(first: float, second: float, stage: int, alpha: float = 10.0) -> tuple[float, float]:
    """(R₁, R₂) of one rollout."""
    return (0.0, second) if stage == 1 else (first, second + alpha * (second - first))
