"""Temperature and threshold by the balance of exploring and exploiting (B-STaR, arXiv:2412.17256)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt, model_validator

from cluster.types import Group, Scores
from learner.controllers.base import Controller

if TYPE_CHECKING:
    from learner.cut import Cut


class BStar(Controller):
    """Picks the temperature and the selector's threshold with the best balance score, mean over queries:

        bs = min(n′ / n*, 1) · n′ / n      of n distinct responses that score above the threshold n′ are right

    A response's score is min over its steps of the process reward / 5 + 1 if it is right: what the rewards `correct`
    (weight 1) and `process` (weight 0.2) mix to, so the selector `threshold` cuts the same number. The first
    `len(temperatures)` steps of every iteration sample at one of them each, the rest at the best so far; groups count
    for the temperature they were sampled at. The paper searches on a thousand queries apart, with 64 samples each and
    finer grids; searching on the steps themselves is ours, and costs nothing beside them. Groups that a step drops, for
    want of anything above the threshold of then, are not seen.
    """

    reads_scores: ClassVar[bool] = True
    temperatures: tuple[float, ...] = Field(default=(0.5, 0.7, 0.9, 1.1), min_length=1)
    thresholds: tuple[float, ...] = Field(default=(0.0, 0.5, 1.0), min_length=1)
    correct: str
    """Name of the reward that is 1 for a right response."""
    process: str = ""
    """Name of one that scores steps, 0 to 1, at their tokens, if there is one."""
    n_star: PositiveInt = 8
    """n*: right responses beyond so many are worth no more."""
    iteration_steps: PositiveInt = 20
    """After so many steps balances are measured anew."""
    temperature_key: str = "rollout.temperature"
    threshold_key: str = "selectors.0.options.threshold"

    @model_validator(mode="after")
    def _long_enough(self) -> BStar:
        if self.iteration_steps <= len(self.temperatures):
            raise ValueError(
                f"iteration_steps = {self.iteration_steps} are spent on trying {len(self.temperatures)} temperatures; "
                "set more"
            )
        return self

    def begin(self) -> dict[str, Any]:
        return {"steps": 0, "balances": {}, "best": [self.temperatures[-1], self.thresholds[0], 0.0]}

    def after(self, memory: dict[str, Any], cut: Cut) -> dict[str, Any]:
        steps = cut.record.step + 1
        balances = {} if steps % self.iteration_steps == 1 else dict(memory["balances"])
        for group in cut.groups:
            for temperature, found in self._balances(group, cut.scores.get(group.id, {})).items():
                total, count = balances.get(temperature, ([0.0] * len(self.thresholds), 0))
                balances[temperature] = ([a + b for a, b in zip(total, found, strict=True)], count + 1)
        return {"steps": steps, "balances": balances, "best": self._best(balances) or memory["best"]}

    def patch(self, memory: dict[str, Any]) -> dict[str, Any]:
        place = memory["steps"] % self.iteration_steps
        temperature, threshold, _ = memory["best"]
        if place < len(self.temperatures):
            temperature = self.temperatures[place]
        return {self.temperature_key: temperature, self.threshold_key: threshold}

    def told(self, memory: dict[str, Any]) -> dict[str, float]:
        return super().told(memory) | {"settings/balance": float(memory["best"][2])}

    def _balances(self, group: Group, scores: dict[str, Scores]) -> dict[str, list[float]]:
        """By temperature (as text) the group's balance score for each threshold; empty where nothing is known."""
        if self.correct not in scores:
            return {}
        right = scores[self.correct].values >= 1
        values = right + step_scores(scores.get(self.process), len(group)) / 5
        texts = [r.text for r in group.rollouts]
        first = np.array([text not in texts[:i] for i, text in enumerate(texts)])
        known = first & np.isfinite(values) & np.isfinite(scores[self.correct].values)
        sampled = np.array([r.temperature for r in group.rollouts])
        return {
            str(t): [balance(values[m], right[m], threshold, self.n_star) for threshold in self.thresholds]
            for t in np.unique(sampled)
            if (m := known & (sampled == t)).any()
        }

    def _best(self, balances: dict[str, tuple[list[float], int]]) -> list[float] | None:
        """Of all tried: temperature, threshold and mean balance score; the earlier of equals."""
        found = [
            [float(temperature), threshold, total / count]
            for temperature, (totals, count) in balances.items()
            for threshold, total in zip(self.thresholds, totals, strict=True)
        ]
        return max(found, key=lambda each: each[2]) if found else None


def balance(scores: Float[np.ndarray, " N"], right: Bool[np.ndarray, " N"], threshold: float, n_star: int = 8) -> float:
    """The balance score of one query; 0 where nothing is above the threshold."""
    chosen = scores > threshold
    n, n_right = int(chosen.sum()), int((chosen & right).sum())
    return balance_of(n, n_right, n_star)


def balance_of(n: int, n_right: int, n_star: int = 8) -> float:
    """min(n′ / n*, 1) · n′ / n."""
    return min(n_right / n_star, 1.0) * n_right / n if n else 0.0


def step_scores(scores: Scores | None, num_rollouts: int) -> Float[np.ndarray, " G"]:
    """The lowest step of each rollout, or its one score; 0 without such a reward, NaN where unknown."""
    if scores is None:
        return np.zeros(num_rollouts)
    if scores.tokens is None:
        return scores.values
    return np.array([t[np.isfinite(t)].min() if np.isfinite(t).any() else np.nan for t in scores.tokens])
