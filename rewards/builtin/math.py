"""Mathematical equality with the reference answer, by our own reading and by math-verify."""

from __future__ import annotations

import asyncio
import math
from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from cluster.types import FAILED, SCORED, Group, Scores, Task
from rewards.base import Reward, Services
from rewards.builtin.exact import NO_REFERENCE
from rewards.parsing.answers import answer_of, reference_of
from rewards.parsing.equality import is_empty, number, same, stated_number
from rewards.sandbox.launch import SandboxError
from rewards.sandbox.pool import Target
from rewards.verdicts import scores

MAX_CHARS = 4000
"""Read from the end of a text: an answer stands there, and the parser takes quadratic time."""
FULL_PRECISION = 6
EQUALS = Target("rewards.sandbox.mathematics", "equals", warm=True)


class Math(Reward):
    """1 where the answer equals the task's as mathematics: `1/2`, `0.5` and `\\frac{1}{2}` are the same.

    What `rewards.parsing.equality` can tell is told at once; math-verify is asked about other notation. What keeps the
    checker busy longer than `timeout_s` is `failed`, and its checker is killed; `missing = 0.0` in the recipe makes
    such an answer as good as a wrong one.
    """

    services: ClassVar = ("verify",)
    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""
    precision: int = Field(default=FULL_PRECISION, ge=1)
    """Significant digits in which numbers must agree."""
    timeout_s: PositiveFloat = 5.0
    """Seconds that the checker may take for one answer."""

    def declines(self, task: Task) -> str:
        return NO_REFERENCE if is_empty(reference_of(task.answer)) else ""

    async def prepare(self, services: Services) -> None:
        await services.sandbox.prepare(EQUALS)

    async def score(self, group: Group, services: Services) -> Scores:
        if self.declines(group.task):
            return Scores.abstained(len(group), self.declines(group.task))
        expected = reference_of(group.task.answer)
        answers = [answer_of(r, self.extract) for r in group.rollouts]
        # Equal answers are checked once.
        verdicts = {a: self._check(expected, a, services) for a in set(answers)}
        known = dict(zip(verdicts, await asyncio.gather(*verdicts.values()), strict=True))
        return scores([known[a] for a in answers])

    async def _check(self, expected: str, answer: str | None, services: Services) -> tuple[float, int, str]:
        equal = False if answer is None else self._told(expected, answer)
        try:
            if answer is not None and equal is None:
                stated = f"\\boxed{{{answer[-MAX_CHARS:]}}}"
                equal = await services.verify(EQUALS, expected, stated, self.precision, timeout_s=self.timeout_s)
        except (TimeoutError, SandboxError) as error:
            return float("nan"), FAILED, str(error)
        if not isinstance(equal, bool):
            return float("nan"), FAILED, f"the checker answered {equal!r:.80}, not whether they are equal"
        return float(equal), SCORED, ""

    def _told(self, expected: str, answer: str) -> bool | None:
        """Whether they are equal; None where math-verify must be asked."""
        equal = same(expected, answer)
        wanted, found = number(expected), stated_number(answer)
        if equal is False and wanted is not None and found is not None and self.precision < FULL_PRECISION:
            return math.isclose(found, wanted, rel_tol=0.5 * 10.0 ** (1 - self.precision))
        return equal
