"""The pipeline's steps as calls: typed, synchronous, thread-safe. See the package's docstring for states and keys."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload
from uuid import uuid4

import msgspec

from cluster.buffer import audit
from cluster.buffer.connection import PATIENCE_S, Connection
from cluster.errors import DataError, KanaboError, LeaseLost, StaleEpoch
from cluster.types import BatchRecord, Claim, Group, Manifest, Publication, ScoredGroup, Scores, decode, encode
from cluster.types.events import RunEvent, decode_event, encode_event, kind_of
from cluster.types.wire import fitting_scores

log = logging.getLogger(__name__)

UNREADABLE = "unreadable"
"""Why a group is dropped whose stored bytes are no group."""
KEPT_ASIDE = 100
TRIMMED_AT_ONCE = 1000
"""Groups that one call of Redis deletes: about 10 ms."""
TRIMS = 100
"""Most such calls at one checkpoint; what is left goes at the next."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a run's groups; the same for all its policies."""

    groups_per_step: int
    max_staleness: int
    when_late: Literal["wait", "drop"] = "wait"
    blocking: tuple[str, ...] = ()
    """Rewards that must have answered before a group is ready."""
    lease_s: float = 600.0
    score_deadline_s: float = 60.0
    num_tasks: int | None = None
    """The frontier ends here; None is endless."""
    non_blocking: tuple[str, ...] = ()
    """Rewards that are asked too, until the group's batch is assembled; nothing waits for them."""
    members: tuple[str, ...] = ()
    """Policies whose learners train on the same groups, step by step with the one that claims and assembles."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A group's part in the deaths of reward workers."""

    trial: str = ""
    """The one reward to ask now, since the group is suspected; all rewards where it is empty."""
    condemned: Mapping[str, str] = field(default_factory=dict)
    """Reward that is not to be asked about this group → the workers that died over it, in words."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a reward worker asks about a group."""

    id: str
    rewards: tuple[str, ...]
    left: bool
    """The group waits for no score: it is assembled, dropped or overdue, or belongs to an evaluation."""


def suspicion_of(trial: bytes, condemned: bytes) -> Suspicion:
    """Return what the script `forsake` has written into these fields of a group."""
    lines = [line.split("\0") for line in condemned.decode().split("\n") if line]
    return Suspicion(trial.decode(), {name: " and ".join(filter(None, workers)) for name, *workers in lines})


def stored_of(fields: dict[bytes, bytes], wanted: Mapping[bytes, bytes]) -> ScoredGroup | None:
    """Return the group that Redis holds in these fields, or None where it is gone.

    Raises msgspec.ValidationError if the group cannot be read. Scores that cannot, or that do not fit the group, are
    left out with a warning: the reward has not answered.
    """
    if b"data" not in fields:  # gone since the script named it: another epoch has begun, and the next call will say so
        return None
    group = decode(fields[b"data"], Group)
    outdated = any(fields.get(b"carried:" + name, version) != version for name, version in wanted.items())
    return ScoredGroup(group, scores_of(fields, group), b"overdue" in fields, outdated)


def scores_of(fields: Mapping[bytes, bytes], group: Group) -> dict[str, Scores]:
    """The scores that a group carries, by reward, as far as they can be read."""
    found = {}
    for key, value in fields.items():
        if key.startswith(b"s:"):
            name = key[2:].decode()
            try:
                found[name] = fitting_scores(decode(value, Scores), group)
            except (msgspec.ValidationError, DataError) as error:
                log.warning("the scores of '%s' on group %s cannot be read and are left out: %s", name, group.id, error)
    return found


def policy_of(id: str) -> str:
    """The policy in a claim's id."""
    return id.rsplit("/", 2)[0]


class Buffer:
    """A run's claims, groups, scores and batch records, in Redis.

    Every call may be repeated and answers as it did first; redis-py's lost replies are repeated here. A call that waits
    blocks its thread until its bell rings, a deadline passes or `timeout_s` is over; async workers use a thread.
    Any call waits while Redis is away, loads, or is short of memory or disk, and raises BufferUnavailable after
    `patience_s`. It travels to other processes as its URL, run and patience.
    """

    def __init__(self, url: str, run: str, patience_s: float = PATIENCE_S) -> None:
        self._args = (url, run, patience_s)
        self._redis = Connection(*self._args)

    def __reduce__(self) -> tuple[type[Buffer], tuple[str, str, float]]:
        return Buffer, self._args

    def close(self) -> None:
        """Give the connections back and end calls that wait for Redis to return; later ones do not wait for that."""
        self._redis.close()

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────

    def configure(self, limits: Limits) -> None:
        """Set the limits, before the first `resume`. Groups already stored keep their deadlines.

        What version 0.1 stored under other names is renamed first.
        """
        fields = {
            "groups_per_step": limits.groups_per_step,
            "max_staleness": limits.max_staleness,
            "when_late": limits.when_late,
            "blocking": "\n".join(limits.blocking),
            "rewards": "\n".join((*limits.blocking, *limits.non_blocking)),
            "members": "\n".join(limits.members),
            "lease_ms": _ms(limits.lease_s),
            "score_deadline_ms": _ms(limits.score_deadline_s),
            # Half the deadline, so that another reward worker has the other half when one dies.
            "scoring_lease_ms": max(1, _ms(limits.score_deadline_s) // 2),
        }
        if limits.num_tasks is not None:
            fields["num_tasks"] = limits.num_tasks
        self._call("upgrade", "")
        self._call("configure", "", *(x for pair in fields.items() for x in pair))

    def resume(self, policy: str, manifest: Manifest | None, *, rollback: bool = False) -> int:
        """Begin an epoch at the manifest's step (0 without one) and return it; learners of older epochs are refused.

        Recorded batches from that step on are kept and trained again. With `rollback`, with a manifest older than what
        was trimmed, or if Redis has lost what the manifest knows, the manifest's state is restored and everything else
        is dropped as `rolled_back`.
        """
        data = b"" if manifest is None else encode(manifest)
        return self._call("resume", policy, uuid4().hex, int(rollback), data)[1]

    # ── weights ─────────────────────────────────────────────────────────────────────────────────────────────

    def announce(self, publication: Publication) -> None:
        """Tell engines of new weights. Raises StaleEpoch."""
        self._call("announce", publication.policy, publication.epoch, publication.step, encode(publication))

    def published(self, policy: str, *, other_than: str | None = None, timeout_s: float = 0.0) -> Publication | None:
        """This epoch's last publication, once there is one whose version is not `other_than`; None on time-out."""
        reply = self._call_when(timeout_s, "published", policy, other_than or "")
        return decode(reply[1], Publication) if reply[0] == "ok" else None

    # ── rollout workers ─────────────────────────────────────────────────────────────────────────────────────

    def claim(self, policy: str, *, worker: str, engine: str, timeout_s: float) -> Claim | None:
        """Open a group for the next task. `engine` is the `epoch.step` of the weights that will sample it.

        None on time-out, and at once if those weights are behind the published or released ones: update first.
        """
        token = uuid4().hex
        epoch, _, step = engine.partition(".")
        reply = self._call_when(timeout_s, "claim", policy, token, worker, int(epoch), int(step))
        if reply[0] != "ok":
            return None
        id, *numbers = reply[1].decode().rsplit(" ", 4)
        epoch, seq, task, version = map(int, numbers)
        return Claim(id, policy, epoch, seq, task, version, token)

    def renew(self, claim: Claim) -> None:
        """Progress: the lease starts anew. Raises LeaseLost."""
        self._call("renew", claim.policy, claim.id, claim.token)

    def put(self, group: Group) -> None:
        """Store a sampled group. Raises LeaseLost: it was dropped, and its task perhaps claimed again."""
        self._call("put", group.claim.policy, group.id, group.claim.token, encode(group))

    def give_up(self, claim: Claim, reason: str, *, requeue: bool) -> None:
        """Drop a claimed group before `put`; `requeue` unless its task is at fault. Raises LeaseLost."""
        self._call("give_up", claim.policy, claim.id, claim.token, reason, int(requeue))

    def died_over(self, claim: Claim) -> None:
        """Count a worker's death over a task: its process ended inside the environment's step."""
        self._call("died_over", claim.policy, uuid4().hex, claim.task)

    def deaths_over(self, claim: Claim) -> int:
        """Return how many workers died over the claim's task."""
        return int(self._call("deaths_over", claim.policy, claim.task)[1])

    def forsake(self, policy: str, worker: str | None = None, *, blame: bool = False) -> set[str]:
        """Free what a dead worker, or every one, had in hand: drop its leases as `worker_died`, hand out again what it
        was scoring.

        With `blame` the groups that it was scoring are suspected of its death. Each is then tried alone, one reward at
        a time; the reward of a group that a second worker dies over is condemned: it is not asked about that group
        again, and its score is `failed`. Returns the workers whose deaths that explains; so is the death of one that
        forsook its own hand before.
        """
        reply = self._call("forsake", policy, uuid4().hex, worker or "", int(blame))
        return set(filter(None, reply[1].decode().split("\n")))

    # ── reward workers ──────────────────────────────────────────────────────────────────────────────────────

    def unscored(self, worker: str, limit: int, timeout_s: float) -> list[Group]:
        """Up to `limit` groups to score, oldest first; waits for one. What is not scored in time is handed out again.

        A suspected group (`forsake`) is handed out alone, to a worker that has nothing else in hand; `suspicions` says
        which reward to ask. A group that cannot be read is kept aside and dropped, and its task is claimed again.
        Groups of runs without blocking rewards come here too, once they are put, until a batch takes them.
        """
        reply = self._call_when(timeout_s, "unscored", "", uuid4().hex, worker, limit)
        if reply[0] != "ok":
            return []
        ids = reply[1].decode().split("\n")
        groups = []
        for id, data in zip(ids, self._fetch(ids, "data"), strict=True):
            group, error = self._group(id, data) if data is not None else (None, "")
            if group is not None:
                groups.append(group)
            elif data is not None:
                self._keep_aside(id, data, error)
                self._call("unreadable", policy_of(id), id)
        return groups

    def answered(self, ids: Sequence[str]) -> list[set[tuple[str, str]]]:
        """For each group the (reward, version) pairs that have answered."""
        found = self._fetch(list(ids), keys=True)
        parts = [[k[2:].decode().partition("\0") for k in keys if k.startswith(b"v:")] for keys in found]
        return [{(name, version) for name, _, version in named} for named in parts]

    def suspicions(self, ids: Sequence[str]) -> list[Suspicion]:
        """For each group its part in the deaths of reward workers."""
        fields = zip(self._fetch(list(ids), "trial"), self._fetch(list(ids), "condemned"), strict=True)
        return [suspicion_of(trial or b"", condemned or b"") for trial, condemned in fields]

    def asks(self, worker: str, claim_id: str, rewards: Sequence[str], *, now: bool) -> None:
        """Note which rewards a reward worker asks about a group, for the case that it dies of them, or that it has."""
        self._call("asks", "", worker, claim_id, int(now), *rewards)

    def questions(self, worker: str) -> list[Question]:
        """What a reward worker asks now; of a dead one what it asked when it died, until `forsake`."""
        prefix = self._redis.prefix

        def run() -> Any:
            fields: Any = self._redis.redis.hkeys(f"{prefix}asked")
            rows = [field.decode().split("\n") for field in fields]
            mine = [(id, tuple(rewards)) for name, id, *rewards in rows if name == worker]
            with self._redis.redis.pipeline(transaction=False) as pipe:
                for id, _ in mine:
                    pipe.zscore(f"{prefix}unscored", id)
                due = pipe.execute() if mine else []
            return [Question(id, rewards, left=at is None) for (id, rewards), at in zip(mine, due, strict=True)]

        return self._redis.patiently(run)

    def tried(self, claim_id: str, reward: str) -> None:
        """Clear a suspected group's reward: it was asked alone, and the worker lives."""
        self._call("tried", policy_of(claim_id), uuid4().hex, claim_id, reward)

    def relabel(self, versions: Mapping[str, str]) -> None:
        """The current version of each of these rewards. Where it is new, stored groups are scored again.

        A group keeps the scores it carries until those of the new version are complete, then changes over in one step;
        an assembled group is never touched.
        """
        self._call("relabel", "", *(x for pair in versions.items() for x in pair))

    def score(self, claim_id: str, scores: Mapping[str, Scores]) -> None:
        """Attach evidence. The first answer per (group, reward, version) stays; a group that has left is no error."""
        args = [x for name, s in scores.items() for x in (name, s.version, encode(s))]
        self._call("score", policy_of(claim_id), claim_id, *args)

    # ── the learner ─────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def ready(
        self, policy: str, epoch: int, step: int, *, limit: int, timeout_s: float, partial: Literal[True] = True
    ) -> list[ScoredGroup]: ...

    @overload
    def ready(
        self, policy: str, epoch: int, step: int, *, limit: int, timeout_s: float, partial: bool
    ) -> list[ScoredGroup] | None: ...

    def ready(
        self, policy: str, epoch: int, step: int, *, limit: int, timeout_s: float, partial: bool = True
    ) -> list[ScoredGroup] | None:
        """Up to `limit` groups in version order; waits until there are so many, or until no more can come.

        On time-out, what there is; None without `partial`, and no group is read. Drops, as `late`, every live group
        that can no longer be trained within the bound. With `when_late = "wait"` it never passes over a live group of
        an older version. Groups that cannot be read are kept aside and dropped as `unreadable`, and their tasks are
        claimed again. Raises StaleEpoch.
        """
        until = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, until - time.monotonic())
            reply = self._call_when(left_s, "ready", policy, epoch, step, limit, int(partial))
            if reply[0] == "wait" and not partial:
                return None
            ids = [id.decode() for id in reply[1] or ()]
            wanted, found, unreadable = self._versions() if ids else {}, [], {}
            for id, fields in zip(ids, self._fetch(ids), strict=True):
                try:
                    stored = stored_of(fields, wanted)
                except msgspec.ValidationError as error:
                    self._keep_aside(id, fields[b"data"], error)
                    unreadable[id] = UNREADABLE
                else:
                    found += [stored] if stored else []
            if not unreadable:
                return found
            self.drop(policy, epoch, unreadable, requeue=True)

    def drop(self, policy: str, epoch: int, ids_with_reason: Mapping[str, str], *, requeue: bool = False) -> None:
        """Drop live groups for good; each admits one more. Others are left alone. Raises StaleEpoch."""
        args = [x for pair in ids_with_reason.items() for x in pair]
        self._call("drop", policy, epoch, int(requeue), *args)

    def record(self, epoch: int, record: BatchRecord, filtered: Mapping[str, str] | None = None) -> BatchRecord:
        """Decide what a step trains on: its groups leave `ready` at once. A step has one record, the first.

        `filtered` (id → reason) are dropped in the same move, and not replaced for this step.

        It may name fewer groups than `groups_per_step`, or none. Raises StaleEpoch; KanaboError if a group is not ready
        or the step is not the next.
        """
        pairs = [x for pair in (filtered or {}).items() for x in pair]
        args = (record.step, encode(record), len(pairs) // 2, *pairs, *record.groups)
        reply = self._call("record", record.policy, epoch, *args)
        return decode(reply[1], BatchRecord)

    def recorded(self, policy: str, step: int, *, timeout_s: float = 0.0) -> BatchRecord | None:
        """The record of a step, once there is one; None on time-out.

        A record that cannot be read, of a step that is not trained, is forgotten: its groups are ready again.
        """
        reply = self._call_when(timeout_s, "recorded", policy, step)
        if reply[0] != "ok":
            return None
        try:
            return decode(reply[1], BatchRecord)
        except msgspec.ValidationError as error:
            log.warning("the record of step %d cannot be read, and its groups are ready again: %s", step, error)
        self._call("unrecord", policy, step)
        reply = self._call_when(0, "recorded", policy, step)
        return decode(reply[1], BatchRecord) if reply[0] == "ok" else None

    def load(self, ids: Iterable[str]) -> list[Group]:
        """Stored groups by id, without those that cannot be read: each of them is kept aside, with a warning.

        Raises KanaboError if one was trimmed, dropped or never put.
        """
        ids = list(ids)
        found = self._fetch(ids, "data")
        missing = [id for id, data in zip(ids, found, strict=True) if data is None]
        if missing:
            raise KanaboError(f"groups {', '.join(missing)} are not stored: trimmed, dropped or never put.")
        groups = [self._group(id, data) for id, data in zip(ids, found, strict=True)]
        for id, data, (group, error) in zip(ids, found, groups, strict=True):
            if group is None:
                self._keep_aside(id, data, error)
        return [group for group, _ in groups if group is not None]

    def quarantine(self) -> list[tuple[str, str]]:
        """(group's id, why it cannot be read) of the last `KEPT_ASIDE` groups that were kept aside, newest first."""
        key = f"{self._redis.prefix}quarantine"
        rows: Any = self._redis.patiently(lambda: self._redis.redis.lrange(key, 0, -1))
        return [tuple(msgspec.msgpack.decode(row)[:2]) for row in rows]

    def stored(self, ids: Iterable[str]) -> list[ScoredGroup]:
        """Groups by id with the scores they carry, in whatever state; without those that are not there."""
        wanted, found = self._versions(), []
        for fields in self._fetch(list(ids)):
            with suppress(msgspec.ValidationError):  # `ready` and `load` keep it aside
                found += [stored] if (stored := stored_of(fields, wanted)) else []
        return found

    def dropped(self, id: str) -> ScoredGroup | None:
        """A group that the buffer itself dropped, as it was; None if newer ones took its place or it is unreadable."""
        key = f"{self._redis.prefix}dropped:{id}"
        fields: Any = self._redis.patiently(lambda: self._redis.redis.hgetall(key))
        try:
            return stored_of(fields, {})
        except msgspec.ValidationError:
            return None

    def release(self, policy: str, epoch: int, version: int, *, by: str | None = None) -> None:
        """Admit more: version := step + 1, after `by` (the policy or a member) published its weights. The version is
        that which all of them have released. Raises StaleEpoch."""
        self._call("release", policy, epoch, version, by or policy)

    # ── checkpoints and history ─────────────────────────────────────────────────────────────────────────────

    def snapshot(self, policy: str, epoch: int, step: int) -> Manifest:
        """What a checkpoint of `step` remembers; call it between `release(step)` and the next. Raises StaleEpoch."""
        _, frontier, requeued, outstanding, trained = self._call("snapshot", policy, epoch, step)
        tasks = tuple(map(int, requeued)), tuple(map(int, outstanding))
        return Manifest(policy, step, epoch, frontier, *tasks, trained=tuple(id.decode() for id in trained))

    def trim(self, manifest: Manifest) -> None:
        """Delete groups and records of steps before a committed manifest. One of a dead epoch trims nothing."""
        bare = encode(replace(manifest, trained=()))
        for _ in range(TRIMS):  # others' calls come in between: one script for all would hold them up
            if not self._call("trim", manifest.policy, bare, TRIMMED_AT_ONCE)[1]:
                break
        self._call("trim", manifest.policy, encode(manifest), TRIMMED_AT_ONCE)

    def forget(self, policy: str, epoch: int, step: int) -> None:
        """Delete groups and records of released steps before `step`, which no checkpoint has. Raises StaleEpoch.

        A resume from a step before is a roll-back: tasks since then are claimed again.
        """
        self._call("forget", policy, epoch, step)

    def status(self, policy: str) -> dict[str, Any]:
        """Where a policy stands: version, epoch, groups by state, counters, what the oldest unready group waits for."""
        return audit.status(self._call("status", policy))

    def live(self, policy: str) -> audit.Live:
        """Every group that is stored or being sampled: ids and states, no tokens."""
        return audit.live(self._redis, policy)

    def claimed_by(self, ids: Sequence[str]) -> dict[str, str]:
        """The rollout worker of each of these groups that is there."""
        found = zip(ids, self._fetch(list(ids), "worker"), strict=True)
        return {id: worker.decode() for id, worker in found if worker is not None}

    def ledger(self, policy: str) -> Iterator[audit.LedgerLine]:
        """One line per claim, in the order of claiming: of those that are outstanding or untrimmed, and of the last
        20,000 that were trained or dropped. `summary` counts the others too."""
        return iter(audit.read(self._redis, policy).lines)

    def summary(self, policy: str) -> dict[str, Any]:
        """What became of every claim: the numbers of `summary.json`."""
        return audit.summary(audit.read(self._redis, policy))

    def persistence(self) -> list[str]:
        """What a user's own Redis could lose, in sentences; empty if nothing."""
        return audit.persistence(self._redis)

    # ── metrics ─────────────────────────────────────────────────────────────────────────────────────────────

    def emit(self, event: RunEvent, once: str = "") -> None:
        """Hand an event to the driver; about the last 10,000 are kept.

        What has the same `once` is handed on a single time within ten minutes, whichever process repeats it.
        """
        self._call("emit", "", f"once:{once}" if once else uuid4().hex, kind_of(event), encode_event(event))

    def events(self, after: str = "0", timeout_s: float = 0.0) -> list[tuple[str, RunEvent]]:
        """(id, event) of what was emitted after an id; waits for the first. `"0"` is from the start.

        Raises DataError for an event of an unknown kind.
        """
        entries = self._redis.listen(f"{self._redis.prefix}events", after, timeout_s, limit=1000)
        return [(id.decode(), decode_event(f[b"fields"])) for id, f in entries]

    def newest_event(self) -> str:
        """Return the id of the newest event, `"0"` where there is none."""
        key = f"{self._redis.prefix}events"
        newest: Any = self._redis.patiently(lambda: self._redis.redis.xrevrange(key, count=1))
        return newest[0][0].decode() if newest else "0"

    # ── what cannot be read ─────────────────────────────────────────────────────────────────────────────────

    def _group(self, id: str, data: bytes) -> tuple[Group | None, str]:
        try:
            return decode(data, Group), ""
        except msgspec.ValidationError as error:
            return None, str(error)

    def _keep_aside(self, id: str, data: bytes, error: object) -> None:
        """Keep the bytes of a group that cannot be read for inspection; the newest `KEPT_ASIDE` stay."""
        log.warning("group %s cannot be read and is left out: %s", id, error)
        row = msgspec.msgpack.encode((id, str(error), data))
        self._call("keep_aside", policy_of(id), id, row, KEPT_ASIDE)

    # ── how ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _call(self, script: str, policy: str, *args: Any) -> list[Any]:
        return _checked(self._redis.call(script, policy, *args), script, policy, args)

    def _call_when(self, timeout_s: float, script: str, policy: str, *args: Any) -> list[Any]:
        return _checked(self._redis.call_when(timeout_s, script, policy, *args), script, policy, args)

    def _versions(self) -> dict[bytes, bytes]:
        """reward → current version, of those that have one."""
        client, prefix = self._redis.redis, self._redis.prefix

        def run() -> Any:
            return client.hgetall(f"{prefix}era:{int(client.get(f'{prefix}era') or 0)}")

        return self._redis.patiently(run)

    def _fetch(self, ids: list[str], field: str | None = None, *, keys: bool = False) -> list[Any]:
        """Return one field of each group, or all fields, or their names. This is no script: megabytes must not hold up
        Redis."""

        def run() -> list[Any]:
            with self._redis.redis.pipeline(transaction=False) as pipe:
                for id in ids:
                    key = f"{self._redis.prefix}group:{id}"
                    pipe.hkeys(key) if keys else pipe.hget(key, field) if field else pipe.hgetall(key)
                return pipe.execute()

        return self._redis.patiently(run) if ids else []


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _checked(reply: list[Any], script: str, policy: str, args: tuple[Any, ...]) -> list[Any]:
    match reply[0]:
        case "stale":
            raise StaleEpoch(
                f"{script} of policy '{policy}' came from epoch {args[0]}, but epoch {reply[1]} has begun."
            )
        case "lost":
            why = reply[1].decode()
            raise LeaseLost(
                f"the lease of group {args[0]} is lost ({why}); {script} was refused. Raise lease_s if it was slow."
            )
        case "wrong":
            raise KanaboError(f"{script} of policy '{policy}': {reply[1].decode()}.")
        case "unconfigured":
            raise KanaboError(f"{script} of policy '{policy}' before Buffer.configure(limits).")
    return reply
