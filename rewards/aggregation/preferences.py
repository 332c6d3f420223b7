"""Preferences within a group as rewards, as advantages and as pairs to train on. Pure.

P [G, G] is the probability that i beats j, 0 to 1; d [G, G] a signed strength, d[i, j] = −d[j, i]. Convert with
d = 2P − 1. Unknown entries are NaN and are left out, never ties. Win rates themselves (SPO) are
`rewards.judges.statistics.win_rates`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float

from cluster.types import Pair


def strength_advantages(strengths: Float[np.ndarray, "G G"], eps: float = 1e-6) -> Float[np.ndarray, " G"]:
    """Advantages straight from pairwise strengths d (Think-RM, arXiv:2505.16265, released code).

    A_i = (1/G) Σ_j d[i, j] / √(Σ d² / (2G(G−1)) + ε). With d[i, j] = r_i − r_j it is (r_i − mean) / sample std, GRPO's.
    ε stands under the root and is absolute: strengths of 1e-4 shrink sevenfold, so scale them to about 1 first.
    Entries that are unknown are left out of both sums and counts; a rollout without a known opponent is NaN.
    """
    table = np.array(strengths, np.float64)
    np.fill_diagonal(table, np.nan)
    known = np.isfinite(table)
    table = np.where(known, table, 0.0)
    count = known.sum(1)
    variance = (table**2).sum() / max(2 * known.sum(), 1) + eps
    mean = table.sum(1) / (count + 1)  # the opponents and itself: G where all are known
    return np.where(count > 0, mean / np.sqrt(variance) if variance > 0 else 0.0, np.nan)


def rate_against(probabilities: Float[np.ndarray, " N"]) -> float:
    """Win rate of one rollout against a queue of N earlier ones, 0 to 1 (SPO, arXiv:2401.04056, queue form, from memory
    of the paper). NaN if no outcome is known."""
    known = probabilities[np.isfinite(probabilities)]
    return float(known.mean()) if len(known) else float("nan")


def self_play_update(
    policy: Float[np.ndarray, " N"], preferences: Float[np.ndarray, "N N"], eta: float
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """(rewards, next policy) of one exact step: r = P π, π′ ∝ π · exp(r / η) (arXiv:2404.03715, section 2.2).

    The expectation is over the policy itself, so P[i, i] = ½ belongs in it, unlike in the estimate from a group.
    """
    rewards = preferences @ policy
    unnormalised = policy * np.exp((rewards - rewards.max()) / eta)
    return rewards, unnormalised / unnormalised.sum()


ROUNDING = 1e-9
"""Shares of a scale, such as 5/6 − 4/6, miss their difference by so much."""


def large_margin_pairs(
    scores: Float[np.ndarray, " G"],
    student: Bool[np.ndarray, " G"],
    *,
    floor: float = 5.0,
    margin: float = 2.0,
    student_margin: float = 1.0,
) -> list[tuple[int, int]]:
    """(chosen, rejected) indices as DNO selects them (arXiv:2404.03715, section 5.1); the numbers are of its 6 points.

    The chosen one scores at least `floor` and at least `margin` more than the rejected; `student_margin` suffices where
    the policy itself, not a teacher, wrote the chosen one. Unknown scores are in no pair.
    """
    needed = np.where(student, student_margin, margin)
    return [
        (i, j)
        for i in range(len(scores))
        for j in range(len(scores))
        if i != j and scores[i] >= floor - ROUNDING and scores[i] - scores[j] >= needed[i] - ROUNDING
    ]


def pairs_of(indices: Iterable[tuple[int, int]], scores: Float[np.ndarray, " G"], origin: str) -> list[Pair]:
    """Pairs of these (chosen, rejected); `margin` is the difference of their scores."""
    return [Pair(i, j, margin=float(scores[i] - scores[j]), origin=origin) for i, j in indices]


def replay_caps(num_new: int, rounds: int, share: float = 0.3) -> list[int]:
    """How many pairs of the last, the one before, … are mixed into `num_new` fresh ones: `share`, halving (DNO)."""
    return [int(num_new * share / 2**i) for i in range(rounds)]
