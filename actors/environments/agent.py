"""An agent as the environment: code that calls the policy through OpenAI's API, as often and with what it likes.

Other environments are asked for observations; an agent asks, and each of its requests is a turn of the policy. The
endpoint (`actors/endpoint`) serves the requests of one episode under a key of its own and writes down every token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from actors.environments.base import End, Environment, Observation
from cluster.types import Task


@dataclass(frozen=True, slots=True)
class PolicyAccess:
    """How an agent reaches the policy during one episode."""

    base_url: str
    """`http://…/v1`, for clients that take URL and key."""
    api_key: str
    """Names the episode: nobody else has it, and it is worth nothing once the episode is over."""
    model: str
    """What requests name as their model."""
    session_url: str = ""
    """`http://…/sessions/KEY/v1`, for clients that send a key of their own."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one conversation with the policy came to, where not all of an episode are worth the same."""

    tokens: tuple[int, ...]
    """Prompts and turns of the policy, from the first token on; by them its rollout is known."""
    reward: float
    agent: str = ""
    """Name of the agent that had it, in an episode of several."""
    trained: bool = True
    """Whether the policy learns from it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an episode came to."""

    reward: float = float("nan")
    """NaN where the agent gives none; then other rewards of the recipe score the rollouts."""
    answer: str | None = None
    conversations: tuple[Conversation, ...] = ()
    """Conversations with a reward of their own; all others have `reward`."""


class AgentEnvironment(Environment):
    """Subclasses hold options as fields and implement `run`."""

    roles: ClassVar[tuple[str, ...]] = ()
    shows_task: ClassVar[bool] = False
    blocks: ClassVar[bool] = True
    """Whether `run` calls foreign Python code, which then gets a thread and copies of what it is given."""

    timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    """Deadline of one episode in seconds; the agent is ended then, and the episode is cut short."""
    reward_when_cut: float = Field(default=float("nan"))
    """Reward of an episode that is cut short: past its deadline, out of `rollout.max_turns`, or with a context that is
    full. NaN: unknown."""
    reward_when_failed: float | None = None
    """Reward of an episode whose agent fails after a turn of the policy. Without it the failure costs the whole group,
    which is counted as a data failure."""

    async def run(self, task: Task, variant: str, policy: PolicyAccess) -> Outcome:
        """Let the agent solve the task and return what came of it. Raises whatever says that the agent failed."""
        raise NotImplementedError

    def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        raise NotImplementedError("an agent is run, not played")
