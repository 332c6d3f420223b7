"""Sampling for searches: a tree of token prefixes on one engine, and its leaves as rollouts.

`tools.extend` ─► engine.sample(all tokens of the node) ─► child: the node's tokens, the new ones, and what the
environment answers if the turn has ended. The engine's prefix cache shares what nodes have in common.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

import numpy as np
from jaxtyping import Float

from actors import episode
from actors.chat import Chat
from actors.engine import Engine
from actors.environments.base import End, Environment, Observation
from actors.environments.search import Critic, Critics, Found, Node, SearchEnvironment, SearchTools
from actors.episode import Limits, Transcript
from actors.tools import PolicyTurn
from cluster.errors import DataError, InfrastructureError, LeaseLost, one_line
from cluster.process.foreign_loops import RESTARTS, Call, Displaced, ForeignLoops
from cluster.types import Claim, Finish, Group, Message, Rollout, Task, TreeNode, Turn, VersionSpan
from cluster.types.wire import brief, conformed


@dataclass(frozen=True)
class _Place:
    """A node with its tokens."""

    node: Node
    transcript: Transcript
    """Up to here; a turn that is over has the environment's answer behind it."""
    path: tuple[TreeNode, ...] = ()
    said: tuple[str, ...] = ()
    """Whole turns so far, as the environment hears them."""
    turn_start: int | None = None
    """First token of the turn that has begun; None where the policy's next turn begins."""
    seen: Observation | None = None
    """The last observation."""
    messages: tuple[Message, ...] | None = None
    """What stands in the place of the first observation."""
    finish: Finish = "stop"
    end: End = field(default_factory=End)


class SearchSampler:
    """Runs searches of one rollout worker."""

    def __init__(
        self, engine: Engine, chat: Chat, seed: int, critics: Critics | None, loops: ForeignLoops, policy: str
    ) -> None:
        """`critics` value nodes; without any, a search that asks for values fails."""
        self.engine, self.chat, self.critics, self.loops = engine, chat, critics, loops
        self._seed, self._policy = seed, policy
        self._looking = asyncio.Lock()
        self._num_tokens = 0

    async def group(
        self,
        environment: SearchEnvironment,
        claim: Claim,
        task: Task,
        limits: Limits,
        progress: Callable[[], Awaitable[None]],
    ) -> Group:
        """Return the group of a search; `progress` is called whenever a node was made.

        Raises DataError if the search fails, InfrastructureError if the engine dies.
        """
        random = Random(f"{self._seed}/{claim.task}")
        tree = _Tree(self, environment.episode, claim, task, limits, progress)
        failed = f"the search failed on task {task.id}: "
        try:
            if episode.is_own(environment):
                found = await environment.search(task, tree.tools(environment, random))
            else:
                found = await self._foreign(environment, claim, task, limits, tree, random)
            return Group(claim, task, tree.rollouts(found, environment.size, self._policy))
        except (InfrastructureError, LeaseLost):
            raise
        except DataError as error:
            raise DataError(f"{failed}{error}") from error
        except Exception as error:
            raise DataError(failed + one_line(error)) from error

    def count(self, tokens: int) -> None:
        """Count tokens that a search sampled."""
        self._num_tokens += tokens

    def take_tokens(self) -> int:
        """Return the tokens that were sampled since the last call; a token that rollouts share counts once."""
        taken, self._num_tokens = self._num_tokens, 0
        return taken

    async def stop_tokens(self, strings: tuple[str, ...]) -> tuple[int, ...]:
        """Return the tokens that end a step at one of these strings."""
        async with self._looking:  # the first look at a large vocabulary takes seconds, and one will do
            return await asyncio.to_thread(self.chat.tokens_with, strings)

    async def _foreign(
        self, environment: SearchEnvironment, claim: Claim, task: Task, limits: Limits, tree: _Tree, random: Random
    ) -> Sequence[Found]:
        """Run a search of the user's own on a thread of the worker's loops; nodes are made here."""

        async def work(call: Call) -> Sequence[Found]:
            def outside(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
                return lambda *given: call.outside(partial(function, *given))

            here = tree.tools(environment, random)
            tools = replace(
                here,
                begin=outside(here.begin), step=outside(here.step), value=outside(here.value), ask=outside(here.ask),
            )  # fmt: skip
            return _plain(await environment.search(deepcopy(task), tools))

        late = f"no node and no end within rollout.environment_timeout_s = {limits.environment_timeout_s:g} s."
        for _ in range(RESTARTS):
            try:
                return await self.loops.run(claim, work, limits.environment_timeout_s, late=late)
            except Displaced:  # a search of another group blocks the loop
                continue
        raise DataError(f"others blocked its loop {RESTARTS} times.")


class _Tree:
    """The nodes of one group."""

    def __init__(
        self,
        sampler: SearchSampler,
        inner: Environment,
        claim: Claim,
        task: Task,
        limits: Limits,
        progress: Callable[[], Awaitable[None]],
    ) -> None:
        self._sampler, self._engine, self._chat, self._critics = sampler, sampler.engine, sampler.chat, sampler.critics
        self._loops, self._inner, self._claim, self._task = sampler.loops, inner, claim, task
        self._limits, self._progress = limits, progress
        self._places: list[_Place] = []

    def tools(self, environment: SearchEnvironment, random: Random) -> SearchTools:
        return SearchTools(
            self.begin, self.step, self.value, self.ask, environment.stop, environment.step_tokens, random
        )

    async def begin(self, messages: tuple[Message, ...] | None) -> Node:
        messages = None if messages is None else conformed(tuple[Message, ...], messages, "messages")
        first = await self._heard((), messages)
        if isinstance(first, End):
            raise DataError("the environment ended before the policy's first turn.")
        ids = self._chat.prompt(first.messages, first.tools)
        if not ids or len(ids) >= self._engine.max_model_len:
            raise DataError(
                f"its prompt has {len(ids)} tokens; 1 to {self._engine.max_model_len - 1} leave room for an answer "
                "(engine.max_model_len)."
            )
        transcript = Transcript(tools=first.tools, opened=self._chat.opened(first.messages, tools=first.tools))
        transcript.observe(ids, first)
        text = "\n".join(m.content for m in first.messages)
        node = Node(len(self._places), None, 0, text, "")
        self._places.append(_Place(node, transcript, seen=first, messages=messages))
        return node

    async def step(self, parent: int, stop: tuple[str, ...], max_tokens: int | None) -> Node:
        place = self._place(parent)
        if place.node.ended:
            raise DataError(f"node {parent} has ended, and nothing follows it.")
        transcript = _copied(place.transcript)
        start = len(transcript.tokens)
        begin = start if place.turn_start is None else place.turn_start
        finish = await self._speak(transcript, begin, start, stop, max_tokens)
        end, text = len(transcript.tokens), self._chat.text(transcript.tokens[start:])
        grown = replace(place, transcript=transcript, turn_start=begin)
        if finish is not None:
            grown, answered = await self._turn_over(grown, begin, finish)
            text += answered
        # Numbers are given once all is known: children that are sampled at the same time may end in any order.
        node = Node(
            len(self._places),
            parent,
            place.node.depth + 1,
            text,
            place.node.written + text,
            grown.node.ended,
            grown.end.answer,
            grown.end.reward,
        )
        self._places.append(replace(grown, node=node, path=(*place.path, TreeNode(node.id, end, text))))
        await self._progress()
        return node

    async def value(self, nodes: Sequence[int], critic: Critic) -> Float[np.ndarray, " N"]:
        if self._critics is None:
            raise DataError("a search asks critics, and this worker has none.")
        rollouts = tuple(self._rollout(self._place(i)) for i in nodes)
        scores = await self._critics.score(critic, Group(self._claim, self._task, rollouts))
        await self._progress()
        return scores

    async def ask(
        self, judge: str, messages: Sequence[Message], n: int, max_tokens: int, temperature: float
    ) -> list[str | None]:
        if self._critics is None:
            raise DataError("a search asks a judge, and this worker knows none.")
        answers = await self._critics.complete(judge, messages, n, max_tokens, temperature)
        await self._progress()
        return answers

    def rollouts(self, found: Sequence[Found], size: int, policy: str) -> tuple[Rollout, ...]:
        """Return what the search found as rollouts. Raises DataError for anything else than nodes of this tree."""
        given = tuple(found) if isinstance(found, list | tuple) else ()
        if not given or not all(isinstance(f, Found) for f in given):
            raise DataError(f"it returned {brief(found)}; a list of Found with at least one is expected.")
        if len({f.node.id for f in given}) < len(given) or len(given) > size:
            raise DataError(f"it returned {len(given)} nodes; at most size = {size}, each once, are expected.")
        result = []
        for one in given:
            place = self._place(one.node.id)
            if not place.path:
                raise DataError("it returned a root, in which the policy wrote nothing.")
            rollout = self._rollout(place)
            path = tuple(replace(n, value=float(one.values.get(n.id, np.nan))) for n in rollout.path)
            reward = rollout.reward if one.reward is None else one.reward
            result.append(
                replace(rollout, policy=policy, path=path, reward=reward, variant=one.variant, parent=one.parent)
            )
        return tuple(result)

    def _place(self, node: int) -> _Place:
        if not 0 <= node < len(self._places):
            raise DataError(f"there is no node {node}.")
        return self._places[node]

    def _rollout(self, place: _Place) -> Rollout:
        transcript = _copied(place.transcript)
        begin, end = place.turn_start, len(transcript.tokens)
        if begin is not None and end > begin:  # the turn goes on below this node
            text = self._chat.text(transcript.tokens[begin:])
            transcript.turns.append(Turn("assistant", begin, end, text, transcript.opened))
        rollout = episode.rollout_of("", transcript, place.finish, place.end, "orig", self._limits.temperature)
        count = len(rollout.tokens)  # a last step may have no token of its own
        return replace(rollout, path=tuple(replace(n, end=min(n.end, count)) for n in place.path))

    async def _speak(
        self, transcript: Transcript, begin: int, start: int, stop: tuple[str, ...], max_tokens: int | None
    ) -> Finish | None:
        """Sample one step behind `start` of a turn that began at `begin`; return how the turn ended, None if it did
        not."""
        chat, engine = self._chat, self._engine
        stop_tokens = await self._sampler.stop_tokens(stop) if stop else ()
        how: dict[str, Any] = {"stop_tokens": stop_tokens} if stop_tokens else {}
        while True:
            count = len(transcript.tokens)
            room = min(self._limits.max_tokens - (count - begin), engine.max_model_len - count)
            left = room if max_tokens is None else min(room, max_tokens - (count - start))
            if left <= 0:
                return "length" if room <= 0 else None
            sample = await engine.sample(
                transcript.tokens, max_tokens=left, temperature=self._limits.temperature, **how
            )
            self._sampler.count(len(sample.tokens))
            transcript.tokens += sample.tokens.tolist()
            transcript.logprobs += sample.logprobs.tolist()
            transcript.mask += [True] * len(sample.tokens)
            transcript.spans += [VersionSpan(s.version, s.start + count, s.end + count) for s in sample.spans]
            if (length := chat.stopped_at(transcript.tokens[begin:])) is not None:
                transcript.cut(begin + length)
                return "stop"
            if stop and (length := chat.stopped_at(transcript.tokens[start:], stop)) is not None:
                transcript.cut(start + length)
                return None
            if sample.finish == "stop":
                return "stop"

    async def _turn_over(self, place: _Place, begin: int, finish: Finish) -> tuple[_Place, str]:
        """Hand a whole turn to the environment; return the place behind its answer, and the answer's text."""
        transcript, last = place.transcript, place.seen
        assert last is not None
        text = self._chat.text(transcript.tokens[begin:])
        transcript.turns.append(Turn("assistant", begin, len(transcript.tokens), text, transcript.opened))
        full = len(transcript.tokens) >= self._engine.max_model_len
        if finish == "length" and (self._inner.ends_when_cut or full):
            return _ended(place, last.when_cut or End(last.reward), "length"), ""
        said = transcript.opened + text
        whole = PolicyTurn.of(said, self._chat.tool_turn(said, transcript.tools)) if transcript.tools else said
        said_so_far = (*place.said, whole)
        seen = await self._heard(said_so_far, place.messages)
        place = replace(place, said=said_so_far)
        if isinstance(seen, End):
            return _ended(place, seen, finish), ""
        if seen.new_context or seen.agent:
            raise DataError("the environment opens a context, or has an agent, of its own; a search has one context.")
        room = self._engine.max_model_len - len(transcript.tokens)
        encode = partial(self._chat.observation, after=transcript.tokens[-1], tools=transcript.tools)
        ids, shown = episode.fitting(encode, seen, room, self._limits.max_tokens)
        if len(said_so_far) >= self._limits.max_turns or len(ids) >= room:
            return _ended(place, End(seen.reward, events=seen.events), "length"), ""
        transcript.num_cut += shown is not seen
        transcript.opened = self._chat.opened(shown.messages, first=False, tools=transcript.tools)
        transcript.observe(ids, shown)
        answered = "\n".join(m.content for m in shown.messages)
        return replace(place, transcript=transcript, turn_start=None, seen=shown), answered

    async def _heard(self, said: tuple[str, ...], messages: tuple[Message, ...] | None) -> Observation | End:
        """Play the environment again up to its answer to these turns."""
        limits, loops = self._limits, self._loops
        for _ in range(RESTARTS):
            try:
                async with episode.side_of(
                    self._inner, self._task, "orig", limits.environment_timeout_s, loops, self._claim
                ) as side:
                    step = await side.begin()
                    for text in said:
                        if isinstance(step, End):
                            raise DataError(
                                "the environment ended an episode earlier when its turns were played again."
                            )
                        step = await side.answer(text)
                    if messages is not None and not said and isinstance(step, Observation):
                        step = replace(step, messages=messages)
                    return step
            except Displaced:  # an episode of another group blocks the loop
                continue
        raise DataError(f"other episodes blocked its loop {RESTARTS} times.")


def _plain(found: object) -> Sequence[Found]:
    """Return what a search of the user's own found, without objects of its own. Raises DataError."""
    if not isinstance(found, list | tuple) or not all(isinstance(f, Found) for f in found):
        raise DataError(f"it returned {brief(found)}; a list of Found is expected.")
    return [replace(f, values={int(k): float(v) for k, v in f.values.items()}) for f in found]


def _ended(place: _Place, end: End, finish: Finish) -> _Place:
    return replace(place, node=replace(place.node, ended=True), turn_start=None, end=end, finish=finish)


def _copied(transcript: Transcript) -> Transcript:
    lists = ("tokens", "mask", "logprobs", "turns", "spans", "events")
    return replace(transcript, **{name: [*getattr(transcript, name)] for name in lists})
