"""A search: an environment that makes a whole group by extending token prefixes, and says what became a rollout.

    async def search(self, task, tools):
        root = await tools.root()
        steps = await tools.extend(root, 4)                    four next steps, the rest is in the prefix cache
        values = await tools.score(steps, self.value)          by any reward, such as a judge or a value model
        best = steps[int(np.nanargmax(values))]
        return [Found(end) for end in await tools.finish(best, 2)]

Every node keeps the tokens and log-probs that it was sampled with, so rollouts that share a node share its tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr

from actors.environments import ENVIRONMENTS
from actors.environments.agent import AgentEnvironment
from actors.environments.base import End, Environment, Observation
from actors.environments.multi_policy import MultiPolicyEnvironment
from cluster.config import Use
from cluster.errors import ConfigError
from cluster.plugins import Plugin, build
from cluster.types import Group, Message, Task

MAX_STEPS = 64
"""Steps that `finish` takes at most from one node to the end of its episode."""


@dataclass(frozen=True, slots=True)
class Node:
    """A place in the tree: all that was written on the way to it. The tokens stay with the sampler."""

    id: int
    parent: int | None
    """None for a root."""
    depth: int
    """Steps below the root."""
    text: str
    """What the policy wrote in this step, and what the environment answered; of a root the prompt."""
    written: str
    """The texts of all steps from below the root to this one."""
    ended: bool = False
    """Whether the episode is over here; such a node cannot be extended."""
    answer: str | None = None
    reward: float = float("nan")
    """The environment's own reward where the episode is over; NaN if it gives none."""


@dataclass(frozen=True, slots=True)
class Found:
    """A node that becomes a rollout of the group."""

    node: Node
    reward: float | None = None
    """`Rollout.reward`, by default the environment's own."""
    values: Mapping[int, float] = field(default_factory=dict)
    """What nodes are worth, by their ids, as `TreeNode.value` keeps it; those that are not on the way are ignored."""
    variant: str = "orig"
    parent: int | None = None
    """Place of another rollout in the group that this one replies to."""


class Critic(Plugin):
    """A reward that values nodes: it is given their unfinished rollouts as a group."""

    use: str
    """Any reward by name, such as `judge`, `tree_value`, `exact`; or `package.module:Class`."""
    options: dict[str, Any] = {}
    """Options of the reward."""
    timeout_s: PositiveFloat = 30.0
    """Deadline of one call; what is unanswered by then is unknown."""


class Critics(Protocol):
    """What values nodes and answers questions, outside of `actors` (`cluster.workers.critics`)."""

    async def score(self, critic: Critic, group: Group) -> Float[np.ndarray, " G"]:
        """Return the scores of a group's rollouts, NaN where unknown."""
        ...

    async def complete(
        self, judge: str, messages: Sequence[Message], n: int, max_tokens: int, temperature: float
    ) -> list[str | None]:
        """Return `n` answers of the judge of that name, None for one that failed."""
        ...


@dataclass(frozen=True, slots=True)
class SearchTools:
    """What a search may do with one task; the group's claim is renewed whenever a node is made."""

    begin: Callable[[tuple[Message, ...] | None], Awaitable[Node]]
    step: Callable[[int, tuple[str, ...], int | None], Awaitable[Node]]
    """(id of a node, stop strings, token budget) → one sampled child."""
    value: Callable[[Sequence[int], Critic], Awaitable[Float[np.ndarray, " N"]]]
    ask: Callable[[str, Sequence[Message], int, int, float], Awaitable[list[str | None]]]
    stop: tuple[str, ...]
    """Strings that end a step, by default."""
    step_tokens: int | None
    """Tokens of a step at most, by default."""
    random: Random
    """Random numbers of the group; a task that is claimed again draws the same ones."""

    async def root(self, messages: tuple[Message, ...] | None = None) -> Node:
        """Return a new root: the task's first observation, or other messages in its place."""
        return await self.begin(messages)

    async def extend(
        self, node: Node, n: int = 1, *, stop: tuple[str, ...] | None = None, max_tokens: int | None = None
    ) -> list[Node]:
        """Return `n` sampled children of a node, in no order of merit. Raises DataError for a node that has ended."""
        stop, most = self.stop if stop is None else stop, self.step_tokens if max_tokens is None else max_tokens
        return list(await asyncio.gather(*(self.step(node.id, stop, most) for _ in range(n))))

    async def finish(self, node: Node, n: int = 1) -> list[Node]:
        """Return `n` ends of episodes that begin with a node, whole turns at a time; the node itself if it has ended.

        An episode that does not end within `MAX_STEPS` turns is returned where it stands.
        """

        async def one() -> Node:
            here = node
            for _ in range(MAX_STEPS):
                if here.ended:
                    break
                here = await self.step(here.id, (), None)
            return here

        return [node] * n if node.ended else list(await asyncio.gather(*(one() for _ in range(n))))

    async def score(self, nodes: Sequence[Node], critic: Critic) -> Float[np.ndarray, " N"]:
        """Return what the critic makes of the nodes, in their order; NaN where it does not know."""
        return await self.value([node.id for node in nodes], critic) if nodes else np.empty(0)

    async def complete(
        self, judge: str, messages: Sequence[Message], n: int = 1, *, max_tokens: int = 1024, temperature: float = 0.0
    ) -> list[str | None]:
        """Return `n` answers of `[judges.NAME]` to a conversation, None for one that failed."""
        return await self.ask(judge, messages, n, max_tokens, temperature)


class SearchEnvironment(Environment):
    """Subclasses hold options as fields and implement `search`.

    A node is a part of an episode of `inner`: a step of one turn, which ends at a stop string or a number of tokens, or
    the whole turn. The environment's answer to a turn is found by playing the turns again, so `inner` must answer equal
    turns alike. An evaluation plays `inner` without a search.
    """

    inner: Use = Use(use="single_turn")
    """The environment that episodes are played in; one agent, one context."""
    stop: tuple[str, ...] = ()
    """Strings that end a step within a turn, such as a newline."""
    step_tokens: PositiveInt | None = None
    """Tokens after which a step ends; by default a step has what `rollout.max_tokens` leaves of its turn."""
    size: PositiveInt = Field(default=8)
    """Rollouts of a group at most."""
    _inner: Environment | None = PrivateAttr(None)
    ends_when_cut: ClassVar[bool] = True

    def critics(self) -> Sequence[Critic]:
        """Return the critics that the search asks; by default those among its options."""
        options = (getattr(self, name) for name in type(self).model_fields)
        return [option for option in options if isinstance(option, Critic)]

    async def search(self, task: Task, tools: SearchTools) -> Sequence[Found]:
        """Search one task; return what the group holds, at least one node and no node twice."""
        raise NotImplementedError

    @property
    def episode(self) -> Environment:
        """The environment of one path. Raises ConfigError for one that cannot be searched."""
        if self._inner is None:
            where = "rollout.environment.options.inner"
            inner = build(ENVIRONMENTS, self.inner.use, self.inner.options, where)
            if isinstance(inner, AgentEnvironment | MultiPolicyEnvironment | SearchEnvironment) or inner.agents != (
                "",
            ):
                raise ConfigError(
                    f"{where}.use = '{self.inner.use}' cannot be searched: name an environment of one policy and one "
                    "agent that waits for its turns, such as 'single_turn' or 'calculator'."
                )
            self._inner = inner
        return self._inner

    def check(self) -> None:
        self.episode.check()

    def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        return self.episode.play(task, variant)
