"""One episode of an agent: its requests become turns, and every token is written down as the engine sampled it.

    request ── rendered ──► extends a branch, token for token?   yes: the branch goes on behind its own tokens
                                                                 no: the next branch opens
A branch is a rollout while it grows. What was sampled is never tokenised again: prompts are compared with branches as
text, and only the text behind the last turn of the branch is encoded. A branch that another request is sampling for, or
that has gone further than the prompt, is left alone: a new branch begins with the tokens that both share, of which none
is trained a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from actors.chat import Chat, Row
from actors.endpoint.errors import ApiError
from actors.engine import Engine
from actors.environments.agent import Conversation, Outcome
from actors.environments.base import End, Observation
from actors.environments.function import outcome_of
from actors.episode import Limits, Transcript, rollout_of, speak
from cluster.errors import DataError
from cluster.types import INVALID_TOOL_CALL, Event, Finish, Message, Rollout, Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a request shows the policy: text that a chat template wrote, or token ids."""

    text: str
    """As rendered; of a prompt of ids, what they decode to."""
    messages: tuple[Message, ...]
    """What a person would read of it, for the turns of the rollout."""
    tokens: tuple[int, ...] | None = None
    opened: str = ""
    """What it opened for the policy's turn, such as `<think>\\n`."""

    @property
    def news(self) -> tuple[Message, ...]:
        """The messages behind the last one of the policy."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=-1)
        return self.messages[last + 1 :] or self.messages[-1:]


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request asks of its turn, within the limits of the episode."""

    max_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Answer:
    """The policy's turn."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Nats, one for each of `tokens`."""
    text: str
    """With what the prompt opened, and without what ended the turn."""
    raw: str
    """With the stop string that ended it."""
    finish: Finish
    num_prompt_tokens: int
    branch: Branch


@dataclass(slots=True)
class _Piece:
    """A part of a branch between two boundaries, as text."""

    text: str
    sampled: bool
    end: str
    """Text of the token that ended a turn; "" where none did."""
    length: int
    """Tokens of the branch up to the end of this part."""


@dataclass(slots=True, eq=False)
class Branch:
    """A rollout while it grows."""

    transcript: Transcript = field(default_factory=Transcript)
    pieces: list[_Piece] = field(default_factory=list)
    busy: bool = False
    finish: Finish = "stop"


@dataclass(frozen=True, slots=True)
class _Match:
    """How far a branch and a prompt agree: `pieces` of the branch, which end at the prompt's character `at`."""

    branch: Branch
    pieces: int
    at: int

    @property
    def whole(self) -> bool:
        return self.pieces == len(self.branch.pieces)


class Session:
    """Everything that one agent asks for in one episode. It belongs to the event loop of the engine."""

    def __init__(
        self,
        key: str,
        engine: Engine,
        chat: Chat,
        limits: Limits,
        task: Task,
        *,
        counts: Counter[str],
        turned: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`turned` is called after every turn; it may raise what ends the episode."""
        self.key = key
        self._engine, self._chat, self._limits, self._task = engine, chat, limits, task
        self._counts, self._turned = counts, turned
        self._branches: list[Branch] = []
        self._raw: dict[str, str] = {}
        """What the policy wrote, by the message that the agent was shown of it."""
        self._working: set[asyncio.Task[Any]] = set()
        self._turns = 0
        self.outcome: Outcome | None = None
        """What the agent said by a call."""
        self.cut = ""
        """Why the episode was cut short; "" while it is not."""
        self.refused = ""
        """The last request that was refused, in words."""
        self.ended = asyncio.Event()
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends in what no agent is to blame for, such as the death of the engine."""

    @property
    def sampled(self) -> bool:
        """Whether the policy has said anything."""
        return any(any(branch.transcript.mask) for branch in self._branches)

    def end(self, outcome: Outcome) -> None:
        """End the episode. Raises ApiError if it has ended."""
        self._check_open()
        self.outcome = outcome
        self.ended.set()

    async def respond(self, prompts: Sequence[Prompt], sampling: Sampling, choices: int = 1) -> list[Answer]:
        """Return `choices` turns of the policy behind the prompt.

        `prompts` are ways to write the same prompt. The first that goes on with a branch is taken, the last if none
        does. Raises ApiError for what the agent must not ask, InfrastructureError if the engine dies.
        """
        self._check_open()
        if self._turns + choices > self._limits.max_turns:
            self._cut(f"rollout.max_turns = {self._limits.max_turns}")
            raise ApiError(
                403,
                f"the episode has had {self._turns} turns, and rollout.max_turns = {self._limits.max_turns}.",
                code="max_turns",
            )
        branches = [self._branch(prompts) for _ in range(choices)]
        self._turns += choices
        return await asyncio.gather(*(self._working_on(self._speak(branch, sampling)) for branch in branches))

    def note_invalid_call(self, answer: Answer) -> None:
        """Note on the answer's rollout that a call in it cannot be read."""
        transcript = answer.branch.transcript
        turn = sum(turn.role == "assistant" for turn in transcript.turns) - 1
        count = 1 + sum(event.text == INVALID_TOOL_CALL for event in transcript.events)
        transcript.events.append(Event(INVALID_TOOL_CALL, turn, count))

    def remember(self, message: Row, raw: str) -> None:
        """Note what the policy wrote for a message that an agent is shown, in case it comes back in a prompt."""
        for key in _fingerprints(message):
            self._raw[key] = raw

    def written(self, rows: Sequence[Row]) -> list[str | None]:
        """Return what the policy wrote for each of the messages; None for those that are not known as its own."""
        return [self._raw_of(row) if row["role"] == "assistant" else None for row in rows]

    def _raw_of(self, row: Row) -> str | None:
        return next((self._raw[key] for key in _fingerprints(row) if key in self._raw), None)

    async def close(self) -> None:
        """End what is still being sampled: nobody waits for it."""
        self.ended.set()
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        if self.broken.done() and not self.broken.cancelled():
            self.broken.exception()  # it has been seen, or the episode is over anyhow

    def rollouts(self, outcome: Outcome, variant: str) -> list[Rollout]:
        """Return the branches in which the policy spoke, in the order in which they opened."""
        rollouts, conversations = [], list(outcome.conversations)
        for branch in self._branches:
            own = _taken(conversations, tuple(branch.transcript.tokens), outcome.reward)
            if not any(branch.transcript.mask) or not own.trained:
                continue
            end, finish = End(own.reward, outcome.answer), "length" if self.cut else branch.finish
            temperature = self._limits.temperature
            rollouts.append(rollout_of(own.agent, branch.transcript, finish, end, variant, temperature))
        return rollouts

    def _check_open(self) -> None:
        if self.ended.is_set():
            raise ApiError(403, "the episode has ended.", code="episode_ended")

    def _cut(self, why: str) -> None:
        self.cut = self.cut or why

    def _check_room(self, length: int) -> None:
        if length >= self._engine.max_model_len:
            self._cut(f"engine.max_model_len = {self._engine.max_model_len}")
            raise ApiError(
                400,
                f"the prompt has {length} tokens, and engine.max_model_len = {self._engine.max_model_len} leaves no "
                "room for an answer.",
                code="context_length_exceeded",
                param="messages",
            )

    async def _working_on(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work that ends with the session, not with the request: a client that hangs up leaves its turn recorded."""
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ApiError):
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the episode with what no agent is to blame for."""
        if not self.broken.done():
            self.broken.set_exception(error)

    def _branch(self, prompts: Sequence[Prompt]) -> Branch:
        """Return the branch that the prompt goes on with, or a new one, with the prompt written into it."""
        candidates = [(m, p) for p in prompts for b in self._branches if (m := self._match(b, p)) is not None]
        free = next(((m, p) for m, p in candidates if m.whole and not m.branch.busy), None)
        match, prompt = free or max(candidates, key=lambda c: c[0].pieces, default=(None, prompts[-1]))
        branch, at = (match.branch if free and match else Branch()), match.at if match else 0
        shared: list[int] = []
        if match is not None and not free:
            shared = match.branch.transcript.tokens[: match.branch.pieces[match.pieces - 1].length]
        ids = shared + self._ids(prompt, at, first=match is None)
        self._check_room(len(branch.transcript.tokens) + len(ids))
        if not branch.transcript.tokens and not ids:
            raise ApiError(400, "the prompt has no token.", param="messages")
        self._observe(branch, ids, prompt.text[at if free else 0 :], prompt, opened=prompt.opened)
        branch.busy = True
        if not free:
            self._branches.append(branch)
        return branch

    def _ids(self, prompt: Prompt, at: int, *, first: bool) -> list[int]:
        if prompt.tokens is not None:
            return list(prompt.tokens[at:])
        return self._chat.encode(prompt.text[at:], first=first)

    def _observe(self, branch: Branch, ids: list[int], text: str, prompt: Prompt, *, opened: str) -> None:
        goes_on = bool(branch.pieces)
        branch.transcript.observe(ids, Observation(prompt.news if goes_on else prompt.messages))
        branch.transcript.opened = opened
        branch.pieces.append(_Piece(text, False, "", len(branch.transcript.tokens)))

    async def _speak(self, branch: Branch, sampling: Sampling) -> Answer:
        try:
            return await self._turn(branch, sampling)
        finally:
            branch.busy = False

    async def _turn(self, branch: Branch, sampling: Sampling) -> Answer:
        transcript = branch.transcript
        start, opened = len(transcript.tokens), transcript.opened
        asked = self._limits.max_tokens if sampling.max_tokens is None else sampling.max_tokens
        limits = replace(self._limits, max_tokens=min(asked, self._limits.max_tokens))
        branch.finish, raw = await speak(self._engine, self._chat, transcript, limits, self._task)
        said = transcript.tokens[start:]
        if (length := self._stopped(said, sampling)) is not None:
            transcript.cut(start + length)
            said, branch.finish = said[:length], "stop"
            raw = self._chat.text(said)
            transcript.turns[-1] = replace(transcript.turns[-1], end=start + length, text=raw)
        end = self._chat.written(said[-1]) if said and self._chat.is_end(said[-1]) else ""
        branch.pieces.append(_Piece(raw, True, end, len(transcript.tokens)))
        self._counts["turns"] += 1
        if self._turned is not None:
            await self._turned()
        at = min((raw.index(s) for s in sampling.stop_strings if s in raw), default=len(raw))
        return Answer(
            tuple(said),
            tuple(transcript.logprobs[start:]),
            opened + raw[:at],
            opened + raw,
            branch.finish,
            start,
            branch,
        )

    def _stopped(self, said: Sequence[int], sampling: Sampling) -> int | None:
        """Return how many tokens the turn has up to where the request stops it; None if it does not."""
        lengths = [i + 1 for i, token in enumerate(said) if token in sampling.stop_tokens][:1]
        if sampling.stop_strings and (length := self._chat.stopped_at(said, sampling.stop_strings)) is not None:
            lengths.append(length)
        return min(lengths, default=None)

    def _match(self, branch: Branch, prompt: Prompt) -> _Match | None:
        """Return how far the branch and the prompt agree, up to the end of a turn of the policy; None if nowhere."""
        if prompt.tokens is not None:
            tokens, found = branch.transcript.tokens, None
            for i, piece in enumerate(branch.pieces):
                if piece.length > len(prompt.tokens) or tuple(tokens[: piece.length]) != prompt.tokens[: piece.length]:
                    break
                if piece.sampled:
                    found = _Match(branch, i + 1, piece.length)
            return found
        at, found = 0, None
        for i, piece in enumerate(branch.pieces):
            if not piece.sampled:
                if not prompt.text.startswith(piece.text, at):
                    break
                at += len(piece.text)
                continue
            length = _spelled(piece, prompt.text, at)
            if length is None:
                break
            at += length
            found = _Match(branch, i + 1, at)
        return found


def _spelled(piece: _Piece, text: str, at: int) -> int | None:
    """Return how many characters of `text` from `at` on are the policy's turn; templates may trim it."""
    for end in dict.fromkeys((piece.end, "")):
        for body in dict.fromkeys((piece.text, piece.text.rstrip(), piece.text.lstrip(), piece.text.strip())):
            if text.startswith(body + end, at):
                return len(body + end)
    return None


def _taken(conversations: list[Conversation], tokens: tuple[int, ...], reward: float) -> Conversation:
    """Take the conversation of these tokens from the list; where there is none, return one that is worth `reward`."""
    place = next((i for i, c in enumerate(conversations) if c.tokens == tokens), None)
    return Conversation(tokens, reward) if place is None else conversations.pop(place)


def _fingerprints(message: Row) -> list[str]:
    """Return what an agent must send back for a message to be the one that it was shown; space may differ.

    First with the id of the call, so that two turns with one call and other thoughts are told apart; then without: an
    agent may number calls itself.
    """
    calls = []
    for call in message.get("tool_calls") or ():
        arguments = call["function"].get("arguments")
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        calls.append([call["function"]["name"], arguments])
    ids = [call.get("id") for call in message.get("tool_calls") or ()]
    text = (message.get("content") or "").strip()
    return [json.dumps([text, calls, known], sort_keys=True) for known in ([ids, []] if ids else [[]])]


def checked_outcome(reward: Any, answer: Any) -> Outcome:
    """Return what an agent said that its episode came to. Raises ApiError for what is no reward."""
    try:
        return outcome_of({"reward": float("nan") if reward is None else reward, "answer": answer})
    except DataError as error:
        raise ApiError(400, str(error), param="reward") from error
