"""NetHack and MiniHack: the policy reads a message and a piece of the map, and answers with an action.

Needs the extra `nethack`. Tasks come from the source `nethack`: `meta["game"]` and `meta["seed"]` say what is played.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, PrivateAttr

from actors.environments.base import End, Environment, Observation
from cluster.thoughts import spoken
from cluster.types import Event, Message, Task

if TYPE_CHECKING:
    from actors.environments.nethack.game import Game

INVALID = "invalid action"
INVENTORY = ("inventory", "i")


class NetHack(Environment):
    """A game as a conversation.

    An answer's last line is an action's name (`north`, `far east`, `search`), its key on NetHack's keyboard (`k`, `L`,
    `s`), or, while the game asks for one, any single character. `inventory` is answered without a turn of the game.
    Whatever else is written is the event `invalid action`, and nothing happens.

    Events are captions in the sense of ONI (arXiv:2410.23022, section 3): every message of the game, with its number
    of occurrences in this episode. The environment's reward of a turn is with the turn's first event; a turn that was
    rewarded in silence has an event with an empty text. The messages of the start are counted, but nobody's doing.
    """

    format: Literal["text", "compact"] = "text"
    """`text` for models that read: the task, message, map, status. `compact` for small ones made on the spot: the map's
    rows, and the message in a line below if there is one."""
    radius: NonNegativeInt = Field(4, le=20)
    """The map shown is a square of 2·radius + 1."""
    message_chars: NonNegativeInt = 256
    """Longer messages are cut in what the policy sees, not in captions; with 0 it sees none."""
    actions: Literal["own", "all"] = "own"
    """The game's own actions (movement, kicking, eating, searching for NetHack's four), or all of NLE's useful ones."""
    penalty: float = Field(-0.01, le=0)
    """Reward of an action that takes no time in the game, as NLE and MiniHack have it; with 0 a game that is won by
    reaching its goal gives 1 for that and nothing else."""
    max_games: PositiveInt = 128
    """Games open at once in one worker, about 4 MB each; further episodes wait for one."""

    _games: Any = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        if find_spec("nle") is None or find_spec("minihack") is None:
            raise ValueError("NLE and MiniHack are not installed: pip install 'kanabo[nethack]'")
        self._games = Games(self.max_games, all_actions=self.actions == "all", penalty=self.penalty)

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        async with self._games.lend(task.meta["game"]) as game:
            game.reset(task.meta["seed"])
            captions, total = Captions(), 0.0
            captions.hear(game.messages)
            step = Observation(self._opening(task.variants[variant], game), reward=total)
            for turn in count():
                answer = yield step
                word = _last_line(spoken(answer))
                if word.lower() in INVENTORY and not game.asks:
                    step = Observation.of(self._inventory(game), reward=total)
                    continue
                code = _code(word, game)
                if code is None:
                    step = Observation.of(self._look(game), events=captions.events([INVALID], turn), reward=total)
                    continue
                reward, over = game.step(code)
                total += reward
                events = captions.events(game.messages, turn, reward)
                if over:
                    yield End(reward=total, events=events)
                    return
                step = Observation.of(self._look(game), events=events, reward=total)

    def _opening(self, task: Sequence[Message], game: Game) -> tuple[Message, ...]:
        if self.format == "compact":
            return (Message("user", self._look(game)),)
        actions = f"Answer with one of: {', '.join(game.actions)}, inventory."
        return (*task, Message("user", f"{actions}\n\n{self._look(game)}"))

    def _look(self, game: Game) -> str:
        message = " ".join(m for m in game.messages if m)[: self.message_chars]
        rows = game.window(self.radius)
        if self.format == "compact":
            return "\n".join([*rows, message, ""] if message else [*rows, ""])
        rows = [row.rstrip() for row in rows]
        return "\n".join([message, *rows, game.status()] if message else [*rows, game.status()])

    def _inventory(self, game: Game) -> str:
        text = "\n".join(game.inventory()) or "You carry nothing."
        return f"{text}\n" if self.format == "compact" else text


def _last_line(answer: str) -> str:
    lines = answer.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _code(word: str, game: Game) -> int | None:
    """NetHack's code for what the policy wrote, None if it means nothing here."""
    key = ord(word) if len(word) == 1 and word.isascii() and word.isprintable() else None
    if key is not None and (game.asks or key in game.actions.values()):
        return key
    return game.actions.get(word.lower())


class Captions:
    """What one episode has noticed, and how often."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def hear(self, messages: Sequence[str]) -> list[tuple[str, int]]:
        """Messages that say something, each with its number of occurrences so far, the present one included."""
        heard = [m.strip() for m in messages if m.strip()]
        self._counts.update(heard)
        return [(m, self._counts[m]) for m in heard]

    def events(self, messages: Sequence[str], turn: int, reward: float = 0.0) -> tuple[Event, ...]:
        """A turn's events; its reward is with the first."""
        heard = self.hear(messages) or ([("", 1)] if reward else [])
        return tuple(Event(m, turn, n, reward if place == 0 else 0.0) for place, (m, n) in enumerate(heard))


class Games:
    """Open games, lent to one episode at a time: opening one of MiniHack's takes a compiler and a fifth of a second."""

    def __init__(self, limit: int, **options: Any) -> None:
        """`options` are those of a `Game`."""
        self._places = asyncio.Semaphore(limit)
        self._options = options
        self._idle: dict[str, list[Game]] = defaultdict(list)

    @asynccontextmanager
    async def lend(self, name: str) -> AsyncIterator[Game]:
        async with self._places:
            game = self._idle[name].pop() if self._idle[name] else await asyncio.to_thread(self._open, name)
            try:
                yield game
            except Exception:
                game.close()
                raise
            except BaseException:  # an episode that is given up leaves a game that can be played again
                self._idle[name].append(game)
                raise
            self._idle[name].append(game)

    def _open(self, name: str) -> Game:
        from actors.environments.nethack.game import Game

        return Game(name, **self._options)
