"""Evaluation beside the running pipeline: an engine answers, a reward worker grades, the driver sees a number."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError

from cluster.buffer import Buffer
from cluster.config import RunConfig
from cluster.driver.event_consumer import EventConsumer
from cluster.driver.worker_pool import WorkerPool
from cluster.errors import one_line
from cluster.placement.ray_errors import INFRASTRUCTURE, cause_of
from cluster.process.disk import until_written
from cluster.workers import POLICY, rollout_role
from rewards.monitors.anchor_tasks import Answers, agreement, anchors_of

log = logging.getLogger(__name__)

TRIES = 3


class Deadly(Exception):
    """Reward workers die over evaluation groups."""


class Evaluation:
    def __init__(
        self,
        staff: WorkerPool,
        buffer: Buffer,
        follower: EventConsumer,
        config: RunConfig,
        directory: Path,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`stopped()` is true once the run is asked to stop, which ends a wait for a full disk."""
        self._stopped = stopped
        self._worker_pool, self._buffer, self._follower, self._section = staff, buffer, follower, config.evaluation
        self._policies, self._directory = config.policy_names, directory

    async def run(self, step: int, *, catch_up: bool = True) -> None:
        """Tell the follower how each policy's weights of `step` do; with `catch_up`, exactly the newest ones."""
        for policy in self._policies:
            await self._run(policy, step, catch_up)

    async def _run(self, policy: str, step: int, catch_up: bool) -> None:
        start = time.monotonic()
        why = ""
        for _ in range(TRIES):
            try:
                accuracy, answers = await self._ask(policy, catch_up)
            except INFRASTRUCTURE as error:  # a worker's death is counted where it is replaced
                why = str(cause_of(error)).partition("\n")[0]
                log.warning("the evaluation at step %d goes to another worker: %s", step, why)
            except Deadly as error:
                self._follower.evaluation_lost(step, str(error))
                return
            else:
                agreement = await asyncio.to_thread(self._agreement, policy, step, answers)
                if math.isnan(accuracy) and policy == POLICY:
                    why = "no held-out rollout could be scored" if answers else "the task source has no evaluation task"
                    self._follower.evaluation_lost(step, why)
                self._follower.evaluated(step, accuracy, agreement, time.monotonic() - start, policy)
                return
        self._follower.evaluation_lost(step, f"{TRIES} workers died over it, the last with: {why}")

    async def _ask(self, policy: str, catch_up: bool) -> tuple[float, Answers]:
        role = rollout_role(policy)
        await until(lambda: bool(self._worker_pool.of(role) and self._worker_pool.of("reward")))
        worker = self._worker_pool.of(role)[0]
        if catch_up:
            publication = await asyncio.to_thread(self._buffer.published, policy, timeout_s=5.0)
            assert publication is not None
            await worker.catch_up.remote(publication)
        groups = worker.evaluate.remote(self._section.max_tasks, self._section.temperature)
        scores, answers = await self._grade(groups)
        return sum(scores) / len(scores) if scores else math.nan, answers

    async def _grade(self, groups: Any) -> tuple[list[float], Answers]:
        """Grade the groups of an object reference, all by one worker; if it dies, one after another.

        A group that a second worker dies over is left out, and explains both deaths. Raises Deadly after `TRIES` such
        groups.
        """
        dead: set[str] = set()
        name, grader = await self._grader(dead)
        num_groups = await grader.count.remote(groups)  # from here on they are there, whatever becomes of their engine
        try:
            return await grader.grade.remote(groups)
        except RayActorError as error:
            log.warning("%s died while it graded evaluation groups; they are graded one by one: %s", name, error)
        dead.add(name)
        scores, answers, guilty = [], {}, 0
        for index in range(num_groups):
            name, grader = await self._grader(dead)
            try:
                more, answered = await grader.grade.remote(groups, index)
            except RayActorError:
                guilty += 1
                dead.add(name)
                log.error("%s died over evaluation task %d as well: it is left out of the evaluation", name, index)
                self._worker_pool.explained |= dead
                if guilty == TRIES:
                    raise Deadly(
                        f"workers died over {guilty} evaluation tasks, each twice: look at the reward"
                    ) from None
            else:
                scores += more
                answers |= answered
        return scores, answers

    async def _grader(self, dead: set[str]) -> tuple[str, Any]:
        """A reward worker that lives; the staff may not know of the last deaths yet."""
        await until(lambda: bool(self._worker_pool.named("reward").keys() - dead))
        return next((name, worker) for name, worker in self._worker_pool.named("reward").items() if name not in dead)

    def _agreement(self, policy: str, step: int, answers: Answers) -> float:
        """With what the initial policy was sure of; NaN in a run that began without."""
        anchors = self._directory / ("anchors.json" if policy == POLICY else f"policies/{policy}/anchors.json")
        if step == 0:
            until_written(partial(_write, anchors, anchors_of(answers)), anchors.name, self._wait, self._stopped)
        try:
            return agreement(json.loads(anchors.read_text()), answers) if anchors.exists() else math.nan
        except ValueError as error:
            log.warning(
                "'%s' cannot be read, so there is no agreement with it: %s Remove it.", anchors, one_line(error)
            )
            return math.nan

    def _wait(self, what: str) -> None:
        self._follower.waiting = f"The driver {what}"


def _write(path: Path, anchors: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(anchors))
    temporary.replace(path)


async def until(true: Callable[[], bool]) -> None:
    """Wait until an evaluation has ended, under the deadline of `run.progress_timeout_s`."""
    while not true():  # noqa: ASYNC110 - what changes it is many things
        await asyncio.sleep(0.2)
