"""What PAR is compared with (arXiv:2502.18770, released code): other ways to tame an unbounded score."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from cluster.types import Group
from rewards.aggregation.shaping.base import Shaper, reference_scores

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
    """Function of the difference to each reference score; `none` leaves it as it is."""

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
    """Quantile of the reference scores that is taken off."""

    def shape(self, values: Float[np.ndarray, " G"], group: Group) -> Float[np.ndarray, " G"]:
        references = reference_scores(group, self.references)
        if len(references) < 2:
            return np.full(values.shape, np.nan)
        shaped = np.full(values.shape, np.nan)
        known = np.isfinite(values)
        shaped[known] = -np.logaddexp(0.0, fitted_quantile(references, self.quantile) - values[known])
        return shaped


def fitted_quantile(references: Float[np.ndarray, " M"], quantile: float) -> float:
    """Return the quantile of a normal with the references' mean and sample deviation plus 1e-5: they may be equal."""
    return NormalDist(float(references.mean()), float(references.std(ddof=1)) + 1e-5).inv_cdf(quantile)
