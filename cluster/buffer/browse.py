"""Every group that a run has stored, as it is: for looking, not for the pipeline. Nothing is changed or waited for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from cluster.buffer.client import scores_of
from cluster.buffer.connection import Connection
from cluster.types import BatchRecord, Group, Scores, decode

T = TypeVar("T")

STATES = ("leased", "pending", "ready", "assembled", "trained")
CHUNK = 64
"""Groups fetched at once."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One group at the moment it was looked at."""

    id: str
    policy: str
    state: Literal["leased", "pending", "ready", "assembled", "trained"]
    """`trained`: the step that trains on it is released; it is kept until the next checkpoint trims it."""
    step: int | None
    """The step that trains on it, once that is decided."""
    task: int
    version: int
    worker: str
    group: Group | None
    """None while it is sampled, and if it cannot be read."""
    scores: dict[str, Scores]
    rewards: Any | None
    """Mixed reward [G] float64 as trained on, NaN for a rollout left out; None before its batch is assembled."""


def count(connection: Connection) -> int:
    """Groups that `look` would give now."""
    return sum(len(_places(connection, policy)) for policy in _policies(connection))


def look(connection: Connection) -> Iterator[Seen]:
    """All stored groups, policy by policy, in version order. One that leaves meanwhile is left out."""
    for policy in _policies(connection):
        own = f"{connection.prefix}policy:{policy}:"
        version = int(connection.patiently(lambda own=own: connection.redis.hget(own + "state", "version")) or 0)  # type: ignore[arg-type]
        places = list(_places(connection, policy).items())
        records: dict[int, BatchRecord] = {}
        for i in range(0, len(places), CHUNK):
            yield from _chunk(connection, policy, version, places[i : i + CHUNK], records)


def _chunk(
    connection: Connection,
    policy: str,
    version: int,
    places: list[tuple[str, int | None]],
    records: dict[int, BatchRecord],
) -> Iterator[Seen]:
    own = f"{connection.prefix}policy:{policy}:"
    new = sorted({step for _, step in places if step is not None and step not in records})

    def run() -> list[Any]:
        with connection.redis.pipeline(transaction=False) as pipe:
            for step in new:
                pipe.get(f"{own}record:{step}")
            for id, _ in places:
                pipe.hgetall(f"{connection.prefix}group:{id}")
            return pipe.execute()

    found = connection.patiently(run)
    read = {step: _readable(data, BatchRecord) for step, data in zip(new, found, strict=False)}
    records |= {step: record for step, record in read.items() if record is not None}
    for (id, step), fields in zip(places, found[len(new) :], strict=True):
        if fields:
            yield _seen(id, policy, step, version, fields, records.get(step) if step is not None else None)


def _seen(
    id: str, policy: str, step: int | None, version: int, fields: dict[bytes, bytes], record: BatchRecord | None
) -> Seen:
    state = fields[b"state"].decode()
    group = _readable(fields.get(b"data"), Group)
    return Seen(
        id=id,
        policy=policy,
        state="trained" if step is not None and step < version else state,  # type: ignore[arg-type]
        step=step,
        task=int(fields[b"task"]),
        version=int(fields[b"version"]),
        worker=fields.get(b"worker", b"").decode(),
        group=group,
        scores={} if group is None else scores_of(fields, group),
        rewards=record.rewards[record.groups.index(id)] if record and id in record.groups else None,
    )


def _readable(data: bytes | None, type_: type[T]) -> T | None:
    """None for what is not there and for what cannot be read: a look at groups is no place to fail."""
    try:
        return None if data is None else decode(data, type_)
    except msgspec.ValidationError:
        return None


def _policies(connection: Connection) -> list[str]:
    names: Any = connection.patiently(lambda: connection.redis.smembers(f"{connection.prefix}policies"))
    return sorted(name.decode() for name in names)


def _places(connection: Connection, policy: str) -> dict[str, int | None]:
    """Ids of a policy's groups, those in a batch with their step, in version order."""
    own = f"{connection.prefix}policy:{policy}:"

    def run() -> list[Any]:
        with connection.redis.pipeline(transaction=True) as pipe:
            pipe.zrange(own + "assembled", 0, -1, withscores=True)
            pipe.zrange(own + "ready", 0, -1)
            pipe.zrange(own + "open", 0, -1)
            return pipe.execute()

    assembled, ready, live = connection.patiently(run)
    return {id.decode(): int(step) for id, step in assembled} | {id.decode(): None for id in (*ready, *live)}
