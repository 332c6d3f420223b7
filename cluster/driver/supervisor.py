"""The driver's part: bring the actors up, watch them, restart what dies, and follow the numbers.

    workers ─┐ a death costs one of `run.max_infrastructure_failures`, unless one of its groups is found to have caused
             │ it; its groups are freed and another is placed
    learner ─┤ a death restarts all ranks from the last checkpoint under a new epoch
    redis   ─┘ its server is started again, with everything that was acknowledged
    watchdog ─ who does not answer for `run.heartbeat_timeout_s` is killed, which makes it one of the above
    consumer ─ metrics, samples; no step within `run.progress_timeout_s` fails the run with a report

Every task of the driver is waited for in one place, `_watch_all`. The driver never holds a token: evaluation groups go
from a rollout actor to a reward actor by reference.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster.buffer import Buffer
from cluster.buffer.audit import in_words
from cluster.buffer.server import DiskFull, Store
from cluster.driver.autoscaler import Autoscaler
from cluster.driver.evaluator import Evaluation, until
from cluster.driver.event_consumer import EventConsumer
from cluster.driver.learner_group import LearnerGroup
from cluster.driver.watchdog import Watchdog
from cluster.driver.worker_pool import WorkerPool
from cluster.errors import BudgetSpent, BufferUnavailable, Stalled
from cluster.observability import metrics
from cluster.observability.live_table import LiveTable
from cluster.placement.ray_errors import cause_of, is_infrastructure
from cluster.storage import checkpoint
from cluster.types import Publication
from cluster.workers import POLICY, RunContext, rollout_role

log = logging.getLogger(__name__)

DISK_RETRY_S = 10.0

T = TypeVar("T")


class Supervisor:
    """One run, from placing its actors to its last evaluation."""

    def __init__(
        self,
        context: RunContext,
        store: Store | None,
        recorder: metrics.Recorder,
        table: LiveTable,
        autoscaler: Autoscaler,
    ) -> None:
        self._context, self._config, self._store, self._table = context, context.config, store, table
        self._buffer, self._recorder = context.buffer(), recorder
        self._follower = EventConsumer(self._buffer, context.config, recorder, table, self._evaluate_soon, self._counts)
        self._watchdog = Watchdog(context.config.run.heartbeat_timeout_s, store)
        self._deaths: list[str] = []
        """The workers that died, and an empty name for each other failure of infrastructure."""
        self._autoscaler = autoscaler
        self._worker_pool = WorkerPool(context, self._buffer, self._watchdog, self._launch)
        self._evaluation = Evaluation(
            self._worker_pool, self._buffer, self._follower, context.config, Path(context.run_dir), self._stops
        )
        self._learner_group: LearnerGroup | None = None
        self._resume_from: Path | None = None
        self._tasks: dict[asyncio.Task[Any], Callable[[asyncio.Task[Any]], None]] = {}
        """What runs, and what to do when it ends."""
        self._evaluations: set[asyncio.Task[None]] = set()
        self._asked_to_stop = asyncio.Event()
        self._leave_by = float("inf")
        self._reached: int | None = None
        self._done = False

    def ask_to_stop(self) -> None:
        """Finish the step under way, checkpoint and leave. The second call is for the impatient: it has no effect."""
        self._asked_to_stop.set()

    def standing(self) -> dict[str, Any]:
        """What the run as a whole waits for, and every actor; safe to call from another thread."""
        allowed = self._config.run.max_infrastructure_failures
        return {
            "waiting": self._follower.waiting,
            "actors": self._watchdog.standing(),
            "failures": self._failures(),
            "warning": self._follower.health.newest,
            "allowed_failures": allowed,
        }

    def problem(self) -> str:
        """What went wrong in a run that ended by itself, in words; nothing if it learnt or was asked to stop."""
        return "" if self._asked_to_stop.is_set() else self._follower.health.problem()

    def warnings(self) -> list[str]:
        """What a run that has ended was warned of, in sentences with their step."""
        self._follower.health.finish()
        return self._follower.health.warnings

    def not_measured(self) -> dict[str, str]:
        """Figures of the summary that could not be measured, and why."""
        return self._follower.not_measured()

    def _counts(self) -> dict[str, float]:
        workers = {f"workers/num_{role}": float(count) for role, count in self._worker_pool.up().items()}
        return {"failures/num_infrastructure": float(self._failures()), **workers}

    def _failures(self) -> int:
        """Failures of infrastructure so far: a death that a group's reward has caused is a failure of that group."""
        return sum(name not in self._worker_pool.explained for name in self._deaths)

    async def run(self, resume_from: Path | None) -> int:
        """Run to the last step, or until asked to stop; returns the step reached.

        Raises BudgetSpent, Stalled, or what an actor died of when that was no failure of infrastructure.
        """
        self._follower.skip()
        self._table.state("starting engines")
        self._resume_from = resume_from
        self._worker_pool.begin()
        self._spawn(self._learn(resume_from), self._learner_ended)
        background: list[Any] = [self._follower.run, self._relay_stop, self._worker_pool.follow_wishes]
        if self._autoscaler.on:
            background.append(partial(self._worker_pool.follow_load, self._autoscaler))
        if self._store is not None:
            background += [self._keep_store, self._watchdog.watch_store]
        for forever in background:
            self._keep_up(forever)
        try:
            await self._watch_all()
        finally:
            self._done = self._worker_pool.closing = True
            self._watchdog.close()
            for task in self._tasks:
                task.cancel()
        await self._follower.drain()
        assert self._reached is not None
        return self._reached

    async def _watch_all(self) -> None:
        self._follower.progressed()
        while not self._done:
            done, _ = await asyncio.wait(self._tasks, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self._tasks.pop(task)(task)
            await self._check_time()

    def _spawn(self, work: Coroutine[Any, Any, T], ended: Callable[[asyncio.Task[T]], None]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks[task] = ended
        return task

    def _keep_up(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run it for as long as the run lasts; when Redis was away for too long, again."""

        def ended(task: asyncio.Task[None]) -> None:
            if task.exception() is not None:
                self._spend("the driver lost Redis", task.exception())
                self._keep_up(work)

        self._spawn(work(), ended)

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────

    def _launch(self, role: str, name: str) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            error = task.exception()  # of one that leaves it does not matter, but is to be looked at
            if self._worker_pool.ended(role, name):
                return
            if error is None:  # it has returned: a reward worker whose threads hang asks for that
                log.warning("%s has ended by itself and is replaced", name)
            else:
                self._spend(f"{name} died{self._worker_pool.last_words.pop(name, '')}", error, worker=name)

        self._spawn(self._worker_pool.serve(role, name, self._follower.progressed), ended)

    # ── the learner ─────────────────────────────────────────────────────────────────────────────────────────

    async def _learn(self, resume_from: Path | None) -> int:
        """Run the learner group for one epoch, from a checkpoint or the initial model; return the step reached."""
        manifest = checkpoint.read(resume_from) if resume_from else None
        step = manifest.step if manifest else 0
        if not self._worker_pool.may_work.is_set():
            await until(lambda: self._worker_pool.complete() or self._asked_to_stop.is_set())
        if self._asked_to_stop.is_set():
            return step
        self._table.state("starting the learner")
        epoch = await asyncio.to_thread(self._buffer.resume, POLICY, manifest)
        self._follower.new_epoch(epoch, step)
        self._learner_group = LearnerGroup(self._context, self._watchdog)
        run = asyncio.create_task(
            self._learner_group.run(epoch, resume_from, lambda name: self._worker_pool.of(rollout_role(name)))
        )
        first = asyncio.create_task(self._first_weights())
        if self._asked_to_stop.is_set():
            await self._learner_group.stop()
        try:
            await asyncio.wait({first, run}, return_when=asyncio.FIRST_COMPLETED)
            if first.done():
                first.result()
            return await run
        finally:
            first.cancel()
            run.cancel()

    async def _first_weights(self) -> None:
        """Bring every engine to the first publication; before the very first step, measure where training starts."""
        publications = [await self._first_of(name) for name in self._config.policy_names]
        step = publications[0].step
        self._follower.first_weights(step)
        if not self._worker_pool.may_work.is_set():
            # One that dies here is missed, and replaced, when it is to work.
            caught_up = (
                engine.catch_up.remote(first)
                for first in publications
                for engine in self._worker_pool.of(rollout_role(first.policy))
            )
            for error in await asyncio.gather(*caught_up, return_exceptions=True):
                cause = cause_of(error) if isinstance(error, BaseException) else None
                if cause is not None and not is_infrastructure(cause):
                    raise cause from error
            if step == 0:
                self._table.state("evaluating the weights that the run begins with")
                await self._evaluation.run(0)
            self._worker_pool.may_work.set()
            self._table.state("sampling the first groups")

    async def _first_of(self, policy: str) -> Publication:
        publication = None
        while publication is None or publication.epoch != self._follower.epoch:
            publication = await asyncio.to_thread(self._buffer.published, policy, timeout_s=1.0)
        return publication

    def _learner_ended(self, task: asyncio.Task[int]) -> None:
        if task.exception() is None:
            self._reached = task.result()
            self._spawn(self._last_evaluation(), self._finished)
            return
        self._spend("the learner died", task.exception())
        if self._learner_group is not None:
            self._learner_group.kill()
        resume_from = self._newest() or self._resume_from
        self._recorder.forget_after(checkpoint.read(resume_from).step if resume_from else 0)
        self._spawn(self._learn(resume_from), self._learner_ended)

    def _newest(self) -> Path | None:
        """The last committed checkpoint of this run."""
        return (checkpoint.usable(Path(self._context.run_dir) / "checkpoints") or [None])[-1]

    def _finished(self, task: asyncio.Task[None]) -> None:
        task.result()
        self._done = True

    # ── budgets and deadlines ───────────────────────────────────────────────────────────────────────────────

    def _spend(self, what: str, error: BaseException | None, *, worker: str = "") -> None:
        """Count one failure of infrastructure; anything else ends the run as it is."""
        cause = cause_of(error)
        if cause is not None and not is_infrastructure(cause):
            raise cause from error
        self._deaths.append(worker)
        failures = self._failures()
        allowed = self._config.run.max_infrastructure_failures
        why = str(cause or "its process ended").partition("\n")[0]  # Ray goes on for pages
        log.warning("%s (%d of %d): %s", what, failures, allowed, why)
        if failures > allowed:
            raise BudgetSpent(
                f"{failures} failures of infrastructure, run.max_infrastructure_failures = {allowed}. "
                f"The last: {what}: {why}"
            ) from error

    async def _keep_store(self) -> None:
        """Start the server again when it dies. That costs one of the budget; waiting for a full disk costs nothing."""
        assert self._store is not None
        while True:
            await asyncio.sleep(1.0)
            if self._store.alive():
                continue
            self._spend("redis-server died", None)
            while True:
                try:
                    await asyncio.to_thread(self._store.restart)
                    break
                except DiskFull as error:
                    self._follower.waiting = str(error)
                    log.warning("%s Trying again every %.0f s, within run.progress_timeout_s.", error, DISK_RETRY_S)
                    if self._asked_to_stop.is_set():
                        raise Stalled(f"asked to stop while nothing can be saved: {error}") from error
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._asked_to_stop.wait(), DISK_RETRY_S)

    async def _check_time(self) -> None:
        if time.monotonic() > self._leave_by:
            raise Stalled(
                "asked to stop, the learner did not save its step within "
                f"run.shutdown_timeout_s = {self._config.run.shutdown_timeout_s:g} s:{self._watchdog.report()}\n"
                f"The next start continues from {self._newest() or 'the first step'}."
            )
        if self._follower.idle_s() > self._config.run.progress_timeout_s:
            try:  # with a connection that is not as patient as a stalled run has been
                status = await asyncio.to_thread(Buffer(self._context.url, self._context.run_id).status, POLICY)
                stored = in_words(status)
            except BufferUnavailable as error:
                stored = str(error)
            raise Stalled(
                f"no step within run.progress_timeout_s = {self._config.run.progress_timeout_s:g} s. "
                f"{self._follower.waiting}:"
                f"{self._watchdog.report()}\n  the buffer is at {stored}\n"
                "Look at the worker that is silent or has waited longest; if a step takes longer than that, raise "
                "run.progress_timeout_s."
            )

    async def _relay_stop(self) -> None:
        await self._asked_to_stop.wait()
        self._leave_by = time.monotonic() + self._config.run.shutdown_timeout_s
        self._table.state("stopping: the step under way is finished and saved")
        if self._learner_group is not None:
            await self._learner_group.stop()

    # ── evaluation ──────────────────────────────────────────────────────────────────────────────────────────

    def _evaluate_soon(self, step: int) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._evaluations.discard(task)
            task.result()

        self._evaluations.add(self._spawn(self._evaluation.run(step, catch_up=False), ended))

    def _stops(self) -> bool:
        return self._asked_to_stop.is_set()

    async def _last_evaluation(self) -> None:
        """Measure the last weights; a run that is asked to stop meanwhile does without."""
        assert self._reached is not None
        if self._asked_to_stop.is_set():
            return
        evaluating = asyncio.create_task(self._evaluate_last())
        stopping = asyncio.create_task(self._asked_to_stop.wait())
        try:
            await asyncio.wait({evaluating, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if evaluating.done():
                evaluating.result()
            else:
                self._follower.evaluation_lost(self._reached, "the run was asked to stop before it had ended")
        finally:
            evaluating.cancel()
            stopping.cancel()

    async def _evaluate_last(self) -> None:
        if self._evaluations:
            await asyncio.wait(self._evaluations)
        assert self._reached is not None
        self._table.state("evaluating the last weights")
        await self._evaluation.run(self._reached)
        self._table.state("ending the workers")

    async def close(self) -> None:
        """End calls that wait for Redis, and every actor, all at once: one that hangs is waited for and then killed."""
        self._buffer.close()
        await asyncio.gather(self._worker_pool.close(), *([self._learner_group.close()] if self._learner_group else []))
