"""NetHack as text: what is reached is rewarded, what is said is counted, and a seed fixes everything."""

from __future__ import annotations

import asyncio
import importlib.util
from functools import partial
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import episode
from actors.environments import ENVIRONMENTS, End, Observation
from actors.tasks import TASKS
from cluster.errors import ConfigError, DataError
from cluster.plugins import build
from cluster.types import Rollout, Task, decode, encode
from tests.actors.typist import Letters, Typist

if importlib.util.find_spec("nle") is None or importlib.util.find_spec("minihack") is None:
    pytest.skip("the extra 'nethack' is not installed", allow_module_level=True)

ROOM = "MiniHack-Room-Random-5x5-v0"
KEYS = {(-1, -1): "y", (0, -1): "k", (1, -1): "u", (-1, 0): "h", (1, 0): "l", (-1, 1): "b", (0, 1): "j", (1, 1): "n"}
WIZARD_MAP, WIZARD_CREATE, WIZARD_TELEPORT = 6, 7, 22


def environment(**options):
    return build(ENVIRONMENTS, "nethack", {"format": "compact", **options}, "rollout.environment")


def task(game=ROOM, seed=0):
    return Task.of(f"{game}/{seed}", "play", game=game, seed=seed)


async def play(env, task, write, *, max_turns=50, cut_in_turn=-1) -> Rollout:
    limits = episode.Limits(max_tokens=50, max_turns=max_turns, temperature=1.0)
    return await episode.play(Typist(write, cut_in_turn=cut_in_turn), Letters(), env, task, "orig", limits)


async def told(env, task, answers):
    """All that an episode says to these answers."""
    game = env.play(task, "orig")
    said = [await anext(game)]
    for answer in answers:
        if isinstance(said[-1], End):
            break
        said.append(await game.asend(answer))
    await game.aclose()
    return said


def walk(text: str) -> str:
    """One step towards the stairs."""
    places = {c: (x, y) for y, row in enumerate(text.split("\n")) for x, c in enumerate(row) if c in "@>"}
    here, there = places["@"], places[">"]
    return KEYS[tuple(int(np.sign(t - h)) for t, h in zip(there, here, strict=True))]


async def test_who_walks_to_the_stairs_is_rewarded_and_credit_is_in_the_turn():
    env = environment(message_chars=0)
    for seed in range(5):
        rollout = await play(env, task(seed=seed), walk)
        assert rollout.finish == "stop"
        assert rollout.reward == 1.0
        turns = [t for t in rollout.turns if t.role == "assistant"]
        assert [(e.turn, e.reward) for e in rollout.events if e.reward] == [(len(turns) - 1, 1.0)]
        assert not any("quit" in e.text for e in rollout.events)  # how NLE ends a game that is won
        assert decode(encode(rollout), Rollout).events == rollout.events


async def test_a_wall_says_so_and_each_time_counts():
    env = environment()
    for _ in range(2):  # the second episode counts from one again
        rollout = await play(env, task("MiniHack-Room-5x5-v0"), lambda _: "k", max_turns=4)
        assert [(e.text, e.turn, e.count) for e in rollout.events] == [
            ("It's solid stone.", turn, turn + 1) for turn in range(4)
        ]
        assert rollout.reward == pytest.approx(sum(e.reward for e in rollout.events))
        assert rollout.reward < 0  # MiniHack's price of a step that changes nothing
        assert rollout.truncated


async def test_without_a_penalty_only_the_goal_is_rewarded():
    rollout = await play(environment(penalty=0.0), task("MiniHack-Room-5x5-v0"), lambda _: "k", max_turns=4)
    assert rollout.reward == 0.0
    won = await play(environment(penalty=0.0, message_chars=0), task(), walk)
    assert [e.reward for e in won.events if e.reward] == [won.reward] == [1.0]


async def test_an_episode_cut_short_keeps_what_it_noticed_and_earned():
    env = environment()
    for cut_in_turn, noticed in ((0, 0), (2, 2), (-1, 3)):  # within a turn, or out of turns
        rollout = await play(env, task("MiniHack-Room-5x5-v0"), lambda _: "k", max_turns=3, cut_in_turn=cut_in_turn)
        assert [e.count for e in rollout.events] == list(range(1, noticed + 1))
        assert rollout.reward == pytest.approx(-0.01 * noticed)
        assert rollout.truncated


async def test_captions_count_as_in_oni():
    from actors.environments.nethack.play import Captions

    for _ in range(2):
        captions = Captions()
        assert [captions.hear([m])[0][1] for m in ("A", "B", "A")] == [1, 1, 2]
        assert captions.hear(["", " "]) == []
        first, second = captions.events(["A", "C"], 7, 0.5)
        assert (first.text, first.count, first.turn, first.reward) == ("A", 3, 7, 0.5)
        assert (second.text, second.count, second.reward) == ("C", 1, 0.0)
        assert [(e.text, e.reward) for e in captions.events([], 8, 0.5)] == [("", 0.5)]
        assert captions.events([], 9) == ()


async def test_pages_that_end_in_more_are_all_captions_and_all_shown():
    env = environment(format="text", actions="all")
    *_, last = await told(env, task("NetHackScore", 1), ["search"] * 2 + ["eat", "f"])
    assert len(last.events) > 1
    assert {e.turn for e in last.events} == {3}
    for event in last.events:
        assert event.text in last.messages[0].content


ACTIONS = ["far west", "search", "south", "far east", "kick", "l", "J", "H", "far north", "inventory", "n"] * 6


async def test_a_seed_fixes_the_game_in_a_fresh_one_a_used_one_and_beside_another():
    env, other = environment(format="text"), environment(format="text")
    alone = await told(env, task("NetHackScore", 11), ACTIONS)
    used = await told(env, task("NetHackScore", 11), ACTIONS)
    assert alone == used
    first, second = await asyncio.gather(
        told(other, task("NetHackScore", 11), ACTIONS), told(other, task("NetHackScore", 12), ACTIONS)
    )
    assert first == alone
    assert second != alone
    assert second == await told(env, task("NetHackScore", 12), ACTIONS)


async def test_episodes_that_take_turns_do_not_disturb_one_another():
    env = environment(format="text")
    seeds = (11, 12, 13)
    alone = [await told(env, task("NetHackScore", s), ACTIONS) for s in seeds]
    games = [env.play(task("NetHackScore", s), "orig") for s in seeds]
    together = [[await anext(game)] for game in games]
    for answer in ACTIONS:
        for said, game in zip(together, games, strict=True):
            if not isinstance(said[-1], End):
                said.append(await game.asend(answer))
    for game in games:
        await game.aclose()
    assert together == alone


async def test_rooms_differ_with_the_seed():
    env = environment(message_chars=0)
    rooms = {(await told(env, task(seed=s), []))[0].messages[0].content for s in range(6)}
    assert len(rooms) > 3


async def test_an_episode_given_up_frees_its_game():
    env = environment(max_games=1)
    first = env.play(task(), "orig")
    await anext(first)
    second = env.play(task(seed=1), "orig")
    waiting = asyncio.ensure_future(anext(second))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await first.aclose()
    assert isinstance(await waiting, Observation)
    waiting = asyncio.ensure_future(anext(env.play(task(seed=2), "orig")))
    await asyncio.sleep(0)
    waiting.cancel()
    await second.aclose()
    assert len(env._games._idle[ROOM]) == 1  # it was opened once
    assert isinstance(await anext(env.play(task(seed=3), "orig")), Observation)


async def test_a_task_that_is_no_game_is_the_tasks_fault_and_frees_its_place():
    env = environment(max_games=1)
    for bad in (Task.of("t", "play"), task("MiniHack-Rome-5x5-v0"), task(seed="x")):  # type: ignore[arg-type]
        with pytest.raises(DataError):
            await play(env, bad, lambda _: "k")
    assert (await play(env, task(), walk)).reward == 1.0


async def test_what_is_no_action_is_counted_and_changes_nothing():
    env = environment(format="text")
    start, *others, again = await told(env, task("NetHackScore"), ["go north", "", "zzz", "10"])
    assert [(e.text, e.turn, e.count) for s in (*others, again) for e in s.events] == [
        ("invalid action", turn, turn + 1) for turn in range(4)
    ]
    assert again.messages[-1].content in start.messages[-1].content
    assert (await told(env, task(), ["s"]))[-1].events[0].text == "invalid action"  # no action of this game


async def test_names_and_keys_mean_the_same_and_reasons_may_precede_them():
    env = environment(format="text")
    spoken = await told(env, task("NetHackScore", 3), ["far east", "Search", "south"])
    assert spoken == await told(env, task("NetHackScore", 3), ["L", "s", "I think so.\n j "])


async def test_the_inventory_costs_no_turn_of_the_game():
    env = environment(format="text")
    start, listed, after = await told(env, task("NetHackScore", 1), ["Inventory", "zzz"])
    assert "a - " in listed.messages[0].content
    assert listed.events == ()
    assert after.messages[-1].content in start.messages[-1].content


@pytest.mark.parametrize(("radius", "message_chars"), [(0, 0), (2, 10), (20, 256)])
async def test_compact_observations_have_the_size_asked_for(radius, message_chars):
    env = environment(radius=radius, message_chars=message_chars)
    for step in await told(env, task("NetHackScore"), ["h"] * 20):
        *rows, last, end = step.messages[0].content.split("\n")
        assert end == ""
        size = 2 * radius + 1
        rows, message = (rows, last) if len(rows) == size else ([*rows, last], "")
        assert [len(row) for row in rows] == [size] * size
        assert len(message) <= message_chars
        assert rows[radius][radius] == "@"


ANSWER = st.text(max_size=8) | st.sampled_from([*"hjklyubnHJKLYUBN.<>es", "kick", "eat", "pray", "zap", "esc", "read"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 50), answers=st.lists(ANSWER, max_size=60))
def test_no_text_crashes_a_game(fuzzed, seed, answers):
    async def never_ends():
        *before, last = await told(fuzzed, task("NetHackScore", seed), answers)
        assert np.isfinite(last.reward)
        assert all(isinstance(step, Observation) for step in before)
        for step in (*before, last):
            assert all(e.text or e.reward for e in step.events)

    asyncio.run(never_ends())


@pytest.fixture(scope="module")
def fuzzed():
    return environment(actions="all")


@pytest.fixture
def wizard(monkeypatch):
    """Games of ours in NetHack's debug mode."""
    from actors.environments.nethack import game

    monkeypatch.setattr(game, "NetHackScore", partial(game.NetHackScore, wizard=True, spawn_monsters=False))
    return game.Game


def typed(game, code: int, line: str) -> None:
    """A command that asks for a line of text, which the environment itself would decline."""
    for character in (code, *map(ord, line), ord("\r")):
        game._pages.step(character)


def descend(game) -> tuple[float, bool]:
    game.step(WIZARD_MAP)
    for _ in range(20):
        for key in "_>.":
            game.step(ord(key))
        if game.seen("internal")[4]:  # NLE: on stairs down
            return game.step(ord(">"))
    pytest.fail("found no way to the stairs")


@pytest.mark.parametrize("level", [3, 4])
def test_walking_down_to_the_level_wins(wizard, level):
    game = wizard(f"NetHackStaircaseLvl{level}")
    game.reset(22)
    for below in count(2):
        reward, over = descend(game)
        assert game.seen("blstats")[24] == below
        assert (reward, over) == (float(below == level), below == level)
        if over:
            break


def test_the_third_level_below_ground_is_not_the_goal_if_it_is_a_mine(wizard):
    game = wizard("NetHackStaircaseLvl3")
    game.reset(14)
    assert descend(game) == (0.0, False)
    assert descend(game) == (0.0, False)
    depth, level = game.seen("blstats")[[12, 24]]
    assert (depth, level) == (3, 1)


def test_arriving_otherwise_does_not_win(wizard):
    game = wizard("NetHackStaircaseLvl3")
    game.reset(5)
    typed(game, WIZARD_TELEPORT, "3")
    assert game.step(ord("s")) == (0.0, False)
    assert game.seen("blstats")[24] == 3


def test_standing_beside_the_oracle_wins_unless_it_may_be_imagined(wizard):
    from nle import _pynethack

    from actors.environments.nethack.game import _beside_the_oracle

    game = wizard("NetHackOracle")
    game.reset(5)
    assert game.step(ord("s")) == (0.0, False)
    typed(game, WIZARD_CREATE, "Oracle")
    game._pages.step(ord("y"))  # yes, her and no other
    assert game.step(ord("s")) == (1.0, True)
    game.seen("blstats")[25] |= _pynethack.nethack.BL_MASK_HALLU
    assert not _beside_the_oracle(game)


def source(**options):
    return build(TASKS, "nethack", options, "tasks")


def test_held_out_seeds_are_never_trained_on():
    tasks = source(games=["NetHackScore", ROOM], num_train=2**10, num_evaluation=20)
    seeds = [{t.meta["seed"] for t in part} for part in (tasks.train(), tasks.evaluation())]
    assert [len(s) for s in seeds] == [2**10, 20]
    assert not seeds[0] & seeds[1]
    assert len({t.id for t in (*tasks.train(), *tasks.evaluation())}) == 2 * (2**10 + 20)
    assert decode(encode(tasks.evaluation()[0]), Task) == tasks.evaluation()[0]


def test_a_game_that_does_not_exist_is_said_before_the_run():
    with pytest.raises(ConfigError, match="MiniHack-Room-5x5-v0"):
        source(games=["MiniHack-Rom-5x5-v0"])


async def test_every_task_of_the_source_can_be_played():
    env = environment(format="text")
    for each in source(games=["NetHackOracle", "MiniHack-Eat-v0", "NetHackGold-v0"], num_train=1).train():
        start, *_ = await told(env, each, ["search"])
        assert each.prompt in start.messages[0].content
        assert "search" in start.messages[-1].content
