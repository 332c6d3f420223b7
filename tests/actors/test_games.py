"""Both agents of a game: who sees what, what it is worth, and that a deal depends on its seed alone."""

from __future__ import annotations

import random
import re
import time

import pytest

from actors import episode
from actors.environments import ENVIRONMENTS
from actors.environments.games import Games, Table
from actors.tasks.games import FIRST_EVALUATION, GameTasks
from actors.tiny.gambler import FIRST_WATCHED, GamblerModel
from cluster.config import load
from cluster.errors import ConfigError
from cluster.plugins import lookup
from tests.actors.typist import Letters, Typist

LIMITS = episode.Limits(max_tokens=40, max_turns=50, temperature=1.0)
CARD = re.compile(r"^([JQK]):(c?b?)>$")


async def played(task, write, **options):
    shown: list[str] = []

    def answer(text: str) -> str:
        shown.append(text)
        return write(text)

    rollouts = await episode.play_agents(Typist(answer), Letters(), Games(**options), task, "orig", LIMITS)
    return rollouts, shown


def kuhn(index: int = 0, **options):
    return GameTasks(games=("KuhnPoker-v0-short",), options={"KuhnPoker-v0-short": {"max_rounds": 1}}, **options)


async def test_each_agent_has_a_rollout_of_its_own_side():
    calls = {"c": "[bet]", "b": "[call]", "cb": "[call]", "": "[check]"}
    found = {}
    for task in kuhn().train()[:12]:
        rollouts, _ = await played(task, lambda text: calls[CARD.match(text)[2]], style="compact")
        assert [r.agent for r in rollouts] == ["1", "0"], "agent 1 opens the first round"
        assert sum(r.reward for r in rollouts) == 0
        assert {abs(r.reward) for r in rollouts} == {1.0}
        opener, other = rollouts
        cards = {r.agent: r.turns[0].text[0] for r in rollouts}
        assert cards["0"] != cards["1"]
        winner = max(rollouts, key=lambda r: "JQK".index(r.turns[0].text[0]))
        assert winner.reward == 1, "a showdown goes to the higher card"
        assert [t.text for t in opener.turns] == [f"{cards['1']}:>", "[check]", f"{cards['1']}:cb>", "[call]"]
        assert [t.text for t in other.turns] == [f"{cards['0']}:c>", "[bet]"]
        for rollout in rollouts:
            spoken = "".join(t.text for t in rollout.turns if t.role == "assistant")
            assert rollout.num_tokens >= len(spoken)
        found[task.id] = tuple(cards.values())
    assert len(set(found.values())) > 2


async def test_thoughts_leave_the_history_of_an_agent_that_sees_its_moves_alone():
    calls = {"c": "[bet]", "b": "[call]", "cb": "[call]", "": "[check]"}

    def think(text: str) -> str:
        return "<think>[fold]</think>" + calls[CARD.match(text.splitlines()[-1])[2]]

    task = kuhn().train()[0]
    rollouts, prompts = await played(task, think, style="compact", history="moves")
    same, _ = await played(task, think, style="compact")
    assert [(r.agent, r.chained) for r in rollouts] == [("1", True), ("1", True), ("0", False)]
    assert [r.reward for r in rollouts] == [same[0].reward, same[0].reward, same[1].reward]
    card = rollouts[0].turns[0].text[0]
    assert prompts[0] == f"{card}:>"
    assert prompts[2] == f"{card}:>\n[check]\n{card}:cb>", "the move is there, the thought is not"
    assert all("think" in r.text for r in rollouts)


async def test_an_invalid_move_ends_the_game_and_costs_its_player():
    (opener,), _ = await played(kuhn().train()[0], lambda text: "[raise]", style="compact")
    assert (opener.agent, opener.reward) == ("1", -1.5)
    assert opener.events[-1].text == "invalid move"
    moves = iter(["[bet]", "hm"])
    opener, other = (await played(kuhn().train()[0], lambda text: next(moves), style="compact"))[0]
    assert (opener.reward, other.reward) == (0.5, -1.5)


HOSTILE = {
    "nested brackets": "({" * 20_000,
    "signs": "-" * 200_000,
    "a sum": "1+" * 50_000 + "1",
    "digits": "9" * 100_000,
    "spaces": "0" + " " * 100_000 + "1",
    "gaps": "0" + "   1" * 60 + " x",
    "commas": "0" + " , 1" * 60 + " x",
    "boxes": "\\boxed{" * 5_000,
    "half a pair": "\ud800",
    "zeros": "\0" * 1_000,
    "an offer": "offer " + "I give " * 5_000,
    "a dictionary": "{(1,1): " * 3_000,
}
GAMES = ["QuantumTicTacToe-v0", "Tak-v0", "SimpleNegotiation-v0", "LiarsDice-v0", "IteratedPrisonersDilemma-v0"]


@pytest.mark.parametrize("game", GAMES)
def test_whatever_a_turn_says_a_game_is_done_with_it_at_once(game):
    for what, text in HOSTILE.items():
        for said in (f"[{text}]", f"\\boxed{{{text}}}", text):
            table = Table(game, 1, {}, "full")
            begun = time.monotonic()
            table.move(said)
            assert time.monotonic() - begun < 2, what


def test_a_game_that_raises_for_a_move_has_an_invalid_move(monkeypatch):
    table = Table("Tak-v0", 1, {}, "full")
    agent = table.agent

    def step(self, action):
        raise RecursionError("too deep")

    monkeypatch.setattr("textarena.envs.Tak.env.TakEnv.step", step)
    table.move("[place ((0,0)) {}]")
    assert table.over
    assert table.offender == agent


async def test_a_game_cut_short_is_a_draw():
    limits = episode.Limits(max_tokens=40, max_turns=1, temperature=1.0)
    task = kuhn().train()[0]
    typist = Typist(lambda text: "[bet]")
    (opener,) = await episode.play_agents(typist, Letters(), Games(style="compact"), task, "orig", limits)
    assert (opener.reward, opener.finish) == (0.0, "length")


@pytest.mark.parametrize("game", ["KuhnPoker-v0-short", "TicTacToe-v0", "SimpleNegotiation-v0"])
def test_a_deal_depends_on_its_seed_alone(game):
    def story(seed: int, between) -> list[str]:
        table, told = Table(game, seed, {}, "full"), []
        while not table.over:
            between()
            told.append(f"{table.agent} {table.shown()}")
            table.move(table.random_action())
        return [*told, str(table.rewards())]

    state = random.getstate()
    assert story(3, lambda: None) == story(3, random.random)
    assert story(3, lambda: None) != story(4, lambda: None)
    random.setstate(state)
    table = Table(game, 5, {}, "full")
    table.move(table.random_action())
    assert random.getstate() == state, "a game leaves the process's generator alone"


async def test_tic_tac_toe_is_won_by_a_row():
    moves = iter(["[0]", "[3]", "[1]", "[4]", "[2]"])
    task = GameTasks(games=("TicTacToe-v0",)).train()[0]
    rollouts, _ = await played(task, lambda text: next(moves), style="compact")
    assert {r.agent: r.reward for r in rollouts} == {"0": 1.0, "1": -1.0}
    assert rollouts[0].turns[0].text == "O:.........>"
    assert rollouts[1].turns[2].text == "X:OO.X.....>"


async def test_held_out_games_are_played_from_one_agent_against_random_moves():
    tasks = kuhn(num_evaluation=4).evaluation()
    assert [t.meta["agent"] for t in tasks] == ["0", "1", "0", "1"]
    calls = {"c": "[check]", "b": "[call]", "cb": "[call]", "": "[check]"}
    for task in tasks:
        (rollout,), _ = await played(task, lambda text: calls[CARD.match(text)[2]], style="compact")
        assert rollout.agent == ""
        assert rollout.reward in (1.0, -1.0)


def test_no_watched_game_is_played():
    model = GamblerModel()
    assert GameTasks().num_games <= FIRST_WATCHED
    assert FIRST_WATCHED + model.num_games < FIRST_EVALUATION
    recipe = load("deploy/recipes/methods/spiral.toml")
    assert recipe.tasks.options["games"] == list(model.games)
    assert recipe.tasks.options["options"] == model.options
    for side in model._watched(0):
        assert CARD.match(side[0][0])
        assert side[0][1] is False
        assert side[1][0] in ("[check]", "[bet]", "[call]", "[fold]")


def test_what_there_is_not_is_said():
    with pytest.raises(ConfigError, match="no game 'Khun-v0'"):
        Table("Khun-v0", 0, {}, "full")
    with pytest.raises(ConfigError, match="no compact style"):
        Table("SimpleNegotiation-v0", 0, {}, "compact")
    assert lookup(ENVIRONMENTS, "games", "environment").agents == ("0", "1")


def test_the_first_player_s_value_under_equilibrium_play():
    """−1/18 chips a hand (Kuhn, 1950): exact over the six deals and the players' coins.

    TextArena never puts the chips of a bet into the pot, so that a called bet wins the ante alone; here it counts two.
    """
    deals: dict[str, int] = {}
    for seed in range(100):
        opener, other = Table("KuhnPoker-v0-short", seed, {}, "full")._game.state.game_state["player_cards"].values()
        deals.setdefault("JQK"[other] + "JQK"[opener], seed)  # agent 1 opens
    assert len(deals) == 6

    def chips(deal: str, *moves: str) -> int:
        table = Table("KuhnPoker-v0-short", deals[deal], {"max_rounds": 1}, "full")
        for move in moves:
            assert not table.over
            table.move(f"[{move}]")
        assert table.over
        return table._game.state.game_state["player_chips"][1] + 1  # the next hand's ante is off already

    def value(deal: str) -> float:
        """Of the opener, who checks, and then calls with K always and with Q one time in three."""
        bets, calls = {"J": 1 / 3, "Q": 0.0, "K": 1.0}[deal[1]], {"J": 0.0, "Q": 1 / 3, "K": 1.0}[deal[0]]
        called = chips(deal, "check", "bet", "call")
        assert abs(called) == 1, "TextArena has learnt to move chips"
        bet = calls * 2 * called + (1 - calls) * chips(deal, "check", "bet", "fold")
        return (1 - bets) * chips(deal, "check", "check") + bets * bet

    with pytest.raises(AssertionError):
        chips("JQ", "check")
    assert sum(map(value, deals)) / 6 == pytest.approx(-1 / 18)


def first_move(game: str, turn: str) -> tuple[str, str]:
    """What the game's first agent gets by `turn` if that ends the game, and what the other agent reads of it."""
    table = Table(game, 0, {}, "full")
    table.shown()
    agent = table.agent
    table.move(turn)
    if table.over:
        assert table.rewards() == {agent: -1.5, "1" if agent == "0" else "0": 0.5}
        return "illegal", ""
    return "legal", table.shown()


@pytest.mark.parametrize(
    ("game", "turn", "played", "hidden"),
    [
        ("KuhnPoker-v0", "<think>My card is K. [check]?</think>I play [bet]", "[bet]", "[check]"),
        ("KuhnPoker-v0", "My card is K. Not [check], rather [BET].", "[bet]", "K."),
        ("KuhnPoker-v0", r"[check] \boxed{bet}", "[bet]", "[check]"),
        ("KuhnPoker-v0", r"\boxed{[Bet]} and no [check]", "[bet]", "no "),
        ("KuhnPoker-v0", r"so \boxed{\text{bet}}", "[bet]", "boxed"),
        ("KuhnPoker-v0", "[bet], as I hold [K]", "[bet]", "hold"),
        ("TicTacToe-v0", "<think>[0] or [8]</think>[ 4 ]", "[4]", "[8]"),
        ("TicTacToe-v0", r"Corner [0]? \boxed{4}", "[4]", "[0]"),
        ("SimpleNegotiation-v0", "<think>Ore is worth 9 to me [Accept]</think>[Deny]", "[Deny]", "worth"),
        ("Nim-v0", "<thinking>[1 1]</thinking>first [0 1], no: [2 1]", "[2 1]", "[0 1]"),
        ("ConnectFour-v0", "<think>[col 1]</think>I drop in [col 3]", "[col 3]", "drop"),
        ("LiarsDice-v0", "<think>I have two sixes</think>[Bid: 1, 2]", "[Bid: 1, 2]", "sixes"),
    ],
)
def test_the_boxed_or_last_move_outside_thoughts_is_played_and_shown(game, turn, played, hidden):
    fate, shown = first_move(game, turn)
    assert fate == "legal"
    assert played in shown
    own = shown.split(played, 1)[0] + shown.split(played, 1)[1]
    assert turn not in own
    assert hidden not in shown or hidden in Table(game, 0, {}, "full").shown()


@pytest.mark.parametrize(
    "turn",
    ["", "hm", "<think>[bet]", "<think>I play [bet]</think>", "[call]", "[bet] no, [fold]", r"[bet] \boxed{call}"],
)
def test_a_turn_without_a_legal_move_is_illegal(turn):
    assert first_move("KuhnPoker-v0", turn)[0] == "illegal"


@pytest.mark.parametrize(("game", "turn"), [("TicTacToe-v0", "[9]"), ("TicTacToe-v0", "4"), ("Nim-v0", "[9 9]")])
def test_a_move_that_the_game_does_not_have_is_illegal(game, turn):
    assert first_move(game, turn)[0] == "illegal"


@pytest.mark.parametrize(("turn", "rewards"), [(0, [-1.5]), (1, [0.5, -1.5])])
async def test_a_turn_past_its_budget_is_an_illegal_move(turn, rewards):
    typist, limits = Typist(lambda text: "[bet]", cut_in_turn=turn), episode.Limits(6, 50, 1.0)
    task = kuhn().train()[0]
    rollouts = await episode.play_agents(typist, Letters(), Games(style="compact"), task, "orig", limits)
    assert [r.reward for r in rollouts] == rewards
    assert all(r.finish == "length" for r in rollouts)
    assert [[(e.text, e.turn) for e in r.events] for r in rollouts][-1] == [("invalid move", 0)]


async def test_a_cut_turn_in_an_evaluated_game_costs_the_agent():
    task = kuhn(num_evaluation=2).evaluation()[1]  # agent 1 opens
    typist = Typist(lambda text: "[bet]", cut_in_turn=0)
    (rollout,) = await episode.play_agents(typist, Letters(), Games(style="compact"), task, "orig", LIMITS)
    assert rollout.reward == -1.5


async def test_events_of_an_illegal_move_fit_the_turns_of_their_agent():
    moves = iter(["[check]", "hm"])
    rollouts, _ = await played(kuhn().train()[0], lambda text: next(moves), style="compact")
    assert [[(e.text, e.turn) for e in r.events] for r in rollouts] == [[], [("invalid move", 0)]]


async def test_a_move_in_a_thought_that_the_prompt_opened_is_not_played():
    class Opens(Letters):
        def opened(self, messages, *, first=True, tools=()):
            return "<think>\n"

    typist = Typist(lambda text: "I hold K [bet]")
    (opener,) = await episode.play_agents(typist, Opens(), Games(style="compact"), kuhn().train()[0], "orig", LIMITS)
    assert opener.reward == -1.5
