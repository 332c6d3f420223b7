"""What must be true of a policy's buffer, from what its clients have been told: plain Python, no Redis, no Lua.

`Expected` is told every move and says what the next answer must be; `lap_machine.py` asks the real buffer as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.buffer import Limits
from cluster.types import Claim, Manifest
from tests.cluster.eras import Eras, Evidence


class Broken(AssertionError):
    """An invariant does not hold."""


def check(holds: object, invariant: str, *details: Any) -> None:
    """Raises Broken, which names the invariant and shows the values."""
    if not holds:
        raise Broken(": ".join([invariant, *map(repr, details)]))


@dataclass(slots=True)
class Known:
    """One claim, as its worker, its judges and its learner know it."""

    claim: Claim
    worker: str
    at: Literal["leased", "pending", "ready", "assembled", "dropped"] = "leased"
    reason: str = ""
    """Why it was dropped."""
    step: int = -1
    """Which step trains on it."""
    was_put: bool = False
    gave_up: bool = False
    passed: bool = False
    """Its lease or its score deadline has passed; whoever comes next will notice."""
    overdue: bool = False
    judging: Literal["", "due", "taken"] = ""
    scorer: str = ""
    """Which reward worker has it in hand."""
    unreadable: bool = False
    suspected: bool = False
    trial: str = ""
    """The reward that a suspect is asked alone."""
    cleared: set[str] = field(default_factory=set)
    condemned: set[str] = field(default_factory=set)
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def place(self) -> tuple[int, int]:
        return self.claim.version, self.claim.seq

    @property
    def live(self) -> bool:
        return self.at in ("leased", "pending", "ready")


@dataclass(slots=True)
class Saved:
    """A checkpoint directory, with the truth that its manifest must be able to bring back."""

    step: int
    history: list[tuple[str, ...]]
    manifest: Manifest | None = None
    files: bool = False
    frontier: int = 0
    to_claim: list[int] = field(default_factory=list)
    """Tasks below the frontier that were neither trained nor finally dropped."""
    final: set[int] = field(default_factory=set)


class Expected:
    """One policy: its claims, its queue of tasks, its batches and the history behind the learner's weights."""

    def __init__(self, name: str, limits: Limits, eras: Eras) -> None:
        self.name, self.limits, self.eras = name, limits, eras
        self.groups: dict[str, Known] = {}
        self.queue: list[int] = []
        self.frontier = self.version = self.epoch = self.next_step = self.trimmed = 0
        self.published: int | None = None
        self.final: set[int] = set()
        """Tasks that left for good: filtered, or at fault themselves."""
        self.records: dict[int, tuple[str, ...]] = {}
        self.stored_batches: set[str] = set()
        """Assembled and not yet trimmed."""
        self.history: list[tuple[str, ...]] = []
        """What the learner's weights were trained on, step by step. It survives as far as a released version says."""

    # ── what is there ───────────────────────────────────────────────────────────────────────────────────────

    def at(self, *states: str) -> list[Known]:
        """Groups in these states, or in any, in their order: version, then seq."""
        return sorted((k for k in self.groups.values() if not states or k.at in states), key=lambda k: k.place)

    @property
    def live(self) -> list[Known]:
        return self.at("leased", "pending", "ready")

    def outcome(self, known: Known) -> str:
        """As the ledger must tell it."""
        if known.at == "dropped":
            return f"dropped:{known.reason}"
        return f"trained:{known.step}" if known.at == "assembled" and known.step < self.version else "live"

    def more_tasks(self) -> bool:
        return bool(self.queue) or self.limits.num_tasks is None or self.frontier < self.limits.num_tasks

    def room(self) -> int:
        """Claims that can still be trained within the bound: from the counters alone."""
        steps = self.version + self.limits.max_staleness + 1 - self.next_step
        return steps * self.limits.groups_per_step - len(self.live)

    def behind(self, engine: tuple[int, int]) -> bool:
        return engine[0] != self.epoch or engine[1] < max(self.version, self.published or 0)

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────

    def claimed(self, claim: Claim, worker: str) -> None:
        check(claim.id not in self.groups, "an id is used once", claim)
        check((claim.epoch, claim.version) == (self.epoch, self.version), "bound: a claim has today's version", claim)
        if self.queue:
            check(claim.task in self.queue, "tasks that came back are claimed first", claim.task, self.queue)
            self.queue.remove(claim.task)
        else:
            check(claim.task == self.frontier, "the frontier goes up by one", claim.task, self.frontier)
            self.frontier += 1
        self.groups[claim.id] = Known(claim, worker)

    def drop(self, known: Known, reason: str, *, requeue: bool) -> None:
        known.at, known.reason, known.judging = "dropped", reason, ""
        if requeue:
            self.queue.append(known.claim.task)
        elif reason != "rolled_back":
            self.final.add(known.claim.task)

    def expire(self) -> None:
        """Somebody came and noticed what has passed."""
        for known in self.groups.values():
            if known.passed and known.at == "leased":
                self.drop(known, "lease_expired", requeue=True)
            elif known.passed and known.at == "pending" and not known.suspected:
                known.at, known.overdue, known.judging = "ready", True, ""
            known.passed = False

    def put(self, known: Known) -> None:
        known.was_put, known.judging = True, "due"
        known.at = "pending" if self.limits.blocking else "ready"

    def forsake(self, worker: str) -> None:
        """'' is every worker."""
        for known in self.at("leased"):
            if worker in ("", known.worker):
                self.drop(known, "worker_died", requeue=True)

    def judge_gone(self, known: Known, *, blame: bool) -> None:
        """The worker that had this group in hand is gone: its death is the group's fault, perhaps."""
        if blame and known.trial:
            known.condemned.add(known.trial)
            known.cleared.add(known.trial)
        elif blame:
            known.suspected = True
        known.judging, known.scorer, known.trial = "due", "", ""

    def tried(self, known: Known) -> None:
        """Its worker lives."""
        known.cleared.add(known.trial)
        known.judging, known.scorer, known.trial = known.judging and "due", "", ""

    def to_try(self, known: Known) -> str:
        """The reward to ask a suspect alone; nothing once all have been tried."""
        untried = [name for name in self.limits.blocking if name not in known.cleared]
        if not untried or not known.judging:
            known.passed = known.passed and not (known.suspected and known.at == "pending")
            known.suspected, known.cleared, known.trial = False, set(), ""
        return untried[0] if known.suspected else ""

    def score(self, known: Known, reward: str, version: str, value: float) -> None:
        """What is assembled, or gone, is never touched."""
        if known.live:
            known.evidence.hear(self.eras, reward, version, value)
            self.heard_from_judge(known)

    def heard_from_judge(self, known: Known) -> None:
        """A score, new or repeated: the group is complete, or its scorer is alive."""
        if not known.live:
            return
        blocking = self.limits.blocking
        known.evidence.change_over(self.eras, blocking)
        if not known.evidence.unanswered(self.eras, blocking):
            known.judging = ""
        elif known.judging:
            known.judging = "taken"
        if known.at == "pending" and all(name in known.evidence.carried for name in blocking):
            known.at, known.passed = "ready", False

    def relabel(self, changed: set[str]) -> None:
        """The eras have: what is stored and not assembled is asked again."""
        for known in self.live:
            if known.was_put:
                known.evidence.forget(self.eras, changed)
                known.judging, known.scorer = "due", ""

    # ── the learner ─────────────────────────────────────────────────────────────────────────────────────────

    def ready(self, step: int) -> tuple[list[Known], bool]:
        """What a learner at `step` is shown, and whether that is all that can ever come."""
        self.expire()
        for known in self.live:
            if known.claim.version < step - self.limits.max_staleness:
                check(self.limits.when_late == "drop", "who waits for slow groups drops none as late", known)
                self.drop(known, "late", requeue=True)
        found, waiting = self.at("ready"), self.at("leased", "pending")
        if waiting and self.limits.when_late == "wait":
            found = [k for k in found if k.claim.version <= waiting[0].claim.version]
        found = found[: self.limits.groups_per_step]
        if unreadable := [k for k in found if k.unreadable]:
            for known in unreadable:
                self.drop(known, "unreadable", requeue=True)
            return self.ready(step)
        return found, not waiting and not self.more_tasks()

    def assemble(self, step: int, ids: Iterable[str], filtered: Iterable[str]) -> None:
        self.records[step] = tuple(ids)
        self.next_step = step + 1
        for id in self.records[step]:
            known = self.groups[id]
            known.at, known.step, known.judging = "assembled", step, ""
            self.stored_batches.add(id)
        for id in filtered:
            self.drop(self.groups[id], "filtered", requeue=False)

    def trim(self, step: int) -> None:
        self.stored_batches -= {id for id in self.stored_batches if self.groups[id].step < step}
        self.records = {at: ids for at, ids in self.records.items() if at >= step}
        self.trimmed = max(self.trimmed, step)

    def save(self, manifest: Manifest | None, saved: Saved) -> None:
        """Remember beside the manifest what it must be able to bring back."""
        outstanding = [*self.live, *(k for k in self.at("assembled") if k.step >= self.version)]
        saved.manifest, saved.frontier, saved.final = manifest, self.frontier, set(self.final)
        saved.to_claim = [*self.queue, *(k.claim.task for k in outstanding)]

    def resume(self, saved: Saved, epoch: int, *, rollback: bool) -> None:
        check(epoch > self.epoch, "every resume begins a new epoch", epoch, self.epoch)
        self.epoch, self.version, self.published = epoch, saved.step, None
        self.history = list(saved.history)
        again = [*self.live, *(k for k in self.at("assembled") if k.step >= saved.step)]
        if rollback or self.trimmed > saved.step:
            for known in again:
                self.drop(known, "rolled_back", requeue=False)
            self.queue, self.frontier, self.final = list(saved.to_claim), saved.frontier, set(saved.final)
            self.trimmed = saved.step
        elif self.limits.max_staleness == 0:
            for known in again:
                self.drop(known, "dead_epoch", requeue=True)
        else:
            self.trim(saved.step)
            return
        self.records, self.next_step = {}, saved.step
        self.stored_batches.clear()
        self.trimmed = max(self.trimmed, saved.step)
