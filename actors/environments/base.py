"""The environment's side of an episode: observations out, the policy's turns in.

    async def play(self, task, variant):
        text = yield Observation(task.variants[variant])       # the policy answers
        ...
        yield End(reward=…)                              # or just return

An episode is one run of this generator, so it is single-use and keeps its state in local variables.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cluster.plugins import Plugin
from cluster.types import Event, Message, Task


@dataclass(frozen=True, slots=True)
class End:
    """The episode is over."""

    reward: float = float("nan")
    """The environment's own reward, NaN if it gives none."""
    answer: str | None = None
    events: tuple[Event, ...] = ()
    rewards: dict[str, float] = field(default_factory=dict)
    """Reward of each agent by name, in an episode of several; an agent without an entry gets `reward`."""
    agent_events: dict[str, tuple[Event, ...]] = field(default_factory=dict)
    """Events that are one agent's alone; their `turn` counts that agent's turns."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees next; it is never trained on."""

    messages: tuple[Message, ...]
    events: tuple[Event, ...] = ()
    reward: float = float("nan")
    """The reward of an episode that is cut short here, out of turns or tokens; NaN if it has none then."""
    agent: str = ""
    """The agent that sees the observation and takes the next turn, in an episode of several agents."""
    when_cut: End | None = None
    """How the episode ends if the turn that follows runs out of tokens; by default with `reward`."""
    new_context: bool = False
    """Whether the agent's turns so far leave its context: these messages are the prompt of a new rollout, which
    continues the chain of the episode's rollouts (`Rollout.chained`)."""
    tools: tuple[dict[str, Any], ...] = ()
    """Tools that the policy may call in this episode, in OpenAI's form. Those of an agent's first observation hold to
    the end; the environment then gets a `PolicyTurn`, which is the text and has the calls in it."""

    @staticmethod
    def of(
        text: str,
        *,
        role: str = "user",
        events: tuple[Event, ...] = (),
        reward: float = float("nan"),
        agent: str = "",
        when_cut: End | None = None,
        new_context: bool = False,
    ) -> Observation:
        return Observation((Message(role, text),), events, reward, agent, when_cut, new_context)


class Environment(Plugin):
    """Subclasses hold options as fields and implement `play`."""

    agents: ClassVar[tuple[str, ...]] = ("",)
    """The agents of a training episode. Each agent that speaks leaves a rollout of its own, so `rollout.group_size`
    is a multiple of their number."""

    ends_when_cut: ClassVar[bool] = True
    """Whether a turn that runs out of tokens ends the episode; else it is answered as it stands."""

    shows_task: ClassVar[bool] = True
    """Whether an episode begins with the task's prompt as it is, so that rows longer than the context are left out."""

    uses_tools: ClassVar[bool] = False
    """Whether observations have tools; before a run the model is asked whether it can be shown some."""

    runs_foreign_code: ClassVar[bool] = False
    """Whether an episode of this environment of Kanabo's runs code, or waits for servers, of others. Each answer then
    has the deadline `rollout.environment_timeout_s`, as in every environment of a user's own."""

    roles: ClassVar[tuple[str, ...]] = ("user",)
    """Roles of the observations after the first; before a run each is tried on the model's chat template."""

    def check(self) -> None:
        """Try before a run what can be tried, such as whether a server answers. Raises ConfigError."""

    def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        raise NotImplementedError
