"""TextArena's games for two, both seats played by the policy in training (SPIRAL, arXiv:2506.24119)."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from actors.environments.base import End, Environment, Observation
from cluster.errors import ConfigError
from cluster.types import Event, Task

INVALID, OTHER = -1.5, 0.5
"""What an invalid move gives its player, and the opponent, as in SPIRAL's released code. It ends the game."""
KUHN, TIC_TAC_TOE = "KuhnPoker", "TicTacToe"
MARKS = {"": ".", "X": "X", "O": "O"}


class Games(Environment):
    """One game of TextArena an episode: a win is worth 1, a loss −1, a draw or a game cut short 0.

    Each seat sees what the game tells it and answers with an action in square brackets, such as `[bet]`. The game is
    `meta["game"]` of its task, dealt by `meta["seed"]`. Where the task's `meta["seat"]` names one, the policy plays
    that seat alone against an opponent who picks legal actions at random: for evaluation, since against itself it wins
    half. TextArena's KuhnPoker never moves the chips of a bet: a called one wins the ante alone, and who folds gains
    nothing by it.
    """

    seats: ClassVar[tuple[str, ...]] = ("0", "1")
    style: Literal["full", "compact"] = "full"
    """`full`: the game's own words. `compact`: a dozen characters a turn, for KuhnPoker and TicTacToe: card and actions
    so far (`K:cb>`), or own mark and board (`X:O.X......>`)."""

    @model_validator(mode="after")
    def _installed(self) -> Games:
        if importlib.util.find_spec("textarena") is None:
            raise ConfigError("rollout.environment.use = 'games' needs the package TextArena. Install it: pip.")
        return self

    async def play(self, task: Task, view: str) -> AsyncGenerator[Observation | End, str]:
        table = Table(task.meta["game"], int(task.meta["seed"]), task.meta.get("options", {}), self.style)
        alone = task.meta.get("seat")
        turns = 0
        while not table.over:
            if alone is not None and table.seat != alone:
                table.move(table.random_action())
                continue
            shown = Observation.of(table.shown(), reward=0.0, seat="" if alone is not None else table.seat)
            table.move((yield shown))
            turns += 1
        rewards = table.rewards()
        events = (Event("invalid move", turns - 1),) if table.offender is not None else ()
        yield End(rewards[alone] if alone is not None else 0.0, events=events, rewards=rewards if alone is None else {})


class Table:
    """A game under way. Raises ConfigError for one that there is not, or that has no compact style."""

    def __init__(self, game: str, seed: int, options: dict[str, Any], style: str) -> None:
        import textarena

        name = game.partition("-")[0]
        if style == "compact" and name not in (KUHN, TIC_TAC_TOE):
            raise ConfigError(f"environment 'games': '{game}' has no compact style. Use style = 'full'.")
        self._name, self._compact = name, style == "compact"
        self._luck = random.Random(seed)
        self.over = False
        try:
            self._game: Any = textarena.make(f"{game}-raw", **options)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"environment 'games': no game '{game}' with options {options}: {error}") from error
        with self._dealing():
            self._game.reset(num_players=2, seed=seed)
        self._game.state.error_allowance = 0

    @contextmanager
    def _dealing(self) -> Iterator[None]:
        """TextArena draws cards from Python's one generator: for as long as it does, that is this table's own."""
        before = random.getstate()
        random.setstate(self._luck.getstate())
        try:
            yield
        finally:
            self._luck.setstate(random.getstate())
            random.setstate(before)

    @property
    def seat(self) -> str:
        """Whose turn it is."""
        return str(self._game.state.current_player_id)

    def shown(self) -> str:
        """What this seat has not seen yet."""
        told = self._game.state.get_current_player_observation()
        if self._compact:
            return self._short()
        own = self._game.state.current_player_id
        return "\n".join(message for who, message, _ in told if who != own)

    def _short(self) -> str:
        state = self._game.state.game_state
        if self._name == KUHN:
            card = "JQK"[state["player_cards"][int(self.seat)]]
            return f"{card}:{self._so_far(state)}>"
        board = "".join(MARKS[mark] for row in state["board"] for mark in row)
        return f"{'X' if self.seat == '1' else 'O'}:{board}>"

    def _so_far(self, state: dict[str, Any]) -> str:
        """Initials of the actions of this round, read off what is legal now."""
        legal = state["current_legal_action_tree"]
        if "fold" not in legal:
            return "" if "showdown" not in legal.values() else "c"
        return "b" if self.seat != str(state["starting_player"]) else "cb"

    def move(self, action: str) -> None:
        with self._dealing():
            self.over, _ = self._game.step(action)

    def legal(self) -> list[str]:
        """Actions there are, in brackets. Of a negotiation: to pass."""
        state = self._game.state.game_state
        if self._name == KUHN:
            return [f"[{action}]" for action in state["current_legal_action_tree"]]
        if self._name == TIC_TAC_TOE:
            return [f"[{i}]" for i, mark in enumerate(m for row in state["board"] for m in row) if not mark]
        return ["[Deny]"]

    def random_action(self) -> str:
        return self._luck.choice(self.legal())

    @property
    def offender(self) -> str | None:
        """Who ended the game by an invalid move."""
        info = self._game.state.game_info
        return next((str(seat) for seat in (0, 1) if info[seat].get("invalid_move")), None)

    def rewards(self) -> dict[str, float]:
        """Of each seat, once the game is over."""
        if (offender := self.offender) is not None:
            return {seat: INVALID if seat == offender else OTHER for seat in ("0", "1")}
        return {str(seat): float(reward) for seat, reward in self._game.state.rewards.items()}
