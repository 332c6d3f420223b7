"""Games to be played: one of TextArena's for two and the seed it is dealt with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from actors.tasks.base import Lazy, TaskSource
from cluster.types import Task

FIRST_EVALUATION = 2**30
"""Seeds from here on deal evaluation games."""


class GameTasks(TaskSource):
    """Games to train on are played by the policy against itself; held-out ones from one agent against random moves."""

    games: tuple[str, ...] = Field(default=("KuhnPoker-v0-short", "TicTacToe-v0", "SimpleNegotiation-v0"), min_length=1)
    """Names of TextArena, in turn."""
    options: dict[str, dict[str, Any]] = {}
    """By game: arguments of it, such as `max_rounds`."""
    num_games: PositiveInt = 10_000
    """Training tasks, each the deal or the opening of one game."""
    num_evaluation: NonNegativeInt = 200
    """Held-out deals or openings."""

    def train(self) -> Sequence[Task]:
        return Lazy(partial(self._task, 0), range(self.num_games))

    def evaluation(self) -> Sequence[Task]:
        return Lazy(partial(self._task, FIRST_EVALUATION), range(self.num_evaluation))

    def _task(self, first: int, index: int) -> Task:
        game = self.games[index % len(self.games)]
        alone: dict[str, Any] = {"agent": str(index // len(self.games) % 2)} if first else {}
        more = {"options": self.options[game]} if game in self.options else {}
        meta: dict[str, Any] = {"game": game, "seed": first + index, **alone, **more}
        return Task.of(f"{game}/{first + index}", "", None, source=game, **meta)
