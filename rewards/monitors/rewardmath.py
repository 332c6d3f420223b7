"""Can a scorer find the one right solution among nine wrong ones? (RewardMATH, arXiv:2410.01729).

For a judge or reward model before it is promoted, and on our own rollouts where a verifier supplies the labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from pydantic import Field, PositiveInt, PrivateAttr

from rewards.monitors.base import Alarm, Judged, Monitor, Row, known


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
    """Return the rank of the right solution if a pairwise judge prefers it to `wins` of the wrong ones."""
    return 1 + num_wrong - wins


def summary(ranks: Sequence[int]) -> tuple[float, float]:
    """Accuracy (rank 1) and mean reciprocal rank; random scores reach 0.1 and 0.2929 against nine. NaN of no rank."""
    if not ranks:
        return float("nan"), float("nan")
    return float(np.mean([r == 1 for r in ranks])), float(np.mean([1 / r for r in ranks]))


def ranks_of(scores: Float[np.ndarray, " G"], verified: Float[np.ndarray, " G"]) -> list[int]:
    """The rank of every right rollout (1) among the wrong ones (below 1) of its group; unknown ones are left out."""
    both = np.isfinite(scores) & np.isfinite(verified)
    wrong = scores[both & (verified < 1)].tolist()
    return [rank_of_right(float(s), wrong) for s in scores[both & (verified == 1)]] if wrong else []


def best_of_n(scores: Float[np.ndarray, " N"], answers: Sequence[str]) -> str:
    """The answer with the highest score; of several such, the commonest among them, and then the first."""
    tied = [a for a, s in zip(answers, scores, strict=True) if s == np.max(scores)]
    return Counter(tied).most_common(1)[0][0]


class OneToMany(Monitor):
    """How a reward ranks the right rollouts among the wrong ones of their groups, by a verifier: drift, and a gate.

    Of the paper's nine wrong solutions per problem there are as many here as the group has. Alarms when the share of
    right ones above all wrong ones stays below `min_accuracy`. The best of a group by the reward, ties broken by the
    commonest answer, is `best_of_n`.
    """

    reward: str
    """The reward of the recipe that is tested."""
    verifier: str
    """The reward that knows: it gives 1 to what is right, and may have `weight = 0`."""
    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Share of right rollouts ranked above all wrong ones below which the alarm is due; 0 never raises it."""
    patience: PositiveInt = 3
    """Steps below it in a row before the alarm."""
    _low: int = PrivateAttr(default=0)

    @property
    def reads(self) -> tuple[str, ...]:
        return f"reward/{self.reward}_mean", f"reward/{self.verifier}_mean"

    def measure(self, judged: Sequence[Judged]) -> dict[str, float]:
        found = [one.scores for one in judged if {self.reward, self.verifier} <= one.scores.keys()]
        ranks = [rank for s in found for rank in ranks_of(s[self.reward].values, s[self.verifier].values)]
        accuracy, reciprocal = summary(ranks)
        return {
            f"reward/{self.reward}_one_to_many_accuracy": accuracy,
            f"reward/{self.reward}_one_to_many_mrr": reciprocal,
        }

    def observe(self, step: int, row: Row) -> Alarm | None:
        name = f"reward/{self.reward}_one_to_many_accuracy"
        accuracy = known(row, name)
        if accuracy is None:
            return None
        self._low = self._low + 1 if accuracy < self.min_accuracy else 0
        if self._low != self.patience:
            return None
        message = (
            f"'{self.reward}' puts {accuracy:.2f} of what '{self.verifier}' finds right above all wrong rollouts of "
            f"the group, less than {self.min_accuracy:g} for {self.patience} steps. Train on something else."
        )
        return Alarm("one_to_many", step, name, message, step - self.patience)
