r"""Correctness less what a short search leaves open: longer thinking loses less (RLSP, arXiv:2502.06773)."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from cluster.thoughts import whole_text
from cluster.types import Group, Rollout, Scores, Task
from rewards.base import Reward, Services
from rewards.builtin.exact import NO_REFERENCE
from rewards.parsing.answers import answer_of, reference_of
from rewards.parsing.equality import is_empty, same

RIGHT, WRONG, UNANSWERED = 1.0, 0.0, -0.5


class Rlsp(Reward):
    r"""base − P / n: base is 1 for a right answer, 0 for a wrong one, −0.5 for none; abstains without a reference.

    n is the length of the reasoning in front of the answer (of the whole text, thoughts included, where there is no
    answer), in characters / 4, and at least 1. So thinking longer loses less, and never gains more than `base`. The
    paper mixes it with a judge of effort: 0.8 of this, 0.2 of the reward `judge` with the template `effort`, 0.5 where
    the judge fails (`missing = 0.5`).

    Formula and constants: arXiv:2502.06773 and its released code. There the first box of a text is the answer; here it
    is the last, as for every other reward. With short tasks P / n is far above 1: lower P.
    """

    penalty: PositiveFloat = 1000.0
    """P, in units of four characters; the default is the released code's."""
    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "boxed"
    """Where the answer stands."""

    def declines(self, task: Task) -> str:
        return NO_REFERENCE if is_empty(reference_of(task.answer)) else ""

    async def score(self, group: Group, services: Services) -> Scores:
        if self.declines(group.task):
            return Scores.abstained(len(group), self.declines(group.task))
        expected = reference_of(group.task.answer)
        return Scores.of([self._value(rollout, expected) for rollout in group.rollouts])

    def _value(self, rollout: Rollout, expected: str) -> float:
        text, answer = whole_text(rollout), answer_of(rollout, self.extract)
        if answer is None:
            return explored(UNANSWERED, len(text), self.penalty)
        mark = "\\boxed" if self.extract == "boxed" else answer
        place = text.rfind(mark)
        base = RIGHT if same(expected, answer) else WRONG
        return explored(base, place if place >= 0 else len(text), self.penalty)


def explored(base: float, characters: int, penalty: float) -> float:
    """base − penalty / (characters / 4), the length at least 1."""
    return base - penalty / max(characters / 4, 1.0)
