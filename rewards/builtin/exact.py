"""Equality with the reference answer."""

from __future__ import annotations

from typing import Literal

from cluster.types import Group, Scores, Task
from rewards.base import Reward, Services
from rewards.parsing.answers import answer_of, reference_of
from rewards.parsing.equality import is_empty, same

NO_REFERENCE = "the task has no reference answer"


class Exact(Reward):
    r"""1 where the answer equals the task's, else 0; abstains from tasks without one.

    Texts are equal up to spacing, case and final stop, numbers and mathematics however they are written: `1/2`, `0.5`
    and `\frac{1}{2}` are the same. `rewards.parsing.equality` says what is equal.
    """

    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""
    ignore_case: bool = True
    """Ignore the case of texts; a single letter keeps its case: `x` is not `X`."""

    def declines(self, task: Task) -> str:
        return NO_REFERENCE if is_empty(reference_of(task.answer)) else ""

    async def score(self, group: Group, services: Services) -> Scores:
        if self.declines(group.task):
            return Scores.abstained(len(group), self.declines(group.task))
        expected = reference_of(group.task.answer)
        answers = [answer_of(r, self.extract) for r in group.rollouts]
        return Scores.of([a is not None and bool(same(expected, a, ignore_case=self.ignore_case)) for a in answers])
