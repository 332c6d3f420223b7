"""The scorer of the reasoning_gym generator that made the task."""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat

from cluster.types import FAILED, SCORED, Group, Scores, Task
from rewards.answers import answer_of
from rewards.base import Services, Signal
from rewards.signals._states import scores
from rewards.verify import VerifierError


class ReasoningGymScore(Signal):
    """What `score_answer` gives for the answer, from 0 to 1; for tasks of the source `reasoning_gym`.

    The entry is generated again from the seed and index that the task carries. Scorers evaluate what the model wrote,
    so they run in a process that is killed after `timeout_s`; such a rollout is `failed`.
    """

    services: ClassVar = ("verify",)
    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""
    timeout_s: PositiveFloat = 10.0

    def declines(self, task: Task) -> str:
        return "" if "reasoning_gym" in task.meta else "the task is not of the source 'reasoning_gym'"

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
            value = await services.verify(score_answer, json.dumps(recipe), question, answer, timeout_s=self.timeout_s)
        except (TimeoutError, VerifierError) as error:
            return float("nan"), FAILED, str(error)
        return value, SCORED, ""


def score_answer(recipe: str, question: str, answer: str | None) -> float:
    """Runs in a child process. Raises ValueError if the generator no longer makes the same question."""
    task = json.loads(recipe)
    dataset = _dataset(json.dumps({k: v for k, v in task.items() if k != "index"}, sort_keys=True))
    entry = dataset[task["index"]]
    if entry["question"] not in question:
        raise ValueError(f"entry {task['index']} of '{task['name']}' is another one here; versions differ")
    return float(dataset.score_answer(answer, entry))


@lru_cache(maxsize=8)
def _dataset(recipe: str) -> Any:
    from reasoning_gym import create_dataset

    options = json.loads(recipe)
    return create_dataset(options["name"], seed=options["seed"], size=options["size"], **options["config"])
