"""The rollout worker: claim → sample → put, with weights that change underneath.

    claims ──► [group: G episodes] ──► put          waits for: a free place, then the buffer's capacity
    publications ──► fetch ──► update ──► probe     waits for: a version other than the engine's

Both loops run side by side in one process; the engine batches whatever is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from actors import episode
from actors.chat import Chat
from actors.endpoint import Endpoint
from actors.engine import Engine, PrefixCounts
from actors.environments.base import Environment
from actors.environments.builder import EnvironmentBuilder
from actors.environments.multi_policy import MultiPolicyEnvironment
from actors.environments.search import Critics, SearchEnvironment
from actors.evaluate import play_all
from actors.multi_policy import Generators, MultiPolicySampler, Play, is_older
from actors.search import SearchSampler
from actors.tasks import checked
from cluster.buffer import Buffer
from cluster.config import RunConfig, Use, patched
from cluster.errors import DataError, InfrastructureError, LeaseLost, StartFailed, one_line
from cluster.process.failpoints import failpoint
from cluster.process.foreign_loops import ForeignLoops
from cluster.process.marks import Marks
from cluster.process.spans import SpanLog
from cluster.storage.samples import row_of
from cluster.types import Claim, Group, Publication, Rollout, Task
from cluster.types.events import LogprobDiff, RolloutReport, RunEvent, SampleShown, WeightsReceived
from cluster.types.wire import checked_group

log = logging.getLogger(__name__)

INITIAL = "0.0"
"""Version of an engine that has the weights of its model directory."""
CLAIM_S = 5.0
"""One wait for capacity; between two of them the worker looks whether it shall stop."""
RENEW_FRAC = 0.25
REPORT_S = 1.0
FIRST_WEIGHTS_S = 300.0
"""The first hand-over of weights and its comparison take no longer, or the engine hangs."""
FLOOR_NATS, COARSE_FLOOR_NATS = 0.05, 1.0
"""An engine that has the learner's weights differs by less, on average over the probe: where both compute in float32,
and where one of them does not."""
COARSER = {"dtype", "quantization", "kv_cache_dtype"}
"""Options of an engine that make it less precise."""
FAR = 10
"""An engine's first comparison ends the run beyond so many times what is measured later."""
MOST_HUNG = 32
"""Threads of the environment that never returned; with more the worker ends, and another takes its place."""
MOST_DEATHS = 2
"""A task over which so many workers died inside the environment's steps is not played again."""
GONE_S = 0.2
"""Between a learner's death and its successor's epoch the dead one's publication still stands."""


class RolloutWorker:
    """Keeps up to `rollout.concurrent_groups` groups in flight on one engine."""

    def __init__(
        self,
        name: str,
        *,
        policy: str,
        engine: Engine,
        chat: Chat,
        environment: Environment | Use,
        task_at: Callable[[int], Task],
        buffer: Buffer,
        config: RunConfig,
        fetch: Callable[[Publication], Awaitable[str]],
        claims: bool = True,
        others: Mapping[str, Play] | None = None,
        generators: Generators | None = None,
        marks: Marks | None = None,
        critics: Critics | None = None,
    ) -> None:
        """Without `claims` it plays for the groups of others alone, as `others` do for its own.

        An environment by name is built by the first group that plays it. With `marks` its steps are marked with the
        claim that they are for. `critics` value nodes for an environment that searches.
        """
        self.name, self.policy, self.engine = name, policy, engine
        self._chat, self._task_at = chat, task_at
        self._buffer, self._config, self._fetch = buffer, config, fetch
        self._loops = ForeignLoops(marks=marks)
        self._environment = EnvironmentBuilder(environment, self._loops, config.rollout.environment_timeout_s)
        self.endpoint = Endpoint(engine, chat, config.endpoint, model=policy)
        """Serves the engine to environments that are agents."""
        self._claims = claims
        self._sampler = MultiPolicySampler(
            policy, self.play, others or {}, config.seed, generators, self._loops, config.rollout.environment_timeout_s
        )
        self._searches = SearchSampler(engine, chat, config.seed, critics, self._loops, policy)
        section = config.rollout
        self._steer({})
        self._places = asyncio.Semaphore(section.concurrent_groups)
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="buffer")
        self._stopping = asyncio.Event()
        self._receiving = asyncio.Lock()
        self._in_flight: dict[object, float] = {}
        """When each episode under way began."""
        self._floor_nats: float | None = None
        self._compared = False
        self._progress = time.monotonic()
        self._spans = SpanLog()
        self._leases_lost = 0
        self._counts = {"groups": 0, "rollouts": 0, "tokens": 0, "data_failures": 0, "leases_lost": 0}
        self._last_failure = ""

    async def run(self) -> None:
        """Work until `stop`, or until so many threads hang that the process should be replaced.

        Raises what ends the worker: InfrastructureError, or a bug of ours.
        """
        try:
            if self._config.endpoint.enabled:
                await self.endpoint.start()
            async with asyncio.TaskGroup() as tasks:
                if self._claims:
                    tasks.create_task(self._claim())
                tasks.create_task(self._follow())
                tasks.create_task(self._report())
                tasks.create_task(self._mind_progress())
        finally:
            await self.endpoint.close()
            self._loops.close()

    def waiting(self) -> str:
        """What it does now, in words."""
        if self._receiving.locked():
            return f"receives weights after version {self.engine.version}"
        if not self._in_flight:
            return f"waits for the buffer to admit a group (version {self.engine.version})"
        oldest_s = time.monotonic() - min(self._in_flight.values())
        hung = (
            f", {n} threads of the environment were given up and have not returned"
            if (n := self._loops.num_hung)
            else ""
        )
        return (
            f"samples {len(self._in_flight)} episodes, the oldest for {oldest_s:.0f} s (version {self.engine.version})"
            f"{hung}"
        )

    async def _mind_progress(self) -> None:
        """An engine whose processes are stopped or hang would be waited for without end.

        Raises InfrastructureError: by then the leases are lost anyhow.
        """
        while not self._stopping.is_set():
            await asyncio.sleep(REPORT_S)
            if (hung := self._loops.num_hung) > MOST_HUNG:
                log.error(
                    "%s: %d threads of its environment never returned (most: %d). It finishes its groups, ends and is "
                    "replaced. Last failure: %s",
                    self.name, hung, MOST_HUNG, self._last_failure or "none",
                )  # fmt: skip
                await self.stop()
            idle_s = time.monotonic() - self._progress
            if self._in_flight and idle_s > self._config.rollout.lease_s:
                raise InfrastructureError(
                    f"{self.name}: of {len(self._in_flight)} episodes none ended within rollout.lease_s = "
                    f"{self._config.rollout.lease_s:g} s. The engine hangs, or lease_s is too short for one episode."
                )

    def _steer(self, settings: Mapping[str, Any]) -> None:
        """From now on: what controllers have made of the recipe."""
        section = self._section = patched(self._config, settings).rollout
        self._limits = episode.Limits(
            section.max_tokens, section.max_turns, section.temperature, section.environment_timeout_s
        )

    async def _play(
        self,
        task: Task,
        limits: episode.Limits,
        variant: str = "orig",
        group: object = None,
        progress: Callable[[], Awaitable[None]] | None = None,
        builder: EnvironmentBuilder | None = None,
    ) -> list[Rollout]:
        async def turned() -> None:
            self._progress = time.monotonic()
            if progress is not None:
                await progress()

        if not self._in_flight:
            self._progress = time.monotonic()
        key = object()
        self._in_flight[key] = time.monotonic()
        try:
            environment = _played(await (builder or self._environment).get())
            return await episode.play_agents(
                self.engine, self._chat, environment, task, variant, limits, self._loops, group, self.endpoint, turned
            )
        finally:
            del self._in_flight[key]
            self._progress = time.monotonic()

    async def stop(self) -> None:
        """Claim no more; groups in flight are finished first."""
        self._stopping.set()

    async def _claim(self) -> None:
        async with asyncio.TaskGroup() as groups:
            while not self._stopping.is_set():
                await self._places.acquire()
                asked = time.monotonic()
                claim = await self._call(
                    self._buffer.claim, self.policy, worker=self.name, engine=self.engine.version, timeout_s=CLAIM_S
                )
                self._spans.add("claim" if claim else "wait for capacity", asked, time.monotonic(), "claim")
                if claim is None:
                    self._places.release()
                    continue
                groups.create_task(self._sample(claim)).add_done_callback(lambda _: self._places.release())

    async def _sample(self, claim: Claim) -> None:
        with self._spans.span("group", claim.id):
            await self._sample_group(claim)

    async def _sample_group(self, claim: Claim) -> None:
        group = None
        try:
            with self._spans.span("sample", claim.id):
                group = await self._group(claim, await self._call(self._task, claim.task))
            if episode.may_misbehave(await self._environment.get()):
                group = _checked(group)
            failpoint("rollout.before_put")
            with self._spans.span("put", claim.id):
                await self._call(self._buffer.put, group)
            failpoint("rollout.after_put")
        except LeaseLost as error:
            self._counts["leases_lost"] += 1
            self._leases_lost += 1
            log.warning("%s", error)
            if group is not None and self._leases_lost.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …
                row = row_of(claim.version + 1, group, {}, reason="lease_lost") | {"error": str(error)}
                await self._call(self._buffer.emit, SampleShown(row=row))
        except DataError as error:
            self._failed(f"group {claim.id} dropped: {error}")
            await self._call(self._buffer.give_up, claim, "data_failure", requeue=False)
        else:
            self._counts["groups"] += 1
            self._counts["rollouts"] += len(group)
            if not group.rollouts[0].path:  # rollouts of a search share tokens, which it counts itself
                self._counts["tokens"] += sum(r.num_tokens for r in group.rollouts)

    def _task(self, position: int) -> Task:
        """The task at a position of the endless sequence, read from its source. Raises DataError."""
        try:
            return checked(self._task_at(position))
        except DataError:
            raise
        except Exception as error:  # a source of the user's own
            raise DataError(f"the source of tasks failed at position {position}: {one_line(error)}") from error

    def _failed(self, what: str) -> None:
        self._counts["data_failures"] += 1
        self._last_failure = what
        log.warning("%s", what)

    async def _group(self, claim: Claim, task: Task) -> Group:
        renewed, variants = time.monotonic(), self._config.rollout.prompt_variants
        if missing := [variant for variant in variants if variant not in task.variants]:
            raise DataError(
                f"task {task.id} has no variant '{missing[0]}' (rollout.prompt_variants): {', '.join(task.variants)}."
            )

        async def progress() -> None:
            nonlocal renewed
            # Progress renews the lease: a worker that hangs loses it, however alive its process is.
            if time.monotonic() - renewed > self._config.rollout.lease_s * RENEW_FRAC:
                renewed = time.monotonic()
                await self._call(self._buffer.renew, claim)

        async def one(variant: str) -> list[Rollout]:
            rollouts = await self._play(task, self._limits, variant, claim, progress)
            await progress()
            return [replace(rollout, policy=self.policy) for rollout in rollouts]

        environment = await self._environment.get()
        if (episode.runs_foreign_code(environment) or episode.runs_foreign_code(_played(environment))) and (
            deaths := await self._call(self._buffer.deaths_over, claim)
        ) >= MOST_DEATHS:
            raise DataError(
                f"the environment failed on task {task.id}: {deaths} rollout workers ended inside its steps. It ends "
                "its process, or takes all memory. Run such code in a process of its own."
            )
        if isinstance(environment, MultiPolicyEnvironment):
            return Group(claim, task, await self._sampler.meet(environment, claim, task, progress))
        if isinstance(environment, SearchEnvironment):
            return await self._search(environment, claim, task, progress)
        count = self._section.group_size // len(environment.agents)
        playing = [asyncio.create_task(one(variant)) for variant in variants for _ in range(count)]
        playing += self._sampler.generated(task)
        elsewhere = self._sampler.elsewhere(claim, task, count)
        try:
            own = chain.from_iterable(_numbered(await asyncio.gather(*playing)))
            return Group(claim, task, tuple(chain(own, *await asyncio.gather(*elsewhere))))
        finally:
            for episode_ in (*playing, *elsewhere):  # one failed: the others' tokens would be for nothing
                episode_.cancel()

    async def _search(
        self, environment: SearchEnvironment, claim: Claim, task: Task, progress: Callable[[], Awaitable[None]]
    ) -> Group:
        async def advanced() -> None:
            self._progress = self._in_flight[claim] = time.monotonic()
            await progress()

        self._progress = self._in_flight[claim] = time.monotonic()
        try:
            return await self._searches.group(environment, claim, task, self._limits, advanced)
        finally:
            del self._in_flight[claim]
            self._progress = time.monotonic()

    async def play(self, task: Task, count: int, at_least: str) -> tuple[Rollout, ...]:
        """Sample this policy's part of a group that another policy's worker has claimed: `count` episodes of each
        variant, with weights no older than the version `at_least`, the claim's. Raises DataError as an episode does."""
        while is_older(self.engine.version, at_least):
            publication = await self._call(
                self._buffer.published, self.policy, other_than=self.engine.version, timeout_s=CLAIM_S
            )
            if publication is not None:
                await self.receive(publication)
        environment = await self._environment.get()
        variants = (
            ("orig",) if isinstance(environment, MultiPolicyEnvironment) else self._config.rollout.prompt_variants
        )
        group = object()
        playing = [
            asyncio.create_task(self._play(task, self._limits, v, group)) for v in variants for _ in range(count)
        ]
        failpoint("rollout.mid_play")
        try:
            found = chain.from_iterable(_numbered(await asyncio.gather(*playing)))
            return tuple(replace(rollout, policy=self.policy) for rollout in found)
        finally:
            for episode_ in playing:
                episode_.cancel()

    async def evaluate(self, tasks: Sequence[Task], temperature: float, environment: Use | None = None) -> list[Group]:
        """One rollout for each of `tasks`, beside whatever else is in flight. Nothing is stored.

        A task that fails is counted and left out. `environment` answers instead of the one that is trained in.
        """
        limits = replace(self._limits, temperature=temperature)
        timeout_s = self._config.rollout.environment_timeout_s
        builder = EnvironmentBuilder(environment, self._loops, timeout_s) if environment is not None else None

        async def alone(task: Task) -> Rollout:
            return (await self._play(task, limits, builder=builder))[0]

        return await play_all(
            alone,
            tasks,
            policy=self.policy,
            at_once=self._config.engine.max_num_seqs,
            failed=self._failed,
        )

    async def _follow(self) -> None:
        while not self._stopping.is_set():
            publication = await self._call(
                self._buffer.published, self.policy, other_than=self.engine.version, timeout_s=CLAIM_S
            )
            if publication is not None:
                await self.receive(publication)

    async def receive(self, publication: Publication) -> None:
        """Put published weights into the engine, unless it has them; probe log-probs as often as the recipe says."""
        # One at a time: the loop that follows publications and a call to catch up may see the same one.
        async with self._receiving:
            # Without a file they are pushed: the learner drives the engine itself.
            if publication.version == self.engine.version or publication.file is None:
                return
            try:
                async with asyncio.timeout(None if self._compared else FIRST_WEIGHTS_S):
                    await self._receive(publication)
            except TimeoutError as error:
                raise InfrastructureError(
                    f"{self.name}: the first weights, version {publication.version}, and their comparison took more "
                    f"than {FIRST_WEIGHTS_S:g} s: the engine hangs."
                ) from error

    async def _receive(self, publication: Publication) -> None:
        if publication.step == 0 and self.engine.version == INITIAL:
            await self._probe(publication, floor=True)  # equal weights on both sides: the precision's own floor
        start = time.monotonic()
        try:
            path = await self._fetch(publication)
        except FileNotFoundError:
            log.info("version %s is gone already; there is, or will be, a newer one", publication.version)
            await asyncio.sleep(GONE_S)
            return
        fetched = time.monotonic()
        paused = await self.engine.update(publication, path)
        updated = time.monotonic()
        for name, begin, end in (("weights", start, updated), ("fetch", start, fetched), ("update", fetched, updated)):
            self._spans.add(name, begin, end, publication.version)
        self._steer(publication.settings)
        await self._emit(
            WeightsReceived(
                worker=self.name, policy=self.policy, version=publication.version,
                fetch_s=fetched - start, pause_s=paused,
            )
        )  # fmt: skip
        await self._probe(publication, floor=False)

    async def _probe(self, publication: Publication, *, floor: bool) -> None:
        """Compare the engine's log-probs with those the learner published beside the weights."""
        probe = publication.probe
        if probe is None or not self.engine.exact:
            return
        tokens, cuts = list(probe.tokens), probe.cuts
        ours = await self.engine.next_logprobs([tokens[:c] for c in cuts], [tokens[c] for c in cuts])
        apart = np.abs(ours - np.array(probe.logprobs))
        mean, worst = float(apart.mean()), float(apart.max())
        version = publication.version
        await self._emit(LogprobDiff(policy=self.policy, version=version, mean=mean, max=worst, floor=floor))
        if floor:
            self._floor_nats = mean
        if floor or not self._compared:
            self._check_first(mean, publication, handed_over=not floor)
        self._compared = self._compared or not floor

    def _check_first(self, mean: float, publication: Publication, *, handed_over: bool) -> None:
        """Raises StartFailed for an engine that samples from another model than is trained: every engine would."""
        dtypes = {self._config.model.dtype, self._config.learner.dtype}
        fine = dtypes == {"float32"} and not COARSER & self._config.engine.options.keys()
        bound = FLOOR_NATS if fine else COARSE_FLOOR_NATS
        if handed_over and self._floor_nats is not None and publication.step == 0:  # the same weights as before
            bound = min(bound, FAR * (self._floor_nats + self._config.weights.max_logprob_diff_nats))
        if mean <= bound:
            return
        after = "after the first weights were handed over" if handed_over else "with the weights of the model directory"
        raise StartFailed(
            f"model.path = '{self._config.model.path}': engine and learner differ by {mean:.3g} nats {after} (at most "
            f"{bound:.3g} is the precision's), so rollouts would be sampled from another model than is "
            "trained. The engine runs this architecture otherwise than transformers, or does not take its weights: "
            "check engine.options and the engine's version, or train another model."
        )

    async def _report(self) -> None:
        last = time.monotonic()
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), REPORT_S)
            now = time.monotonic()
            counts, self._counts = self._counts, dict.fromkeys(self._counts, 0)
            counts["tokens"] += self._searches.take_tokens()
            prefixes: PrefixCounts = (
                getattr(self.engine, "prefixes", None) or PrefixCounts()
            )  # an engine of a user's own
            prompt_tokens, cached_tokens = prefixes.take()
            await self._emit(
                RolloutReport(
                    worker=self.name, claims=self._claims, seconds=now - last, last_failure=self._last_failure,
                    agents=self.endpoint.take_counts() or {}, hung_threads=self._loops.num_hung,
                    replaced_threads=self._loops.num_replaced, prompt_tokens=prompt_tokens,
                    cached_tokens=cached_tokens, spans=self._spans.take(), **counts,
                )
            )  # fmt: skip
            last = now

    async def _emit(self, event: RunEvent) -> None:
        await self._call(self._buffer.emit, event)

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))


def _played(environment: Environment) -> Environment:
    """Return the environment of one episode: of a search the one that it searches."""
    return environment.episode if isinstance(environment, SearchEnvironment) else environment


def _numbered(episodes: Sequence[list[Rollout]]) -> list[list[Rollout]]:
    """Note on each rollout which episode it is of, where an agent left several in one, by conversations of its own or
    in a chain; each agent of an episode has one of its own."""
    agents = [(i, rollout.agent) for i, rollouts in enumerate(episodes) for rollout in rollouts]
    numbers = {agent: number for number, agent in enumerate(dict.fromkeys(agents))}
    if len(numbers) == len(agents):
        return list(episodes)
    return [[replace(r, episode=numbers[i, r.agent]) for r in rollouts] for i, rollouts in enumerate(episodes)]


def _checked(group: Group) -> Group:
    """Return the group as it can be stored. Raises DataError, which names the task."""
    try:
        return checked_group(group)
    except DataError as error:
        raise DataError(f"the environment failed on task {group.task.id}: {error}") from error
