"""Tasks of a reasoning_gym generator, by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from actors.tasks.base import Lazy, TaskSource
from cluster.errors import ConfigError, nearest
from cluster.types import Message, Task


class ReasoningGym(TaskSource):
    """Tasks of one reasoning_gym generator.

    `meta["reasoning_gym"]` names generator, options, seed and index instead of holding the entry: its metadata has
    tuples, sets and dates that no wire format keeps, and the reward `reasoning_gym` makes the same entry again.
    """

    name: str
    """The generator, e.g. `leg_counting`; a name that does not exist prints all of them."""
    size: PositiveInt = 10_000
    """Entries to train on."""
    num_evaluation: NonNegativeInt = 500
    """Held-out entries, generated after the training ones; a question that occurs in both is not held out."""
    seed: NonNegativeInt = 0
    """Seed of the generator; the recipe's own seed orders the tasks."""
    config: dict[str, Any] = {}
    """Options of the generator."""
    system: str = ""
    """A system message before every question."""

    def train(self) -> Sequence[Task]:
        return Lazy(partial(self._task, self._dataset()), range(self.size))

    def evaluation(self) -> Sequence[Task]:
        if not self.num_evaluation:
            return ()
        dataset = self._dataset()
        trained = {dataset[i]["question"] for i in range(self.size)}
        indices = [i for i in range(self.size, self._total) if dataset[i]["question"] not in trained]
        return Lazy(partial(self._task, dataset), indices)

    def _task(self, dataset: Any, index: int) -> Task:
        entry = dataset[index]
        answer = None if entry["answer"] is None else str(entry["answer"])
        recipe = {**self._recipe(), "index": index}
        task = Task.of(f"{self.name}/{index}", entry["question"], answer, source=self.name, reasoning_gym=recipe)
        if not self.system:
            return task
        first = Message("system", self.system)
        return replace(task, variants={name: (first, *messages) for name, messages in task.variants.items()})

    @property
    def _total(self) -> int:
        return self.size + self.num_evaluation

    def _recipe(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed, "size": self._total, "config": self.config}

    def _dataset(self) -> Any:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS

        if self.name not in DATASETS:
            raise ConfigError(
                f"tasks.options.name = '{self.name}' is no generator of reasoning_gym. {nearest(self.name, DATASETS)}"
                f"Known: {', '.join(sorted(DATASETS))}."
            )
        try:
            return create_dataset(self.name, seed=self.seed, size=self._total, **self.config)
        except (AssertionError, TypeError, ValueError) as error:
            known = ", ".join(f.name for f in fields(DATASETS[self.name][1]) if f.name not in ("seed", "size"))
            raise ConfigError(
                f"tasks.options.config = {self.config} does not fit '{self.name}': {error}. Its options: {known}."
            ) from error
