"""A judge's prompt for captions, and its reader: only what stands in the label's tag counts.

The roles of the parts are those of ONI's prompt (arXiv:2410.23022): an honest judge, what it knows of the game, an
analysis, a verdict in nonsense words that mean nothing to a model. The sentences are ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from cluster.thoughts import spoken
from cluster.types import Message
from rewards.judges.backends.keyword import PAIR_WORDS
from rewards.learned.labels import pair_of

MAX_TOKENS = 512
"""Knowledge, analysis and label."""
TEMPERATURE = 0.1
"""Sampling temperature of ONI's code (arXiv:2410.23022)."""


class Complete(Protocol):
    """A function that answers chats."""

    async def __call__(
        self, messages: tuple[Message, ...], /, *, max_tokens: int = MAX_TOKENS, temperature: float = TEMPERATURE
    ) -> str | None:
        """None, or what it raises: it is away."""
        ...


GOALS = {
    "default": "to make progress: to survive, grow stronger, collect what is useful and go deeper",
    "combat": "to fight: to attack monsters and kill them",
    "gold": "to collect gold",
}
WORDS = {"florp": 1.0, "drell": 0.0}
EXAMPLES = (
    ("You kill the newt!", "florp"),
    ("$ - 23 gold pieces.", "florp"),
    ("You see here a rock.", "drell"),
    ("It is too dark to see.", "drell"),
)

SYSTEM = (
    "You judge honestly how well a game is played. You never call a message good news unless it shows that the player "
    "has come closer to the goal."
)
SINGLE = """The player of NetHack wants {goal}.

A message appeared on the screen. First recall what you know of the game that bears on it. Then analyse what must have \
happened for it to appear. Then decide: does it report something that helps the player towards the goal, and does not \
merely inform?

Answer in three parts: <knowledge>…</knowledge> <analysis>…</analysis> <label>…</label>. In the label write one word: \
florp if it helps, drell if it does not.

Examples:
{examples}

Message: {caption}"""
PAIR = """The player of NetHack wants {goal}.

Two messages appeared on the screen at different times. First recall what you know of the game that bears on them. \
Then analyse what must have happened for each to appear. Then decide which of them shows more progress towards the goal.

Answer in three parts: <knowledge>…</knowledge> <analysis>…</analysis> <label>…</label>. In the label write one word: \
florp if it is the first, drell if it is the second, quimb if neither is better.

First message: {first}
Second message: {second}"""


_OPEN, _CLOSE = re.compile(r"<label>", re.IGNORECASE), re.compile(r"</label>", re.IGNORECASE)


def read_label(reply: str, words: dict[str, float]) -> float | None:
    """The label's value. None unless one tag stands behind the judge's thoughts, with one of the words in it."""
    said = spoken(reply)
    opened, closed = list(_OPEN.finditer(said)), list(_CLOSE.finditer(said))
    if len(opened) != 1 or len(closed) != 1:
        return None
    return words.get(said[opened[0].end() : closed[0].start()].strip().strip(".!'\"").lower())


async def replies_of(complete: Complete, chats: Sequence[tuple[Message, ...]], **how: Any) -> list[str | None] | None:
    """An answer per chat. None for all of it, or the first error: whoever answers is away.

    Where others were answered, one that was not is that question's fault: it is None, and counts as an attempt.
    """
    replies = await asyncio.gather(*(complete(chat, **how) for chat in chats), return_exceptions=True)
    if not any(isinstance(reply, str) for reply in replies):
        errors = [reply for reply in replies if isinstance(reply, BaseException)]
        if errors:
            raise errors[0]
        return None
    return [reply if isinstance(reply, str) else None for reply in replies]


class CaptionJudge:
    """Labels captions, or pairs of them, one question each; implements `rewards.learned.labeler.Judge`."""

    def __init__(self, complete: Complete | None, *, goal: str, judge: str, compares: bool) -> None:
        """Without `complete` it only knows its version."""
        self._complete, self._compares = complete, compares
        self._goal = GOALS.get(goal, goal)
        self._words = PAIR_WORDS if compares else WORDS
        shown = [SYSTEM, PAIR if compares else SINGLE, self._goal, EXAMPLES, self._words, judge]
        self.version = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:12]
        """Changes with the prompt, the goal and the judge: labels are then asked for anew."""

    async def __call__(self, keys: Sequence[str], /) -> list[float | None] | None:
        assert self._complete is not None, "a judge without `complete` cannot be asked"
        replies = await replies_of(self._complete, [self.messages(key) for key in keys])
        if replies is None:
            return None
        return [None if reply is None else read_label(reply, self._words) for reply in replies]

    def messages(self, key: str) -> tuple[Message, ...]:
        if self._compares:
            first, second = pair_of(key)
            asked = PAIR.format(goal=self._goal, first=first, second=second)
        else:
            examples = "\n".join(f"Message: {text}\n<label>{word}</label>" for text, word in EXAMPLES)
            asked = SINGLE.format(goal=self._goal, examples=examples, caption=key)
        return (Message("system", SYSTEM), Message("user", asked))
