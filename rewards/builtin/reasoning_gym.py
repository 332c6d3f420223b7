"""The scorer of the reasoning_gym generator that made the task."""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat

from cluster.types import FAILED, SCORED, Group, Scores, Task
from rewards.base import Reward, Services
from rewards.parsing.answers import answer_of
from rewards.sandbox.launch import SandboxError
from rewards.sandbox.pool import Target
from rewards.verdicts import scores

SCORE = Target("rewards.sandbox.gym", "score_answer", warm=True)


class ReasoningGymScore(Reward):
    """What `score_answer` gives for the answer, from 0 to 1; for tasks of the source `reasoning_gym`.

    The entry is generated again from the seed and index that the task carries. Some scorers evaluate what the
    model wrote: they run in the sandbox, each answer in a process of its own that is ended after `timeout_s`; such a
    rollout is `failed`. What is no plain expression is not evaluated there either, and so is a wrong answer.
    """

    services: ClassVar = ("verify",)
    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""
    timeout_s: PositiveFloat = 10.0
    """Seconds that the scorer may take for one answer."""

    def declines(self, task: Task) -> str:
        return "" if "reasoning_gym" in task.meta else "the task is not of the source 'reasoning_gym'"

    async def prepare(self, services: Services) -> None:
        await services.sandbox.prepare(SCORE)

    async def score(self, group: Group, services: Services) -> Scores:
        recipe = group.task.meta.get("reasoning_gym")
        if recipe is None:
            return Scores.abstained(len(group), self.declines(group.task))
        answers = [answer_of(r, self.extract) for r in group.rollouts]
        verdicts = {a: self._check(recipe, group.task.prompt, a, services) for a in set(answers)}
        known = dict(zip(verdicts, await asyncio.gather(*verdicts.values()), strict=True))
        return scores([known[a] for a in answers])

    async def _check(
        self, recipe: dict[str, Any], question: str, answer: str | None, services: Services
    ) -> tuple[float, int, str]:
        try:
            value = await services.verify(SCORE, json.dumps(recipe), question, answer, timeout_s=self.timeout_s)
        except (TimeoutError, SandboxError) as error:
            return float("nan"), FAILED, str(error)
        if not isinstance(value, float) or not 0 <= value <= 1:
            return float("nan"), FAILED, f"the scorer gave {value!r:.80}, not a number from 0 to 1"
        return value, SCORED, ""
