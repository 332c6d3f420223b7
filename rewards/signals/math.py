"""Mathematical equality with the reference answer, by math-verify."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

from pydantic import PositiveFloat

from cluster.types import FAILED, SCORED, Group, Rollout, Scores, Task
from rewards.answers import boxed, spoken, tagged
from rewards.base import Services, Signal
from rewards.signals._states import scores
from rewards.verify import VerifierError

MAX_CHARS = 4000
"""Read from the end of a text: an answer stands there, and the parser takes quadratic time."""


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
        try:
            equal = await services.verify(equals, expected, answer, self.precision, timeout_s=self.timeout_s)
        except (TimeoutError, VerifierError) as error:
            return float("nan"), FAILED, str(error)
        return float(equal), SCORED, ""


def _stated(rollout: Rollout) -> str:
    text = spoken(rollout.text) if rollout.answer is None else rollout.answer
    for stated in (tagged(text), boxed(text)):
        if stated is not None:
            return f"\\boxed{{{stated[-MAX_CHARS:]}}}"
    return text[-MAX_CHARS:]


def equals(expected: str, answer: str, precision: int) -> bool:
    """Whether two texts hold the same mathematics. Runs in a child process; raises ValueError for a bad reference."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # warns at every call without a time limit
    # math-verify would keep time with the alarm signal, which our own timing of the whole process uses.
    no_limit: Any = None
    forms = [expected] if boxed(expected) else [f"${expected}$", expected]
    gold = next((found for f in forms if (found := parse(f, parsing_timeout=no_limit))), None)
    if not gold:
        raise ValueError(f"math-verify cannot read the reference answer {expected!r}")
    found = parse(answer, parsing_timeout=no_limit)
    return bool(verify(gold, found, float_rounding=precision, timeout_seconds=no_limit))
