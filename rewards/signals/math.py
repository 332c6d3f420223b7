"""Mathematical equality with the reference answer, by math-verify."""

from __future__ import annotations

import asyncio
import re
from fractions import Fraction
from typing import ClassVar

from pydantic import PositiveFloat

from cluster.types import FAILED, SCORED, Group, Rollout, Scores, Task
from rewards.answers import boxed, spoken, tagged
from rewards.base import Services, Signal
from rewards.sandbox.launch import SandboxError
from rewards.sandbox.pool import Target
from rewards.signals._states import scores

MAX_CHARS = 4000
"""Read from the end of a text: an answer stands there, and the parser takes quadratic time."""
EQUALS = Target("rewards.sandbox.mathematics", "equals", warm=True)
PLAIN = re.compile(r"[-+]?\d{1,40}(?:\.(\d{1,40}))?", re.ASCII)


class Math(Signal):
    """1 where the answer equals the task's as mathematics: `1/2`, `0.5` and `\\frac{1}{2}` are the same.

    The last `<answer>…</answer>` or `\\boxed{…}` counts, without one the end of the text; thoughts are not read. What
    keeps the checker busy longer than `timeout_s` is `failed`, and its checker is killed; `missing = 0.0` in the recipe
    makes such an answer as good as a wrong one.
    """

    services: ClassVar = ("verify",)
    precision: int = 6
    """Digits after the point in which numbers must agree."""
    timeout_s: PositiveFloat = 5.0

    def declines(self, task: Task) -> str:
        return "the task has no reference answer" if task.answer is None else ""

    async def prepare(self, services: Services) -> None:
        await services.sandbox.prepare(EQUALS)

    async def score(self, group: Group, services: Services) -> Scores:
        expected = group.task.answer
        if expected is None:
            return Scores.abstained(len(group), self.declines(group.task))
        answers = [_stated(r) for r in group.rollouts]
        # Equal answers are checked once.
        verdicts = {a: self._check(expected, a, services) for a in set(answers)}
        known = dict(zip(verdicts, await asyncio.gather(*verdicts.values()), strict=True))
        return scores([known[a] for a in answers])

    async def _check(self, expected: str, answer: str, services: Services) -> tuple[float, int, str]:
        if not answer.strip():
            return 0.0, SCORED, ""
        equal = equal_numbers(expected, answer, self.precision)
        try:
            if equal is None:
                equal = await services.verify(EQUALS, expected, answer, self.precision, timeout_s=self.timeout_s)
        except (TimeoutError, SandboxError) as error:
            return float("nan"), FAILED, str(error)
        if not isinstance(equal, bool):
            return float("nan"), FAILED, f"the checker answered {equal!r:.80}, not whether they are equal"
        return float(equal), SCORED, ""


def _stated(rollout: Rollout) -> str:
    text = spoken(rollout.text) if rollout.answer is None else rollout.answer
    for stated in (tagged(text), boxed(text)):
        if stated is not None:
            return f"\\boxed{{{stated[-MAX_CHARS:]}}}"
    return text[-MAX_CHARS:]


def equal_numbers(expected: str, answer: str, precision: int) -> bool | None:
    """Whether two plain numbers are equal, without evaluating anything; None if either is more than that."""
    answer = answer.removeprefix("\\boxed{").removesuffix("}") if answer.startswith("\\boxed{") else answer
    numbers = [PLAIN.fullmatch(text.strip()) for text in (expected, answer)]
    if any(number is None or len(number[1] or "") > precision for number in numbers):
        return None
    first, second = (Fraction(number[0]) for number in numbers if number is not None)
    return first == second
