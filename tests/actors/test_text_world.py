"""The small house: deterministic, solvable, honest about what was done; and episodes that are chains of rollouts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.environments import ENVIRONMENTS, End
from actors.environments.text_world import KITCHEN, NOT_EXECUTED, REACHED, SUBGOALS, World
from actors.tasks import TASKS
from actors.tasks.text_world import house
from actors.tiny.character import encode
from actors.tiny.cook import CookModel
from cluster.plugins import build


async def played(task, answers, **options):
    """What the environment yields: the first observation, and one more for each answer that is taken."""
    game = build(ENVIRONMENTS, "text_world", options, "rollout.environment").play(task, "orig")
    steps = [await anext(game)]
    for answer in answers:
        steps.append(await game.asend(answer))
        if isinstance(steps[-1], End):
            break
    await game.aclose()
    return steps


def events(steps):
    return [event for step in steps for event in step.events]


@given(st.integers(0, 2**31), st.integers(3, 7))
@settings(max_examples=40, deadline=None)
async def test_a_shortest_way_reaches_every_subgoal_and_the_reward(seed, rooms):
    task, way = house(seed, rooms), World(seed, rooms).solution()
    *steps, end = await played(task, way)
    assert isinstance(end, End)
    assert end.reward == 1
    assert len(steps) == len(way)
    assert sorted(e.text for e in events([*steps, end])) == sorted(REACHED + name for name in SUBGOALS)
    assert [e.turn for e in events([*steps, end])] == sorted(e.turn for e in events([*steps, end]))


async def test_the_wrong_way_of_cooking_ends_without_a_reward():
    world = World(3)
    *way, last = world.solution()
    other = {"fry": "boil", "boil": "fry"}[world.method]
    *_, end = await played(house(3), [*way, last.replace(world.method, other)])
    assert isinstance(end, End)
    assert end.reward == 0
    assert REACHED + "meal" not in [e.text for e in end.events]


@pytest.mark.parametrize("text", ["go nowhere", "", "take the key", "open door", "fry corn", "<think>go east"])
async def test_what_is_not_shown_as_an_action_changes_nothing(text):
    first, once, twice = await played(house(3), [text, text])
    shown = first.messages[0].content.partition(". ")[2]
    assert once.messages[0].content == twice.messages[0].content == f"no. {shown}"
    assert [(e.text, e.turn, e.count) for e in events([once, twice])] == [(NOT_EXECUTED, 0, 1), (NOT_EXECUTED, 1, 2)]


async def test_a_house_depends_on_its_seed_alone_and_takes_milliseconds():
    start = time.process_time()
    for seed in range(20):
        one, two = [await played(house(seed), World(seed).solution()) for _ in range(2)]
        assert one == two
    assert (time.process_time() - start) / 40 < 0.05
    assert len({house(seed).prompt for seed in range(50)}) > 25


async def test_a_turn_may_have_a_prompt_of_its_own():
    world = World(3)
    first, second, *_ = await played(house(3), world.solution(), memory="turn")
    assert not first.new_context, "an episode begins with a context anyhow"
    assert second.new_context
    assert second.messages[0].content.startswith(f"{world.goal}. ")


def test_the_kitchen_is_locked_until_its_door_is_opened():
    for seed in range(50):
        world = World(seed)
        rooms, state = [], world.start
        for action in world.solution():
            rooms.append((state.room, state.unlocked))
            state = world.after(state, action)
        assert all(unlocked for room, unlocked in rooms if room == KITCHEN)


def test_tasks_name_the_subgoals_and_held_out_houses_are_others():
    source = build(TASKS, "text_world", {"num_houses": 3, "num_evaluation": 2}, "tasks")
    assert [t.meta["subgoals"] for t in source.train()] == [[*SUBGOALS]] * 3
    assert not {t.id for t in source.train()} & {t.id for t in source.evaluation()}


def test_the_model_made_for_it_has_a_token_for_each_word():
    tiny = CookModel()
    tokenizer = tiny.tokenizer()
    for seed in range(5):
        world = World(seed)
        text = f"{world.goal}. {world.shown(world.start)}"
        assert tokenizer.encode(text) == encode(text, tiny.words)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode(text)) < 40
