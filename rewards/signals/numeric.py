"""A number within a tolerance of the reference answer."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import NonNegativeFloat

from cluster.types import Group, Scores, Task
from rewards.answers import answer_of, last_number
from rewards.base import Services, Signal

GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,4})?")
FRACTION = re.compile(r"([-+]?\d+)\s*/\s*(\d+)")
MAX_CHARS = 400


class Numeric(Signal):
    """1 where the answer is a number within `absolute` or `relative` of the task's.

    Thousands commas, `%`, `$` and fractions are read; in a longer answer the last number counts. Abstains from tasks
    whose own answer is no number.
    """

    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""
    absolute: NonNegativeFloat = 1e-6
    relative: NonNegativeFloat = 0.0

    def declines(self, task: Task) -> str:
        known = task.answer is not None and number(task.answer) is not None
        return "" if known else f"the reference answer {task.answer!r} is no number"

    async def score(self, group: Group, services: Services) -> Scores:
        expected = None if group.task.answer is None else number(group.task.answer)
        if expected is None:
            return Scores.abstained(len(group), self.declines(group.task))
        return Scores.of([self._near(answer_of(r, self.extract), expected) for r in group.rollouts])

    def _near(self, answer: str | None, expected: float) -> bool:
        found = None if answer is None else number(answer)
        return found is not None and math.isclose(found, expected, rel_tol=self.relative, abs_tol=self.absolute)


def number(text: str) -> float | None:
    """The finite number that a text is, or the last one in it; None without one. `3/4` and `75%` are 0.75."""
    text = GROUPED.sub("", text.strip().replace("\u2212", "-")[-MAX_CHARS:]).strip("$ .")
    share = text.endswith("%")
    text = text.rstrip("%\\ ")
    fraction = FRACTION.fullmatch(text)
    if not fraction and not PLAIN.fullmatch(text):
        text = last_number(text) or ""
    try:
        value = int(fraction[1]) / int(fraction[2]) if fraction else float(text)
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return (value / 100 if share else value) if math.isfinite(value) else None
