"""One episode: an environment and an engine take turns, and every token is written down as the engine saw it.

A policy that plays several agents sees each agent's side alone: one transcript, and in the end one rollout, per agent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from actors.chat import Chat
from actors.engine import Engine
from actors.environments.agent import AgentEnvironment
from actors.environments.base import End, Environment, Observation
from actors.environments.single_turn import SingleTurn
from actors.tools import PolicyTurn, check_schemas
from cluster.errors import DataError, InfrastructureError, one_line
from cluster.process.foreign_loops import RESTARTS, Call, Displaced, ForeignLoops
from cluster.types import Event, Finish, Message, Rollout, Task, Turn, VersionSpan
from cluster.types.wire import brief, conformed


@dataclass
class Transcript:
    """A rollout while it grows."""

    tokens: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    spans: list[VersionSpan] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    num_cut: int = 0
    """Observations that did not fit the context whole."""
    opened: str = ""
    """What the last observation opened for the policy's next turn."""
    tools: tuple[dict[str, Any], ...] = ()
    """What the first observation lets the policy call."""
    earlier: tuple[Transcript, ...] = ()
    """Transcripts of this agent whose turns have left its context."""

    def observe(self, ids: list[int], observation: Observation) -> None:
        start = len(self.tokens)
        self.tokens += ids
        self.mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.events += observation.events
        text = "\n".join(m.content for m in observation.messages)
        self.turns.append(Turn(observation.messages[-1].role, start, len(self.tokens), text))

    def cut(self, length: int) -> None:
        """Leave out the tokens after the first `length`, which were sampled past a stop string."""
        del self.tokens[length:], self.mask[length:], self.logprobs[length:]
        self.spans = [VersionSpan(s.version, s.start, min(s.end, length)) for s in self.spans if s.start < length]


@dataclass(frozen=True)
class Limits:
    """How far one episode may go."""

    max_tokens: int
    max_turns: int
    temperature: float
    environment_timeout_s: float = 60.0
    """For each answer of the environment."""


class AgentEndpoint(Protocol):
    """What serves the policy to agents (`actors.endpoint.Endpoint`)."""

    async def play(
        self,
        environment: AgentEnvironment,
        task: Task,
        variant: str,
        limits: Limits,
        loops: ForeignLoops,
        group: object,
        turned: Callable[[], Awaitable[None]] | None = None,
    ) -> list[Rollout]: ...


async def play(
    engine: Engine,
    chat: Chat,
    environment: Environment,
    task: Task,
    variant: str,
    limits: Limits,
    loops: ForeignLoops | None = None,
    endpoint: AgentEndpoint | None = None,
) -> Rollout:
    """Play one episode and return the rollout of the agent that moved first. Raises as `play_agents` does."""
    return (await play_agents(engine, chat, environment, task, variant, limits, loops, endpoint=endpoint))[0]


async def play_agents(
    engine: Engine,
    chat: Chat,
    environment: Environment,
    task: Task,
    variant: str,
    limits: Limits,
    loops: ForeignLoops | None = None,
    group: object = None,
    endpoint: AgentEndpoint | None = None,
    turned: Callable[[], Awaitable[None]] | None = None,
) -> list[Rollout]:
    """Play one episode to its end: a rollout for each agent that has spoken, in the order of their first turns.

    An environment of the user's own runs on one of `loops`, by default on one of this episode alone; episodes of one
    `group` block no other's. An environment that is an agent reaches the policy through `endpoint` and leaves a rollout
    for each conversation; `turned` is called after each of its turns. Raises DataError if the environment fails or
    hangs or the prompt leaves no room; InfrastructureError if the engine dies.
    """
    if loops is None:
        loops = ForeignLoops()
        try:
            return await play_agents(engine, chat, environment, task, variant, limits, loops, group, endpoint, turned)
        finally:
            loops.close()
    key = group if group is not None else object()
    if isinstance(environment, AgentEnvironment):
        assert endpoint is not None, "an agent reaches the policy through an endpoint"
        return await endpoint.play(environment, task, variant, limits, loops, key, turned)
    for _ in range(RESTARTS):
        with contextlib.suppress(Displaced):  # an episode of another group blocks the loop
            async with side_of(environment, task, variant, limits.environment_timeout_s, loops, key) as side:
                return await _played(engine, chat, environment, side, task, variant, limits)
    raise DataError(f"the environment failed on task {task.id}: other episodes blocked its loop {RESTARTS} times.")


async def _played(
    engine: Engine, chat: Chat, environment: Environment, side: _Side, task: Task, variant: str, limits: Limits
) -> list[Rollout]:
    agents: dict[str, Transcript] = {}
    finish, end = "stop", End()
    step = await side.begin()
    for _ in range(limits.max_turns):
        if not isinstance(step, Observation):
            break
        before = agents.get(step.agent)
        begun = before is not None and not step.new_context
        transcript = before if before is not None and begun else Transcript()
        if before is not None and not begun:
            transcript.earlier = (*before.earlier, before)
        if agents:
            room = engine.max_model_len - len(transcript.tokens)
            if begun:
                encode = partial(chat.observation, after=transcript.tokens[-1], tools=transcript.tools)
            else:
                encode = partial(chat.prompt, tools=step.tools)
            ids, shown = fitting(encode, step, room, limits.max_tokens)
            transcript.num_cut += shown is not step
            step = shown
            if len(ids) >= room:  # not even the mark fits: the episode ends before this observation
                finish = "length"
                (before or transcript).events += step.events
                break
        else:
            if sum(len(m.content) for m in step.messages) > MAX_CHARACTERS_PER_TOKEN * engine.max_model_len:
                raise DataError(
                    f"task {task.id}: its prompt has more than {engine.max_model_len} tokens, which is "
                    "engine.max_model_len."
                )
            ids = chat.prompt(step.messages, step.tools)
        if not begun and not ids:
            raise DataError(f"task {task.id}: its prompt has no token.")
        agents[step.agent] = transcript
        if not begun:
            transcript.tools = step.tools
        transcript.opened = chat.opened(step.messages, first=not begun, tools=transcript.tools)
        transcript.observe(ids, step)
        finish, text = await speak(engine, chat, transcript, limits, task)
        full = len(transcript.tokens) >= engine.max_model_len
        if finish == "length" and (environment.ends_when_cut or full):
            break
        said = transcript.opened + text
        if transcript.tools:
            said = PolicyTurn.of(said, chat.tool_turn(said, transcript.tools))
        step = await side.answer(said)
    if isinstance(step, End):
        end = step
    else:
        # Cut short within a turn, whose observation is written down already, or out of turns before the next one.
        unseen = step.events if finish != "length" else ()
        cut_in_turn = step.when_cut if finish == "length" else None
        end, finish = cut_in_turn or End(step.reward, events=unseen), "length"
    agents = agents or {"": Transcript()}
    return [r for agent, t in agents.items() for r in _rollouts_of(agent, t, finish, end, variant, limits.temperature)]


def _rollouts_of(
    agent: str, transcript: Transcript, finish: Finish, end: End, variant: str, temperature: float
) -> list[Rollout]:
    """Return an agent's rollouts, one for each of its contexts; the turns of events count those of all of them."""
    contexts = [*transcript.earlier, transcript]
    rollouts = [rollout_of(agent, t, finish, end, variant, temperature) for t in contexts]
    if len(rollouts) == 1:
        return rollouts
    events = [e for t in contexts for e in t.events] + [*end.events, *end.agent_events.get(agent, ())]
    result, first = [], 0
    for i, rollout in enumerate(rollouts):
        beyond = first + sum(turn.role == "assistant" for turn in rollout.turns)
        last = i == len(rollouts) - 1
        own = tuple(replace(e, turn=e.turn - first) for e in events if first <= e.turn and (last or e.turn < beyond))
        result.append(replace(rollout, chained=True, events=own))
        first = beyond
    return result


class _Side(Protocol):
    """The environment's side of an episode."""

    async def begin(self) -> Observation | End: ...
    async def answer(self, text: str) -> Observation | End: ...
    async def __aenter__(self) -> _Side: ...
    async def __aexit__(self, *_: Any) -> None: ...


def side_of(
    environment: Environment, task: Task, variant: str, timeout_s: float, loops: ForeignLoops, key: object
) -> _Side:
    if is_own(environment):
        return _OwnSide(environment, task, variant)
    return _ForeignSide(environment, task, variant, timeout_s, loops, key)


class _OwnSide:
    """An environment of Kanabo's: it neither blocks nor hangs, but what it shows and reads are texts of others."""

    def __init__(self, environment: Environment, task: Task, variant: str) -> None:
        self._environment, self._task, self._variant = environment, task, variant
        self._checks = may_misbehave(environment)
        self._episode: Any = None

    async def __aenter__(self) -> _OwnSide:
        return self

    async def __aexit__(self, *_: Any) -> None:
        if self._episode is not None:
            await self._episode.aclose()

    async def begin(self) -> Observation | End:
        def first() -> Any:
            self._episode = self._environment.play(self._task, self._variant)
            return self._episode.__anext__()

        return await self._step(first)

    async def answer(self, text: str) -> Observation | End:
        return await self._step(lambda: self._episode.asend(text))

    async def _step(self, step: Callable[[], Awaitable[Any]]) -> Observation | End:
        try:
            said = await step()
            return _checked(said) if self._checks else said
        except StopAsyncIteration:
            return End()
        except DataError as error:
            raise _failed(self._task, error) from error
        except InfrastructureError:
            raise
        except Exception as error:
            raise _failed(self._task, one_line(error)) from error


class _ForeignSide:
    """An environment of the user's own: its generator lives on a loop of a thread, from its first line to its last.

    One asyncio task runs all of it, so that it may hold a time-out or a session from one turn to the next. Nothing that
    it makes leaves the thread: observations are copied there.
    """

    def __init__(
        self, environment: Environment, task: Task, variant: str, timeout_s: float, loops: ForeignLoops, key: object
    ) -> None:
        self._environment, self._task, self._variant, self._timeout_s = environment, task, variant, timeout_s
        self._loops, self._key = loops, key
        self._said: asyncio.Future[Observation | End]
        self._text: asyncio.Future[str | None] | None = None
        self._running: asyncio.Task[None]

    async def __aenter__(self) -> _ForeignSide:
        late = f"no answer within rollout.environment_timeout_s = {self._timeout_s:g} s."
        self._said = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._loops.run(self._key, self._play, self._timeout_s, late=late))
        self._running.add_done_callback(self._over)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and not issubclass(kind, DataError):  # nothing waits for what is cleaned up
            self._running.cancel()
            return
        if self._text is not None and not self._text.done():
            self._text.set_result(None)
        try:
            await self._running
        except DataError as error:
            if kind is None:  # what is on its way already matters more than a failure to clean up after it
                raise _failed(self._task, error) from error
        except Displaced:
            if kind is None:  # the episode is over, and only its end was blocked by another one
                return

    async def begin(self) -> Observation | End:
        return await self._next()

    async def answer(self, text: str) -> Observation | End:
        assert self._text is not None
        self._said = asyncio.get_running_loop().create_future()
        if self._running.done():  # its loop ended while the policy spoke
            self._over(self._running)
        elif not self._text.done():
            self._text.set_result(text)
        return await self._next()

    async def _next(self) -> Observation | End:
        try:
            return await self._said
        except DataError as error:
            raise _failed(self._task, error) from error

    def _over(self, running: asyncio.Task[None]) -> None:
        if running.cancelled() or self._said.done():
            return
        error = running.exception()
        if error is None:
            self._said.set_result(End())
        else:
            self._said.set_exception(error)

    async def _play(self, call: Call) -> None:
        """On the thread's loop."""
        episode: Any = self._environment.play(deepcopy(self._task), self._variant)
        try:
            said = await episode.__anext__()
            while True:
                text = await call.outside(partial(self._told, _checked(said)))
                if text is None:
                    return
                said = await episode.asend(text)
        except StopAsyncIteration:
            return
        finally:
            if (close := getattr(episode, "aclose", None)) is not None:
                await close()

    async def _told(self, shown: Observation | End) -> str | None:
        """The policy's next turn; None if there is none."""
        self._text = asyncio.get_running_loop().create_future()
        if not self._said.done():
            self._said.set_result(shown)
        return await self._text


def _failed(task: Task, why: object) -> DataError:
    return DataError(f"the environment failed on task {task.id}: {why}")


def _checked(said: Any) -> Observation | End:
    """Return a copy with the types of the data model. Raises DataError."""
    try:
        if isinstance(said, Observation):
            found = conformed(Observation, said, "observation")
            if not found.messages:
                raise DataError("observation.messages is empty.")
            return replace(found, tools=check_schemas(found.tools)) if found.tools else found
        if isinstance(said, End):
            return conformed(End, said, "end")
        raise DataError("it is neither.")
    except DataError as error:
        raise DataError(
            f"it yielded {brief(said)}; an Observation of messages or an End with a finite or unknown reward is "
            f"expected: {error}"
        ) from error


def is_own(environment: object) -> bool:
    """Whether the environment is a part of Kanabo that neither blocks nor hangs, with nothing of a user's in it."""
    foreign = getattr(environment, "runs_foreign_code", False)
    return type(environment).__module__.startswith("actors.environments.") and not foreign


def runs_foreign_code(environment: Environment) -> bool:
    """Whether Python code of a user's runs in this process."""
    return not is_own(environment) or (isinstance(environment, AgentEnvironment) and environment.blocks)


def may_misbehave(environment: Environment) -> bool:
    """Whether the environment has code or text of others: all but the one that only shows a checked task."""
    return type(environment) is not SingleTurn


async def speak(engine: Engine, chat: Chat, transcript: Transcript, limits: Limits, task: Task) -> tuple[Finish, str]:
    """The policy's turn. A turn that an engine aborted for new weights goes on where it was."""
    start = len(transcript.tokens)
    while True:
        spoken = len(transcript.tokens) - start
        room = min(limits.max_tokens - spoken, engine.max_model_len - len(transcript.tokens))
        if room <= 0:
            if spoken == 0 and not any(transcript.mask):
                raise DataError(
                    f"task {task.id}: its prompt has {start} tokens, engine.max_model_len is {engine.max_model_len}."
                )
            finish: Finish = "length"
            break
        sample = await engine.sample(transcript.tokens, max_tokens=room, temperature=limits.temperature)
        offset = len(transcript.tokens)
        transcript.tokens += sample.tokens.tolist()
        transcript.logprobs += sample.logprobs.tolist()
        transcript.mask += [True] * len(sample.tokens)
        transcript.spans += [VersionSpan(s.version, s.start + offset, s.end + offset) for s in sample.spans]
        if (length := chat.stopped_at(transcript.tokens[start:])) is not None:
            transcript.cut(start + length)
            finish = "stop"
            break
        if sample.finish != "abort":
            finish = sample.finish
            break
    text = chat.text(transcript.tokens[start:])
    transcript.turns.append(Turn("assistant", start, len(transcript.tokens), text, transcript.opened))
    return finish, text


CUT_MARK = "\n[cut: {left} of {whole} characters did not fit the context]"
"""Stands in an observation where its end is missing; the policy sees it."""


def fitting(
    encode: Callable[[Sequence[Message]], list[int]], observation: Observation, room: int, max_tokens: int
) -> tuple[list[int], Observation]:
    """Return the observation's ids, its long messages cut if the policy could not answer within `room`."""
    length = sum(len(m.content) for m in observation.messages)
    # No token has more than so many characters, so a longer text cannot fit: do not tokenise it whole.
    if length <= MAX_CHARACTERS_PER_TOKEN * max(room, 1):
        ids = encode(observation.messages)
        if len(ids) < room:
            return ids, observation
    target = room - min(max_tokens, max(1, room // 2))
    if len(observation.messages) > max(target, 0):  # not even empty ones fit
        return [0] * max(room, 0), replace(observation, messages=observation.messages[:1])
    keep = min(max(len(m.content) for m in observation.messages), MAX_CHARACTERS_PER_TOKEN * max(target, 1))
    while True:
        messages = tuple(_shortened(m, keep) for m in observation.messages)
        ids = encode(messages)
        if len(ids) <= target or keep == 0:
            return ids, replace(observation, messages=messages)
        keep = min(keep - 1, keep * max(target, 0) // len(ids))


def _shortened(message: Message, keep: int) -> Message:
    """The message, or its first `keep` characters with the mark behind them."""
    text = message.content
    if len(text) <= keep + len(CUT_MARK):
        return message
    return replace(message, content=text[:keep] + CUT_MARK.format(left=len(text) - keep, whole=len(text)))


MAX_CHARACTERS_PER_TOKEN = 64


def rollout_of(
    agent: str, transcript: Transcript, finish: Finish, end: End, variant: str, temperature: float
) -> Rollout:
    """Return the transcript as a rollout; what stands behind the last token that the policy chose is left out."""
    count = len(transcript.mask) - transcript.mask[::-1].index(True) if True in transcript.mask else 0
    turns = tuple(
        replace(t, start=min(t.start, count), end=min(t.end, count))
        for t in transcript.turns
        if t.role != "assistant" or t.start < count or t.end == 0
    )
    return Rollout(
        tokens=np.array(transcript.tokens[:count], np.int32),
        loss_mask=np.array(transcript.mask[:count], bool),
        logprobs=np.array(transcript.logprobs[:count], np.float32),
        text="\n".join(t.text for t in turns if t.role == "assistant"),
        turns=turns,
        spans=tuple(transcript.spans),
        finish=finish,
        temperature=temperature,
        answer=end.answer,
        variant=variant,
        events=(*transcript.events, *end.events, *end.agent_events.get(agent, ())),
        reward=end.rewards.get(agent, end.reward),
        agent=agent,
        num_cut_observations=transcript.num_cut,
        opened=next((t.opened for t in transcript.turns if t.role == "assistant"), ""),
    )
