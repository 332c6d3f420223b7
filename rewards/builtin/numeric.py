"""A number within a tolerance of the reference answer."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import NonNegativeFloat

from cluster.types import Group, Scores, Task
from rewards.base import Reward, Services
from rewards.parsing.answers import answer_of, reference_of
from rewards.parsing.equality import number, same, stated_number


class Numeric(Reward):
    r"""1 where the answer is the task's number, or within `absolute` or `relative` of it, else 0.

    Numbers are read in any notation: thousands, fractions and mixed numbers, percent, units, `3\times 10^8`, `1.6e-19`.
    The only number of a sentence counts; a text with several (`5 or 6`) is none. Without tolerances two numbers are
    equal as everywhere else (`rewards.parsing.equality`). Abstains from tasks whose own answer is not a number.
    """

    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""
    absolute: NonNegativeFloat = 0.0
    """Largest difference from the reference that is right."""
    relative: NonNegativeFloat = 0.0
    """Largest difference that is right, as a share of the larger of the two numbers."""

    def declines(self, task: Task) -> str:
        known = number(reference_of(task.answer)) is not None
        return "" if known else f"the reference answer {task.answer!r} is no number"

    async def score(self, group: Group, services: Services) -> Scores:
        if self.declines(group.task):
            return Scores.abstained(len(group), self.declines(group.task))
        expected = reference_of(group.task.answer)
        return Scores.of([self._near(answer_of(r, self.extract), expected) for r in group.rollouts])

    def _near(self, answer: str | None, expected: str) -> bool:
        found, wanted = None if answer is None else stated_number(answer), number(expected)
        if answer is None or found is None or wanted is None:
            return False
        within = math.isclose(found, wanted, rel_tol=self.relative, abs_tol=self.absolute)
        return bool(same(expected, answer)) or within
