"""Where tasks come from, by name; your own is `package.module:Class`."""

from actors.tasks.addition import Addition, Problem, addition_problems
from actors.tasks.base import TaskSource, checked, order, without
from actors.tasks.calculator import SumsOfThree
from actors.tasks.files import Files
from actors.tasks.games import GameTasks
from actors.tasks.gym import ReasoningGym
from actors.tasks.nethack import NetHackGames
from actors.tasks.text_world import Houses
from actors.tasks.translation import Translation
from actors.tasks.verdicts import Verdicts

TASKS: dict[str, type[TaskSource]] = {
    "addition": Addition,
    "reasoning_gym": ReasoningGym,
    "calculator": SumsOfThree,
    "games": GameTasks,
    "nethack": NetHackGames,
    "text_world": Houses,
    "translation": Translation,
    "verdicts": Verdicts,
    "jsonl": Files,
    "parquet": Files,
    "dataset": Files,
    "json": Files,
    "csv": Files,
    "files": Files,
}

__all__ = ["TASKS", "Problem", "TaskSource", "addition_problems", "checked", "order", "without"]
