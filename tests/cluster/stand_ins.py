"""Stand-ins for Ray's actors, and a driver that has nothing else; its buffer is a real one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from ray.exceptions import ActorDiedError

from cluster import config
from cluster.driver.autoscaler import Autoscaler
from cluster.driver.preflight import limits
from cluster.driver.supervisor import Supervisor
from cluster.observability.live_table import LiveTable
from cluster.observability.metrics import Recorder
from cluster.types import Publication
from cluster.workers import RunContext

Answers = dict[str, Callable[..., Awaitable[Any]]]


def always(answer: Any) -> Callable[..., Awaitable[Any]]:
    async def answers(*asked: Any) -> Any:
        return answer

    return answers


def raising(error: BaseException) -> Callable[..., Awaitable[Any]]:
    async def raises(*asked: Any) -> Any:
        raise error

    return raises


async def forever(*asked: Any) -> None:
    await asyncio.Event().wait()


WORKER: Answers = {
    "run": forever, "waiting": always("has work"), "count": always(1), "grade": always(([1.0], {})),
}  # fmt: skip


class StandIn:
    """An actor: `answers` by method, nothing from other methods; a killed one answers nothing more."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._dead = asyncio.get_running_loop().create_future()

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *asked: asyncio.ensure_future(self._answer(method, *asked)))

    async def _answer(self, method: str, *asked: Any) -> Any:
        answer = asyncio.ensure_future(self._answers.get(method, always(None))(*asked))
        await asyncio.wait({answer, self._dead}, return_when=asyncio.FIRST_COMPLETED)
        if self._dead.done():
            answer.cancel()
            raise ActorDiedError
        return answer.result()

    def kill(self) -> None:
        if not self._dead.done():
            self._dead.set_result(None)


class Driver:
    """A supervisor of stand-ins. `answers` may be changed at any time: those placed later have them."""

    def __init__(self, directory: Path, url: str, sections: dict[str, Any], store: Any) -> None:
        settings = config.parse(sections)
        context = RunContext(settings, "", url, f"test-{uuid4().hex[:12]}", str(directory))
        self.buffer = context.buffer()
        self.buffer.configure(limits(settings))
        recorder = Recorder(directory, settings.tracking, "run", {})
        table = LiveTable("run", 5, False)
        self.supervisor = Supervisor(context, store, recorder, table, Autoscaler(settings))
        self.answers: dict[str, Answers] = {"learner": {"run": self.train, "stop": self.stop}}
        self.placed: Counter[str] = Counter()
        """Actors by role."""
        self.epochs: list[int] = []
        self.trains, self._stopped = asyncio.Event(), asyncio.Event()
        """`trains`: a learner has published its first weights."""

    def place(self, role: str) -> StandIn:
        self.placed[role] += 1
        return StandIn(WORKER | self.answers.get(role, {}))

    async def train(self, epoch: int, *asked: Any) -> int:
        """Publish, and train until the learner is stopped; returns step 0."""
        self.epochs.append(epoch)
        await asyncio.to_thread(self.buffer.announce, Publication("policy", epoch, 0))
        self.trains.set()
        await self._stopped.wait()
        return 0

    async def stop(self) -> None:
        self._stopped.set()

    async def run(self) -> int:
        try:
            return await asyncio.wait_for(self.supervisor.run(None), 30)
        finally:
            await self.supervisor.close()
            self.buffer.close()
