"""A second attempt at the same task, after the first: what self-correction is learnt from (SCoRe, arXiv:2409.12917)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

from pydantic import Field

from actors.environments.base import End, Environment, Observation
from cluster.thoughts import spoken
from cluster.types import Event, Task


class Attempts(Environment):
    """The task, an answer, `instruction`, and the answer that counts. The attempts are the turns of one rollout.

    So the second sees the first, both are claimed, stored and trained together, and tokens of each know whose they are.
    The instruction must not tell whether the first was right. A first answer that runs out of tokens is answered too.
    """

    ends_when_cut: ClassVar[bool] = False

    instruction: str = Field(
        default="There might be an error in the solution above. Correct it if there is one, and write the whole "
        "solution again.",
        min_length=1,
    )
    """What the environment writes between the two attempts."""

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        first = yield Observation(task.variants[variant])
        second = yield Observation.of(self.instruction)
        first, second = spoken(first).strip(), spoken(second).strip()
        yield End(answer=second, events=(Event("changed", 1),) if second != first else ())
