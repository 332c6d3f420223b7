"""How far the policy can jump when the rewards change a little (the policy cliff, arXiv:2507.20150).

The statistics of groups are ours; so is the bound of `softmax_distance`, tanh(‖Δr‖∞ / 2τ).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, PrivateAttr

from rewards.monitors.base import Alarm, Judged, Monitor, Row, known


def top_gap(rewards: Float[np.ndarray, " G"]) -> float:
    """Best minus second best of the known rewards: 0 where they tie, NaN with fewer than two."""
    known = np.sort(rewards[np.isfinite(rewards)])
    return float(known[-1] - known[-2]) if len(known) > 1 else float("nan")


def greedy_distance(before: Float[np.ndarray, " G"], after: Float[np.ndarray, " G"]) -> float:
    """Total variation of the two greedy policies, each uniform over its best rollouts."""
    return _variation(_greedy(before), _greedy(after))


def softmax_distance(before: Float[np.ndarray, " G"], after: Float[np.ndarray, " G"], tau: float) -> float:
    """Total variation of softmax(r / τ) before and after; at most tanh(‖Δr‖∞ / 2τ)."""
    return _variation(_softmax(before / tau), _softmax(after / tau))


def flip_rate(before_G: Sequence[Float[np.ndarray, " G"]], after_G: Sequence[Float[np.ndarray, " G"]]) -> float:
    """Share of groups whose best rollouts are others afterwards: another weight, another version of the judge.

    Groups with an unknown reward on either side are left out; NaN if none is left.
    """
    known = [(a, b) for a, b in zip(before_G, after_G, strict=True) if np.isfinite(a).all() and np.isfinite(b).all()]
    return float(np.mean([greedy_distance(a, b) > 0 for a, b in known])) if known else float("nan")


def fragile_frac(rewards_G: Sequence[Float[np.ndarray, " G"]], noise: float) -> float:
    """Share of groups whose best rollout may be another if every reward is off by ±noise, that of the judge's votes."""
    gaps = [gap for r in rewards_G if np.isfinite(gap := top_gap(r))]
    return float(np.mean([gap <= 2 * noise for gap in gaps])) if gaps else float("nan")


def degenerate_frac(rewards_G: Sequence[Float[np.ndarray, " G"]]) -> float:
    """Share of groups whose known rewards are all equal, of those with at least two."""
    known = [k for r in rewards_G if len(k := r[np.isfinite(r)]) > 1]
    return float(np.mean([np.ptp(k) == 0 for k in known])) if known else float("nan")


class PolicyCliff(Monitor):
    """Share of the step's groups whose best rollouts are others after a small change of the rewards, and how far.

    Two changes: of each reward's weight by ±`change`, one at a time, of which the worst counts per group; and of every
    reward by ±`noise`, what the judge's votes differ by. Alarms when the flip rate stays high: more votes, a larger
    `learner.loss.entropy_coef`, or rewards that agree would help. Of a single reward the weight changes nothing.
    """

    change: PositiveFloat = 0.1
    """Change of each reward's weight, as a part of it."""
    noise: NonNegativeFloat = 0.0
    """In units of the mixed reward."""
    tau: PositiveFloat = 0.1
    """Temperature of the softmax policies that are compared, in units of the mixed reward."""
    max_flip_frac: PositiveFloat = 0.5
    """Above it a step is unstable."""
    patience: PositiveInt = 3
    """Unstable steps in a row before the alarm."""
    _unstable: int = PrivateAttr(default=0)

    def measure(self, judged: Sequence[Judged]) -> dict[str, float]:
        before = [one.mixed.rewards for one in judged]
        changed = [self._changed(one) for one in judged]
        pairs = [(r, c) for r, c in zip(before, changed, strict=True) if c]
        return {
            "monitor/cliff_flip_frac": _mean([any(greedy_distance(r, a) > 0 for a in c) for r, c in pairs]),
            "monitor/cliff_distance": _mean([max(softmax_distance(r, a, self.tau) for a in c) for r, c in pairs]),
            "monitor/cliff_fragile_frac": fragile_frac(before, self.noise),
            "monitor/cliff_degenerate_frac": degenerate_frac(before),
            "monitor/cliff_top_gap": _mean([gap for r in before if np.isfinite(gap := top_gap(r))]),
        }

    def _changed(self, one: Judged) -> list[np.ndarray]:
        """The group's rewards under each change of a weight; none where any is unknown, or with one reward alone."""
        parts = one.mixed.parts
        if len(parts) < 2 or not np.isfinite(one.mixed.rewards).all():
            return []
        return [one.mixed.rewards + sign * self.change * part for part in parts.values() for sign in (1, -1)]

    def observe(self, step: int, row: Row) -> Alarm | None:
        rate = known(row, "monitor/cliff_flip_frac")
        if rate is None:
            return None
        self._unstable = self._unstable + 1 if rate > self.max_flip_frac else 0
        if self._unstable != self.patience:
            return None
        message = (
            f"in {rate:.2f} of the groups another rollout is best when one weight changes by {self.change:.0%}, "
            f"{self.patience} steps running. Raise learner.loss.entropy_coef, or votes of the judge."
        )
        return Alarm("policy_cliff", step, "monitor/cliff_flip_frac", message, step - self.patience)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _greedy(rewards: np.ndarray) -> np.ndarray:
    best = rewards == rewards.max()
    return best / best.sum()


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _variation(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.abs(p - q).sum() / 2)
