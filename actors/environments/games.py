"""TextArena's games for two, both agents played by the policy in training (SPIRAL, arXiv:2506.24119)."""

from __future__ import annotations

import importlib.util
import logging
import random
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from actors.environments.base import End, Environment, Observation
from cluster.errors import ConfigError, one_line
from cluster.thoughts import spoken
from cluster.types import Event, Message, Task

log = logging.getLogger(__name__)

INVALID, OTHER = -1.5, 0.5
"""What an invalid move gives its player, and the opponent, as in SPIRAL's released code. It ends the game."""
KUHN, TIC_TAC_TOE = "KuhnPoker", "TicTacToe"
MARKS = {"": ".", "X": "X", "O": "O"}
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
WRAPPED = re.compile(r"\\(?:text|mathrm|texttt|mathbf|textbf)\s*\{([^{}]*)\}")
BRACKETED = re.compile(r"\[([^\[\]]+)\]")
SQUARE, CELLS = r"\s*\d+\s*", r"\s*\d+(?:(?:\s+|\s*,\s*)\d+)+\s*"
FORMS = {
    KUHN: r"check|bet|fold|call",
    "LeducHoldem": r"check|raise|fold|call|bet",
    TIC_TAC_TOE: SQUARE,
    "ReverseTicTacToe": SQUARE,
    "WildTicTacToe": r"\s*[XO]\s+\d+\s*",
    "QuantumTicTacToe": CELLS,
    "ConnectFour": r"(?:col\s*)?\d+",
    "Nim": r"\s*\d+\s+\d+\s*",
    "LiarsDice": r"call|bid\s*:?\s*\d+[,\s]+\d+",
    "SimpleNegotiation": r"accept|deny|offer\b.+",
    "Chess": r"[a-h][1-8][a-h][1-8][qrbn]?",
    "PigDice": r"roll|hold",
}
"""What a move looks like between its brackets, in games where that is known; elsewhere any text in brackets is one."""
MAX_MOVE_CHARS, MAX_SPEECH_CHARS = 500, 10_000
"""Games parse a move with expressions, and one with `ast.literal_eval`, that long text could keep busy or crash."""
TALKS = ("Debate", "DontSayIt", "Taboo", "TruthAndDeception", "IteratedPrisonersDilemma", "UsedCarNegotiation")
"""Games whose moves are sentences: the whole turn but its thought is one."""


class Games(Environment):
    """One game of TextArena an episode: a win is worth 1, a loss −1, a draw or a game cut short 0.

    Each agent sees what the game tells it and answers with a move in square brackets, such as `[bet]`, or boxed. The
    last boxed move, or else the last one in brackets, is played, and the opponent sees nothing else of the turn; what
    stands in a thought is not played. A turn without a move, with one that is not legal, or past its token budget ends
    the game: −1.5 for its agent, 0.5 for the other. The game is
    `meta["game"]` of its task, dealt by `meta["seed"]`. Where the task's `meta["agent"]` names one, the policy plays
    that agent alone against an opponent who picks legal actions at random: for evaluation, since against itself it wins
    half. TextArena's KuhnPoker never moves the chips of a bet: a called one wins the ante alone, and who folds gains
    nothing by it.
    """

    agents: ClassVar[tuple[str, ...]] = ("0", "1")
    shows_task: ClassVar[bool] = False
    style: Literal["full", "compact"] = "full"
    """`full`: the game's own words. `compact`: a dozen characters a turn, for KuhnPoker and TicTacToe: card and actions
    so far (`K:cb>`), or own mark and board (`X:O.X......>`)."""

    history: Literal["turns", "moves"] = "turns"
    """What an agent sees of its own earlier turns. `turns`: all it wrote, in one conversation. `moves`: its moves
    alone, as in SPIRAL: thoughts leave the context, and an agent's side of a game is a chain of rollouts."""

    @model_validator(mode="after")
    def _installed(self) -> Games:
        if importlib.util.find_spec("textarena") is None:
            raise ConfigError("rollout.environment.use = 'games' needs the package TextArena. Install it: pip.")
        return self

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        table = Table(task.meta["game"], int(task.meta["seed"]), task.meta.get("options", {}), self.style)
        alone = task.meta.get("agent")
        turns = dict.fromkeys(self.agents, 0)
        seen: dict[str, tuple[Message, ...]] = dict.fromkeys(self.agents, ())
        while not table.over:
            agent = table.agent
            if alone is not None and agent != alone:
                table.move(table.random_action())
                continue
            cut = _end(forfeited(agent), alone, agent, turns[agent])
            shown_to = "" if alone is not None else agent
            messages = (*seen[agent], Message("user", table.shown()))
            anew = self.history == "moves" and turns[agent] > 0
            said = yield Observation(messages, reward=0.0, agent=shown_to, when_cut=cut, new_context=anew)
            if self.history == "moves":
                seen[agent] = (*messages, Message("assistant", move_of(said, task.meta["game"])))
            table.move(said)
            turns[agent] += 1
        offender = table.offender
        yield _end(table.rewards(), alone, offender, turns[offender] - 1 if offender is not None else 0)


def forfeited(offender: str) -> dict[str, float]:
    """Return what each agent gets for an invalid move of `offender`."""
    return {agent: INVALID if agent == offender else OTHER for agent in Games.agents}


def _end(rewards: dict[str, float], alone: str | None, offender: str | None, turn: int) -> End:
    """`alone` is the only agent that the policy plays; `turn` is the offender's, counted from 0."""
    events = (Event("invalid move", turn),) if offender is not None else ()
    if alone is None:
        return End(0.0, rewards=rewards, agent_events={offender: events} if offender is not None else {})
    return End(rewards[alone], events=events if offender == alone else ())


def move_of(turn: str, game: str) -> str:
    r"""Return the move that a turn makes, in brackets, and "" where it makes none.

    Only what stands outside `<think>` blocks counts. The last `\boxed{…}` is the move, else the last brackets that hold
    what is a move of this game. In a game of sentences, the whole of what is said.
    """
    said = spoken(turn).strip()
    name = game.partition("-")[0]
    if name in TALKS:
        return said[:MAX_SPEECH_CHARS]
    form = re.compile(FORMS.get(name, r".+"), re.IGNORECASE | re.DOTALL)
    if boxes := BOXED.findall(said):
        inner = WRAPPED.sub(r"\1", boxes[-1]).strip()
        inner = (BRACKETED.findall(inner) or [inner])[-1].strip()
        return f"[{inner}]" if len(inner) <= MAX_MOVE_CHARS and form.fullmatch(inner) else ""
    short = [text.strip() for text in BRACKETED.findall(said) if len(text) <= MAX_MOVE_CHARS]
    moves = [text for text in short if form.fullmatch(text)]
    return f"[{moves[-1]}]" if moves else ""


class Table:
    """A game under way. Raises ConfigError for one that there is not, or that has no compact style."""

    def __init__(self, game: str, seed: int, options: dict[str, Any], style: str) -> None:
        import textarena

        name = game.partition("-")[0]
        if style == "compact" and name not in (KUHN, TIC_TAC_TOE):
            raise ConfigError(f"environment 'games': '{game}' has no compact style. Use style = 'full'.")
        self._name, self._compact = name, style == "compact"
        self._luck = random.Random(seed)
        self._forfeit: str | None = None
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
    def agent(self) -> str:
        """Return the agent whose turn it is."""
        return str(self._game.state.current_player_id)

    def shown(self) -> str:
        """What this agent has not seen yet."""
        told = self._game.state.get_current_player_observation()
        if self._compact:
            return self._short()
        own = self._game.state.current_player_id
        return "\n".join(message for who, message, _ in told if who != own)

    def _short(self) -> str:
        state = self._game.state.game_state
        if self._name == KUHN:
            card = "JQK"[state["player_cards"][int(self.agent)]]
            return f"{card}:{self._so_far(state)}>"
        board = "".join(MARKS[mark] for row in state["board"] for mark in row)
        return f"{'X' if self.agent == '1' else 'O'}:{board}>"

    def _so_far(self, state: dict[str, Any]) -> str:
        """Initials of the actions of this round, read off what is legal now."""
        legal = state["current_legal_action_tree"]
        if "fold" not in legal:
            return "" if "showdown" not in legal.values() else "c"
        return "b" if self.agent != str(state["starting_player"]) else "cb"

    def move(self, turn: str) -> None:
        """Play the move that this agent's turn makes; a turn without one ends the game. Raises nothing for any text."""
        action = move_of(turn, self._name)
        known = self.legal() if self._name in (KUHN, TIC_TAC_TOE) else None
        if not action or (known is not None and _plain(action) not in known):
            self._forfeit, self.over = self.agent, True
            return
        try:
            with self._dealing():
                self.over, _ = self._game.step(_plain(action) if known is not None else action)
        except Exception as error:  # some games raise for what they cannot read
            log.info("the game %s raised %s for a move, which is taken as invalid", self._name, one_line(error))
            self._forfeit, self.over = self.agent, True

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
        """The agent that ended the game by an invalid move."""
        if self._forfeit is not None:
            return self._forfeit
        info = self._game.state.game_info
        return next((str(agent) for agent in (0, 1) if info[agent].get("invalid_move")), None)

    def rewards(self) -> dict[str, float]:
        """Return each agent's reward, once the game is over."""
        if (offender := self.offender) is not None:
            return forfeited(offender)
        return {str(agent): float(reward) for agent, reward in self._game.state.rewards.items()}


def _plain(action: str) -> str:
    """A move as `legal` spells it: lower case, no spaces, a square without leading zeros."""
    inner = re.sub(r"\s+", "", action[1:-1]).lower()
    return f"[{int(inner)}]" if inner.isdecimal() else f"[{inner}]"
