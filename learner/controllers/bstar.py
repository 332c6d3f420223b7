"""Temperature and threshold by the balance of exploring and exploiting (B-STaR, arXiv:2412.17256)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from cluster.types import Group, GroupReward, Scores
from learner.controllers.base import Controller
from learner.types import Considered

if TYPE_CHECKING:
    from cluster.types import AssembledBatch


class BStar(Controller):
    """Picks the temperature and the selector's threshold with the best balance score, mean over queries:

        bs = min(n′ / n*, 1) · n′ / n      of n responses that the step would train on, n′ are right

    Which responses a threshold would leave is what mixer and selectors say under that threshold, so that the score is
    of the set that is trained on. For the paper's response score, min over steps of the process reward / 5 + 1 if the
    answer is right, mix `correct` (weight 1) with the reward `step_scores` (weight 0.2, `value = "min"`). Every group
    that the step looked at counts, for the temperature it was sampled at: one of which nothing is selected scores 0.
    The first `len(temperatures)` steps of every iteration sample at one of them each, the rest at the best so far. The
    paper searches on a thousand queries apart, with 64 samples each and finer grids; searching on the steps themselves
    is ours, and costs nothing beside them.
    """

    temperatures: tuple[float, ...] = Field(default=(0.5, 0.7, 0.9, 1.1), min_length=1)
    """Sampling temperatures that are tried, one a step."""
    thresholds: tuple[float, ...] = Field(default=(0.0, 0.5, 1.0), min_length=1)
    """Thresholds of the selector that are compared."""
    correct: str
    """Name of the reward that is 1 for a right response."""
    n_star: PositiveInt = 8
    """n*: right responses beyond so many are worth no more."""
    iteration_steps: PositiveInt = 20
    """After so many steps balances are measured anew."""
    temperature_key: str = "rollout.temperature"
    """Dotted key of the recipe that takes the chosen temperature."""
    threshold_key: str = "selectors.0.options.threshold"
    """Dotted key of the recipe that takes the chosen threshold."""

    @model_validator(mode="after")
    def _long_enough(self) -> BStar:
        if self.iteration_steps <= len(self.temperatures):
            raise ValueError(
                f"iteration_steps = {self.iteration_steps} are spent on trying {len(self.temperatures)} temperatures; "
                "set more"
            )
        return self

    def init_state(self) -> dict[str, Any]:
        return {"steps": 0, "balances": {}, "best": [self.temperatures[-1], self.thresholds[0], 0.0]}

    def observe(self, considered: Considered) -> dict[str, list[Any]]:
        """By temperature, as text: the sum of the groups' balance scores for each threshold, and how many groups."""
        found: dict[str, list[Any]] = {}
        for place, threshold in enumerate(self.thresholds):
            selected = considered.selected_under({self.threshold_key: threshold})
            for group, scores, mixed in zip(considered.groups, considered.scores, selected, strict=True):
                if self.correct not in scores:
                    continue
                for temperature, score in self._balances(group, scores[self.correct], mixed).items():
                    totals = found.setdefault(temperature, [[0.0] * len(self.thresholds), 0])
                    totals[0][place] += score
                    totals[1] += place == 0
        return found

    def update(self, state: dict[str, Any], batch: AssembledBatch) -> dict[str, Any]:
        steps = batch.record.step + 1
        balances = {} if steps % self.iteration_steps == 1 else dict(state["balances"])
        for temperature, (sums, more) in (batch.observed or {}).items():
            total, count = balances.get(temperature, ([0.0] * len(self.thresholds), 0))
            balances[temperature] = ([a + b for a, b in zip(total, sums, strict=True)], count + more)
        return {"steps": steps, "balances": balances, "best": self._best(balances) or state["best"]}

    def patch(self, state: dict[str, Any]) -> dict[str, Any]:
        place = state["steps"] % self.iteration_steps
        temperature, threshold, _ = state["best"]
        if place < len(self.temperatures):
            temperature = self.temperatures[place]
        return {self.temperature_key: temperature, self.threshold_key: threshold}

    def metrics(self, state: dict[str, Any]) -> dict[str, float]:
        return super().metrics(state) | {"settings/balance": float(state["best"][2])}

    def _balances(self, group: Group, correct: Scores, mixed: GroupReward) -> dict[str, float]:
        """By temperature the group's balance score; temperatures of which no rollout has a known score are left out."""
        trained = np.isfinite(mixed.rewards) & (mixed.drop is None)
        right, known = correct.values >= 1, np.isfinite(correct.values)
        sampled = np.array([r.temperature for r in group.rollouts])
        return {
            str(t): balance_of(int((trained & own).sum()), int((trained & right & own).sum()), self.n_star)
            for t in np.unique(sampled)
            if (known & (own := sampled == t)).any()
        }

    def _best(self, balances: dict[str, tuple[list[float], int]]) -> list[float] | None:
        """Return temperature, threshold and mean balance score of the best setting tried; the earlier of equals."""
        found = [
            [float(temperature), threshold, total / count]
            for temperature, (totals, count) in balances.items()
            for threshold, total in zip(self.thresholds, totals, strict=True)
        ]
        return max(found, key=lambda each: each[2]) if found else None


def balance_of(n: int, n_right: int, n_star: int = 8) -> float:
    """min(n′ / n*, 1) · n′ / n."""
    return min(n_right / n_star, 1.0) * n_right / n if n else 0.0
