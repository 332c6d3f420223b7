"""Houses for the environment `text_world`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pydantic import Field, NonNegativeInt, PositiveInt

from actors.environments.text_world import SUBGOALS, World
from actors.tasks.base import Lazy, TaskSource
from cluster.types import Task

FIRST_EVALUATION = 2**30
"""Seeds from here on deal evaluation houses."""


class Houses(TaskSource):
    """A house a task, dealt by its seed; the prompt is the goal and the first room."""

    rooms: int = Field(default=4, ge=3, le=7)
    """Rooms of a house, the kitchen included."""
    num_houses: PositiveInt = 10_000
    """Training tasks."""
    num_evaluation: NonNegativeInt = 200
    """Held-out houses."""

    def train(self) -> Sequence[Task]:
        return Lazy(partial(self._task, 0), range(self.num_houses))

    def evaluation(self) -> Sequence[Task]:
        return Lazy(partial(self._task, FIRST_EVALUATION), range(self.num_evaluation))

    def _task(self, first: int, index: int) -> Task:
        return house(first + index, self.rooms)


def house(seed: int, rooms: int = 4) -> Task:
    """Return the task of one house."""
    world = World(seed, rooms)
    prompt = f"{world.goal}. {world.shown(world.start)}"
    return Task.of(
        f"text_world/{rooms}/{seed}", prompt, source="text_world", seed=seed, rooms=rooms, subgoals=[*SUBGOALS]
    )
