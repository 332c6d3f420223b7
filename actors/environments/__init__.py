"""Environments by name; your own is `package.module:Class`."""

from actors.environments.attempts import Attempts
from actors.environments.base import End, Environment, Observation
from actors.environments.calculator import Calculator
from actors.environments.comas import CoMas
from actors.environments.function import FunctionAgent
from actors.environments.games import Games
from actors.environments.gymnasium_text import GymnasiumText
from actors.environments.mcp import Mcp
from actors.environments.nethack import NetHack
from actors.environments.openenv import OpenEnv
from actors.environments.program import ProgramAgent
from actors.environments.single_turn import SingleTurn
from actors.environments.sneaky_critic import SneakyCritic
from actors.environments.text_world import TextWorld
from actors.environments.trl import Trl
from actors.environments.verifiers import Verifiers

ENVIRONMENTS: dict[str, type[Environment] | str] = {
    "alpha_search": "actors.environments.alpha_search:AlphaSearch",
    "anyprefer": "actors.environments.anyprefer:Anyprefer",
    "attempts": Attempts,
    "calculator": Calculator,
    "comas": CoMas,
    "function": FunctionAgent,
    "games": Games,
    "gymnasium_text": GymnasiumText,
    "mcp": Mcp,
    "mcts_star": "actors.environments.mcts_star:MctsStar",
    "nethack": NetHack,
    "openenv": OpenEnv,
    "program": ProgramAgent,
    "single_turn": SingleTurn,
    "sneaky_critic": SneakyCritic,
    "text_world": TextWorld,
    "tree": "actors.environments.tree:ResponseTree",
    "trl": Trl,
    "verifiers": Verifiers,
}

__all__ = ["ENVIRONMENTS", "End", "Environment", "Observation"]
