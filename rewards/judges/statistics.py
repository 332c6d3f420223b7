"""Figures about judges: two orders combined, votes, win rates, calibration. Pure.

A value that is NaN is unknown and stays so: nothing here turns it round into a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Winner = Literal["first", "second", "tie"]


def averaged(p_12: float, p_21: float) -> tuple[float, float]:
    """(P(response 1 is better), position offset) from two orders, each P(the one *shown first* is better)."""
    return (p_12 + 1 - p_21) / 2, (p_12 + p_21 - 1) / 2


def debiased(log_odds_12: float, log_odds_21: float) -> tuple[float, float]:
    """Return the debiased preference from log-odds *for response 1* in both orders: an additive position offset (nats)
    cancels."""
    return sigmoid((log_odds_12 + log_odds_21) / 2), (log_odds_12 - log_odds_21) / 2


def agreed(p_12: float, p_21: float) -> float:
    """1, 0, or 0.5 unless both orders name the same winner. Each is P(the one shown first is better)."""
    if math.isnan(p_12) or math.isnan(p_21):
        return math.nan
    one, other = winner(p_12), winner(1 - p_21)
    return 0.5 if one != other else {"first": 1.0, "second": 0.0, "tie": 0.5}[one]


def winner(p: float) -> Winner:
    return "first" if p > 0.5 else "second" if p < 0.5 else "tie"


def majority(values: Sequence[float]) -> float:
    """1, 0, or 0.5 for a tie, from votes above and below a half."""
    wins, losses = sum(v > 0.5 for v in values), sum(v < 0.5 for v in values)
    return 1.0 if wins > losses else 0.0 if losses > wins else 0.5


def win_posterior(wins: int, losses: int) -> float:
    """P(win rate > ½) under Beta(1 + wins, 1 + losses): the upper tail of a fair coin, since both counts are whole."""
    n = wins + losses + 1
    return sum(math.comb(n, j) for j in range(wins + 1)) / 2**n


def win_rates(preferences: Any) -> np.ndarray:
    """[G] mean over opponents of P[i, j]; the diagonal and unknown (NaN) entries are left out (SPO, arXiv:2401.04056).

    `preferences` is [G, G], P[i, j] = probability that i beats j. NaN where no opponent is known.
    """
    table = np.array(preferences, np.float64)
    np.fill_diagonal(table, np.nan)
    known = np.isfinite(table)
    count = known.sum(1)
    return np.where(count > 0, np.where(known, table, 0.0).sum(1) / np.maximum(count, 1), np.nan)


def rank_scores(values: Sequence[float]) -> np.ndarray:
    """[G] share of the others that are worse, equal ones counting half; NaN for the unknown, who beat nobody."""
    v = np.asarray(values, np.float64)
    beats = np.where(v[:, None] > v, 1.0, np.where(v[:, None] == v, 0.5, 0.0))
    beats[~np.isfinite(v)[:, None] | ~np.isfinite(v)] = np.nan
    return win_rates(beats)


def brier(confidences: Sequence[float], correct: Sequence[bool]) -> float:
    """Mean squared difference of confidence and outcome."""
    return float(np.mean((np.asarray(confidences) - np.asarray(correct, np.float64)) ** 2))


def calibration_error(confidences: Sequence[float], correct: Sequence[bool], edges: Sequence[float]) -> float:
    """Expected calibration error over the bins that the inner `edges` cut [0, 1] into."""
    bins = np.digitize(confidences, edges)
    gap = np.asarray(confidences) - np.asarray(correct, np.float64)
    return float(sum(abs(gap[bins == b].sum()) for b in np.unique(bins)) / len(gap))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
