"""Which groups there are, by every filter of the page, without reading tokens per request.

Trained groups come from the run's directory (`cluster.storage.group_archive`), those under way from Redis. Each group
is summarised once, when it is first seen; a request looks for new groups, for a bounded time, and answers from memory.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.buffer import Buffer
from cluster.buffer.audit import Live
from cluster.storage import group_archive
from cluster.storage.group_archive import ArchivedGroup, GroupSummary

REFRESH_S = 1.0
"""Two looks at disk and Redis are so far apart at least, however many pages are open."""
BUDGET_S = 0.15
"""Time that one request spends on groups in Redis that were not seen before; the others are listed by id until later
requests."""
CHUNK = 64

State = Literal["leased", "pending", "ready", "assembled", "trained"]
Sort = Literal["newest", "reward", "spread", "length", "unknown"]


@dataclass(slots=True)
class Entry:
    """One line of the list."""

    id: str
    state: State
    worker: str = ""
    glance: GroupSummary | None = None
    """None while it is sampled, and until it is read."""
    step: int | None = None
    reward: float | None = None
    spread: float | None = None
    """Standard deviation of the rewards: 0 teaches nothing."""
    path: Path | None = None
    """Where it is kept, if it is."""
    haystack: str = ""

    @property
    def order(self) -> int:
        return int(self.id.rsplit("/", 1)[1])


@dataclass(frozen=True, slots=True)
class Query:
    """What the page asks for; every field is in its address."""

    state: State | None = None
    step: int | None = None
    text: str = ""
    min_reward: float | None = None
    max_reward: float | None = None
    sort: Sort = "newest"
    ascending: bool = False
    page: int = 1
    per_page: int = 50


@dataclass(frozen=True, slots=True)
class Found:
    """A group with everything known of it."""

    state: State
    group: ArchivedGroup


class GroupIndex:
    """Groups of one policy; thread-safe."""

    def __init__(self, directory: Path, buffer: Buffer | None, policy: str) -> None:
        self._directory, self._buffer, self._policy = directory, buffer, policy
        self._lock = threading.Lock()
        self._looked = -REFRESH_S
        self._files: dict[Path, tuple[int, list[Entry]]] = {}
        self._kept: dict[str, Entry] = {}
        self._live: dict[str, Entry] = {}
        self._epoch = 0
        self._records: dict[int, dict[str, tuple[float, ...]]] = {}

    def find(self, query: Query) -> dict[str, Any]:
        """One page of what matches, how many there are, and counts by state of all groups."""
        with self._lock:
            self._refresh()
            everything = [*self._kept.values(), *self._live.values()]
            matching = [e for e in everything if _matches(e, query)]
            matching.sort(key=lambda e: e.order, reverse=not query.ascending)
            matching.sort(key=_KEYS[query.sort](query.ascending))
            first = (query.page - 1) * query.per_page
            shown = matching[first : first + query.per_page]
            self._fresh([e for e in shown if e.state in ("pending", "ready")])
            steps = [e.step for e in everything if e.step is not None]
            return {
                "groups": [_line(e) for e in shown],
                "total": len(matching),
                "page": query.page,
                "per_page": query.per_page,
                "states": dict(Counter(e.state for e in everything)),
                "steps": [min(steps), max(steps)] if steps else None,
                "unread": sum(e.glance is None and e.state != "leased" for e in self._live.values()),
            }

    def get(self, id: str) -> Found | None:
        """A whole group, from disk or Redis; None if it is in neither."""
        with self._lock:
            self._refresh()
            entry = self._kept.get(id) or self._live.get(id)
            if entry is not None and entry.path is not None and entry.glance is not None:
                return Found(entry.state, group_archive.read(entry.path, entry.glance))
        if entry is None or self._buffer is None:
            return None
        for stored in self._buffer.stored([id]):
            none = np.full(len(stored.group), np.nan)
            record = self._buffer.recorded(self._policy, entry.step - 1) if entry.step is not None else None
            place = record.groups.index(id) if record and id in record.groups else None
            if record is None or place is None:
                return Found(entry.state, ArchivedGroup(stored.group, -1, none, (), stored.scores))
            rewards, advantages = record.rewards[place], record.advantages[place]
            return Found(entry.state, ArchivedGroup(stored.group, record.step + 1, rewards, advantages, stored.scores))
        return None

    def leased(self) -> dict[str, int]:
        """Groups being sampled, by worker."""
        with self._lock:
            self._refresh()
            return dict(Counter(e.worker for e in self._live.values() if e.state == "leased"))

    # ── what there is ───────────────────────────────────────────────────────────────────────────────────────

    def _refresh(self) -> None:
        if time.monotonic() - self._looked < REFRESH_S:
            return
        self._look_at_disk()
        if self._buffer is not None:
            self._look_at_redis(self._buffer, self._buffer.live(self._policy))
        self._looked = time.monotonic()

    def _look_at_disk(self) -> None:
        there = {path: stamp for path in group_archive.files(self._directory) if (stamp := _stamp(path)) is not None}
        changed = False
        for path in [p for p, (stamp, _) in self._files.items() if there.get(p) != stamp]:
            del self._files[path]
            changed = True
        for path in there.keys() - self._files.keys():
            found = group_archive.try_index(path)
            if found is None:  # the oldest are removed while we look; a damaged one is not shown
                continue
            self._files[path] = (there[path], [_entry(g.id, "trained", g, path=path) for g in found])
            changed = True
        if changed:
            self._kept = {e.id: e for _, entries in self._files.values() for e in entries}

    def _look_at_redis(self, buffer: Buffer, live: Live) -> None:
        if live.epoch != self._epoch:  # what was assembled before may have been rolled back
            self._epoch, self._records = live.epoch, {}
        before, self._live = self._live, {}
        places: list[tuple[State, list[str]]] = [
            ("leased", live.leased), ("pending", live.pending), ("ready", live.ready),
        ]  # fmt: skip
        for state, ids in places:
            for id in ids:
                self._carry(before, id, state)
        for id, step in live.assembled.items():
            self._carry(before, id, "trained" if step < live.version else "assembled", step=step + 1)
        nameless = [id for id in live.leased if id in self._live and not self._live[id].worker]
        for id, worker in buffer.claimed_by(nameless).items():
            self._live[id].worker = worker
        until = time.monotonic() + BUDGET_S
        unread = [e for e in self._live.values() if e.glance is None and e.state != "leased"]
        for start in range(0, len(unread), CHUNK):
            if time.monotonic() > until:
                break
            self._fresh(unread[start : start + CHUNK])
        for entry in self._live.values():
            if entry.step is not None and entry.reward is None:
                _reward(entry, self._rewards(buffer, entry.step).get(entry.id, ()))

    def _carry(
        self, before: dict[str, Entry], id: str, state: State, worker: str = "", step: int | None = None
    ) -> None:
        if id in self._kept:
            return
        entry = self._live[id] = before.get(id) or Entry(id, state)
        entry.state, entry.step = state, step

    def _fresh(self, entries: list[Entry]) -> None:
        """Read these from Redis: what is new of them, and scores that have arrived since."""
        if not entries or self._buffer is None:
            return
        by_id = {e.id: e for e in entries}
        for stored in self._buffer.stored(by_id):
            _see(by_id[stored.group.id], group_archive.glance(stored.group, stored.scores))

    def _rewards(self, buffer: Buffer, step: int) -> dict[str, tuple[float, ...]]:
        if step not in self._records:
            record = buffer.recorded(self._policy, step - 1)
            pairs = zip(record.groups, record.rewards, strict=True) if record else ()
            self._records[step] = {id: tuple(map(float, rewards)) for id, rewards in pairs}
        return self._records[step]


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _entry(id: str, state: State, glance: GroupSummary, path: Path) -> Entry:
    entry = Entry(id, state, path=path, step=glance.step)
    _see(entry, glance)
    _reward(entry, glance.rewards)
    return entry


def _see(entry: Entry, glance: GroupSummary) -> None:
    entry.glance = glance
    entry.haystack = f"{glance.id}\n{glance.task}\n{glance.prompt}".casefold()


def _reward(entry: Entry, rewards: Iterable[float]) -> None:
    known = np.array([r for r in rewards if r == r])
    if len(known):
        entry.reward, entry.spread = float(known.mean()), float(known.std())


def _matches(entry: Entry, query: Query) -> bool:
    if query.state is not None and entry.state != query.state:
        return False
    if query.step is not None and entry.step != query.step:
        return False
    if query.text and query.text.casefold() not in (entry.haystack or entry.id):
        return False
    if query.min_reward is not None and (entry.reward is None or entry.reward < query.min_reward):
        return False
    return query.max_reward is None or (entry.reward is not None and entry.reward <= query.max_reward)


def _by(value: Callable[[Entry], float | None]) -> Callable[[bool], Callable[[Entry], tuple[bool, float]]]:
    """A sort key for either direction; what is not known comes last in both."""

    def keyed(ascending: bool) -> Callable[[Entry], tuple[bool, float]]:
        def key(entry: Entry) -> tuple[bool, float]:
            found = value(entry)
            return (True, 0.0) if found is None else (False, found if ascending else -found)

        return key

    return keyed


_KEYS = {
    "newest": _by(lambda e: 0.0 if e.state != "leased" else None),  # nothing to see of them yet
    "reward": _by(lambda e: e.reward),
    "spread": _by(lambda e: e.spread),
    "length": _by(lambda e: e.glance.length_tokens if e.glance else None),
    "unknown": _by(lambda e: e.glance.unknown if e.glance else None),
}


def _line(entry: Entry) -> dict[str, Any]:
    shown = asdict(entry.glance) if entry.glance else {}
    for private in ("offset", "size"):
        shown.pop(private, None)
    mine = {"id": entry.id, "state": entry.state, "worker": entry.worker, "step": entry.step}
    return {**shown, **mine, "reward": entry.reward, "spread": entry.spread}
