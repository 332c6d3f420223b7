"""The scorers of reasoning_gym, several of which evaluate what the model wrote."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from reasoning_gym import create_dataset

from rewards.sandbox import expressions

expressions.guard()


def warm() -> None:
    """Load what the first call would load."""
    for name in ("leg_counting", "countdown"):
        task = {"name": name, "seed": 0, "size": 1, "config": {}, "index": 0}
        score_answer(json.dumps(task), _dataset(json.dumps(_options(task), sort_keys=True))[0]["question"], "1 + 1")


def score_answer(recipe: str, question: str, answer: str | None) -> float:
    """What the generator's scorer gives, from 0 to 1. Raises ValueError if it no longer makes the same question."""
    task = json.loads(recipe)
    dataset = _dataset(json.dumps(_options(task), sort_keys=True))
    entry = dataset[task["index"]]
    if entry["question"] not in question:
        raise ValueError(f"entry {task['index']} of '{task['name']}' is another one here; versions differ")
    return float(dataset.score_answer(answer, entry))


def _options(task: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in task.items() if k != "index"}


@lru_cache(maxsize=8)
def _dataset(recipe: str) -> Any:
    options = json.loads(recipe)
    return create_dataset(options["name"], seed=options["seed"], size=options["size"], **options["config"])
