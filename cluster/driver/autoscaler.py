"""How many workers a run wants of itself: decided from the rows it records, with patience in both directions.

learner/wait_s ÷ learner/step_s ─► rollout      the learner waits for groups: one more engine
judge/NAME_queue_age_s          ─► judge:NAME   a question waits for its judge: one more replica
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cluster.config import RunConfig

Row = Mapping[str, float | None]
LONGEST_PATIENCE = 64
"""Times `times`, after which one may leave at the latest."""


@dataclass
class HysteresisController:
    """Says +1 after `times` values in a row above `high`, -1 after as many below `low`, and then begins anew.

    When the one that left is missed at once, `low` was no sign that it can be spared: the patience before the next -1
    doubles each time, so that a load between two numbers of workers does not have them come and go for ever.
    """

    high: float
    low: float
    times: int
    patience: int = field(default=1, init=False)
    _above: int = field(default=0, init=False)
    _below: int = field(default=0, init=False)
    _since_leave: int | None = field(default=None, init=False)
    """Values since it said -1, None if it has since said nothing else for long, or never did."""

    def observe(self, value: float) -> int:
        """The change that is due after this value; NaN is no value."""
        if math.isnan(value):
            return 0
        self._above = self._above + 1 if value > self.high else 0
        self._below = self._below + 1 if value < self.low else 0
        if self._since_leave is not None:
            self._since_leave += 1
        if self._above >= self.times:
            if self._since_leave is not None and self._since_leave <= 2 * self.times:
                self.patience = min(2 * self.patience, LONGEST_PATIENCE)
            self.forget()
            return 1
        if self._below >= self.times * self.patience:
            self.forget()
            self._since_leave = 0
            return -1
        return 0

    def forget(self) -> None:
        """Count anew: what was seen so far was seen of another number of workers."""
        self._above = self._below = 0


@dataclass
class _Following:
    """One role, and what of a row it follows."""

    controller: HysteresisController
    least: int
    most: int
    load: Callable[[Row], float]
    due: int = 0


class Autoscaler:
    """Hears every row of a run (a sink of its recorder) and says which roles should grow or shrink by one."""

    def __init__(self, config: RunConfig) -> None:
        rollout, self._following = config.autoscaling.rollout, {}
        if rollout.max_workers:
            heat = HysteresisController(rollout.grow_above_frac, rollout.shrink_below_frac, rollout.times)
            self._following["rollout"] = _Following(heat, rollout.min_workers, rollout.max_workers, waiting_share)
        for name, judge in config.autoscaling.judges.items():
            heat = HysteresisController(judge.grow_above_s, judge.shrink_below_s, judge.times)
            age = queue_age(name)
            self._following[f"judge:{name}"] = _Following(heat, judge.min_replicas, judge.max_replicas, age)

    @property
    def on(self) -> bool:
        return bool(self._following)

    def record(self, step: int, values: Row) -> None:
        for follows in self._following.values():
            follows.due = follows.controller.observe(follows.load(values)) or follows.due

    def wanted(self, counts: Mapping[str, int], up: Mapping[str, int]) -> dict[str, int]:
        """The new number of each role that is to change, from those that are to be there and those that are up.

        While one is on its way, in or out, nothing more is asked for and nothing that is seen counts.
        """
        changed = {}
        for role, follows in self._following.items():
            due, follows.due = follows.due, 0
            if counts[role] != up[role]:
                follows.controller.forget()
            elif (due > 0 and counts[role] < follows.most) or (due < 0 and counts[role] > follows.least):
                changed[role] = counts[role] + due
        return changed


def waiting_share(row: Row) -> float:
    """Return the share of a step that the learner waited for groups; NaN if the row is not a step's."""
    waited, took = row.get("learner/wait_s"), row.get("learner/step_s")
    return waited / took if waited is not None and took else math.nan


def queue_age(judge: str) -> Callable[[Row], float]:
    """Seconds that a question has waited for this judge at most; NaN for a row that does not say."""

    def load(row: Row) -> float:
        age = row.get(f"judge/{judge}_queue_age_s")
        return math.nan if age is None else age

    return load
