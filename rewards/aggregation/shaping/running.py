"""Scores by what all scores so far were: the rivals of PAR that remember (arXiv:2502.18770, released code)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from jaxtyping import Float
from pydantic import PrivateAttr

from cluster.plugins import StatefulPlugin
from cluster.types import Group, Scores
from rewards.aggregation.shaping.base import Shaper


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


class RunningScores(Shaper):
    """Scores of a step by the statistics of all that were trained on before and of these: `standard` in deviations from
    the mean, `clipped` to one deviation around it, `min_max` as a share of the range.

    What was seen is a state of the learner: it is in every checkpoint, and a resumed run shapes alike.
    """

    how: Literal["standard", "clipped", "min_max"] = "standard"
    """Which of the three transforms above is applied."""
    _seen: Running = PrivateAttr(default=Running())

    def shape(self, values: Float[np.ndarray, " G"], group: Group) -> Float[np.ndarray, " G"]:
        return self.of_step([values], [group])[0]

    def of_step(
        self, values_G: Sequence[Float[np.ndarray, " G"]], groups: Sequence[Group]
    ) -> list[Float[np.ndarray, " G"]]:
        seen = self._seen.after(np.concatenate(values_G)) if values_G else self._seen
        if not seen.count:
            return [np.full(values.shape, np.nan) for values in values_G]
        return [getattr(seen, self.how)(values) for values in values_G]

    def recalling(self, state: Sequence[float]) -> RunningScores:
        other = self.model_copy()
        other._seen = Running(*state)
        return other

    def memory(self, reward: str) -> ScoresSeen:
        return ScoresSeen(reward=reward)


class _Cut(Protocol):
    scores: dict[str, dict[str, Scores]]
    """Group id → reward → scores."""


class ScoresSeen(StatefulPlugin):
    """A reward's scores so far, kept by the learner (`StatefulPlugin`): the fields of a `Running`."""

    reads_scores: ClassVar[bool] = True
    reward: str
    """Name of the reward whose scores are remembered."""

    def init_state(self) -> list[float]:
        return [*astuple(Running())]

    def update(self, state: Sequence[float], batch: _Cut) -> list[float]:
        # In the order of their ids: sums of floats depend on it, and a repeated cut must give the same.
        found = [batch.scores[id][self.reward].values for id in sorted(batch.scores) if self.reward in batch.scores[id]]
        return [*astuple(Running(*state).after(np.concatenate([np.empty(0), *found])))]

    def metrics(self, state: Sequence[float]) -> dict[str, float]:
        seen = Running(*state)
        if not seen.count:
            return {}
        return {f"reward/{self.reward}_running_mean": seen.mean, f"reward/{self.reward}_running_std": seen.std}
