"""Any order of moves on a real Redis: workers, judges, learners, crashes and the network, as hypothesis draws them.

One rule draws the move, from names in which those that bring the pipeline forward are frequent: with a rule for each,
hypothesis leaves half of them out of every example, and few examples get past the first step.

Time is not waited for. A lease, a score deadline or a judge's turn passes because its entry in the sorted set is moved
into the past, which is all that the scripts see of time; nobody notices before the next call, as in life.
"""

from __future__ import annotations

from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.buffer import Buffer, Limits
from cluster.buffer.server import Store
from tests.cluster.eras import Eras
from tests.cluster.expected import Expected, Known, Saved, check
from tests.cluster.observed import Wire, compare
from tests.cluster.pipeline import connection_of
from tests.cluster.pipeline_moves import REWARDS, Learner, Moves, pick

DATA_SIZE, PASSES = 4, 3
"""A task is pass × size + place, so the tasks of several passes have an end."""
JUDGES, WORKERS = ("judge-0", "judge-1"), ("worker-0", "worker-1")

FREQUENCY = {
    "claim": 4, "put": 3, "all_work": 8, "renew": 1, "give_up": 2, "forsake": 2,
    "lease_passes": 2, "score_deadline_passes": 2, "judge_takes_too_long": 1, "poison": 2,
    "take": 4, "judges_die": 3, "score": 3, "relabel": 4,
    "learner_goes_on": 16, "filter": 1, "checkpoint": 8,
    "crash": 1, "resume": 2, "roll_back": 4, "zombie_calls": 2, "restart_redis": 1,
    "old_call_arrives_again": 4,
}  # fmt: skip


class PipelineMachine(Moves, RuleBasedStateMachine):
    """`compare` after each move, and a fair end that must get on."""

    store: ClassVar[Store]

    def __init__(self) -> None:
        super().__init__()
        self.learners: list[Learner] = []
        self.restarts_left = 1  # it takes longer than everything else in an example
        self.sound = False

    @initialize(
        groups=st.sampled_from([1, 2, 3]),
        staleness=st.sampled_from([0, 1, 3]),
        when_late=st.sampled_from(["wait", "drop"]),
        blocking=st.sampled_from([(), REWARDS, REWARDS]),
        num_tasks=st.sampled_from([None, None, DATA_SIZE * PASSES]),
        policies=st.sampled_from([1, 1, 2]),
        lossy=st.booleans(),
        straggles=st.sampled_from([False, False, True]),
    )
    def begin(self, groups, staleness, when_late, blocking, num_tasks, policies, lossy, straggles) -> None:
        limits = Limits(groups, staleness, when_late, blocking, num_tasks=num_tasks)
        self.buffer = Buffer(self.store.url, "run")
        self.redis, self.prefix = connection_of(self.buffer).redis, connection_of(self.buffer).prefix
        self.redis.flushall()
        self.redis.script_flush()  # a server that knows the scripts would not be asked whether it has just started
        self.wire = Wire(self.buffer)
        self.wire.lossy, self.straggles = lossy, straggles
        self.eras = Eras()
        self.buffer.configure(limits)
        for name in ("attacker", "defender")[:policies]:
            learner = Learner(Expected(name, limits, self.eras))
            self.learners.append(learner)
            self._resume(learner, learner.newest())
            self._publish(learner)

    @rule(
        name=st.sampled_from([name for name, count in FREQUENCY.items() for _ in range(count)]),
        who=st.integers(0, 1),
        index=st.integers(0, 11),
        coin=st.booleans(),
    )
    def move(self, name: str, who: int, index: int, coin: bool) -> None:
        """`who` is the policy; `index` and `coin` are whatever the move needs to choose."""
        self.sound = False
        getattr(self, name)(self.learners[who % len(self.learners)], index, coin)

    @invariant()
    def holds(self) -> None:
        for learner in self.learners:
            compare(self.buffer, learner.expected)
        self.sound = bool(self.learners)

    def teardown(self) -> None:
        if self.sound:
            for learner in self.learners:
                self._end_fairly(learner)
                compare(self.buffer, learner.expected)
        if self.learners:
            self.buffer.close()

    # ── rollout workers ─────────────────────────────────────────────────────────────────────────────────────

    def claim(self, learner: Learner, index: int, updates: bool) -> None:
        """One to three groups, perhaps with old weights."""
        worker = WORKERS[index % 2]
        if updates:
            self._update(learner, worker)
        for _ in range(1 + index % 3):
            self._claim(learner, worker)

    def put(self, learner: Learner, index: int, again: bool) -> None:
        """A leased group; or any, late or for the second time."""
        states = () if again else ("leased",)
        if known := pick(learner.expected.at(*states), index):
            self._put(learner, known)

    def renew(self, learner: Learner, index: int, _: bool) -> None:
        if known := pick(learner.expected.at(), index):
            learner.expected.expire()
            lost = self._is_lost(lambda: self.buffer.renew(known.claim))
            check(lost == (known.at != "leased" and not known.was_put), "a lease that is lost stays lost", known)

    def give_up(self, learner: Learner, index: int, requeue: bool) -> None:
        """Not twice: a call that comes again is the wire's."""
        states = ("leased",) if index % 4 else ()
        if known := pick((k for k in learner.expected.at(*states) if not k.gave_up), index):
            learner.expected.expire()
            reason, held = "worker_left" if requeue else "data_failure", known.at == "leased"
            lost = self._is_lost(lambda: self.buffer.give_up(known.claim, reason, requeue=requeue))
            check(lost != held, "only who holds a lease gives it up", known)
            if held:
                known.gave_up = True
                learner.expected.drop(known, reason, requeue=requeue)

    def forsake(self, learner: Learner, index: int, everybody: bool) -> None:
        """A worker is dead, or every one is."""
        worker = "" if everybody else [*WORKERS, *JUDGES][index % 4]
        self.buffer.forsake(learner.name, worker or None)
        learner.expected.forsake(worker)
        for known in self._known():
            if known.judging and known.scorer and worker in ("", known.scorer):
                learner.expected.judge_gone(known, blame=False)

    def judges_die(self, learner: Learner, index: int, some_left: bool) -> None:
        """One dies over all that it has in hand; then judges take, and answer, die in turn or are slow."""
        self._work(learner, judged=False)
        self._take(JUDGES[index % 2], limit=2 if some_left else 12)
        self._judge_dies(JUDGES[index % 2])
        for turn in range(4):
            judge = JUDGES[(index + turn // 2) % 2]
            taken = self._take(judge, limit=3)
            match (index // 2 + turn) % 3:
                case 0:
                    for known in taken:
                        self._ask(known)
                case 1:
                    self._judge_dies(judge)

    def poison(self, learner: Learner, index: int, _: bool) -> None:
        """What is stored of a group is no group, as an earlier version may have left it."""
        stored = (
            k for k in learner.expected.groups.values() if k.claim.id in learner.expected.stored_batches or k.live
        )
        if known := pick((k for k in stored if k.was_put and not k.unreadable), index):
            self.redis.hset(f"{self.prefix}group:{known.claim.id}", "data", (b"", b"no group", b"\x80")[index % 3])
            known.unreadable = True

    # ── time ────────────────────────────────────────────────────────────────────────────────────────────────

    def lease_passes(self, learner: Learner, index: int, _: bool) -> None:
        if known := pick(learner.expected.at("leased"), index):
            self._pass(learner, known)

    def score_deadline_passes(self, learner: Learner, index: int, _: bool) -> None:
        if known := pick(learner.expected.at("pending"), index):
            self._pass(learner, known)

    def judge_takes_too_long(self, _: Learner, index: int, __: bool) -> None:
        if known := pick((k for k in self._known() if k.judging == "taken"), index):
            self.redis.zadd(f"{self.prefix}unscored", {known.claim.id: 1}, xx=True)
            known.judging = "due"

    def _pass(self, learner: Learner, known: Known) -> None:
        self.buffer.status(learner.name)  # the first call after a restart gives fresh periods, and would undo this
        deadlines = "leases" if known.at == "leased" else "deadlines"
        changed = self.redis.zadd(
            f"{self.prefix}policy:{learner.name}:{deadlines}", {known.claim.id: 1}, xx=True, ch=True
        )
        check(changed or known.passed, "what is leased or waits for scores has a deadline", known)
        known.passed = True

    # ── judges ──────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, _: Learner, index: int, answers: bool) -> None:
        """And score everything taken, or die over it."""
        judge = JUDGES[index % 2]
        for known in self._take(judge, limit=1 + index % 4):
            if answers:
                self._ask(known)
        if not answers and index % 3 == 0:
            self._judge_dies(judge)

    def score(self, learner: Learner, index: int, any_group: bool) -> None:
        """One reward of a group that waits; or of one that is trained, dropped, trimmed long since."""
        states = () if any_group else ("pending", "ready")
        if known := pick((k for k in learner.expected.at(*states) if k.was_put), index // 3):
            reward = [*REWARDS, "hindsight"][index % 3]
            self._score(known, reward, str(index % 2), float(len(self.wire.sent)))

    def relabel(self, learner: Learner, index: int, both: bool) -> None:
        """A judge has another version, perhaps one that it has had before."""
        rewards = learner.expected.limits.blocking
        versions = dict.fromkeys(rewards if both else rewards[index % 2 :][:1], str(index // 2 % 2))
        self.buffer.relabel(versions)
        changed = self.eras.relabel(versions)
        for one in self.learners if changed else ():
            one.expected.relabel(changed)

    # ── the learner ─────────────────────────────────────────────────────────────────────────────────────────

    def learner_goes_on(self, learner: Learner, index: int, _: bool) -> None:
        """One move, or up to four in a row: a pipeline is long."""
        for count in range(1 + index % 4):
            self._next_move(learner, (0, 0, 1, 0, 3)[index % 5] if count == 0 else 0)

    def _next_move(self, learner: Learner, num_filtered: int) -> None:
        match learner.phase:
            case "idle":
                self._assemble(learner, num_filtered)
            case "assembled":
                self._step(learner)
            case "resumed" | "stepped":
                self._publish(learner)
            case "published":
                self._release(learner)
            case self.first_saved:
                self._save(learner, self.then_saved)
            case self.then_saved:
                self._trim(learner)
            case "dead":
                self._resume(learner, learner.newest())

    def checkpoint(self, learner: Learner, index: int, _: bool) -> None:
        """Its directory is emptied first; the manifest of an earlier life goes with it."""
        if learner.phase == "idle" and learner.step > 0:
            learner.disk[learner.step] = Saved(learner.step, [])
            self._save(learner, self.first_saved)
            for _move in range(index % 3):
                self._next_move(learner, 0)

    def filter(self, learner: Learner, index: int, requeue: bool) -> None:
        """A refill: a useless group is replaced before the batch. What is assembled already is left alone."""
        if learner.phase != "idle":
            return
        seen = [*learner.expected.at("assembled"), *(learner.expected.groups[id] for id in self._look(learner)[0])]
        if known := pick(seen, index):
            reason = "too_slow" if requeue else "filtered"
            self.buffer.drop(learner.name, learner.epoch, {known.claim.id: reason}, requeue=requeue)
            if known.live:
                learner.expected.drop(known, reason, requeue=requeue)

    # ── crashes ─────────────────────────────────────────────────────────────────────────────────────────────

    def crash(self, learner: Learner, _: int, __: bool) -> None:
        """The learner is gone. Its workers and judges live on, and so may its last call."""
        learner.phase = "dead"

    def resume(self, learner: Learner, _: int, __: bool) -> None:
        """Also while the one before still runs: the driver thinks it dead."""
        self._resume(learner, learner.newest())

    def roll_back(self, learner: Learner, index: int, rollback: bool) -> None:
        """To any checkpoint; those after it are of a history that did not happen, and are removed first."""
        newest = learner.newest().step
        older = [s for step, s in sorted(learner.disk.items()) if step <= newest and (s.manifest or step == 0)]
        if saved := pick(older, index):
            learner.disk = {step: s for step, s in learner.disk.items() if step <= saved.step}
            self._resume(learner, saved, rollback=rollback)

    def zombie_calls(self, learner: Learner, index: int, _: bool) -> None:
        if zombie := pick(learner.zombies, index):
            self._calls_of_a_zombie(learner, zombie)

    def restart_redis(self, _: Learner, index: int, __: bool) -> None:
        """It is down for longer than every lease and deadline, and nobody could renew them."""
        if index % 4 or not self.restarts_left:
            return
        self.restarts_left -= 1
        for learner in self.learners:
            for known in learner.expected.at("leased", "pending"):
                self._pass(learner, known)
        self.store.restart()
        self.redis.config_set("appendfsync", "everysec")
        for known in self._known():
            known.passed = False

    def old_call_arrives_again(self, _: Learner, index: int, recent: bool) -> None:
        """Its answer was lost, and meanwhile the others have gone on."""
        if call := pick(self.wire.sent[-12 if recent else 0 :], index if recent else 7 * index):
            self.wire.repeat(call)
            if call.script == "score":
                learner = next(one for one in self.learners if one.name == call.args[0])
                learner.expected.heard_from_judge(learner.expected.groups[call.args[1]])

    def all_work(self, learner: Learner, index: int, judged: bool) -> None:
        """Where nobody waits for a straggler there is nearly always one, and elsewhere in some runs."""
        straggles = self.straggles or learner.expected.limits.when_late == "drop"
        self._work(learner, but_for_one=straggles and index % 4 > 0, judged=judged or index % 4 > 1)
