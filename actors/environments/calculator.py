"""A pocket calculator as a tool: the policy writes a call, reads the result, and answers when it likes.

[12+34]            a turn that ends in a call
=46;               what the calculator says
102                a turn without a call is the answer
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from itertools import count
from operator import add, mul, sub

from pydantic import NonNegativeInt

from actors.environments.base import End, Environment, Observation
from cluster.thoughts import spoken
from cluster.types import Event, Task

CALL = re.compile(r"\[\s*(-?\d{1,12})\s*([-+*])\s*(-?\d{1,12})\s*\]\s*\Z", re.ASCII)
OPERATIONS = {"+": add, "-": sub, "*": mul}


class Calculator(Environment):
    """Two whole numbers at a time, plus, minus and times. Calls are events named `call`, with their number so far."""

    max_calls: NonNegativeInt = 4
    """With one call more the episode ends, without an answer."""

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        text = yield Observation(task.variants[variant])
        for turn in count():
            said = spoken(text).strip()
            call = CALL.search(said)
            if call is None:
                yield End(answer=said)
                return
            events = (Event("call", turn, turn + 1),)
            if turn == self.max_calls:
                yield End(answer="", events=events)
                return
            first, operation, second = call.groups()
            text = yield Observation.of(shown(OPERATIONS[operation](int(first), int(second))), events=events)


def shown(result: int) -> str:
    return f"={result};"
