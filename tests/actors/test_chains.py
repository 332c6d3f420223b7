"""An environment that opens a new context leaves a chain of rollouts: one for each context, one episode."""

from __future__ import annotations

from actors import episode
from actors.environments import End, Environment, Observation
from actors.environments.text_world import NOT_EXECUTED, REACHED, SUBGOALS, TextWorld, World
from actors.rollout import _numbered
from actors.tasks.text_world import house
from cluster.types import Claim, Event, Group, Rollout, Task, decode, encode
from cluster.types.wire import checked_group
from tests.actors.typist import Letters, Typist


async def chain(environment, task, write, *, max_turns=50, cut_in_turn=-1) -> list[Rollout]:
    limits = episode.Limits(max_tokens=50, max_turns=max_turns, temperature=1.0)
    engine = Typist(write, cut_in_turn=cut_in_turn)
    return await episode.play_agents(engine, Letters(), environment, task, "orig", limits)


def walker(seed):
    way = iter(World(seed).solution())
    return lambda _: next(way)


async def test_each_context_is_a_rollout_and_knows_only_its_own_prompt():
    world, rollouts = World(3), await chain(TextWorld(memory="turn"), house(3), walker(3))
    assert [r.text for r in rollouts] == world.solution()
    assert all(r.chained and r.reward == 1.0 and r.finish == "stop" for r in rollouts)
    state = world.start
    for rollout, action in zip(rollouts, world.solution(), strict=True):
        assert rollout.turns[0].text == f"{world.goal}. {world.shown(state)}"
        assert [t.role for t in rollout.turns] == ["user", "assistant"]
        assert int(rollout.loss_mask.sum()) == len(action) + 1
        state = world.after(state, action)


async def test_one_conversation_is_no_chain():
    (rollout,) = await chain(TextWorld(), house(3), walker(3))
    assert not rollout.chained
    assert rollout.reward == 1.0


async def test_an_event_stands_in_the_rollout_whose_turn_brought_it_about():
    rollouts = await chain(TextWorld(memory="turn"), house(3), walker(3))
    whole = (await chain(TextWorld(), house(3), walker(3)))[0]
    assert [(e.text, i) for i, r in enumerate(rollouts) for e in r.events] == [(e.text, e.turn) for e in whole.events]
    assert {e.turn for r in rollouts for e in r.events} == {0}
    assert sorted(e.text for r in rollouts for e in r.events) == sorted(REACHED + name for name in SUBGOALS)


async def test_a_chain_out_of_turns_or_tokens_is_truncated_as_a_whole():
    for how in ({"max_turns": 3}, {"cut_in_turn": 2}):
        rollouts = await chain(TextWorld(memory="turn"), house(3), lambda _: "wait", **how)
        assert [r.finish for r in rollouts] == ["length"] * 3
        assert [r.reward for r in rollouts] == [0.0] * 3
        misses = [e.text for r in rollouts for e in r.events]
        assert misses == [NOT_EXECUTED] * (3 if "max_turns" in how else 2)


class Summaries(Environment):
    """Two turns in one context, then a new one."""

    async def play(self, task, variant):
        first = yield Observation(task.variants[variant])
        yield Observation.of("more?", events=(Event("first", 0),))
        third = yield Observation.of(f"so far {first}", events=(Event("second", 1),), new_context=True)
        yield End(1.0, events=(Event(f"third {third}", 2), Event("again", 1)))


async def test_a_context_may_hold_several_turns():
    one, two = await chain(Summaries(), Task.of("t", "begin"), lambda seen: "x" * len(seen))
    assert [sum(t.role == "assistant" for t in r.turns) for r in (one, two)] == [2, 1]
    assert [(e.text, e.turn) for e in one.events] == [("first", 0), ("second", 1), ("again", 1)]
    assert [(e.text.split()[0], e.turn) for e in two.events] == [("third", 0)]


async def test_chains_of_a_group_are_numbered_and_travel():
    episodes = [await chain(TextWorld(memory="turn"), house(3), walker(3)) for _ in range(2)]
    rollouts = [r for e in _numbered(episodes) for r in e]
    length = len(episodes[0])
    assert [r.episode for r in rollouts] == [0] * length + [1] * length
    group = checked_group(Group(Claim("policy/1/0", "policy", 1, 0, 0, 0, "t"), house(3), tuple(rollouts)))
    again = decode(encode(group), Group)
    assert [(r.episode, r.chained) for r in again.rollouts] == [(r.episode, r.chained) for r in rollouts]


async def test_episodes_of_one_rollout_each_keep_no_number():
    episodes = [await chain(TextWorld(), house(3), walker(3)) for _ in range(2)]
    assert [r.episode for e in _numbered(episodes) for r in e] == [None, None]
