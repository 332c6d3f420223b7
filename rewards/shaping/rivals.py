"""What PAR is compared with (arXiv:2502.18770, released code): other ways to tame an unbounded score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from cluster.types import Group
from rewards.shaping.base import Shaper, reference_scores

SQUASH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "tanh": np.tanh,
    "arctan": np.arctan,
}


class Centred(Shaper):
    """Mean over the task's M references of squash(score − reference score); unknown without references."""

    references: str = "extra_info.reference_scores"
    """Where in the task's meta their scores stand."""
    squash: Literal["none", "tanh", "arctan"] = "none"

    def shape(self, values: Float[np.ndarray, " G"], group: Group) -> Float[np.ndarray, " G"]:
        references = reference_scores(group, self.references)
        if len(references) == 0:
            return np.full(values.shape, np.nan)
        return SQUASH[self.squash](values[:, None] - references).mean(1)


class LogSigmoidCentred(Shaper):
    """log σ(score − q), in nats: q is a quantile of the normal fitted to the task's M reference scores.

    With fewer than two references there is no spread to fit, and the shaped score is unknown.
    """

    references: str = "extra_info.reference_scores"
    """Where in the task's meta their scores stand."""
    quantile: float = Field(default=0.85, gt=0, lt=1)

    def shape(self, values: Float[np.ndarray, " G"], group: Group) -> Float[np.ndarray, " G"]:
        references = reference_scores(group, self.references)
        if len(references) < 2:
            return np.full(values.shape, np.nan)
        shaped = np.full(values.shape, np.nan)
        known = np.isfinite(values)
        shaped[known] = -np.logaddexp(0.0, fitted_quantile(references, self.quantile) - values[known])
        return shaped


def fitted_quantile(references: Float[np.ndarray, " M"], quantile: float) -> float:
    """Of a normal with the mean and the sample deviation of the references, the latter plus 1e-5: they may be equal."""
    return NormalDist(float(references.mean()), float(references.std(ddof=1)) + 1e-5).inv_cdf(quantile)


@dataclass(frozen=True, slots=True)
class Running:
    """Statistics of all scores so far. Immutable: who shapes with it must keep it with the checkpoint."""

    count: int = 0
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
        """Of the population; NaN before the first score."""
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
