"""Does the text have the wanted form?"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from cluster.types import Group, Scores
from rewards.base import Services, Signal


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


class Format(Signal):
    """1 where the whole text matches `pattern`; `.` also matches line breaks.

    The pattern runs on foreign text in a process that is killed after `timeout_s`: backtracking can take forever.
    """

    services = ("verify",)
    pattern: Annotated[str, AfterValidator(_compiles)] = r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*"
    anywhere: bool = False
    """A match somewhere in the text is enough."""
    timeout_s: float = 5.0

    async def score(self, group: Group, services: Services) -> Scores:
        texts = [r.text for r in group.rollouts]
        return Scores.of(await services.verify(matches, self.pattern, self.anywhere, texts, timeout_s=self.timeout_s))


def matches(pattern: str, anywhere: bool, texts: list[str]) -> list[bool]:
    compiled = re.compile(pattern, re.DOTALL)
    return [(compiled.search(t) if anywhere else compiled.fullmatch(t)) is not None for t in texts]
