"""The moves of workers, judges and learners on a real buffer, each told to `Expected` and its answer checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from cluster.buffer import Buffer
from cluster.errors import KanaboError, LeaseLost, StaleEpoch
from cluster.types import Manifest, Publication, Scores
from tests.cluster.eras import Eras
from tests.cluster.expected import Expected, Known, Saved, check
from tests.cluster.observed import Wire
from tests.cluster.pipeline import group_of, record_of

REWARDS = ("judge", "length")
T = TypeVar("T")


def pick(items: Iterable[T], index: int) -> T | None:
    """Early draws are the small ones, so they take what came last: that is where things go wrong."""
    found = list(items)
    return found[-1 - index % len(found)] if found else None


@dataclass
class Learner:
    """One policy's learner, its checkpoints, and the engines that sample for it."""

    expected: Expected
    phase: str = "dead"
    """dead → resumed → idle → assembled → stepped → published → idle; idle → files → manifest → idle."""
    step: int = 0
    disk: dict[int, Saved] = field(default_factory=lambda: {0: Saved(0, [])})
    """Checkpoints by step; 0 is the initial model, which needs no manifest."""
    engines: dict[str, tuple[int, int]] = field(default_factory=dict)
    zombies: list[tuple[int, int]] = field(default_factory=list)
    """Epoch and step of learners that have a successor and do not know it."""
    manifests: list[Manifest] = field(default_factory=list)
    """Every one that was ever written."""

    @property
    def name(self) -> str:
        return self.expected.name

    @property
    def epoch(self) -> int:
        return self.expected.epoch

    def newest(self) -> Saved:
        return next(s for _, s in sorted(self.disk.items(), reverse=True) if s.step == 0 or s.manifest)


class Moves:
    """What anybody does. The state machine adds when."""

    buffer: Buffer
    wire: Wire
    learners: list[Learner]
    eras: Eras
    first_saved, then_saved = "files", "manifest"
    filters_with_record = True

    def _known(self) -> list[Known]:
        return [known for learner in self.learners for known in learner.expected.groups.values()]

    # ── rollout workers ─────────────────────────────────────────────────────────────────────────────────────

    def _update(self, learner: Learner, worker: str) -> None:
        """Fetch the published weights."""
        if publication := self.buffer.published(learner.name):
            learner.engines[worker] = (publication.epoch, publication.step)

    def _claim(self, learner: Learner, worker: str) -> bool:
        expected, engine = learner.expected, learner.engines.get(worker, (0, 0))
        claim = self.buffer.claim(learner.name, worker=worker, engine=f"{engine[0]}.{engine[1]}", timeout_s=0)
        if claim:
            oldest = engine[0] == claim.epoch and engine[1] >= claim.version
            check(oldest, "bound: no weights older than a claim's version sample it", claim, engine)
        expected.expire()  # also by a claim that is refused, unless nobody has begun
        may = not expected.behind(engine) and expected.room() > 0 and expected.more_tasks()
        check((claim is not None) == may, "admission = counters", claim, expected.room(), engine, expected.queue)
        if claim:
            expected.claimed(claim, worker)
        return claim is not None

    def _put(self, learner: Learner, known: Known) -> None:
        repeated = known.was_put
        if not repeated:
            learner.expected.expire()
        lost = self._is_lost(lambda: self.buffer.put(group_of(known.claim)))
        check(lost == (known.at == "dropped" and not repeated), "a put needs its lease", known)
        if not (lost or repeated):
            learner.expected.put(known)

    def _is_lost(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except LeaseLost:
            return True
        return False

    # ── judges ──────────────────────────────────────────────────────────────────────────────────────────────

    def _score(self, known: Known, reward: str, version: str, value: float) -> None:
        self.buffer.score(known.claim.id, {reward: Scores.of([value, value], version=version)})
        self._expected(known).score(known, reward, version, value)

    def _score_all(self, known: Known) -> None:
        """Under the versions of today."""
        for reward in REWARDS:
            self._score(known, reward, self.eras.current.get(reward, "1"), 1.0)

    def _take(self, judge: str, *, limit: int) -> list[Known]:
        """What a judge is handed: a suspect alone, or as much as it asks for."""
        due = {k.claim.id: k for k in self._known() if k.judging == "due"}
        to_try = {k.claim.id: name for k in self._known() if (name := self._expected(k).to_try(k))}
        held = [k for k in self._known() if k.judging == "taken" and k.scorer == judge]
        before = len(self.wire.sent)
        taken = {group.id: due.get(group.id) for group in self.buffer.unscored(judge, limit, 0)}
        aside = [call.args[1] for call in self.wire.sent[before:] if call.script == "unreadable"]
        wrong = [id for id in (*aside, *taken) if self._of(id).unreadable != (id in aside)]
        check(not wrong, "what cannot be read is kept aside, and nothing else", wrong)
        check(set(taken) <= set(due), "a judge is given what nobody else is scoring", taken, set(due))
        if suspects := set(to_try) & set(due):
            alone = {*taken, *aside} <= suspects and len(taken) + len(aside) == (not held)
            check(alone, "a suspect is tried by a judge that holds nothing else", taken, suspects, held)
        else:
            wanted = 0 if any(k.trial for k in held) else min(limit, len(due))
            check(len(taken) + len(aside) == wanted, "all that waits is handed out", taken, set(due), held)
        for known in map(self._of, aside):
            known.judging = ""
            if known.at == "pending":
                self._expected(known).drop(known, "unreadable", requeue=True)
        suspicions = self.buffer.suspicions(list(taken))
        for known, told in zip(taken.values(), suspicions, strict=True):
            assert known
            known.judging, known.scorer, known.trial = "taken", judge, to_try.get(known.claim.id, "")
            check(told.trial == known.trial, "a suspect's rewards are tried one by one", known, told)
            check(
                set(told.condemned) == known.condemned, "only what a second judge died over is condemned", known, told
            )
        return [known for known in taken.values() if known]

    def _ask(self, known: Known) -> None:
        """Answer what was asked: everything, or the one reward that is on trial."""
        if not known.trial:
            self._score_all(known)
            check(not known.judging, "who has answered everything is not asked again", known, self.eras)
            return
        self._score(known, known.trial, self.eras.current.get(known.trial, "1"), 1.0)
        self.buffer.tried(known.claim.id, known.trial)
        self._expected(known).tried(known)

    def _judge_dies(self, judge: str) -> None:
        """Over one of the groups that it has in hand, if it has any."""
        held = [k for k in self._known() if k.judging and k.scorer == judge]
        self.buffer.forsake(self.learners[0].name, judge, blame=True)
        for known in held:
            self._expected(known).judge_gone(known, blame=True)
        for known in self._known() if held else ():
            if known.at == "pending":
                known.passed = False

    def _of(self, id: str) -> Known:
        return next(known for known in self._known() if known.claim.id == id)

    def _expected(self, known: Known) -> Expected:
        return next(one.expected for one in self.learners if one.name == known.claim.policy)

    def _work(self, learner: Learner, *, but_for_one: bool = False, judged: bool = True) -> None:
        """Everybody who lives does everything he can, perhaps but for a straggler who has the oldest group."""
        expected = learner.expected
        self._update(learner, "worker-0")
        while self._claim(learner, "worker-0"):
            pass
        straggling = expected.at("leased")[:1] if but_for_one else []
        for known in expected.at("leased"):
            if known not in straggling:
                self._put(learner, known)
        for known in expected.at("pending") if judged else ():
            self._score_all(known)

    # ── the learner ─────────────────────────────────────────────────────────────────────────────────────────

    def _publish(self, learner: Learner) -> None:
        """What the weights are: those resumed from, or one step further."""
        step = learner.step + (learner.phase == "stepped")
        self.buffer.announce(Publication(learner.name, learner.epoch, step))
        learner.expected.published = step
        learner.phase = "published" if learner.phase == "stepped" else "idle"

    def _look(self, learner: Learner) -> tuple[list[str], bool]:
        """Ids of what is ready, and whether the learner may assemble: enough is there, or no more can come."""
        expected = learner.expected
        number = expected.limits.groups_per_step
        found = self.buffer.ready(learner.name, learner.epoch, learner.step, limit=number, timeout_s=0)
        told, over = expected.ready(learner.step)
        for stored in found:
            known = expected.groups[stored.group.id]
            scores = {name: (score.version, float(score.values[0])) for name, score in stored.scores.items()}
            evidence, eras = known.evidence, expected.eras
            check(scores == evidence.carried, "the first score of a version stays", known, scores)
            check(evidence.whole(eras), "a group carries one era, never a mixture", scores, eras)
            outdated = any(evidence.outdated(eras, name) for name in eras.current)
            check(stored.outdated == outdated, "outdated is what carries an older version", known, eras)
            check(stored.overdue == known.overdue, "overdue is who was late", known)
        ids = [stored.group.id for stored in found]
        check(ids == [known.claim.id for known in told], "ready groups in version order", ids, told)
        return ids, over or len(ids) == number

    def _assemble(self, learner: Learner, num_filtered: int) -> bool:
        """False if the learner has to wait."""
        expected, step = learner.expected, learner.step
        record, told = self.buffer.recorded(learner.name, step), expected.records.get(step)
        groups = record.groups if record else None
        check(groups == told, "a recorded step is assembled from its record", groups, told)
        if record is None:
            ids, enough = self._look(learner)
            if not enough:
                return False
            groups, filtered = tuple(ids[num_filtered:]), ids[:num_filtered]
            self._record(learner, groups, filtered)
            expected.assemble(step, groups, filtered)
        assert groups is not None
        try:
            self.buffer.load(groups)
        except KanaboError as error:
            check(False, "a recorded group is stored", str(error))
        learner.phase = "assembled"
        return True

    def _record(self, learner: Learner, groups: tuple[str, ...], filtered: list[str]) -> None:
        reasons = dict.fromkeys(filtered, "filtered")
        if not self.filters_with_record:
            self.buffer.drop(learner.name, learner.epoch, reasons)
            for id in filtered:
                learner.expected.drop(learner.expected.groups[id], "filtered", requeue=False)
            reasons = {}
            self._work(learner)  # others do not wait for the learner's second call
        record = self.buffer.record(learner.epoch, record_of(learner.name, learner.step, groups), reasons)
        check(record.groups == groups, "a new record is the one that was sent", record.groups, groups)

    def _step(self, learner: Learner) -> None:
        expected = learner.expected
        expected.history = [*expected.history[: learner.step], expected.records[learner.step]]
        learner.phase = "stepped"

    def _release(self, learner: Learner) -> None:
        learner.step += 1
        self.buffer.release(learner.name, learner.epoch, learner.step)
        learner.expected.version = learner.step
        learner.phase = "idle"

    # ── checkpoints, crashes, resumes ───────────────────────────────────────────────────────────────────────

    def _save(self, learner: Learner, move: str) -> None:
        saved = learner.disk[learner.step]
        if move == "manifest":
            manifest = self.buffer.snapshot(learner.name, learner.epoch, learner.step)
            learner.expected.save(manifest, saved)
            learner.manifests.append(manifest)
        else:
            saved.files, saved.history = True, list(learner.expected.history)
        learner.phase = move

    def _trim(self, learner: Learner) -> None:
        manifest = learner.disk[learner.step].manifest
        assert manifest
        self.buffer.trim(manifest)
        learner.expected.trim(learner.step)
        learner.phase = "idle"

    def _resume(self, learner: Learner, saved: Saved, *, rollback: bool = False) -> None:
        """The driver starts a learner from a checkpoint; one that still runs elsewhere becomes a zombie."""
        check(saved.files or saved.step == 0, "a committed checkpoint is whole", saved)
        if learner.epoch:
            learner.zombies.append((learner.epoch, learner.step))
        epoch = self.buffer.resume(learner.name, saved.manifest, rollback=rollback)
        learner.expected.resume(saved, epoch, rollback=rollback)
        learner.step, learner.phase = saved.step, "resumed"

    def _calls_of_a_zombie(self, learner: Learner, zombie: tuple[int, int]) -> None:
        """A learner that has a successor says everything it could say."""
        (epoch, step), name, buffer = zombie, learner.name, self.buffer
        for manifest in learner.manifests:
            if manifest.epoch <= epoch:
                self.buffer.trim(manifest)  # answered, and without effect
        ids = [known.claim.id for known in learner.expected.at("ready")]
        calls: list[Callable[[], object]] = [
            lambda: buffer.ready(name, epoch, step, limit=4, timeout_s=0),
            lambda: buffer.drop(name, epoch, dict.fromkeys(ids, "filtered")),
            lambda: buffer.record(epoch, record_of(name, learner.expected.next_step, ids)),
            lambda: buffer.announce(Publication(name, epoch, learner.step + 1)),
            lambda: buffer.release(name, epoch, learner.expected.version + 1),
            lambda: buffer.snapshot(name, epoch, learner.expected.version),
        ]
        for call in calls:
            try:
                call()
            except StaleEpoch:
                continue
            check(False, "a learner of an old epoch is refused", epoch, learner.epoch)

    # ── and everything goes on ──────────────────────────────────────────────────────────────────────────────

    def _lap(self, learner: Learner) -> bool:
        """From wherever the learner is through one release, with fair workers. False if it gets stuck."""
        if learner.phase in ("dead", "files", "manifest"):
            self._resume(learner, learner.newest())
        if learner.phase == "resumed":
            self._publish(learner)
        for _ in range(3):  # what a look drops as late is claimed again and looked at once more
            if learner.phase == "idle":
                self._work(learner)
                self._assemble(learner, 0)
        if learner.phase == "assembled":
            self._step(learner)
        if learner.phase == "stepped":
            self._publish(learner)
        if learner.phase != "published":
            return False
        self._release(learner)
        return True

    def _end_fairly(self, learner: Learner) -> None:
        """No deadlock: the dead are noticed, the living work, and steps follow, or all tasks of all passes are done."""
        expected = learner.expected
        self.buffer.forsake(learner.name)
        expected.forsake("")
        steps = expected.limits.max_staleness + 3 if expected.limits.num_tasks is None else expected.limits.num_tasks
        for _ in range(steps):
            check(self._lap(learner), "no deadlock", learner.phase, expected.live, expected.room(), expected.queue)
        if expected.limits.num_tasks is not None:
            done = {expected.groups[id].claim.task for ids in expected.history for id in ids} | expected.final
            check(done == set(range(expected.limits.num_tasks)), "every task of every pass is done", done)
