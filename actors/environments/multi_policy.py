"""A meeting: a group that several policies make together, every utterance a rollout with a prompt of its own.

    async def hold(self, task, cast):
        question = await cast.say("policy", "What is to be done?")      the policy's engine answers, wherever it is
        answer = await cast.say("other", f"{question.text} Reply.")
        return [question, replace(answer, parent=0)]

A evaluation task is put to each policy alone, like any single question.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from actors.environments.base import End, Environment, Observation
from cluster.types import Message, Rollout, Task


@dataclass(frozen=True, slots=True)
class Participants:
    """The policies of a group, and the call by which one of them speaks."""

    policies: tuple[str, ...]
    speak: Callable[[str, tuple[Message, ...]], Awaitable[Rollout]]
    """(policy, prompt) → its answer, one turn long."""
    random: Random
    """Random numbers of the group; a task that is claimed again draws the same ones."""

    async def say(self, policy: str, prompt: str) -> Rollout:
        return await self.speak(policy, (Message("user", prompt),))


class MultiPolicyEnvironment(Environment):
    """Subclasses hold options as fields and implement `hold` and `size`."""

    roles: ClassVar[tuple[str, ...]] = ()
    """Every utterance has a prompt of its own."""

    async def hold(self, task: Task, cast: Participants) -> Sequence[Rollout]:
        """The rollouts of one group. `variant` may say what an utterance is for, `parent` which one it replies to."""
        raise NotImplementedError

    def size(self, num_policies: int) -> int:
        """Rollouts of a group; `rollout.group_size` has no say."""
        raise NotImplementedError

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        yield Observation(task.variants[variant])
