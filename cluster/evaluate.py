"""Held-out accuracy beside the running lap: an engine answers, a reward worker grades, the driver sees a number."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from cluster.buffer import Buffer
from cluster.config import EvaluationSection
from cluster.follow import Follower
from cluster.nodes import INFRASTRUCTURE, cause_of
from cluster.staff import Staff
from cluster.topology import POLICY

log = logging.getLogger(__name__)

TRIES = 3


class Evaluation:
    def __init__(self, staff: Staff, buffer: Buffer, follower: Follower, section: EvaluationSection) -> None:
        self._staff, self._buffer, self._follower, self._section = staff, buffer, follower, section

    async def run(self, step: int, *, catch_up: bool = True) -> None:
        """Tell the follower how the weights of `step` do; with `catch_up`, exactly the newest ones."""
        start = time.monotonic()
        for _ in range(TRIES):
            try:
                accuracy = await self._accuracy(catch_up=catch_up)
            except INFRASTRUCTURE as error:  # a worker's death is counted where it is replaced
                log.warning("the evaluation at step %d goes to another worker: %s", step, cause_of(error))
            else:
                self._follower.heldout(step, accuracy, time.monotonic() - start)
                return
        log.warning("the evaluation at step %d was lost with %d workers", step, TRIES)

    async def _accuracy(self, *, catch_up: bool) -> float:
        await until(lambda: bool(self._staff.of("rollout") and self._staff.of("reward")))
        worker, grader = self._staff.of("rollout")[0], self._staff.of("reward")[0]
        if catch_up:
            publication = await asyncio.to_thread(self._buffer.published, POLICY, timeout_s=5.0)
            assert publication is not None
            await worker.catch_up.remote(publication)
        groups = worker.heldout.remote(self._section.max_tasks, self._section.temperature)
        return await grader.grade.remote(groups)


async def until(true: Callable[[], bool]) -> None:
    """Whoever waits here is under the deadline of `run.stall_s`."""
    while not true():  # noqa: ASYNC110 - what changes it is many things
        await asyncio.sleep(0.2)
