"""A reward worker: takes stored groups, asks every reward at once, attaches what they answer.

    unscored ─► group ─► blocking rewards, all at once ─► score ─► the others, all at once ─► score
       ▲ waits for groups and a free slot; the groups in hand wait for their rewards, each under its time-out

It holds nothing that matters: a group it had in hand when it died is handed out again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from cluster.buffer import Suspicion
from cluster.config import RewardSection, RunConfig
from cluster.errors import KanaboError, PluginError
from cluster.process.failpoints import failpoint
from cluster.process.spans import SpanLog
from cluster.types import ABSTAINED, FAILED, Group, Provenance, Scores
from cluster.types.events import JudgeReport, RewardReport, RunEvent
from rewards.accepted import VERSION_CHARS
from rewards.asking import ask, is_own
from rewards.base import UNVERSIONED, Services
from rewards.containment import Asked, LoopWatch, contain, described, readable
from rewards.registry import build_reward

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often a waiting worker looks whether it should stop."""
TRACE_S = 1.0
"""Spans for the trace are sent so often, counts every `REPORT_S`."""
REPORT_S = 5.0
NON_BLOCKING_GROUPS = 4
"""Groups whose non-blocking rewards are asked at a time, in multiples of `concurrent_groups`; the oldest are let go."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Between two attempts of a reward with `missing = "wait"`."""

MOST_HUNG = 64
"""Calls that never returned; with more the worker ends, and the run starts another in its place."""
CAUSE_CHARS = 2000
MIN_HANG_S, HANG_SHARE = 5.0, 0.4
"""A worker ends when its interpreter stands still for this share of `run.heartbeat_timeout_s` or of
`reward_workers.deadline_s`."""
EXIT_BLOCKED = 75
"""Exit code of a worker whose event loop a reward has blocked."""


class ScoreBuffer(Protocol):
    """The part of `cluster.buffer.Buffer` that a reward worker uses."""

    def unscored(self, worker: str, limit: int, timeout_s: float) -> list[Group]: ...
    def answered(self, ids: Sequence[str]) -> list[set[tuple[str, str]]]: ...
    def suspicions(self, ids: Sequence[str]) -> list[Suspicion]: ...
    def asks(self, worker: str, claim_id: str, rewards: Sequence[str], *, now: bool) -> object: ...
    def tried(self, claim_id: str, reward: str) -> object: ...
    def forsake(self, policy: str, worker: str) -> object: ...
    def relabel(self, versions: Mapping[str, str]) -> object: ...
    def score(self, claim_id: str, scores: Mapping[str, Scores]) -> object: ...
    def emit(self, event: RunEvent, once: str = "") -> object: ...


class RewardWorker:
    def __init__(self, name: str, *, buffer: ScoreBuffer, config: RunConfig, services: Services | None = None) -> None:
        self.name = name
        self.names = config.reward_names
        self.failures: Counter[str] = Counter()
        """Calls that failed, by reward."""
        self._counted: dict[str, Counter[str]] = {"asked": Counter(), "failed": Counter()}
        """Rollouts that were scored and those without a score for a failure, by reward, since the last event."""
        self._abstentions: dict[str, str] = {}
        """Why a reward abstained last, by reward."""
        self._last_failure = ""
        self._causes: dict[str, str] = {}
        """The last failure by reward."""
        self._tried: set[str] = set()
        """Rewards that have answered once, or failed."""
        self._in_hand: dict[Asked, Group] = {}
        # Sooner than the driver ends a worker that does not answer, and than its groups are handed to another one.
        self._may_hang_s = max(
            MIN_HANG_S, HANG_SHARE * min(config.run.heartbeat_timeout_s, config.reward_workers.deadline_s)
        )
        self._sections = dict(zip(self.names, config.rewards, strict=True))
        self._rewards = {n: build_reward(s, f"rewards[{i}]") for i, (n, s) in enumerate(self._sections.items())}
        self._blocking = config.blocking_rewards
        self._non_blocking = [n for n in self.names if n not in self._blocking]
        self._settings = config.reward_workers
        self._buffer = buffer
        self._services = services or Services()
        self._asked: Counter[str] = Counter()
        """Calls under way, by reward."""
        self._active: dict[str, asyncio.Task[None]] = {}
        self._behind: dict[str, asyncio.Task[None]] = {}
        """Groups whose non-blocking rewards are asked: they take no place from those that are waited for."""
        self._stopping = False
        self._spans, self._traced = SpanLog(), 0.0
        self._reported = time.monotonic()

    async def run(self) -> None:
        """Score until `stop`, or until too many threads hang and the worker has to be replaced.

        Raises what the buffer raises, ConfigError if a reward cannot serve, and PluginError if one cannot be prepared.
        """
        loop = asyncio.get_running_loop()
        contain(loop)
        watch = LoopWatch(loop, self._may_hold_s, self._held, self._may_hang_s)
        try:
            await self.prepare()
            own = {name: self._version(name) for name, reward in self._rewards.items() if not reward.announced}
            versions = {name: version for name, version in own.items() if version != UNVERSIONED}
            if versions:
                await asyncio.to_thread(self._buffer.relabel, versions)
            while not self._stopping:
                await self._take()
                await self._report()
                if self._clogged():
                    return
            await asyncio.gather(*self._active.values())
            await asyncio.gather(*self._behind.values())
            await self._report(now=True)
        finally:
            watch.close()
            for task in (*self._active.values(), *self._behind.values()):
                task.cancel()
            await self._services.close_judges()
            self._services.close()

    async def prepare(self) -> None:
        """Prepare every reward. Raises ConfigError if one cannot serve, and PluginError if one cannot be prepared."""
        await asyncio.gather(*map(self._prepare, self._rewards))

    async def stop(self) -> None:
        """Finish the groups in hand, then let `run` return."""
        self._stopping = True

    def close(self) -> None:
        """End what rewards have started, such as child processes."""
        self._services.close()

    def waiting(self) -> str:
        """What it does now, in words."""
        asked = ", ".join(f"'{name}' for {count}" for name, count in sorted(self._asked.items()) if count)
        doing = f"has {len(self._active)} groups in hand, asks {asked}" if asked else "waits for groups to score"
        if hung := self._services.threads.num_hung:
            doing += f", {hung} calls of functions were given up and have not returned"
        trouble = self._services.trouble()
        return f"{doing}; {trouble}" if trouble else doing

    async def score(self, group: Group, names: Sequence[str] | None = None) -> dict[str, Scores]:
        """What these rewards, or all, say of a group, stored or not. Never raises for what a reward does."""
        names = self.names if names is None else names
        await asyncio.to_thread(self._buffer.asks, self.name, group.id, names, now=True)
        try:
            found = await asyncio.gather(*(self._patiently(n, group) for n in names))
        finally:
            await asyncio.to_thread(self._buffer.asks, self.name, group.id, names, now=False)
        return dict(zip(names, found, strict=True))

    async def _report(self, now: bool = False) -> None:
        """What rewards and judges have to say for themselves, now and then."""
        if time.monotonic() - self._traced >= TRACE_S and (spans := self._spans.take()):
            self._traced = time.monotonic()
            await asyncio.to_thread(self._buffer.emit, RewardReport(worker=self.name, data_failures=0, spans=spans))
        if not now and time.monotonic() - self._reported < REPORT_S:
            return
        self._reported = time.monotonic()
        if values := self._services.metrics():
            await asyncio.to_thread(
                self._buffer.emit,
                JudgeReport(worker=self.name, metrics=values, trouble=self._services.trouble()),
            )
        if self._counted["asked"]:
            await self._emit_counts(data_failures=0)

    async def _emit_counts(self, data_failures: int, failure: str = "", once: str = "") -> None:
        await asyncio.to_thread(self._buffer.emit, self._counts(data_failures, failure), once)

    def _counts(self, data_failures: int, failure: str = "") -> RewardReport:
        counted, self._counted = self._counted, {"asked": Counter(), "failed": Counter()}
        return RewardReport(
            worker=self.name,
            data_failures=data_failures,
            last_failure=failure or self._last_failure,
            asked=dict(counted["asked"]),
            failed=dict(counted["failed"]),
            causes={**self._abstentions, **self._causes},
        )

    def _clogged(self) -> bool:
        """Whether so many calls hang that this process should be replaced; the groups in hand are handed out again."""
        if (hung := self._services.threads.num_hung) <= MOST_HUNG:
            return False
        log.error(
            "%s: %d calls of rewards never returned (most: %d). The worker ends and is replaced. Last failure: %s",
            self.name, hung, MOST_HUNG, self._last_failure or "none",
        )  # fmt: skip
        return True

    async def _prepare(self, name: str) -> None:
        try:
            await self._rewards[name].prepare(self._services)
        except KanaboError:
            raise
        except Exception as error:
            raise PluginError(f"reward '{name}' cannot be prepared: {described(error)}.") from error

    async def _refresh(self, name: str) -> None:
        """Look for what was published; what a foreign reward raises is logged, and it serves as it is."""
        reward = self._rewards[name]
        try:
            await reward.refresh(self._services)
        except Exception as error:
            if is_own(reward) or isinstance(error, KanaboError):
                raise
            log.warning("reward '%s' did not refresh: %s", name, described(error))

    def _version(self, name: str) -> str:
        """What the reward says its version is; where it cannot say, its scores are unversioned."""
        try:
            return readable(str(self._rewards[name].version()), VERSION_CHARS)
        except BaseException as error:  # foreign code
            if is_own(self._rewards[name]):
                raise
            log.warning("reward '%s' does not tell its version: %s", name, described(error))
            return UNVERSIONED

    def _may_hold_s(self, asked: Asked) -> float:
        """How long a reward may hold the event loop."""
        section = self._sections.get(asked[0])
        return min(section.timeout_s if section else self._may_hang_s, self._may_hang_s)

    def _held(self, asked: Asked, where: str) -> None:
        """From another thread: fail the group of the reward that holds the event loop, and end the worker."""
        name, group = asked[0], self._in_hand.get(asked)
        held = self._may_hold_s(asked)
        note = (
            f"reward '{name}' held the event loop of {self.name} for {held:g} s at {where}: it blocks in async code. "
            "Make the function a plain one (it then runs in a thread), or await what blocks"
        )
        log.error("%s. The worker ends and is replaced.", note)
        self._last_failure = note
        try:
            if group is not None and name in self._sections:
                failed = Scores.failed(len(group), note)
                signed = _signed(failed, self._sections[name], self._version(name), 1, held)
                self._buffer.score(group.id, {name: signed})
                self._count(name, signed)
                costs = int(bool(self._fatal(name, signed)))
                self._buffer.emit(self._counts(costs, f"group {group.id}: {note}"))
                self._buffer.forsake(group.claim.policy, self.name)  # this death is explained
        finally:
            self.end_process(EXIT_BLOCKED)

    def end_process(self, code: int) -> None:
        """Nothing else ends a process whose event loop stands still."""
        os._exit(code)

    def _count(self, name: str, scores: Scores) -> None:
        self._counted["asked"][name] += len(scores.state)
        if failed := int((scores.state == FAILED).sum()):
            self._counted["failed"][name] += failed
            note = _note_of(scores, FAILED) or f"reward '{name}' failed"
            self._last_failure = self._causes[name] = readable(note, CAUSE_CHARS)
        elif (scores.state == ABSTAINED).all() and (note := _note_of(scores, ABSTAINED)):
            self._abstentions[name] = readable(note, CAUSE_CHARS)

    async def _take(self) -> None:
        """Start scoring groups, as many as there are slots; waits for a slot or for groups."""
        free = self._settings.concurrent_groups - len(self._active)
        if free == 0:
            await asyncio.wait(self._active.values(), return_when=asyncio.FIRST_COMPLETED, timeout=POLL_S)
        else:
            groups = await asyncio.to_thread(self._buffer.unscored, self.name, free, POLL_S)
            # A group that takes longer than its scoring lease comes again while it is in hand.
            groups = [g for g in groups if g.id not in self._active and g.id not in self._behind]
            ids = [g.id for g in groups]
            answered = await asyncio.to_thread(self._buffer.answered, ids)
            suspicions = await asyncio.to_thread(self._buffer.suspicions, ids)
            if groups:
                await asyncio.gather(*(self._refresh(name) for name in self._rewards))
            for group, known, suspicion in zip(groups, answered, suspicions, strict=True):
                self._active[group.id] = asyncio.create_task(self._attach(group, known, suspicion))
        for id in [i for i, task in self._active.items() if task.done()]:
            self._active.pop(id).result()
        for id in [i for i, task in self._behind.items() if task.done()]:
            task = self._behind.pop(id)
            if not task.cancelled():
                task.result()

    async def _attach(self, group: Group, answered: set[tuple[str, str]], suspicion: Suspicion) -> None:
        """Ask what has not answered under its current version; non-blocking rewards without waiting for them.

        Of a group that is suspected of a worker's death one reward is asked alone, before any other is.
        """
        unanswered = [n for n in self.names if (n, self._version(n)) not in answered]
        condemned = {n: self._condemned(n, group, suspicion) for n in unanswered if n in suspicion.condemned}
        if condemned:
            await self._store(group, condemned)
        unanswered = [n for n in unanswered if n not in condemned]
        if suspicion.trial:
            if suspicion.trial in unanswered:
                await self._submit(group, [suspicion.trial])
            await asyncio.to_thread(self._buffer.tried, group.id, suspicion.trial)
            return
        blocking, others = ([n for n in unanswered if n in names] for names in (self._blocking, self._non_blocking))
        if blocking:
            await self._submit(group, blocking)
        if others:
            self._behind[group.id] = asyncio.create_task(self._submit(group, others))
            if len(self._behind) > NON_BLOCKING_GROUPS * self._settings.concurrent_groups:
                # The oldest has been assembled by now, or soon will be.
                self._behind.pop(next(iter(self._behind))).cancel()

    async def _submit(self, group: Group, names: Sequence[str]) -> None:
        # One message for all that answer at once; who must be waited for holds up nobody.
        waiting = [n for n in names if self._sections[n].missing == "wait"]
        prompt = [n for n in names if n not in waiting]
        await asyncio.gather(*(self._send(group, part) for part in (prompt, *([n] for n in waiting)) if part))

    async def _send(self, group: Group, names: Sequence[str]) -> None:
        keys = [(name, group.id) for name in names]
        self._in_hand.update(dict.fromkeys(keys, group))
        asked = time.monotonic()
        try:
            scores = await self.score(group, names)
        finally:
            for key in keys:
                self._in_hand.pop(key, None)
        answered = time.monotonic()
        await self._store(group, scores)
        stored = time.monotonic()
        about = f"{group.id} {' '.join(names)}"
        for what, begin, end in (("score", asked, stored), ("ask", asked, answered), ("attach", answered, stored)):
            self._spans.add(what, begin, end, about)

    async def _store(self, group: Group, scores: Mapping[str, Scores]) -> None:
        """Count the scores and attach them to their group."""
        first = any(name not in self._tried for name in scores)
        self._tried.update(scores)
        for name, given in scores.items():
            self._count(name, given)
        failpoint("rewards.before_score")
        if failure := next((f for n, s in scores.items() if (f := self._fatal(n, s))), ""):
            # Before the group leaves this worker's hands: the next one it is handed may end the process at once.
            await self._emit_counts(1, f"group {group.id}: {failure}", once=group.id)
        await asyncio.to_thread(self._buffer.score, group.id, scores)
        if not failure and first and (self._counted["failed"] or self._abstentions):
            await self._emit_counts(0)  # what fails from the start is told at once

    def _condemned(self, name: str, group: Group, suspicion: Suspicion) -> Scores:
        """Failed scores of a reward that ended two workers over this group, and is not asked a third time."""
        workers = suspicion.condemned[name]
        note = (
            f"reward '{name}' is not asked about this group again: {workers} died while they had it in hand. The "
            "reward ends its process, or holds the interpreter lock (a regular expression or C code that never returns)"
        )
        log.error("group %s: %s.", group.id, note)
        return _signed(Scores.failed(len(group), note), self._sections[name], self._version(name), 1, 0.0)

    def _fatal(self, name: str, scores: Scores) -> str:
        """Why a reward that the group cannot do without failed on all of its rollouts; nothing if it did not."""
        section = self._sections[name]
        if section.weight == 0 or section.missing_value is not None or not (scores.state == FAILED).all():
            return ""
        return scores.provenance[0].note or f"reward '{name}' failed"

    async def _patiently(self, name: str, group: Group) -> Scores:
        """One reward's answer; with `missing = "wait"` asked again until it is known or the group is overdue."""
        section, begun, attempt = self._sections[name], time.monotonic(), 1
        pause_s = FIRST_PAUSE_S
        while True:
            scores, failed = await self._ask(name, group, attempt)
            left_s = self._settings.max_wait_s - (time.monotonic() - begun)
            if not failed or section.missing != "wait" or left_s < pause_s or self._stopping:
                return scores
            await asyncio.sleep(pause_s)
            pause_s, attempt = min(2 * pause_s, LONGEST_PAUSE_S), attempt + 1

    async def _ask(self, name: str, group: Group, attempt: int) -> tuple[Scores, bool]:
        """The answer, and whether the call failed."""
        reward, section, begun = self._rewards[name], self._sections[name], time.monotonic()
        version = self._version(name)
        self._asked[name] += 1
        try:
            scores, note = await ask(reward, group, self._services, section.timeout_s, name)
        finally:
            self._asked[name] -= 1
        latency_s = time.monotonic() - begun
        if not note:
            return _signed(scores, section, version, attempt, latency_s), False
        note = f"reward '{name}' ({section.use}) failed on {group.task.id}, attempt {attempt}: {note}"
        self.failures[name] += 1
        if self.failures[name].bit_count() == 1:  # the 1st, 2nd, 4th, 8th …
            log.warning("%s (%d failures so far)", note, self.failures[name])
        failed = Scores.failed(len(group), note)
        return _signed(failed, section, version, attempt, latency_s), True


def _note_of(scores: Scores, state: int) -> str:
    """What stands beside the first score of that state."""
    notes = [p.note for p in scores.provenance] or [""]
    return notes[int((scores.state == state).argmax())] if len(notes) > 1 else notes[0]


def _signed(scores: Scores, section: RewardSection, version: str, attempt: int, latency_s: float) -> Scores:
    """With who scored, under which version and how long it took, where the reward has not said so itself."""

    def signed(given: Provenance) -> Provenance:
        judge, latency = given.judge or section.use, given.latency_s or latency_s
        return replace(given, judge=judge, attempt=max(given.attempt, attempt), latency_s=latency)

    provenance = tuple(map(signed, scores.provenance or (Provenance(),)))
    return replace(scores, provenance=provenance, version=version if scores.version == UNVERSIONED else scores.version)
