"""Scores by what all scores so far were: the rivals of PAR that remember (arXiv:2502.18770, released code)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from cluster.plugins import StatefulPlugin
from cluster.types import Group
from rewards.aggregation.shaping.base import StepShaper


@dataclass(frozen=True, slots=True)
class Running:
    """Statistics of all scores so far."""

    count: float = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared differences from the mean."""
    low: float = np.inf
    high: float = -np.inf

    def after(self, values: Float[np.ndarray, " N"]) -> Running:
        """With these scores too; unknown ones are passed over (Chan et al., 1979, on combining variances)."""
        known = values[np.isfinite(values)]
        if len(known) == 0:
            return self
        count, delta = self.count + len(known), known.mean() - self.mean
        return Running(
            count,
            float(self.mean + delta * len(known) / count),
            float(self.squares + known.var() * len(known) + delta**2 * self.count * len(known) / count),
            float(min(self.low, known.min())),
            float(max(self.high, known.max())),
        )

    @property
    def std(self) -> float:
        """Return the deviation of the population; NaN before the first score."""
        return float(np.sqrt(self.squares / self.count)) if self.count else float("nan")

    def standard(self, values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """In deviations from the mean; 0 where all scores so far are equal."""
        return (values - self.mean) / self.std if self.std != 0 else values * 0.0

    def clipped(self, values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Within one deviation of the mean."""
        return np.clip(values, self.mean - self.std, self.mean + self.std)

    def min_max(self, values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """As a share of the range seen so far; 0 where all scores so far are equal."""
        return (values - self.low) / (self.high - self.low) if self.high != self.low else values * 0.0


class RunningScores(StepShaper, StatefulPlugin):
    """Scores of a step by the statistics of all that were trained on before and of these: `standard` in deviations from
    the mean, `clipped` to one deviation around it, `min_max` as a share of the range.

    What was seen is a state of the learner: it is in every checkpoint, and a resumed run shapes alike.
    """

    how: Literal["standard", "clipped", "min_max"] = "standard"
    """Which of the three transforms above is applied."""

    def init_state(self) -> list[float]:
        return [*astuple(Running())]

    def shape(
        self, values_G: Sequence[Float[np.ndarray, " G"]], groups: Sequence[Group], state: Sequence[float]
    ) -> list[Float[np.ndarray, " G"]]:
        seen = Running(*state).after(np.concatenate([np.empty(0), *values_G]))
        if not seen.count:
            return [np.full(values.shape, np.nan) for values in values_G]
        return [getattr(seen, self.how)(values) for values in values_G]

    def update(self, state: Sequence[float], values: Float[np.ndarray, " N"]) -> list[float]:
        return [*astuple(Running(*state).after(values))]

    def metrics(self, state: Sequence[float]) -> dict[str, float]:
        seen = Running(*state)
        return {"running_mean": seen.mean, "running_std": seen.std} if seen.count else {}
