"""One running game: actions in, messages and a map out. The only file that imports NLE and MiniHack.

Seeds are those of NetHack's game, display and level generators, without reseeding, and the moon comes from the seed and
not from the calendar: the same name, seed and actions give the same game, in whichever process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import minihack  # noqa: F401  registers its games
import nle.nethack
import numpy as np
from nle.env.tasks import TASK_ACTIONS, NetHackScore

from cluster.errors import ConfigError, nearest

nethack: Any = nle.nethack  # most of its names come from a compiled module that type checkers cannot read

OBSERVED = ("chars", "glyphs", "blstats", "message", "inv_strs", "inv_letters", "screen_descriptions")
DESCENDED = "You descend the stairs"
EVERY_CODE = range(256)
HALLUCINATING = 0x200
"""Bit of NetHack's conditions in blstats (BL_MASK_HALLU)."""
COMPASS = {"N": "north", "E": "east", "S": "south", "W": "west"}
COMPASS |= {"NE": "northeast", "SE": "southeast", "SW": "southwest", "NW": "northwest"}
HUNGER = ("satiated", "", "hungry", "weak", "fainting", "fainted", "starved")
IN_QUESTION = 1
"""Place in NLE's `internal`: the game waits for one character."""


class Game:
    """A game by name, played again and again.

    `messages` are the distinct pages that the last step showed, in order: pages that end in --More-- are turned.
    """

    def __init__(self, name: str, *, all_actions: bool = False, penalty: float = -0.01) -> None:
        """Raises ConfigError for a name that neither GOALS nor Gymnasium's registry has."""
        self._env, own_actions, self._reached = _make(name, penalty)
        self._places = {key: self._env._observation_keys.index(key) for key in (*OBSERVED, "internal")}
        self._env.nethack = self._pages = _Pages(self._env.nethack, self._places["message"])
        self._env.actions = EVERY_CODE  # an index is NetHack's own code
        self._env._quit_game = lambda *_: None  # its questions are no messages of the game; the next reset ends it
        self.actions = _names(nethack.USEFUL_ACTIONS if all_actions else own_actions)
        self.messages: list[str] = []

    def reset(self, seed: int) -> None:
        self._pages.shown.clear()
        self._env.seed(core=seed, disp=seed, reseed=False, lgen=seed)
        self._env.reset()
        self.messages = [_text(self.seen("message"))]

    def step(self, code: int) -> tuple[float, bool]:
        """Reward of one action, and whether the game is over."""
        self._pages.shown.clear()
        _, reward, done, truncated, _ = self._env.step(code)
        self.messages = list(dict.fromkeys(self._pages.shown))
        if self._reached is None:
            return reward, done or truncated
        won = self._reached(self)
        return float(won), won or done or truncated

    def close(self) -> None:
        self._env.close()

    def seen(self, key: str) -> np.ndarray:
        """One of NLE's observations; it changes with the next step."""
        return self._env.last_observation[self._places[key]]

    @property
    def asks(self) -> bool:
        """Whether it waits for one character: which item, which direction, yes or no."""
        return bool(self.seen("internal")[IN_QUESTION])

    def window(self, radius: int) -> list[str]:
        """[2·radius + 1] rows of as many characters around the hero, blank beyond the map's edge."""
        column, row = self.seen("blstats")[[nethack.NLE_BL_X, nethack.NLE_BL_Y]]
        around = np.pad(self.seen("chars"), radius, constant_values=ord(" "))
        size = 2 * radius + 1
        return [_text(line[column : column + size]) for line in around[row : row + size]]

    def status(self) -> str:
        """`Dlvl:1 HP:14(14) AC:4 Xp:1 $:0 T:12`, and hunger if there is any to speak of."""
        b, n = self.seen("blstats"), nethack
        line = (
            f"Dlvl:{b[n.NLE_BL_DEPTH]} HP:{b[n.NLE_BL_HP]}({b[n.NLE_BL_HPMAX]}) AC:{b[n.NLE_BL_AC]} "
            f"Xp:{b[n.NLE_BL_XP]} $:{b[n.NLE_BL_GOLD]} T:{b[n.NLE_BL_TIME]}"
        )
        return f"{line} {HUNGER[b[n.NLE_BL_HUNGER]]}".rstrip()

    def inventory(self) -> list[str]:
        """`a - 12 darts (at the ready)`, one line per item."""
        letters = _text(self.seen("inv_letters"))
        return [f"{letter} - {_text(line)}" for letter, line in zip(letters, self.seen("inv_strs"), strict=False)]


class _Pages:
    """Stands in for an environment's `nethack.Nethack` and keeps every message that it shows on the way.

    The environment turns pages by itself within a step; what stood on all but the last would be lost.
    """

    def __init__(self, nethack: Any, message: int) -> None:
        self._nethack, self._message = nethack, message
        self.shown: list[str] = []

    def step(self, code: int) -> Any:
        observation, done = self._nethack.step(code)
        self.shown.append(_text(observation[self._message]))
        return observation, done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nethack, name)


def _text(characters: np.ndarray) -> str:
    return characters.tobytes().replace(b"\0", b"").decode("latin-1")


def _names(actions: Any) -> dict[str, int]:
    """`north` → 107, `far north` → 75, `search` → 115, …; not the inventory, which has no menu to be read here."""
    names = {}
    for action in actions:
        if action in (nethack.Command.INVENTORY, nethack.Command.INVENTTYPE):
            continue
        far = "far " if isinstance(action, nethack.CompassDirectionLonger) else ""
        names[far + (COMPASS.get(action.name) or action.name.lower())] = int(action)
    return names


def _beside_the_oracle(game: Game) -> bool:
    """Standing next to the Oracle, sober: whoever hallucinates may take any monster for her (Motif's OracleSober)."""
    blstats = game.seen("blstats")
    column, row = blstats[[nethack.NLE_BL_X, nethack.NLE_BL_Y]]
    around = game.seen("glyphs")[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    return bool((around == _oracle()).any()) and not blstats[nethack.NLE_BL_CONDITION] & HALLUCINATING


def _oracle() -> int:
    monsters = range(nethack.GLYPH_MON_OFF, nethack.GLYPH_PET_OFF)
    return next(g for g in monsters if nethack.permonst(nethack.glyph_to_mon(g)).mname == "Oracle")


def _descended_to(level: int) -> Callable[[Game], bool]:
    """Walked down the stairs to a level, counted within its branch of the dungeon (blstats[24]): no fall, no mine."""

    def reached(game: Game) -> bool:
        descended = any(DESCENDED in message for message in game.messages)
        return descended and int(game.seen("blstats")[nethack.NLE_BL_DLEVEL]) == level

    return reached


GOALS: dict[str, Callable[[Game], bool] | None] = {
    "NetHackScore": None,
    "NetHackOracle": _beside_the_oracle,
    "NetHackStaircaseLvl3": _descended_to(3),
    "NetHackStaircaseLvl4": _descended_to(4),
}
"""ONI's tasks (arXiv:2410.23022): 1 for reaching the goal, which ends the game; without one NLE's score difference."""


def check(name: str) -> None:
    """Raises ConfigError for a game that does not exist."""
    known = [*GOALS, *(n for n in gymnasium.registry if n.startswith(("MiniHack-", "NetHack")))]
    if name not in known:
        raise ConfigError(
            f"the game '{name}' is unknown. {nearest(name, known)}"
            f"Known: {', '.join(GOALS)} and the games that MiniHack and NLE register with Gymnasium."
        )


def _make(name: str, penalty: float) -> tuple[Any, Any, Callable[[Game], bool] | None]:
    """The environment, its own actions, and what reaches its goal if that is ours to say."""
    check(name)
    options = {"observation_keys": OBSERVED, "fix_moon_phase": True, "penalty_step": penalty}
    if name in GOALS:
        return NetHackScore(**options), TASK_ACTIONS, GOALS[name]
    # Gymnasium's wrappers check and count; the game does both itself.
    env: Any = gymnasium.make(name, disable_env_checker=True, **options).unwrapped
    return env, env.actions, None
