"""Games of NetHack and MiniHack as tasks: a name and a seed."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from actors.tasks.base import TaskSource
from cluster.errors import ConfigError
from cluster.types import Task

FIRST_EVALUATION = 2**30
"""Seeds from here on are held out, so that a longer training set never grows into them."""
GOALS = {
    "NetHackScore": "You play NetHack. Gather as many points as you can: explore, descend, defeat monsters.",
    "NetHackOracle": "You play NetHack. Find the Oracle, who lives between levels 5 and 9, and stand next to her.",
    "NetHackStaircaseLvl3": "You play NetHack. Walk down the stairs (>) to dungeon level 3.",
    "NetHackStaircaseLvl4": "You play NetHack. Walk down the stairs (>) to dungeon level 4.",
}
GOAL = "You play {game}. You are @. Unless the game is about something else, reach the stairs down (>)."


class NetHackGames(TaskSource):
    """Tasks for the environment `nethack`, one per game and seed; a seed fixes the dungeon and its chances."""

    games: list[str] = Field(["MiniHack-Room-5x5-v0"], min_length=1)
    """NetHackScore, NetHackOracle, NetHackStaircaseLvl3, NetHackStaircaseLvl4, or a game's name in Gymnasium."""
    num_train: PositiveInt = Field(1000, le=FIRST_EVALUATION)
    """Training seeds of each game."""
    num_evaluation: NonNegativeInt = Field(100, le=2**30)
    """Evaluation seeds of each game."""

    @field_validator("games")
    @classmethod
    def _exist(cls, games: list[str]) -> list[str]:
        try:
            from actors.environments.nethack.game import check
        except ImportError as error:
            raise ValueError(f"{error}; NLE and MiniHack are needed: pip install 'kanabo[nethack]'") from error
        for game in games:
            try:
                check(game)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return games

    def train(self) -> Sequence[Task]:
        return self._tasks(0, self.num_train)

    def evaluation(self) -> Sequence[Task]:
        return self._tasks(FIRST_EVALUATION, self.num_evaluation)

    def _tasks(self, first: int, number: int) -> list[Task]:
        return [self._task(game, seed) for seed in range(first, first + number) for game in self.games]

    @staticmethod
    def _task(game: str, seed: int) -> Task:
        goal = GOALS.get(game, GOAL.format(game=game))
        return Task.of(f"{game}/{seed}", goal, source=game, game=game, seed=seed)
