"""A reward worker: takes stored groups, asks every signal at once, attaches what they answer.

    unscored ─► group ─► admit signals, all at once ─► score ─► late signals, all at once ─► score
       ▲ waits for groups and a free slot; the groups in hand wait for their signals, each under its time-out

It holds nothing that matters: a group it had in hand when it died is handed out again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from cluster.config import RewardSection, RunConfig
from cluster.failpoints import failpoint
from cluster.types import FAILED, Group, Provenance, Scores
from rewards.asking import ask
from rewards.base import UNVERSIONED, Services
from rewards.zoo import build_signal

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often a waiting worker looks whether it should stop."""
REPORT_S = 5.0
LATE_GROUPS = 4
"""Groups whose late signals are asked at a time, in multiples of `concurrent_groups`; beyond, the oldest are let go."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Between two attempts of a signal with `on_missing = "wait"`."""


class ScoreBuffer(Protocol):
    """The part of `cluster.buffer.Buffer` that a reward worker uses."""

    def unscored(self, worker: str, limit: int, timeout_s: float) -> list[Group]: ...
    def answered(self, ids: Sequence[str]) -> list[set[tuple[str, str]]]: ...
    def relabel(self, versions: Mapping[str, str]) -> object: ...
    def score(self, claim_id: str, scores: Mapping[str, Scores]) -> object: ...
    def emit(self, kind: str, fields: Mapping[str, Any]) -> object: ...


class RewardWorker:
    def __init__(self, name: str, *, buffer: ScoreBuffer, config: RunConfig, services: Services | None = None) -> None:
        self.name = name
        self.names = config.reward_names
        self.failures: Counter[str] = Counter()
        """Calls that failed, by signal."""
        self._sections = dict(zip(self.names, config.rewards, strict=True))
        self._signals = {n: build_signal(s, f"rewards[{i}]") for i, (n, s) in enumerate(self._sections.items())}
        self._late = [n for n in self.names if n not in config.admit_rewards]
        self._admit = config.admit_rewards
        self._settings = config.reward_workers
        self._buffer = buffer
        self._services = services or Services()
        self._asked: Counter[str] = Counter()
        """Calls under way, by signal."""
        self._active: dict[str, asyncio.Task[None]] = {}
        self._behind: dict[str, asyncio.Task[None]] = {}
        """Groups whose late signals are asked: they take no place from those that are waited for."""
        self._stopping = False
        self._reported = time.monotonic()

    async def run(self) -> None:
        """Score until `stop`. Raises what the buffer raises, and ConfigError if a signal cannot serve."""
        try:
            await asyncio.gather(*(signal.prepare(self._services) for signal in self._signals.values()))
            own = {name: signal.version() for name, signal in self._signals.items() if not signal.announced}
            versions = {name: version for name, version in own.items() if version != UNVERSIONED}
            if versions:
                await asyncio.to_thread(self._buffer.relabel, versions)
            while not self._stopping:
                await self._take()
                await self._report()
            await asyncio.gather(*self._active.values())
            await asyncio.gather(*self._behind.values())
        finally:
            for task in (*self._active.values(), *self._behind.values()):
                task.cancel()
            await self._services.close_judges()
            self._services.close()

    async def stop(self) -> None:
        """Finish the groups in hand, then let `run` return."""
        self._stopping = True

    def close(self) -> None:
        """End what signals have started, such as child processes."""
        self._services.close()

    def waiting(self) -> str:
        """What it does now, in words."""
        asked = ", ".join(f"'{name}' for {count}" for name, count in sorted(self._asked.items()) if count)
        doing = f"has {len(self._active)} groups in hand, asks {asked}" if asked else "waits for groups to score"
        trouble = self._services.trouble()
        return f"{doing}; {trouble}" if trouble else doing

    async def score(self, group: Group, names: Sequence[str] | None = None) -> dict[str, Scores]:
        """What these signals, or all, say of a group, stored or not. Never raises for what a signal does."""
        names = self.names if names is None else names
        found = await asyncio.gather(*(self._patiently(n, group) for n in names))
        return dict(zip(names, found, strict=True))

    async def _report(self) -> None:
        """What the judges have to say for themselves, now and then."""
        if time.monotonic() - self._reported < REPORT_S:
            return
        self._reported = time.monotonic()
        if values := self._services.metrics():
            await asyncio.to_thread(self._buffer.emit, "judges", {"worker": self.name, "metrics": values})

    async def _take(self) -> None:
        """Start scoring groups, as many as there are slots; waits for a slot or for groups."""
        free = self._settings.concurrent_groups - len(self._active)
        if free == 0:
            await asyncio.wait(self._active.values(), return_when=asyncio.FIRST_COMPLETED, timeout=POLL_S)
        else:
            groups = await asyncio.to_thread(self._buffer.unscored, self.name, free, POLL_S)
            # A group that takes longer than its scoring lease comes again while it is in hand.
            groups = [g for g in groups if g.id not in self._active and g.id not in self._behind]
            answered = await asyncio.to_thread(self._buffer.answered, [g.id for g in groups])
            if groups:
                await asyncio.gather(*(signal.refresh(self._services) for signal in self._signals.values()))
            for group, known in zip(groups, answered, strict=True):
                self._active[group.id] = asyncio.create_task(self._attach(group, known))
        for id in [i for i, task in self._active.items() if task.done()]:
            self._active.pop(id).result()
        for id in [i for i, task in self._behind.items() if task.done()]:
            task = self._behind.pop(id)
            if not task.cancelled():
                task.result()

    async def _attach(self, group: Group, answered: set[tuple[str, str]]) -> None:
        """Ask what has not answered under its current version; late signals without being waited for."""
        admit, late = (
            [n for n in names if (n, self._signals[n].version()) not in answered] for names in (self._admit, self._late)
        )
        if admit:
            await self._submit(group, admit)
        if late:
            self._behind[group.id] = asyncio.create_task(self._submit(group, late))
            if len(self._behind) > LATE_GROUPS * self._settings.concurrent_groups:
                # The oldest has been cut by now, or soon will be.
                self._behind.pop(next(iter(self._behind))).cancel()

    async def _submit(self, group: Group, names: Sequence[str]) -> None:
        # One message for all that answer at once; who must be waited for holds up nobody.
        waiting = [n for n in names if self._sections[n].on_missing == "wait"]
        prompt = [n for n in names if n not in waiting]
        await asyncio.gather(*(self._send(group, part) for part in (prompt, *([n] for n in waiting)) if part))

    async def _send(self, group: Group, names: Sequence[str]) -> None:
        scores = await self.score(group, names)
        failpoint("rewards.before_score")
        await asyncio.to_thread(self._buffer.score, group.id, scores)
        if failure := next((f for n, s in scores.items() if (f := self._fatal(n, s))), ""):
            fields = {"worker": self.name, "data_failures": 1, "last_failure": f"group {group.id}: {failure}"}
            await asyncio.to_thread(self._buffer.emit, "reward", fields)

    def _fatal(self, name: str, scores: Scores) -> str:
        """Why a signal that the group cannot do without failed on all of its rollouts; nothing if it did not."""
        section = self._sections[name]
        if section.weight == 0 or section.missing is not None or not (scores.state == FAILED).all():
            return ""
        return scores.provenance[0].note or f"reward '{name}' failed"

    async def _patiently(self, name: str, group: Group) -> Scores:
        """One signal's answer; with `on_missing = "wait"` asked again until it is known or the group is overdue."""
        section, begun, attempt = self._sections[name], time.monotonic(), 1
        pause_s = FIRST_PAUSE_S
        while True:
            scores, failed = await self._ask(name, group, attempt)
            left_s = self._settings.max_wait_s - (time.monotonic() - begun)
            if not failed or section.on_missing != "wait" or left_s < pause_s or self._stopping:
                return scores
            await asyncio.sleep(pause_s)
            pause_s, attempt = min(2 * pause_s, LONGEST_PAUSE_S), attempt + 1

    async def _ask(self, name: str, group: Group, attempt: int) -> tuple[Scores, bool]:
        """The answer, and whether the call failed."""
        signal, section, begun = self._signals[name], self._sections[name], time.monotonic()
        version = signal.version()
        self._asked[name] += 1
        try:
            scores, note = await ask(signal, group, self._services, section.timeout_s)
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


def _signed(scores: Scores, section: RewardSection, version: str, attempt: int, latency_s: float) -> Scores:
    """With who scored, under which version and how long it took, where the signal has not said so itself."""

    def signed(given: Provenance) -> Provenance:
        judge, latency = given.judge or section.use, given.latency_s or latency_s
        return replace(given, judge=judge, attempt=max(given.attempt, attempt), latency_s=latency)

    provenance = tuple(map(signed, scores.provenance or (Provenance(),)))
    return replace(scores, provenance=provenance, version=version if scores.version == UNVERSIONED else scores.version)
