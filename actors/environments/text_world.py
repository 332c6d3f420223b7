"""A house of a few rooms as text: find the key, open the kitchen, cook the meal. An episode takes milliseconds.

    fry egg. hall: chest, door. held: none. can: open chest, go east.     the prompt: goal, and what is seen
    open chest                                                            the policy's turn
    hall: key, door. held: none. can: take key, go east.

The kitchen is locked, its key lies in another room or in a chest, and a meal that is cooked the wrong way is lost. Five
sub-goals lie on the way. The world is ours; keys, doors and cooking are what TextWorld (arXiv:1806.11532) made usual.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Literal

from actors.environments.base import End, Environment, Observation
from cluster.thoughts import spoken
from cluster.types import Event, Task

ROOMS = ("hall", "cellar", "attic", "study", "garden", "closet")
KITCHEN = "kitchen"
FOODS = ("egg", "fish", "corn")
METHODS = ("fry", "boil")
MOVES = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}
SUBGOALS = ("key", "door", "kitchen", "food", "meal")
"""What lies on the way: holding the key, opening the door, entering the kitchen, holding the food, cooking it."""
REACHED, NOT_EXECUTED = "reached ", "not executed"
"""Texts of events: a sub-goal's name follows the first; the second says that a turn was none of the actions shown."""


@dataclass(frozen=True, slots=True)
class State:
    """Where everything is; equal states have the same future."""

    room: str
    held: frozenset[str] = frozenset()
    unlocked: bool = False
    chest_open: bool = False
    cooked: str = ""
    """How the food was cooked; empty while it is raw."""


class World:
    """A house, dealt by its seed. Pure: actions map states to states."""

    def __init__(self, seed: int, rooms: int = 4) -> None:
        """`rooms` counts the kitchen; 3 to 7."""
        rng = random.Random(seed)
        names = rng.sample(ROOMS, rooms - 1)
        places = {names[0]: (0, 0)}
        self.exits: dict[str, dict[str, str]] = {name: {} for name in (*names, KITCHEN)}
        for name in (*names[1:], KITCHEN):
            taken = set(places.values())
            free = [(n, d) for n, at in places.items() for d, step in MOVES.items() if _moved(at, step) not in taken]
            neighbour, direction = rng.choice(free)
            places[name] = _moved(places[neighbour], MOVES[direction])
            self.exits[neighbour][direction] = name
            self.exits[name][BACK[direction]] = neighbour
        self.food, self.method = rng.choice(FOODS), rng.choice(METHODS)
        self.key_room, self.chest_room = rng.choice(names), rng.choice(names)
        self.in_chest = rng.random() < 0.5
        if self.in_chest:
            self.key_room = self.chest_room
        self.food_room = rng.choice((*names, KITCHEN))
        self.start = State(names[0])

    @property
    def goal(self) -> str:
        return f"{self.method} {self.food}"

    def actions(self, state: State) -> list[str]:
        """Return the actions that can be taken."""
        can = [f"take {thing}" for thing in self._visible(state) if thing in ("key", self.food)]
        if "chest" in self._visible(state):
            can.append("open chest")
        if "key" in state.held and "door" in self._visible(state):
            can.append("open door")
        if state.room == KITCHEN and self.food in state.held and not state.cooked:
            can += [f"{method} {self.food}" for method in METHODS]
        return can + [f"go {d}" for d, room in self.exits[state.room].items() if room != KITCHEN or state.unlocked]

    def after(self, state: State, action: str) -> State:
        """Return the state after one of `actions(state)`."""
        verb, _, thing = action.partition(" ")
        if verb == "take":
            return replace(state, held=state.held | {thing})
        if verb == "open":
            return replace(state, unlocked=True) if thing == "door" else replace(state, chest_open=True)
        if verb == "go":
            return replace(state, room=self.exits[state.room][thing])
        return replace(state, cooked=verb)

    def reached(self, state: State) -> dict[str, bool]:
        """Return which sub-goals a state has; each but `kitchen` holds from then on."""
        had = ("key" in state.held, state.unlocked, state.room == KITCHEN, self.food in state.held)
        return dict(zip(SUBGOALS, (*had, state.cooked == self.method), strict=True))

    def shown(self, state: State) -> str:
        """What the policy sees: the room, what is there, what it holds, and what it can do."""
        parts = self._visible(state), sorted(state.held), self.actions(state)
        things, held, can = (", ".join(part) or "none" for part in parts)
        return f"{state.room}: {things}. held: {held}. can: {can}."

    def solution(self, state: State | None = None) -> list[str]:
        """Return a shortest way to the meal from a state, by breadth-first search; empty where there is none, or no
        need of one."""
        first = self.start if state is None else state
        waiting, known = deque[tuple[State, tuple[str, ...]]]([(first, ())]), {first}
        while waiting:
            here, path = waiting.popleft()
            if here.cooked:
                if here.cooked == self.method:
                    return [*path]
                continue
            for action in self.actions(here):
                if (there := self.after(here, action)) not in known:
                    known.add(there)
                    waiting.append((there, (*path, action)))
        return []

    def _visible(self, state: State) -> list[str]:
        key_shown = not self.in_chest or state.chest_open
        things = {
            "door": KITCHEN in self.exits[state.room].values() and not state.unlocked,
            "chest": self.chest_room == state.room and not state.chest_open,
            "key": self.key_room == state.room and key_shown and "key" not in state.held,
            self.food: self.food_room == state.room and self.food not in state.held,
        }
        return [thing for thing, here in things.items() if here]


class TextWorld(Environment):
    """One house an episode; 1 for the meal of the task, 0 for a spoilt one or none within `rollout.max_turns`.

    A sub-goal is an event `reached NAME` in the turn that first reaches it; a turn that is none of the actions shown is
    an event `not executed`, and changes nothing. The task's meta has `seed`, `rooms` and the names `subgoals`.
    """

    memory: Literal["episode", "turn"] = "episode"
    """`episode`: one conversation, in which every turn sees all turns before it. `turn`: each turn has a prompt of its
    own, the goal and what is seen now, so that an episode is a chain of short rollouts."""

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        world = World(int(task.meta["seed"]), int(task.meta["rooms"]))
        state, turn, misses = world.start, 0, 0
        had, events = set[str](), tuple[Event, ...]()
        text = yield Observation(task.variants[variant], reward=0.0)
        while True:
            said = " ".join(spoken(text).split())
            done = said in world.actions(state)
            state = world.after(state, said) if done else state
            misses += not done
            new = [name for name, holds in world.reached(state).items() if holds and name not in had]
            had.update(new)
            events = tuple(Event(REACHED + name, turn) for name in new)
            if not done:
                events = (Event(NOT_EXECUTED, turn, misses),)
            if state.cooked:
                yield End(float(state.cooked == world.method), events=events)
                return
            turn += 1
            shown = world.shown(state) if done else f"no. {world.shown(state)}"
            if self.memory == "turn":
                text = yield Observation.of(f"{world.goal}. {shown}", events=events, reward=0.0, new_context=True)
            else:
                text = yield Observation.of(shown, events=events, reward=0.0)


def _moved(place: tuple[int, int], step: tuple[int, int]) -> tuple[int, int]:
    return place[0] + step[0], place[1] + step[1]
