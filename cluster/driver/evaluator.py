"""Evaluation beside the running pipeline: an engine answers, a reward worker grades, the driver sees a number."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ray.exceptions import RayActorError

from cluster.buffer import Buffer
from cluster.config import NamedEvaluationSection, RunConfig
from cluster.driver.event_consumer import EventConsumer
from cluster.driver.worker_pool import WorkerPool
from cluster.errors import one_line
from cluster.placement.ray_errors import INFRASTRUCTURE, cause_of
from cluster.process.disk import until_written
from cluster.workers import POLICY, rollout_role
from rewards.aggregation.voting import GradedSample, Voting, accuracy, verdicts, voted
from rewards.monitors.anchor_tasks import Answers, agreement, anchors_of

log = logging.getLogger(__name__)

TRIES = 3


T = TypeVar("T")


class Lost(Exception):
    """An evaluation gave no figure: workers die over it."""


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
        self._policies, self._directory, self._named = config.policy_names, directory, config.evaluations

    async def run(self, step: int, *, catch_up: bool = True) -> None:
        """Tell the follower how each policy's weights of `step` do; with `catch_up`, exactly the newest ones.

        With `catch_up` every evaluation runs, else those whose turn it is.
        """
        for policy in self._policies:
            if catch_up or self._section.due(step):
                await self._run(policy, step, catch_up)
            for place, section in enumerate(self._named):
                if catch_up or section.due(step):
                    await self._run_named(place, policy, step, catch_up)

    async def _run(self, policy: str, step: int, catch_up: bool) -> None:
        start = time.monotonic()
        try:
            accuracy, answers = await self._patiently(step, partial(self._ask, policy, catch_up))
        except Lost as error:
            self._follower.evaluation_lost(step, str(error))
            return
        agreement = await asyncio.to_thread(self._agreement, policy, step, answers)
        if math.isnan(accuracy) and policy == POLICY:
            why = "no held-out rollout could be scored" if answers else "the task source has no evaluation task"
            self._follower.evaluation_lost(step, why)
        self._follower.evaluated(step, accuracy, agreement, time.monotonic() - start, policy)

    async def _run_named(self, place: int, policy: str, step: int, catch_up: bool) -> None:
        start, section = time.monotonic(), self._named[place]
        try:
            samples = await self._patiently(step, partial(self._ask_named, place, policy, catch_up))
        except Lost as error:
            self._follower.named_evaluation_lost(section.name, step, str(error))
            return
        if not any(math.isfinite(sample.reward) for sample in samples):
            why = "no rollout could be scored" if samples else "its task source has no task"
            self._follower.named_evaluation_lost(section.name, step, why)
        self._follower.evaluated_named(section.name, step, figures(section, samples), time.monotonic() - start, policy)

    async def _patiently(self, step: int, evaluation: Callable[[], Awaitable[T]]) -> T:
        """Return what the evaluation gives; where a worker dies over it, another one begins anew. Raises Lost."""
        why = ""
        for _ in range(TRIES):
            try:
                return await evaluation()
            except INFRASTRUCTURE as error:  # a worker's death is counted where it is replaced
                why = str(cause_of(error)).partition("\n")[0]
                log.warning("the evaluation at step %d goes to another worker: %s", step, why)
        raise Lost(f"{TRIES} workers died over it, the last with: {why}")

    async def _ask(self, policy: str, catch_up: bool) -> tuple[float, Answers]:
        worker = await self._sampler(policy, catch_up)
        groups = worker.evaluate.remote(self._section.max_tasks, self._section.temperature)
        parts = await self._grade(groups, lambda grader, *which: grader.grade.remote(groups, *which))
        scores = [score for scores, _ in parts for score in scores]
        answers = {task: answer for _, answers in parts for task, answer in answers.items()}
        return sum(scores) / len(scores) if scores else math.nan, answers

    async def _ask_named(self, place: int, policy: str, catch_up: bool) -> list[GradedSample]:
        worker = await self._sampler(policy, catch_up)
        groups = worker.evaluate_named.remote(place)
        parts = await self._grade(groups, lambda grader, *which: grader.grade_named.remote(place, groups, *which))
        return [sample for part in parts for sample in part]

    async def _sampler(self, policy: str, catch_up: bool) -> Any:
        """A rollout worker of the policy; with `catch_up`, it samples with the newest weights."""
        role = rollout_role(policy)
        await until(lambda: bool(self._worker_pool.of(role) and self._worker_pool.of("reward")))
        worker = self._worker_pool.of(role)[0]
        if catch_up:
            publication = await asyncio.to_thread(self._buffer.published, policy, timeout_s=5.0)
            assert publication is not None
            await worker.catch_up.remote(publication)
        return worker

    async def _grade(self, groups: Any, grade: Callable[..., Awaitable[T]]) -> list[T]:
        """What `grade(worker)` says of the groups of an object reference, all by one worker; if it dies, what
        `grade(worker, index)` says of one after another.

        A group that a second worker dies over is left out, and explains both deaths. Raises Lost after `TRIES` such
        groups.
        """
        dead: set[str] = set()
        name, grader = await self._grader(dead)
        num_groups = await grader.count.remote(groups)  # from here on they are there, whatever becomes of their engine
        try:
            return [await grade(grader)]
        except RayActorError as error:
            log.warning("%s died while it graded evaluation groups; they are graded one by one: %s", name, error)
        dead.add(name)
        parts, guilty = [], 0
        for index in range(num_groups):
            name, grader = await self._grader(dead)
            try:
                part = await grade(grader, index)
            except RayActorError:
                guilty += 1
                dead.add(name)
                log.error("%s died over evaluation task %d as well: it is left out of the evaluation", name, index)
                self._worker_pool.explained |= dead
                if guilty == TRIES:
                    raise Lost(f"workers died over {guilty} evaluation tasks, each twice: look at the reward") from None
            else:
                parts.append(part)
        return parts

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


def figures(section: NamedEvaluationSection, samples: Sequence[GradedSample]) -> dict[str, float]:
    """What `eval/NAME/…` says of the samples; what is not known is left out."""
    found = accuracy(samples)
    if section.samples == 1:
        del found["pass_at_k"]
    if section.vote:
        found |= voted(Voting(section.vote, section.by, section.power), samples)
    if section.vote == "self_prm":
        found |= verdicts(samples)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _write(path: Path, anchors: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(anchors))
    temporary.replace(path)


async def until(true: Callable[[], bool]) -> None:
    """Wait until an evaluation has ended, under the deadline of `run.progress_timeout_s`."""
    while not true():  # noqa: ASYNC110 - what changes it is many things
        await asyncio.sleep(0.2)
