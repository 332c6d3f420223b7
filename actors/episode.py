"""One episode: an environment and an engine take turns, and every token is written down as the engine saw it.

A policy that plays several seats sees each seat's side alone: one transcript, and in the end one rollout, per seat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from actors.chat import Chat
from actors.engine import Engine
from actors.environments.base import End, Environment, Observation
from actors.environments.single_turn import SingleTurn
from cluster.errors import DataError, one_line
from cluster.types import Event, Finish, Rollout, Task, Turn, VersionSpan
from cluster.validation import brief, conformed


@dataclass
class Transcript:
    """A rollout while it grows."""

    tokens: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    spans: list[VersionSpan] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    opened: str = ""
    """What the last observation opened for the policy's next turn."""

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


async def play(engine: Engine, chat: Chat, environment: Environment, task: Task, view: str, limits: Limits) -> Rollout:
    """Play one episode to its end; of several seats' rollouts the one that moved first. Raises as `play_seats` does."""
    return (await play_seats(engine, chat, environment, task, view, limits))[0]


async def play_seats(
    engine: Engine, chat: Chat, environment: Environment, task: Task, view: str, limits: Limits
) -> list[Rollout]:
    """Play one episode to its end: a rollout for each seat that has spoken, in the order of their first turns.

    Raises DataError if the environment fails or hangs or the prompt leaves no room; InfrastructureError if the engine
    dies.
    """
    seats: dict[str, Transcript] = {}
    finish, end = "stop", End()
    async with _Side(environment, task, view, limits.environment_timeout_s) as side:
        step = await side.begin()
        for _ in range(limits.max_turns):
            if not isinstance(step, Observation):
                break
            begun = step.seat in seats
            transcript = seats.setdefault(step.seat, Transcript())
            if begun:
                room = engine.max_model_len - len(transcript.tokens)
                ids, step = _fitting(chat, step, transcript.tokens[-1], room, limits.max_tokens)
                if len(ids) >= room:  # not even the mark fits: the episode ends before this observation
                    finish = "length"
                    transcript.events += step.events
                    break
            else:
                ids = chat.prompt(step.messages)
                if not ids:
                    raise DataError(f"task {task.id}: its prompt has no token.")
            transcript.opened = chat.opened(step.messages, first=not begun)
            transcript.observe(ids, step)
            finish, text = await _speak(engine, chat, transcript, limits, task)
            full = len(transcript.tokens) >= engine.max_model_len
            if finish == "length" and (environment.ends_when_cut or full):
                break
            step = await side.answer(transcript.opened + text)
        if isinstance(step, End):
            end = step
        else:
            # Cut short within a turn, whose observation is written down already, or out of turns before the next one.
            unseen = step.events if finish != "length" else ()
            cut_in_turn = step.when_cut if finish == "length" else None
            end, finish = cut_in_turn or End(step.reward, events=unseen), "length"
    seats = seats or {"": Transcript()}
    return [_rollout(seat, t, finish, end, view, limits.temperature) for seat, t in seats.items()]


class _Side:
    """The environment's side of an episode: foreign code under a deadline, whose failures become DataError."""

    def __init__(self, environment: Environment, task: Task, view: str, timeout_s: float) -> None:
        self._environment, self._task, self._view, self._timeout_s = environment, task, view, timeout_s
        self._episode: Any = None
        self._foreign = may_misbehave(environment)

    async def __aenter__(self) -> _Side:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if self._episode is not None:
                await self._within(lambda: self._episode.aclose())
        except DataError:
            if kind is None:  # what is on its way already matters more than a failure to clean up after it
                raise

    async def begin(self) -> Observation | End:
        def first() -> Any:
            task = deepcopy(self._task) if self._foreign else self._task
            self._episode = self._environment.play(task, self._view)
            return self._episode.__anext__()

        return self._checked(await self._within(first))

    async def answer(self, text: str) -> Observation | End:
        return self._checked(await self._within(lambda: self._episode.asend(text)))

    async def _within(self, step: Callable[[], Awaitable[Any]]) -> Any:
        if not self._foreign:
            try:
                return await step()
            except StopAsyncIteration:
                return End()
        # A task of its own, which is waited for and not joined: an environment may raise or swallow a cancellation.
        running = asyncio.create_task(_outcome(step))
        try:
            done, _ = await asyncio.wait({running}, timeout=self._timeout_s)
        finally:
            running.cancel()
        if not done:
            why = f"no answer within rollout.environment_timeout_s = {self._timeout_s:g} s."
            raise DataError(f"the environment failed on task {self._task.id}: {why}")
        said, error = (None, asyncio.CancelledError()) if running.cancelled() else running.result()
        if isinstance(error, StopAsyncIteration):
            return End()
        if error is not None:
            raise DataError(f"the environment failed on task {self._task.id}: {_why(error)}") from error
        return said

    def _checked(self, said: Any) -> Observation | End:
        """Return a copy with the types of the data model. Raises DataError."""
        if not self._foreign:
            return said
        try:
            if isinstance(said, Observation):
                found = conformed(Observation, said, "observation")
                if not found.messages:
                    raise DataError("observation.messages is empty.")
                return found
            if isinstance(said, End):
                return conformed(End, said, "end")
            raise DataError("it is neither.")
        except DataError as error:
            raise DataError(
                f"the environment yielded {brief(said)} on task {self._task.id}; an Observation of messages "
                f"or an End with a finite or unknown reward is expected: {error}"
            ) from error


def may_misbehave(environment: Environment) -> bool:
    """Whether the environment has code or text of others: all but the one that only shows a checked task."""
    return type(environment) is not SingleTurn


async def _outcome(step: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
    """Return what the step gave, or what it raised: a task that lets SystemExit through ends the whole event loop."""
    try:
        return await step(), None
    except BaseException as error:
        return None, error


def _why(error: BaseException) -> str:
    try:
        return one_line(error)
    except Exception:  # its text is foreign code too
        return f"{type(error).__name__}."


async def _speak(engine: Engine, chat: Chat, transcript: Transcript, limits: Limits, task: Task) -> tuple[Finish, str]:
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


def _fitting(
    chat: Chat, observation: Observation, after: int, room: int, max_tokens: int
) -> tuple[list[int], Observation]:
    """Return the observation's ids, cut in its longest message if the policy could not answer within `room`."""
    most = max(len(m.content) for m in observation.messages)
    # No token has more than so many characters, so this text cannot fit: do not tokenise it whole.
    if most <= MAX_CHARACTERS_PER_TOKEN * max(room, 1):
        ids = chat.observation(observation.messages, after=after)
        if len(ids) < room:
            return ids, observation
    target = room - min(max_tokens, max(1, room // 2))
    place = max(range(len(observation.messages)), key=lambda i: len(observation.messages[i].content))
    text = observation.messages[place].content
    keep = min(len(text), MAX_CHARACTERS_PER_TOKEN * max(target, 1))
    while True:
        mark = CUT_MARK.format(left=len(text) - keep, whole=len(text))
        cut = replace(observation.messages[place], content=text[:keep] + mark)
        messages = (*observation.messages[:place], cut, *observation.messages[place + 1 :])
        ids = chat.observation(messages, after=after)
        if len(ids) <= target or keep == 0:
            return ids, replace(observation, messages=messages)
        keep = min(keep - 1, keep * max(target, 0) // len(ids))


MAX_CHARACTERS_PER_TOKEN = 64


def _rollout(seat: str, transcript: Transcript, finish: Finish, end: End, view: str, temperature: float) -> Rollout:
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
        view=view,
        events=(*transcript.events, *end.events, *end.seat_events.get(seat, ())),
        reward=end.rewards.get(seat, end.reward),
        role=seat,
        opened=next((t.opened for t in transcript.turns if t.role == "assistant"), ""),
    )
