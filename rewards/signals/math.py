"""Mathematical equality with the reference answer, by math-verify."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from pydantic import PositiveFloat

from cluster.types import FAILED, SCORED, Group, Scores
from rewards.answers import boxed, spoken
from rewards.base import Services, Signal
from rewards.signals._states import scores
from rewards.verify import VerifierError

MAX_CHARS = 4000
"""Read from the end of a text: an answer stands there, and the parser takes quadratic time."""


class Math(Signal):
    """1 where the answer equals the task's as mathematics: `1/2`, `0.5` and `\\frac{1}{2}` are the same.

    A `\\boxed{…}` is preferred, what stands in `<think>…</think>` is not read. A text that keeps the checker busy
    longer than `timeout_s` is `failed`: its checker is killed, the others go on.
    """

    services: ClassVar = ("verify",)
    precision: int = 6
    """Digits after the point in which numbers must agree."""
    timeout_s: PositiveFloat = 5.0

    async def score(self, group: Group, services: Services) -> Scores:
        expected = group.task.answer
        if expected is None:
            return Scores.abstained(len(group), "the task has no reference answer")
        answers = [r.answer if r.answer is not None else spoken(r.text)[-MAX_CHARS:] for r in group.rollouts]
        # Equal answers are checked once.
        verdicts = {a: self._check(expected, a, services) for a in set(answers)}
        known = dict(zip(verdicts, await asyncio.gather(*verdicts.values()), strict=True))
        return scores([known[a] for a in answers])

    async def _check(self, expected: str, answer: str, services: Services) -> tuple[float, int, str]:
        if not answer.strip():
            return 0.0, SCORED, ""
        try:
            equal = await services.verify(equals, expected, answer, self.precision, timeout_s=self.timeout_s)
        except (TimeoutError, VerifierError) as error:
            return float("nan"), FAILED, str(error)
        return float(equal), SCORED, ""


def equals(expected: str, answer: str, precision: int) -> bool:
    """Whether two texts hold the same mathematics. Runs in a child process; raises ValueError for a bad reference."""
    from math_verify import parse, verify

    # math-verify would keep time with the alarm signal, which our own timing of the whole process uses.
    no_limit: Any = None
    forms = [expected] if boxed(expected) else [f"${expected}$", expected]
    gold = next((found for f in forms if (found := parse(f, parsing_timeout=no_limit))), None)
    if not gold:
        raise ValueError(f"math-verify cannot read the reference answer {expected!r}")
    return bool(
        verify(gold, parse(answer, parsing_timeout=no_limit), float_rounding=precision, timeout_seconds=no_limit)
    )
