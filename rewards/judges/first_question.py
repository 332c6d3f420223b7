"""One question to each server of a judge, before a run depends on it: what is wrong with address, key or model.

what a reward would ask ─► `Listener` ─► `ask_server`: the run's client and parameters ─► reading, or error
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rewards.judges.errors import (
    Declined,
    JudgeAbsent,
    JudgeError,
    JudgeTimeout,
    JudgeUnavailable,
    Unreadable,
)
from rewards.judges.pool.pool import JudgePool
from rewards.judges.protocol import first_call, verdict_call, verdict_from
from rewards.judges.types import Call, Completion, Request, Transport, Verdict

Question = Request | Call
"""A verdict that a reward wants, or a bare chat."""
MAX_ATTEMPTS = 3
"""Calls of one completion, where an error may pass."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0


class Listener(JudgePool):
    """A judge that notes what it is asked, and gives no verdict."""

    def __init__(self, name: str) -> None:
        super().__init__(name, [])
        self.questions: list[Question] = []

    async def ask(self, request: Request) -> Verdict:
        self.questions.append(request)
        return Verdict.unknown(request.num_values, "the run has not begun")

    async def complete(self, call: Call) -> Completion:
        """Raises JudgeUnavailable."""
        self.questions.append(call)
        raise JudgeUnavailable("the run has not begun")


async def ask_server(transport: Transport, questions: Sequence[Question], deadline_s: float) -> list[str]:
    """Ask a server these questions until it gives a readable answer; return why each answer before was unreadable.

    As many reasons as questions: no answer could be read. `deadline_s` is for one question. Raises JudgeError.
    """
    unreadable = []
    for question in questions:
        try:
            async with asyncio.timeout(deadline_s):
                await _answer(transport, question)
        except TimeoutError:
            raise JudgeTimeout(f"{transport.name} gave no answer within {deadline_s:g} s.") from None
        except Unreadable as error:
            unreadable.append(str(error))
        else:
            break
    return unreadable


async def _answer(transport: Transport, question: Question) -> None:
    """Ask one question as a judge's pool does, the unreadable once more. Raises JudgeError, Unreadable."""
    if isinstance(question, Call):
        await _complete(transport, question)
        return
    for attempt in (1, 2):
        completions = [await _complete(transport, first_call(question, question.messages, attempt))]
        if question.mode == "reason" and completions[0].finish == "stop":
            second = verdict_call(question, question.messages, completions[0].text, attempt)
            completions.append(await _complete(transport, second))
        try:
            verdict_from(question, completions)
        except Declined:
            return
        except Unreadable:
            if attempt == 2:
                raise
        else:
            return


async def _complete(transport: Transport, call: Call) -> Completion:
    """One completion; an error that may pass is given a few seconds for it. Raises JudgeError."""
    pause_s = FIRST_PAUSE_S
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return await transport.complete(call)
        except JudgeError as error:
            hopeless = not error.retry or isinstance(error, JudgeAbsent | JudgeTimeout)
            if hopeless or attempt == MAX_ATTEMPTS:
                raise
            await asyncio.sleep(min(max(error.retry_after_s, pause_s), LONGEST_PAUSE_S))
            pause_s *= 2
    raise AssertionError("the last attempt returns or raises")
