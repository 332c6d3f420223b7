"""The workers of a run: placed by role, replaced when they die, more or fewer when that is wished.

wished ──► joining: placed, engine up, newest weights, first claim
           leaving: claims no more, finishes what it has in hand, or is ended after `rollout.lease_s`;
                    one that is not up yet, perhaps for lack of room, is ended at once
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from cluster import workers
from cluster.buffer import Buffer, Question, ReplicaCounts
from cluster.driver.autoscaler import Autoscaler
from cluster.driver.watchdog import Watchdog
from cluster.placement.groups import on_gpu, request
from cluster.placement.ray_errors import end, result
from cluster.placement.resources import place_of, roles
from cluster.types.events import RewardReport
from cluster.workers import POLICY, RunContext

log = logging.getLogger(__name__)

PLACE: dict[str, Callable[..., Any]] = {
    "rollout": workers.place_rollout,
    "reward": workers.place_reward,
    "reward_model": workers.place_reward_model,
    "judge": workers.place_judge,
    "generator": workers.place_generator,
    "scorer": workers.place_scorer,
}
"""By kind of role; a role is a kind, or `kind:NAME` where a recipe names several of it."""
LOOK_S = 1.0
"""How often the wished numbers are read."""


class WorkerPool:
    """Workers by name. `launch(role, name)` must run `serve` and call `ended` when it returns."""

    def __init__(
        self, context: RunContext, buffer: Buffer, watchdog: Watchdog, launch: Callable[[str, str], None]
    ) -> None:
        self._context, self._buffer, self._watchdog, self._launch = context, buffer, watchdog, launch
        self._wishes = ReplicaCounts(context.url, context.run_id, context.config.run.progress_timeout_s)
        self._coming: dict[str, Any] = {}
        self._up: dict[str, Any] = {}
        self._leaving: dict[str, asyncio.Task[None] | None] = {}
        """By name, who ends it if it does not finish."""
        self._staying: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        """By role and name, those that are up and are not to leave."""
        self._expected: defaultdict[str, set[str]] = defaultdict(set)
        """By role, the names of those that are up or being placed, and are not to leave."""
        self._since: dict[str, float] = {}
        """When each worker began to join or to leave, by the clock that only goes forward."""
        self._alive: set[str] = set()
        """Workers whose process is there."""
        self._born: Counter[str] = Counter()
        self._roles = roles(context.config)
        self._beside: set[str] = set()
        """Engines in the places that the layout reserves beside the learner."""
        self.explained: set[str] = set()
        """Workers that died over a group which has been found out since."""
        self.last_words: dict[str, str] = {}
        """What reward workers asked when they died, in words."""
        self._late_deaths: defaultdict[str, list[str]] = defaultdict(list)
        """By reward, the workers that died while it was asked about groups that wait for no score."""
        self.may_work = asyncio.Event()
        self.closing = False

    def begin(self) -> None:
        """Hire all that the recipe asks for."""
        for role, count in self._roles.items():
            for _ in range(count):
                self.add(role)

    def add(self, role: str) -> None:
        name = f"{role}-{self._born[role]}"
        self._born[role] += 1
        self._expected[role].add(name)
        self._since[name] = time.monotonic()
        self._launch(role, name)

    async def serve(self, role: str, name: str, ready: Callable[[], None]) -> None:
        """A worker's whole life; returns when it has left, raises what it died of. What it had in hand is free then."""
        worker = self._coming[name] = self._place(role, name)
        self._watchdog.expect(name)
        died = True
        noting = asyncio.create_task(self._note_alive(name, worker))
        try:
            await worker.ready.remote()
            self._coming.pop(name)
            self.arrived(name, worker)
            self._watchdog.watch(name, worker)
            ready()
            await self.may_work.wait()
            await worker.run.remote()
            died = False
        finally:
            noting.cancel()
            self._watchdog.forget(name)
            self._beside.discard(name)
            self._alive.discard(name)
            self._coming.pop(name, None)
            if not self.closing:
                self._staying[role].pop(name, None)
                if self._up.pop(name, None) is not None and name in self._leaving:
                    with suppress(RayError):  # it died while it left: what it had in hand is to be freed all the more
                        await result(worker.close.remote())
                ray.kill(worker)
                blame = died and name not in self._leaving
                questions = await asyncio.to_thread(self._buffer.questions, name)
                self.explained |= await asyncio.to_thread(self._buffer.forsake, POLICY, name, blame=blame)
                if blame and questions:
                    self.last_words[name] = f" while it asked {_in_words(questions)}"
                    await asyncio.to_thread(self._blame_late, name, [q for q in questions if q.left])

    def _blame_late(self, name: str, questions: Sequence[Question]) -> None:
        """Charge a worker's death to a reward that was asked about groups nobody can ask about again.

        A group that has been assembled or dropped is not tried once more. One death proves nothing: the worker may have
        died of anything. Two deaths over one reward are that reward's, and count as failures of data.
        """
        for reward in dict.fromkeys(name for question in questions for name in question.rewards):
            over = self._late_deaths[reward]
            if name in self.explained:
                continue
            over.append(name)
            known = self.explained.intersection(over)
            if len(over) < 2:
                continue
            self.explained.update(over)
            asked = _in_words([q for q in questions if reward in q.rewards])
            note = (
                f"{' and '.join(over[-2:])} died while reward '{reward}' was asked about groups that wait for no score "
                f"(the last time: {asked}). It ends its process, or holds the interpreter lock"
            )
            log.error("%s.", note)
            failures = len(over) - len(known)
            report = RewardReport(worker=name, data_failures=failures, last_failure=note, causes={reward: note})
            self._buffer.emit(report, once=f"{name} over {reward}")

    def arrived(self, name: str, worker: Any) -> None:
        """Count a worker that is up."""
        self._up[name] = worker
        if name not in self._leaving:
            self._staying[_role(name)][name] = worker

    async def _note_alive(self, name: str, worker: Any) -> None:
        with suppress(Exception):  # its death is for `serve` to see
            await worker.__ray_ready__.remote()
            self._alive.add(name)

    def _place(self, role: str, name: str) -> Any:
        place, config = PLACE[role.partition(":")[0]], self._context.config
        reserved = config.rollout.workers if config.placement.layout == "colocated" else 0
        if role == "rollout" and len(self._beside) < reserved:
            self._beside.add(name)
            return place(self._context, name, beside=True)
        return place(self._context, name)

    def ended(self, role: str, name: str) -> bool:
        """Whether it was to leave. Its successor is placed if not."""
        self._since.pop(name, None)
        if name in self._leaving:
            leaving = self._leaving.pop(name)
            if leaving is not None:
                leaving.cancel()
            return True
        self._expected[role].discard(name)
        self.add(role)
        return False

    def named(self, role: str) -> dict[str, Any]:
        """Workers that are up and stay, by name."""
        return dict(self._staying[role])

    def of(self, role: str) -> list[Any]:
        """Workers that are up and stay."""
        return list(self._staying[role].values())

    def up(self) -> dict[str, int]:
        """How many of each role are up and stay; every event of a worker asks, so no worker is looked at."""
        return {role: len(self._staying[role]) for role in self._roles}

    def complete(self) -> bool:
        """Are those up that the pipeline cannot begin without: all engines and generators, a replica of each judge that
        groups wait for, and one of each scorer?

        Nothing waits for the judges of `late` rewards alone, nor for engines that leave because fewer are wished for.
        """
        asked = {f"judge:{name}" for name in self._context.config.blocking_judges} & self._roles.keys()
        asked |= {role for role in self._roles if role.startswith(("scorer:", "generator:"))}
        counts = self.counts()
        engines = {role: count for role, count in self._roles.items() if role.partition(":")[0] == "rollout"}
        placed = all(len(self._staying[role]) >= min(count, counts[role]) for role, count in engines.items())
        return placed and all(self._staying[role] for role in asked)

    def counts(self) -> dict[str, int]:
        """How many of each role are there or on their way."""
        return {role: len(self._expected[role]) for role in self._roles}

    def moving(self) -> dict[str, str]:
        """What each worker that is still to join or to leave does, and for how long, in words."""
        now, says = time.monotonic(), {actor["name"]: actor["says"] for actor in self._watchdog.standing()}
        expected = set().union(*self._expected.values())  # a copy: this runs beside the event loop
        joining = {name: self._joining(name) for name in expected - self._up.keys()}
        leaving = {name: f"leaves: {says.get(name, 'its process ends')}" for name in self._leaving}
        return {
            name: f"{said} (for {now - self._since[name]:.0f} s)"
            for name, said in (joining | leaving).items()
            if name in self._since
        }

    def _joining(self, name: str) -> str:
        if name in self._alive:
            return "starts: its process is there and loads what it needs"
        return f"waits for room: {self._wanted(_role(name))}, or for its process to start"

    def _wanted(self, role: str) -> str:
        """What one worker of a role needs, and what the cluster has left."""
        place, free = place_of(self._context.config, role, on_gpu()), ray.available_resources()
        left = ", ".join(f"{free.get(name, 0):g} {name}" for name in place.resources)
        return f"it needs {place} on one node, and all nodes together have {left} free"

    async def follow_load(self, autoscaler: Autoscaler) -> None:
        """Wish for more or fewer as the load says, and ask Ray's autoscaler for the room of all that are wished for."""
        asked: dict[str, int] = {}
        try:
            while True:
                for role, count in autoscaler.wanted(self.counts(), self.up()).items():
                    log.warning("%s: %d are wanted for this load", role, count)
                    await asyncio.to_thread(self._wishes.wish, role, count)
                wished = await asyncio.to_thread(self._wishes.wished)
                wanted = {role: wished.get(role, count) for role, count in self.counts().items()}
                if wanted != asked:
                    await asyncio.to_thread(request, self._context.config, wanted)
                    asked = wanted
                await asyncio.sleep(LOOK_S)
        finally:
            request(self._context.config, None)

    async def follow_wishes(self) -> None:
        """Add and remove workers until the numbers are those that were last wished for."""
        while True:
            await asyncio.to_thread(self._wishes.staff, self.up())
            await asyncio.to_thread(self._wishes.tell_moving, await asyncio.to_thread(self.moving))
            wished = await asyncio.to_thread(self._wishes.wished)
            for role, count in self.counts().items():
                more = wished.get(role, count) - count
                for _ in range(more):
                    log.warning("%s: one more joins", role)
                    self.add(role)
                for name in self._youngest(role)[: max(0, -more)]:
                    self._let_go(name)
            await asyncio.sleep(LOOK_S)

    def _youngest(self, role: str) -> list[str]:
        return sorted(self._expected[role], key=lambda name: -int(name.rsplit("-", 1)[1]))

    def _let_go(self, name: str) -> None:
        if name in self._up:
            self._leaving[name] = asyncio.create_task(self._remove(name, self._up[name]))
        elif name in self._coming:
            self._leaving[name] = None
            ray.kill(self._coming[name])
        else:
            return  # not placed yet, which takes a moment
        self._since[name] = time.monotonic()
        log.warning("%s leaves", name)
        role = _role(name)
        self._expected[role].discard(name)
        self._staying[role].pop(name, None)

    async def _remove(self, name: str, worker: Any) -> None:
        """Ask it to finish; after `rollout.lease_s` it holds nothing that is still its own."""
        begun = time.monotonic()
        await worker.stop.remote()
        await asyncio.sleep(self._context.config.rollout.lease_s - (time.monotonic() - begun))
        log.warning("%s did not finish within rollout.lease_s: ended", name)
        ray.kill(worker)

    async def close(self) -> None:
        """End all, and calls that wait for Redis."""
        self._wishes.close()
        await end(self._up.values())


def _in_words(questions: Sequence[Question]) -> str:
    """The newest three questions, and how many more there are."""
    parts = [f"{', '.join(map(repr, q.rewards))} about group {q.id}" for q in questions[-3:]]
    more = len(questions) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more else "")


def _role(name: str) -> str:
    """Names are `ROLE-number`."""
    return name.rpartition("-")[0]
