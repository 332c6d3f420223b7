"""What is in Redis, compared with what its clients were told; and calls on their way there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from cluster.buffer import Buffer, audit
from tests.cluster.expected import Expected, check
from tests.cluster.pipeline import connection_of


@dataclass(frozen=True, slots=True)
class Sent:
    """A call that succeeded."""

    script: str
    args: tuple[Any, ...]
    """The policy first."""
    answer: list[Any]


REPEATABLE = {
    "announce",
    "claim",
    "drop",
    "give_up",
    "put",
    "record",
    "release",
    "resume",
    "score",
    "trim",
    "tried",
    "unreadable",
    "unscored",
    "forsake",
}


AT_ONCE = {"relabel"}
"""Repeated before anything else is said: later it would bring back an old version, as if a judge had."""


class Wire:
    """Between a buffer and its server: repeats calls as if their answers had been lost, at once or later."""

    def __init__(self, buffer: Buffer) -> None:
        connection = buffer._redis
        self._call = connection.call
        setattr(connection, "call", self.call)  # noqa: B010
        self.lossy = False
        self.sent: list[Sent] = []
        """What may arrive once more at any time."""

    def call(self, script: str, *args: Any) -> list[Any]:
        answer = self._call(script, *args)
        check(answer[0] not in ("wrong", "unconfigured"), "what is lawful is not refused", script, answer)
        if self.lossy and script in (REPEATABLE | AT_ONCE) and answer[0] != "wait":
            again = self._call(script, *args)
            check(again == answer, "a repeated call answers as the first did", script, answer, again)
        if script in REPEATABLE and answer[0] == "ok":
            self.sent.append(Sent(script, args, answer))
        return answer

    def repeat(self, sent: Sent) -> None:
        """The call arrives once more. Another epoch may have begun, or the record that it would repeat be trimmed."""
        again = self._call(sent.script, *sent.args)
        allowed = again == sent.answer or again[0] == "stale" or (sent.script, again[0]) == ("record", "wrong")
        check(allowed, "a repeated call answers as the first did, or is refused", sent, again)


def compare(buffer: Buffer, expected: Expected) -> None:
    """Every invariant that holds between any two moves. Raises Broken."""
    seen = _read(buffer, expected.name)
    _history(buffer, expected, seen)
    _tasks(expected, seen)
    _admission(expected)
    for name, told in _told(expected).items():
        check(seen[name] == told, f"{name} is what the clients were told", seen[name], told)


def _history(buffer: Buffer, expected: Expected, seen: dict[str, Any]) -> None:
    survives = expected.history[: expected.version]
    ids = [id for step in survives for id in step]
    tasks = [expected.groups[id].claim.task for id in ids]
    check(len(set(ids)) == len(ids), "no group twice in the surviving history", survives)
    check(len(set(tasks)) == len(tasks), "no task twice in the surviving history", survives, tasks)
    for step, ids in enumerate(survives):
        for id in ids:
            staleness = step - expected.groups[id].claim.version
            check(0 <= staleness <= expected.limits.max_staleness, "bound", id, staleness)
    past = audit.read(connection_of(buffer), expected.name)
    lines = {line.id: line.outcome for line in past.lines}
    told = {known.claim.id: expected.outcome(known) for known in expected.groups.values()}
    num_folded = past.num_trained_before + sum(n for name, n in past.sums.items() if name.startswith("dropped:"))
    check(
        lines.items() <= told.items(),
        "the ledger's lines are what the clients were told",
        set(lines.items()) - set(told.items()),
    )
    check(len(lines) + num_folded == len(told), "the ledger has a line for each claim, or counts it", past.sums, lines)
    trained = {id: f"trained:{step}" for step, ids in enumerate(survives) for id in ids}
    kept = {id: line for id, line in lines.items() if line.startswith("trained")}
    check(kept.items() <= trained.items(), "the ledger's trained groups are the surviving history", kept, trained)
    summary = audit.summary(past)
    dropped = Counter(outcome[8:] for outcome in told.values() if outcome.startswith("dropped:"))
    check(summary["groups_trained"] == len(trained), "the ledger adds up: trained", summary)
    check(summary["groups_dropped"] == dict(dropped), "the ledger adds up: dropped", summary, dropped)
    check(summary["groups_claimed"] == len(told), "the ledger adds up: claimed", summary)
    check(summary["groups_lost"] == 0, "the ledger adds up: lost", summary)
    check(summary["groups_trained_twice"] == 0, "the ledger adds up: trained twice", summary)
    told_live = [id for id, outcome in told.items() if outcome == "live"]
    check(summary["groups_outstanding"] == len(told_live), "the ledger adds up: outstanding", summary)


def _tasks(expected: Expected, seen: dict[str, Any]) -> None:
    """Each task below the frontier is in one place. But for the history and what is final, read from Redis."""
    ids = [*seen["open"], *seen["ready"], *(id for id, step in seen["assembled"].items() if step >= expected.version)]
    live = [expected.groups[id].claim.task for id in ids]
    trained = [expected.groups[id].claim.task for ids in expected.history[: expected.version] for id in ids]
    places = Counter([*live, *trained, *seen["queue"].elements(), *expected.final])
    lost = set(range(seen["frontier"])) - set(places)
    check(not lost, "no task lost", lost)
    twice = {task for task, count in places.items() if count > 1}
    check(not twice, "no task in two places", twice)
    check(max(places, default=-1) < seen["frontier"], "no task before its time", places, seen["frontier"])


def _admission(expected: Expected) -> None:
    """Each live group has a place in a step within the bound; who passes over slow ones drops those that have none."""
    if expected.limits.when_late == "wait":
        for index, known in enumerate(expected.live):
            step = expected.next_step + index // expected.limits.groups_per_step
            bound = known.claim.version + expected.limits.max_staleness
            check(step <= bound, "admission: no group without a place within the bound", known.claim, step)


def _told(expected: Expected) -> dict[str, Any]:
    return {
        "open": {k.claim.id for k in expected.at("leased", "pending")},
        "ready": {k.claim.id for k in expected.at("ready")},
        "assembled": {id: expected.groups[id].step for id in expected.stored_batches},
        "stored": {k.claim.id for k in expected.live} | expected.stored_batches,
        "records": set(expected.records),
        "queue": Counter(expected.queue),
        "epoch": expected.epoch,
        "version": expected.version,
        "next_step": expected.next_step,
        "frontier": expected.frontier,
        "published": expected.published,
    }


def _read(buffer: Buffer, policy: str) -> dict[str, Any]:
    prefix = connection_of(buffer).prefix
    own = f"{prefix}policy:{policy}:"
    with connection_of(buffer).redis.pipeline(transaction=True) as pipe:
        for name in ("open", "ready"):
            pipe.zrange(own + name, 0, -1)
        pipe.zrange(own + "assembled", 0, -1, withscores=True)
        pipe.zrange(own + "records", 0, -1)
        pipe.lrange(own + "requeued", 0, -1)
        pipe.hgetall(own + "state")
        pipe.keys(f"{prefix}group:{policy}/*")
        opened, ready, assembled, records, queue, state, keys = pipe.execute()
    numbers = {key.decode(): int(value) for key, value in state.items()}
    return {
        "open": {id.decode() for id in opened},
        "ready": {id.decode() for id in ready},
        "assembled": {id.decode(): int(step) for id, step in assembled},
        "stored": {key.decode().removeprefix(f"{prefix}group:") for key in keys},
        "records": {int(step) for step in records},
        "queue": Counter(int(task) for task in queue),
        **{name: numbers.get(name, 0) for name in ("epoch", "version", "next_step", "frontier")},
        "published": numbers.get("published_step"),
    }
