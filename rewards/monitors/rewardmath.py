"""Can a scorer find the one right solution among nine wrong ones? (RewardMATH, arXiv:2410.01729). Pure.

For a judge or reward model before it is promoted, and on our own rollouts where a verifier supplies the labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


STEP_SCORES: dict[str, Callable[[np.ndarray], float]] = {
    "prod": lambda p: float(p.prod()),
    "geometric": lambda p: float(p.prod() ** (1 / len(p))),
    "min": lambda p: float(p.min()),
    "mean": lambda p: float(p.mean()),
    "last": lambda p: float(p[-1]),
    "mean_logit": lambda p: float(1 / (1 + np.exp(-_logit(p).mean()))),
    "mean_odds": lambda p: float((p / (1 - p)).mean()),
}
"""One score of a solution from a process reward model's probabilities per step, strictly between 0 and 1."""


def rank_of_right(right: float, wrong: Sequence[float]) -> int:
    """1 where the right solution scores above all wrong ones; ties count against it."""
    return 1 + sum(w >= right for w in wrong)


def rank_from_wins(wins: int, num_wrong: int) -> int:
    """The same for a pairwise judge, by whom the right solution beats `wins` of the wrong ones."""
    return 1 + num_wrong - wins


def summary(ranks: Sequence[int]) -> dict[str, float]:
    """Accuracy (rank 1) and mean reciprocal rank; random scores reach 0.1 and 0.2929 against nine."""
    return {
        "judge/one_to_many_accuracy": float(np.mean([r == 1 for r in ranks])),
        "judge/one_to_many_mrr": float(np.mean([1 / r for r in ranks])),
    }


def best_of_n(scores: Float[np.ndarray, " N"], answers: Sequence[str]) -> str:
    """The answer with the highest score; of several such, the commonest among them, and then the first."""
    tied = [a for a, s in zip(answers, scores, strict=True) if s == np.max(scores)]
    return Counter(tied).most_common(1)[0][0]
