"""String match with the reference answer."""

from __future__ import annotations

from typing import Literal

from cluster.types import Group, Scores, Task
from rewards.answers import answer_of, normalised
from rewards.base import Services, Signal


class Exact(Signal):
    """1 where the answer equals the task's, up to spacing, case and final stop; abstains from tasks without one."""

    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""
    ignore_case: bool = True

    def declines(self, task: Task) -> str:
        return "the task has no reference answer" if task.answer is None else ""

    async def score(self, group: Group, services: Services) -> Scores:
        if group.task.answer is None:
            return Scores.abstained(len(group), self.declines(group.task))
        expected = normalised(group.task.answer, ignore_case=self.ignore_case)
        answers = [answer_of(r, self.extract) for r in group.rollouts]
        return Scores.of([a is not None and normalised(a, ignore_case=self.ignore_case) == expected for a in answers])
