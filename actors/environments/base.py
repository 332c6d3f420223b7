"""The environment's side of an episode: observations out, the policy's turns in.

    async def play(self, task, view):
        text = yield Observation(task.views[view])       # the policy answers
        ...
        yield End(reward=…)                              # or just return

An episode is one run of this generator, so it is single-use and keeps its state in local variables.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from cluster.plugins import Plugin
from cluster.types import Event, Message, Task


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees next; it is never trained on."""

    messages: tuple[Message, ...]
    events: tuple[Event, ...] = ()
    reward: float = float("nan")
    """The reward of an episode that is cut short here, out of turns or tokens; NaN if it has none then."""

    @staticmethod
    def of(
        text: str, *, role: str = "user", events: tuple[Event, ...] = (), reward: float = float("nan")
    ) -> Observation:
        return Observation((Message(role, text),), events, reward)


@dataclass(frozen=True, slots=True)
class End:
    """The episode is over."""

    reward: float = float("nan")
    """The environment's own reward, NaN if it gives none."""
    answer: str | None = None
    events: tuple[Event, ...] = ()


class Environment(Plugin):
    """Subclasses hold options as fields and implement `play`."""

    def play(self, task: Task, view: str) -> AsyncGenerator[Observation | End, str]:
        raise NotImplementedError
