"""Quality against distance from the reference policy has a hump: where on it is the training? (arXiv:2406.02900).

The distance is d = √KL(π‖reference), KL in nats; the law R(d) = d · (α − β log d) is Gao et al.'s (arXiv:2210.10760).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import PositiveInt, PrivateAttr

from rewards.monitors.base import Alarm, Monitor, Row, known

MAX_LOG_DISTANCE = 100.0
EVIDENCE = 3.0
"""Residual standard deviations by which the law must put quality below its peak. Any noise has a fitted peak."""


class Peak(NamedTuple):
    distance: float
    quality: float
    kl_nats: float


class Fit(NamedTuple):
    alpha: float
    beta: float
    noise: float
    """Standard deviation of the residuals, with two degrees of freedom fewer than points."""
    peak: Peak | None


def law(distances: Float[np.ndarray, " N"], alpha: float, beta: float) -> Float[np.ndarray, " N"]:
    """R(d) = d · (α − β log d)."""
    return distances * (alpha - beta * np.log(distances))


def fitted_law(distances: Float[np.ndarray, " N"], quality: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """(α, β) by least squares; distances are above 0, at least two of them distinct."""
    features = np.stack([distances, -distances * np.log(distances)], 1)
    alpha, beta = np.linalg.lstsq(features, quality, rcond=None)[0]
    return float(alpha), float(beta)


def peak_of(alpha: float, beta: float) -> Peak | None:
    """Where the law is highest; None for a law without a hump (β ≤ 0), or with one beyond all numbers."""
    if beta <= 0 or alpha / beta > MAX_LOG_DISTANCE:
        return None
    distance = math.exp(alpha / beta - 1)
    return Peak(distance, beta * distance, distance**2)


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n sampling, in nats."""
    return math.log(n) - (n - 1) / n


def sampled_kl(log_ratios: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """KL(π‖reference) in nats as k1 and k3, from log π/reference of what π sampled (Schulman, 2020)."""
    return float(log_ratios.mean()), float((np.expm1(-log_ratios) + log_ratios).mean())


def length_fit(lengths: Float[np.ndarray, " N"], log_ratios: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """(γ, R²) of log π/reference ≈ γ · length: how much of the implicit reward is length. R² is uncentred: there is no
    intercept."""
    slope = lengths @ log_ratios / (lengths @ lengths)
    return float(slope), float(1 - ((log_ratios - slope * lengths) ** 2).sum() / (log_ratios @ log_ratios))


class OverOptimisation(Monitor):
    """Alarms clearly beyond the peak of the fitted law, or when held-out quality falls while the reward rises.

    Clearly: what quality has lost since the peak, by the law, is more than three standard deviations of what the law
    leaves unexplained. The paper has no such clause; without it quality that only levels off is taken for falling.

    Quality must come from something that is not trained on, or the hump is hidden. KL and reward are taken from the
    last row before a measurement of quality. The law is fitted from six distinct distances on. One alarm.
    """

    kl: str = "loss/kl_nats"
    """Metric of the divergence from the reference, per token or per response: the law's form is the same. Needs
    `learner.loss.kl_coef`."""
    reward: str = "reward/mean"
    """Metric of what is optimised."""
    quality: str = "eval/accuracy"
    """Metric of what is meant."""
    falls: PositiveInt = 3
    """Measurements in a row in which quality falls and the reward rises."""
    _last: dict[str, float] = PrivateAttr(default_factory=dict)
    _seen: list[tuple[float, float, float]] = PrivateAttr(default_factory=list)
    """(distance, reward, quality) per measurement."""
    _raised: bool = PrivateAttr(default=False)
    _reported: int = PrivateAttr(default=0)
    """Measurements that `report` has told of."""

    @property
    def reads(self) -> tuple[str, ...]:
        return self.kl, self.reward, self.quality

    def observe(self, step: int, row: Row) -> Alarm | None:
        for name in (self.kl, self.reward):
            if (value := known(row, name)) is not None:
                self._last[name] = value
        quality = known(row, self.quality)
        if quality is None or len(self._last) < 2:
            return None
        # An estimate of a small divergence may be negative.
        self._seen.append((math.sqrt(max(self._last[self.kl], 0.0)), self._last[self.reward], quality))
        if self._raised:
            return None
        message = self._falling() or self._beyond()
        self._raised = message is not None
        return Alarm("over_optimisation", step, self.quality, message) if message else None

    def report(self) -> dict[str, float]:
        """Where on the hump training is: the distance, and the fitted law's α, β and peak, once there are six."""
        if len(self._seen) == self._reported:
            return {}
        self._reported = len(self._seen)
        found, fit = {"monitor/over_optimisation_distance": self._seen[-1][0]}, self._fit()
        if fit:
            found |= {"monitor/over_optimisation_alpha": fit.alpha, "monitor/over_optimisation_beta": fit.beta}
            found |= {"monitor/over_optimisation_peak_distance": fit.peak.distance} if fit.peak else {}
        return found

    def _fit(self) -> Fit | None:
        """The law of what quality has gained; None with fewer than six distinct distances."""
        points = np.array([(d, q - self._seen[0][2]) for d, _, q in self._seen if d > 0])
        if len(points) < 6 or len(np.unique(points[:, 0])) < 6:
            return None
        distances, gained = points.T
        alpha, beta = fitted_law(distances, gained)
        residuals = gained - law(distances, alpha, beta)
        return Fit(alpha, beta, math.sqrt(residuals @ residuals / (len(points) - 2)), peak_of(alpha, beta))

    def _falling(self) -> str | None:
        last = np.array(self._seen[-self.falls - 1 :])
        if len(last) <= self.falls or (np.diff(last[:, 1]) <= 0).any() or (np.diff(last[:, 2]) >= 0).any():
            return None
        return (
            f"{self.quality} fell {self.falls} times running, from {last[0, 2]:.3g} to {last[-1, 2]:.3g}, while "
            f"{self.reward} rose from {last[0, 1]:.3g} to {last[-1, 1]:.3g}: the reward is being exploited. "
            "Stop, and take the checkpoint with the best held-out quality."
        )

    def _beyond(self) -> str | None:
        fit, distance = self._fit(), self._seen[-1][0]
        if fit is None or fit.peak is None or distance <= fit.peak.distance:
            return None
        lost = fit.peak.quality - float(law(np.array([distance]), fit.alpha, fit.beta)[0])
        if lost <= EVIDENCE * fit.noise:
            return None
        return (
            f"the policy is √KL = {distance:.3g} from its reference, and {self.quality} is fitted to peak at "
            f"{fit.peak.distance:.3g} and to have lost {lost:.2g} since, {EVIDENCE:g} times its noise or more: more "
            "training is expected to cost quality. Stop, or raise learner.loss.kl_coef."
        )
