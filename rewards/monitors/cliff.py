"""How far the policy can jump when the rewards change a little (the policy cliff, arXiv:2507.20150). Pure.

The statistics of groups are ours; so is the bound of `softmax_distance`, tanh(‖Δr‖∞ / 2τ).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


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


def _greedy(rewards: np.ndarray) -> np.ndarray:
    best = rewards == rewards.max()
    return best / best.sum()


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _variation(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.abs(p - q).sum() / 2)
