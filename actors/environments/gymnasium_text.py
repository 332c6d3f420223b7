"""Environments with Gymnasium's interface whose observations and actions are texts, such as GEM's."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from actors.environments.base import End, Observation
from actors.environments.hosted import HostedEnvironment, finite, joined, seed_of
from cluster.errors import DataError
from cluster.process.hosted.processes import Host
from cluster.thoughts import spoken
from cluster.types import Event, Task
from cluster.types.wire import brief

WRAP = (
    " An environment of another interface, or whose observations and actions are no texts, needs a class around it "
    "that has this one."
)


class GymnasiumText(HostedEnvironment):
    """`reset(seed=…)` gives (text, info), `step(text)` gives (text, reward, terminated, truncated, info).

    The prompt is the task's, with the first observation behind it; `meta["seed"]` of the task is the seed. An action is
    a turn without its thoughts. The episode's reward is the sum of the steps', each of which is an event too.
    """

    shows_task: ClassVar[bool] = False

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        async with self._hosts.borrow() as hosted:
            text = _reset(await hosted.call("reset", seed=seed_of(task), lenient=True))
            said = yield Observation(joined(task.variants[variant], text), reward=0.0)
            total, turn = 0.0, 0
            while True:
                text, reward, over = _stepped(await hosted.call("step", spoken(said).strip()))
                total += reward
                events = (Event("step", turn, turn + 1, reward),) if reward else ()
                turn += 1
                if over:
                    yield End(total, events=events)
                    return
                said = yield Observation.of(text, reward=total, events=events)

    def _try_made(self, host: Host) -> None:
        options = {"seed": 0}
        _reset(host.ask(do="call", object=0, method="reset", args=[], options=options, lenient=True))


def _reset(value: Any) -> str:
    """Raises DataError for what is no (text, info)."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        return value[0]
    raise DataError(f"reset(seed) returned {brief(value)}; (text, info) is expected.{WRAP}")


def _stepped(value: Any) -> tuple[str, float, bool]:
    """Return (text, reward, whether the episode is over). Raises DataError for what is no step."""
    if not isinstance(value, list) or len(value) != 5 or not isinstance(value[0], str):
        raise DataError(
            f"step(action) returned {brief(value)}; (text, reward, terminated, truncated, info) is expected.{WRAP}"
        )
    return value[0], finite(value[1], "the reward of step(action)"), bool(value[2] or value[3])
