"""What a run has done, read from the ledger and compared with what is really there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis

from cluster.buffer.connection import Connection

ASSEMBLED = "assembled:"
"""Beginning of the outcome of a group in a recorded batch; the steps follow."""


class LedgerLine(NamedTuple):
    id: str
    task: int
    epoch: int
    version: int
    outcome: str
    """`trained:STEP`, `dropped:REASON` or `live`; an assembled group is trained once its step is released."""


@dataclass(frozen=True, slots=True)
class History:
    """One atomic look at a policy's past."""

    lines: list[LedgerLine]
    """Lines of claims that the sums do not count yet."""
    trained_steps: dict[str, list[int]]
    """Per trained group the steps that trained on it: one, unless something is wrong."""
    num_claimed: int
    present: set[str]
    """Ids of outstanding groups that are really stored."""
    counters: dict[str, int]
    sums: dict[str, int]
    """Sums of claims whose lines have left the ledger: `dropped:REASON`, `trained_twice`, `max_staleness`."""
    num_trained_before: int
    """Trained groups whose lines have left the ledger."""
    again: set[str]
    """Ids of lines whose task such a group has trained too."""


@dataclass(frozen=True, slots=True)
class Live:
    """The groups that Redis holds, at one moment."""

    epoch: int
    version: int
    leased: list[str]
    pending: list[str]
    ready: list[str]
    assembled: dict[str, int]
    """id → step (from 0) whose record names it; trained once `version` is beyond it, and stored until it is trimmed."""


def live(connection: Connection, policy: str) -> Live:
    own = f"{connection.prefix}policy:{policy}:"

    def run() -> list[Any]:
        with connection.redis.pipeline(transaction=True) as pipe:
            pipe.hmget(own + "state", "epoch", "version")
            pipe.zrange(own + "open", 0, -1)
            pipe.zrange(own + "leases", 0, -1)
            pipe.zrange(own + "ready", 0, -1)
            pipe.zrange(own + "assembled", 0, -1, withscores=True)
            return pipe.execute()

    (epoch, version), open_, leases, ready, assembled = connection.patiently(run)
    leased = set(leases)
    return Live(
        epoch=int(epoch or 0),
        version=int(version or 0),
        leased=[id.decode() for id in open_ if id in leased],
        pending=[id.decode() for id in open_ if id not in leased],
        ready=[id.decode() for id in ready],
        assembled={id.decode(): int(step) for id, step in assembled},
    )


def read(connection: Connection, policy: str) -> History:
    _, ledger, counters, version, present, sums, trained_before, again = connection.call("past", policy)
    lines, trained = [], {}
    for id, line in _pairs(ledger).items():
        task, epoch, born, outcome = line.decode().split(" ", 3)
        if outcome.startswith(ASSEMBLED):
            steps = [step for step in map(int, outcome[len(ASSEMBLED) :].split(",")) if step < version]
            outcome = f"trained:{steps[-1]}" if steps else "live"
            if steps:
                trained[id.decode()] = steps
        lines.append(LedgerLine(id.decode(), int(task), int(epoch), int(born), outcome))
    lines.sort(key=lambda line: int(line.id.rsplit("/", 1)[1]))
    numbers = _numbers(_pairs(counters))
    return History(
        lines,
        trained,
        numbers.get("claimed", 0),
        {id.decode() for id in present},
        numbers,
        _numbers(_pairs(sums)),
        trained_before,
        {id.decode() for id in again},
    )


def summary(past: History) -> dict[str, Any]:
    """Claimed is counted, trained and dropped are lines of the ledger or sums of them, outstanding is stored: they may
    differ."""
    trained = [line for line in past.lines if line.id in past.trained_steps]
    dropped = Counter(line.outcome[8:] for line in past.lines if line.outcome.startswith("dropped:"))
    accounted = {line.id for line in past.lines if line.outcome != "live"} | past.present
    twice = past.sums.get("trained_twice", 0) + len({line.task for line in trained if line.id in past.again})
    twice += sum(len(steps) - 1 for steps in past.trained_steps.values())
    twice += sum(n - 1 for n in Counter(line.task for line in trained).values())
    dropped_before = {name[8:]: n for name, n in past.sums.items() if name.startswith("dropped:")}
    num_before = past.num_trained_before + sum(dropped_before.values())
    dropped.update(dropped_before)
    return {
        "groups_claimed": past.num_claimed,
        "groups_trained": len(trained) + past.num_trained_before,
        "groups_dropped": dict(sorted(dropped.items())),
        "groups_outstanding": len(past.present),
        "groups_lost": past.num_claimed - len(accounted) - num_before,
        "groups_trained_twice": twice,
        "max_staleness_observed": max(
            past.sums.get("max_staleness", 0),
            *(step - line.version for line in trained for step in past.trained_steps[line.id]),
            0,
        ),
        "calls_refused": {k.removeprefix("refused_"): n for k, n in past.counters.items() if k.startswith("refused_")},
    }


def status(reply: list[Any]) -> dict[str, Any]:
    """The reply of `status.lua` as a dict."""
    _, state, counters, groups, oldest, at, worker, judge, missing, due_ms = reply
    waits: dict[str, Any] | None = None
    if oldest:
        what = "its rollout" if at == b"leased" else "scores: " + ", ".join(name.decode() for name in missing)
        waits = {
            "id": oldest.decode(),
            "state": at.decode(),
            "waits_for": what,
            "worker": (worker if at == b"leased" else judge).decode(),
            "deadline_s": due_ms / 1000,
        }
    numbers = _numbers(_pairs(state))
    return {
        **{name: numbers.get(name, 0) for name in ("epoch", "version", "next_step", "frontier")},
        "groups": _numbers(_pairs(groups)),
        "counters": _numbers(_pairs(counters)),
        "oldest": waits,
    }


def in_words(status: dict[str, Any]) -> str:
    """What a policy's groups wait for."""
    groups, oldest = status["groups"], status["oldest"]
    said = (
        f"version {status['version']}: {groups['leased']} groups are sampled, {groups['pending']} wait for scores, "
        f"{groups['ready']} are ready"
    )
    if oldest is None:
        return said
    by = f" by {oldest['worker']}" if oldest["worker"] else ""
    return f"{said}; the oldest, {oldest['id']}, waits for {oldest['waits_for']}{by}, {oldest['deadline_s']:.0f} s more"


def persistence(connection: Connection) -> list[str]:
    """Warnings about a server's configuration; one that forbids CONFIG gives the warning that we do not know."""
    names = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
    try:
        # One name a call: Redis 6.2 takes no more.
        found = {name: connection.redis.config_get(name).get(name, "") for name in names}
    except redis.ResponseError:
        return [f"Redis at {connection.where} does not show its configuration; whether it survives a crash is unknown."]
    except redis.RedisError:
        connection.patiently(connection.redis.ping)
        return []
    values = {k: v.decode() if isinstance(v, bytes) else str(v) for k, v in found.items()}
    warnings = []
    if values["appendonly"] != "yes":
        warnings.append(
            "appendonly is off: a crash of Redis loses what came after its last RDB file. Set appendonly yes."
        )
    elif values["appendfsync"] != "always":
        warnings.append(
            f"appendfsync is {values['appendfsync']}: a crash of Redis may lose its last second and send "
            "the run back to its last checkpoint. Set appendfsync always."
        )
    if values["maxmemory-policy"] not in ("noeviction", ""):
        warnings.append(f"maxmemory-policy is {values['maxmemory-policy']}: Redis may evict groups. Set noeviction.")
    if values["maxmemory"] not in ("0", ""):
        warnings.append(f"maxmemory is {int(values['maxmemory']) / 2**30:.2f} GiB: when it is full the run waits.")
    return warnings


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _numbers(fields: dict[bytes, Any]) -> dict[str, int]:
    return {key.decode(): int(value) for key, value in fields.items()}
