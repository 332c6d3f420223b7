"""The driver's part: bring the actors up, watch them, restart what dies, and follow the numbers.

    rollout.run ─┐
    reward.run  ─┼─ a death costs one of `run.max_infrastructure_failures`; the worker is replaced, its groups freed
    learner.run ─┘  a death restarts the gang from the last checkpoint under a new epoch
    events      ─── metrics, parity, samples; no step within `run.stall_s` ends the run with what it waited for

The driver never holds a token: held-out groups go from a rollout actor to a reward actor by reference.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from cluster import checkpoint, metrics, topology
from cluster.buffer import Buffer
from cluster.errors import BudgetSpent, BufferUnavailable, InfrastructureError, KanaboError
from cluster.follow import Follower
from cluster.store import DiskFull, Store
from cluster.table import LiveTable
from cluster.topology import POLICY, Site
from cluster.types import Publication

log = logging.getLogger(__name__)

DISK_RETRY_S = 10.0


class Stalled(KanaboError):
    """No progress within the deadline."""


class Supervisor:
    """One run, from placing its actors to its last evaluation."""

    def __init__(self, site: Site, store: Store | None, recorder: metrics.Recorder, table: LiveTable) -> None:
        self._site, self._config, self._store, self._table = site, site.config, store, table
        self._buffer = site.buffer()
        self._recorder = recorder
        self._follower = Follower(self._buffer, site.config, recorder, table, self._evaluate_soon)
        self._failures = 0
        self._born = 0
        self._workers: dict[str, Any] = {}
        self._running: dict[asyncio.Task[Any], str] = {}
        self._learners: list[Any] = []
        self._evaluations: set[asyncio.Task[None]] = set()
        self._asked_to_stop = asyncio.Event()
        self._leave_by = float("inf")

    @property
    def _checkpoints(self) -> Path:
        return Path(self._site.run_dir) / "checkpoints"

    def ask_to_stop(self) -> None:
        """Finish the step under way, checkpoint and leave. The second call is for the impatient: it has no effect."""
        self._asked_to_stop.set()

    async def run(self, resume_from: Path | None) -> int:
        """Run to the last step, or until asked to stop; returns the step reached.

        Raises BudgetSpent, Stalled, or what an actor died of when that was no failure of infrastructure.
        """
        config = self._config
        self._follower.skip()
        self._table.state("starting engines")
        names = [f"rollout-{i}" for i in range(config.rollout.workers)]
        names += [f"reward-{i}" for i in range(config.reward_workers.workers)]
        await asyncio.gather(*(self._place(name) for name in names))
        learner = await self._start_learner(resume_from)
        await self._first_weights(learner)
        for name in list(self._workers):
            self._watch(name)
        background = [asyncio.create_task(self._follower.run()), asyncio.create_task(self._relay_stop())]
        if self._store is not None:
            background.append(asyncio.create_task(self._keep_alive(self._store)))
        try:
            step = await self._watch_all(learner, background)
            await asyncio.gather(*self._evaluations)
            await self._evaluate(step)
            await self._follower.drain()
            return step
        finally:
            for task in background:
                task.cancel()

    async def _place(self, name: str) -> None:
        role = name.split("-")[0]
        place = topology.place_rollout if role == "rollout" else topology.place_reward
        worker = place(self._site, name)
        await worker.ready.remote()
        self._workers[name] = worker

    def _watch(self, name: str) -> None:
        self._running[asyncio.ensure_future(_result(self._workers[name].run.remote()))] = name

    async def _start_learner(self, resume_from: Path | None) -> asyncio.Task[int]:
        """A fresh gang in a new epoch, from a checkpoint or from the initial model."""
        self._table.state("starting the learner")
        manifest = checkpoint.read(resume_from) if resume_from else None
        step = manifest.step if manifest else 0
        epoch = await asyncio.to_thread(self._buffer.resume, POLICY, manifest)
        ranks = range(self._config.learner.ranks)
        self._learners = [topology.place_learner(self._site, rank) for rank in ranks]
        await asyncio.gather(*(learner.ready.remote() for learner in self._learners))
        master = await self._learners[0].address.remote()
        engines = [w for n, w in self._workers.items() if n.startswith("rollout")]
        where = str(resume_from) if resume_from else None
        self._follower.new_epoch(epoch, step)
        refs = [learner.run.remote(epoch, where, master, engines) for learner in self._learners]
        return asyncio.ensure_future(_first(refs))

    async def _first_weights(self, learner: asyncio.Task[int]) -> None:
        """Wait for the first publication, bring every engine to it, and measure where the run starts."""
        publication = asyncio.ensure_future(self._published())
        await asyncio.wait({publication, learner}, return_when=asyncio.FIRST_COMPLETED)
        if learner.done():
            publication.cancel()
            learner.result()
        await self._catch_up(await publication)
        self._follower.first_weights(publication.result().step)
        if publication.result().step == 0:
            await self._evaluate(0)

    async def _published(self) -> Publication:
        while True:
            publication = await asyncio.to_thread(self._buffer.published, POLICY, timeout_s=5.0)
            if publication is not None and publication.epoch == self._follower.epoch:
                return publication

    async def _catch_up(self, publication: Publication) -> None:
        engines = [w for n, w in self._workers.items() if n.startswith("rollout")]
        await asyncio.gather(*(engine.catch_up.remote(publication) for engine in engines))

    async def _watch_all(self, learner: asyncio.Task[int], background: list[asyncio.Task[Any]]) -> int:
        self._follower.progressed()
        while True:
            waiting = {learner, *background, *self._running, *self._evaluations}
            done, _ = await asyncio.wait(waiting, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if learner in done:
                try:
                    return learner.result()
                except Exception as error:
                    learner = await self._restart_learner(error)
            for task in done & set(self._running):
                await self._replace(self._running.pop(task), task.exception())
            for task in done & set(background):
                if task.exception():
                    task.result()
            for task in done & self._evaluations:
                self._evaluations.discard(task)
                task.result()
            await self._check_stall()

    async def _replace(self, name: str, error: BaseException | None) -> None:
        """A worker ended while the run goes on: free its groups at once and start another."""
        self._spend(f"{name} died", error)
        ray.kill(self._workers.pop(name))
        await asyncio.to_thread(self._buffer.forsake, POLICY, name)
        self._born += 1
        role = name.split("-")[0]
        successor = f"{role}-{self._config.rollout.workers + self._config.reward_workers.workers + self._born}"
        await self._place(successor)
        self._watch(successor)

    async def _restart_learner(self, error: BaseException) -> asyncio.Task[int]:
        self._spend("the learner died", error)
        for learner in self._learners:
            ray.kill(learner)
        newest = checkpoint.committed(self._checkpoints)
        resume_from = newest[-1] if newest else None
        metrics.forget_after(Path(self._site.run_dir), checkpoint.read(newest[-1]).step if newest else 0)
        return await self._start_learner(resume_from)

    def _spend(self, what: str, error: BaseException | None) -> None:
        """Count one failure of infrastructure; anything else ends the run as it is."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if cause is not None and not isinstance(cause, (InfrastructureError, RayActorError, ExceptionGroup)):
            raise error  # type: ignore[misc]
        if isinstance(cause, ExceptionGroup) and cause.split(InfrastructureError)[1] is not None:
            raise error  # type: ignore[misc]
        self._failures += 1
        log.warning("%s (%d of %d): %s", what, self._failures, self._config.run.max_infrastructure_failures, error)
        if self._failures > self._config.run.max_infrastructure_failures:
            raise BudgetSpent(
                f"{self._failures} failures of infrastructure, run.max_infrastructure_failures = "
                f"{self._config.run.max_infrastructure_failures}. The last: {what}: {error}"
            )

    async def _keep_alive(self, store: Store) -> None:
        """Start the embedded server again when it dies: that costs one of the budget, waiting for a full disk nothing.

        Beside the loop that watches the workers, whose calls may be what waits for the server.
        """
        while True:
            await asyncio.sleep(1.0)
            if store.alive():
                continue
            self._spend("redis-server died", None)
            while True:
                try:
                    await asyncio.to_thread(store.restart)
                    break
                except DiskFull as error:
                    self._follower.waiting = str(error)
                    log.warning("%s Trying again every %.0f s, within run.stall_s.", error, DISK_RETRY_S)
                    await asyncio.sleep(DISK_RETRY_S)

    async def _check_stall(self) -> None:
        if time.monotonic() > self._leave_by:
            raise Stalled(
                "asked to stop, the learner did not save its step within "
                f"run.grace_s = {self._config.run.grace_s:g} s. "
                "The last checkpoint is whole; the next start continues from it."
            )
        if self._follower.idle_s() > self._config.run.stall_s:
            try:  # with a connection that is not as patient as a stalled run has been
                status = await asyncio.to_thread(Buffer(self._site.url, self._site.run_id).status, POLICY)
            except BufferUnavailable as error:
                status = error
            raise Stalled(
                f"no step within run.stall_s = {self._config.run.stall_s:g} s. "
                f"{self._follower.waiting}. Buffer: {status}"
            )

    async def _relay_stop(self) -> None:
        await self._asked_to_stop.wait()
        self._leave_by = time.monotonic() + self._config.run.grace_s
        self._table.state("stopping: the step under way is finished and saved")
        await asyncio.gather(*(learner.stop.remote() for learner in self._learners))

    def _evaluate_soon(self, step: int) -> None:
        self._evaluations.add(asyncio.ensure_future(self._evaluate(step, catch_up=False)))

    async def _evaluate(self, step: int, *, catch_up: bool = True) -> None:
        """Held-out accuracy beside the running lap; with `catch_up`, under exactly the newest weights."""
        section = self._config.evaluation
        worker = next(w for n, w in self._workers.items() if n.startswith("rollout"))
        grader = next(w for n, w in self._workers.items() if n.startswith("reward"))
        start = time.monotonic()
        if catch_up:
            publication = await asyncio.to_thread(self._buffer.published, POLICY, timeout_s=5.0)
            assert publication is not None
            await worker.catch_up.remote(publication)
        groups = worker.heldout.remote(section.max_tasks, section.temperature)
        try:
            accuracy = await grader.grade.remote(groups)
        except RayActorError as error:  # its death is counted where the worker is replaced
            log.warning("the evaluation at step %d is lost with its worker: %s", step, error)
            return
        self._follower.heldout(step, accuracy, time.monotonic() - start)

    async def close(self) -> None:
        """End every actor; engines are asked first, so that their processes leave with them."""
        self._buffer.close()  # a thread that waits for Redis would hold up the end
        engines = [w for n, w in self._workers.items() if n.startswith("rollout")]
        closing = [asyncio.ensure_future(_result(a.close.remote())) for a in [*engines, *self._learners]]
        if closing:
            await asyncio.wait(closing, timeout=20)
        for actor in [*self._workers.values(), *self._learners]:
            ray.kill(actor)


async def _result(ref: Any) -> Any:
    return await ref


async def _first(refs: list[Any]) -> int:
    """The step all ranks reached; the first failure among them, without waiting for ranks that hang on it."""
    steps = await asyncio.gather(*map(_result, refs))
    return steps[0]
