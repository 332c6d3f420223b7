"""The driver's ear: events that workers leave in Redis become rows of metrics, samples and the live table."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import assert_never

from cluster.buffer import Buffer
from cluster.config import RunConfig
from cluster.driver.health import Health
from cluster.errors import BudgetSpent, KanaboError, calling
from cluster.observability import metrics
from cluster.observability.alarm_report import Alarmed
from cluster.observability.live_table import LiveTable
from cluster.observability.metrics import Recorder
from cluster.storage.samples import row_of
from cluster.types.events import (
    GroupDropped,
    JudgeReport,
    LogprobDiff,
    RewardModelReport,
    RewardReport,
    RolloutReport,
    RunEvent,
    SampleShown,
    Span,
    StepTaken,
    WeightsReceived,
    WorkerHeld,
)
from cluster.workers import POLICY
from rewards.monitors import build_monitors

log = logging.getLogger(__name__)


class LogprobDiffTooLarge(KanaboError):
    """Engines no longer sample from the learner's distribution."""


AGENT_METRICS = {
    "turns": "rollout/num_agent_turns",
    "failed_agents": "rollout/num_failed_agents",
    "cut_episodes": "rollout/num_cut_episodes",
    "refused_requests": "rollout/num_refused_requests",
}
"""What endpoints count, and the metric that shows it."""


class EventConsumer:
    """Reads the run's event stream; one method per kind of event."""

    def __init__(
        self,
        buffer: Buffer,
        config: RunConfig,
        recorder: Recorder,
        table: LiveTable,
        evaluate: Callable[[int], None],
        counts: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """`counts`: metrics that the driver itself knows, for every step."""
        self._buffer, self._config, self._recorder, self._table = buffer, config, recorder, table
        self._evaluate, self._counts = evaluate, counts
        self.epoch = 0
        self.waiting = "Nothing has been trained yet"
        self._step = 0
        self._after = "0"
        self._progress = time.monotonic()
        self._tokens, self._seconds = 0.0, 0.0
        self._floors: dict[str, float] = {}
        self._drifts: Counter[str] = Counter()
        """Both by policy."""
        self._data_failures = self._leases_lost = 0
        self._groups = 0
        self._dropped: Counter[int] = Counter()
        """Groups that the buffer itself dropped, by the step before."""
        self._threads: dict[str, tuple[float, float]] = {}
        """For each rollout worker whose environment blocked: number of hanging threads, and of replaced ones."""
        self._prompt_tokens = self._cached_tokens = 0
        self._agents: Counter[str] = Counter()
        """Since the last step, by the names of `AGENT_METRICS`."""
        self._accuracy: float | None = None
        self.health = Health(config, self._warn, metrics.rows(recorder.directory))
        self.evaluations_lost: dict[int, str] = {}
        """Why the evaluation of the weights of a step gave no accuracy, by step."""
        self._monitors = build_monitors(config)
        if self._monitors:  # after a resume they are where they were
            for row in metrics.rows(recorder.directory):
                for monitor in self._monitors:
                    monitor.observe(row["step"], row)

    def new_epoch(self, epoch: int, step: int) -> None:
        self.epoch, self._step = epoch, step
        self.progressed()

    def progressed(self) -> None:
        self._progress = time.monotonic()

    def idle_s(self) -> float:
        return time.monotonic() - self._progress

    def skip(self) -> None:
        """Pass over what an earlier life of this run left."""
        self._after = self._buffer.newest_event()

    async def run(self) -> None:
        while True:
            await self._read(timeout_s=1.0)

    async def drain(self) -> None:
        """Read what is left."""
        while await self._read(timeout_s=0.05):
            pass

    async def _read(self, timeout_s: float) -> int:
        events = await asyncio.to_thread(self._buffer.events, self._after, timeout_s)
        for position, event in events:
            self._after = position
            self._take(event)
        return len(events)

    def _take(self, event: RunEvent) -> None:
        match event:
            case StepTaken():
                self._on_step(event)
            case SampleShown(row=row):
                self._recorder.sample(row)
            case GroupDropped():
                self._on_dropped(event)
            case RolloutReport():
                self._on_rollout(event)
            case RewardReport():
                self._recorder.trace(event.worker, event.spans)
                self.health.rewards(event)
                self._spend(event)
            case WorkerHeld(message=message):
                self.waiting = message
                self.health.say(message, message)
            case JudgeReport(metrics=found, trouble=trouble):
                self.health.judges(found, trouble)
                self._recorder.record(self._step, found)
            case RewardModelReport(metrics=found):
                self._recorder.record(self._step, found)
            case WeightsReceived():
                row = {"weights/fetch_s": event.fetch_s, "weights/pause_s": event.pause_s}
                self._recorder.record(self._step, _of(event.policy, row))
            case LogprobDiff():
                self._on_logprob_diff(event)
            case _:
                assert_never(event)

    def first_weights(self, step: int) -> None:
        self._recorder.record(step, {"weights/published": 1})

    def evaluated(self, step: int, accuracy: float, agreement: float, seconds: float, policy: str = POLICY) -> None:
        now_s = time.time()
        self._recorder.trace("driver", [Span("evaluate", now_s - seconds, now_s, f"step {step}")])
        row = {"eval/accuracy": accuracy, "eval/anchor_agreement": agreement, "eval/seconds_s": seconds}
        if policy == POLICY:
            self._accuracy = accuracy
        self._record(step, _of(policy, row))

    def evaluated_named(
        self, name: str, step: int, figures: dict[str, float], seconds: float, policy: str = POLICY
    ) -> None:
        """Record the figures of one of `[[evaluations]]`."""
        now_s = time.time()
        self._recorder.trace("driver", [Span("evaluate", now_s - seconds, now_s, f"{name}, step {step}")])
        row = {f"eval/{name}/{figure}": value for figure, value in (figures | {"seconds_s": seconds}).items()}
        self._record(step, _of(policy, row))

    def named_evaluation_lost(self, name: str, step: int, why: str) -> None:
        """Say that one of `[[evaluations]]` gave no accuracy."""
        self.health.say(f"evaluation {name}: {why}", f"the evaluation '{name}' at step {step} was lost: {why}")

    def evaluation_lost(self, step: int, why: str) -> None:
        """The evaluation of the weights of `step` gave no accuracy."""
        self._accuracy = None
        self.evaluations_lost[step] = f"the evaluation at step {step} was lost: {why}"
        self.health.say(f"evaluation: {why}", self.evaluations_lost[step])

    def not_measured(self) -> dict[str, str]:
        """Figures of the summary that could not be measured, and why."""
        steps = {"eval_accuracy_initial": 0, "eval_accuracy_final": self._step}
        lost = self.evaluations_lost
        return {figure: lost[step] for figure, step in steps.items() if step in lost}

    def _warn(self, step: int, message: str) -> None:
        """Say what is wrong in the terminal, in the log and in the console."""
        log.warning("%s", message)
        self._table.warning(message)
        self._recorder.alarm({"monitor": "health", "step": step, "metric": "", "message": message, "good": step})

    def _on_step(self, event: StepTaken) -> None:
        if event.epoch != self.epoch:
            return
        self.progressed()
        self._recorder.trace("learner" if event.policy == POLICY else f"learner:{event.policy}", event.spans)
        if event.policy != POLICY:
            self._record(event.step, _of(event.policy, event.metrics))
            return
        step = self._step = event.step
        rate = self._tokens / self._seconds if self._seconds else float("nan")
        self._tokens, self._seconds = 0.0, 0.0
        status = self._buffer.status(POLICY)
        groups, counters = status["groups"], status["counters"]
        row = {
            **event.metrics,
            "rollout/tokens_per_s": rate,
            "rollout/tokens_per_s_per_device": rate / self._num_devices(),
            "buffer/outstanding_groups": groups["leased"] + groups["pending"] + groups["ready"],
            "weights/published": 1,
            "failures/num_data": self._data_failures,
            "failures/num_leases_lost": self._leases_lost,
            "failures/num_unreadable": counters.get("unreadable", 0),
            "failures/num_condemned": counters.get("condemned", 0),
            **self._counts(),
        }
        if self._threads:
            hung, replaced = (float(sum(counts)) for counts in zip(*self._threads.values(), strict=True))
            row |= {"rollout/num_hung_threads": hung, "rollout/num_replaced_threads": replaced}
        if self._prompt_tokens:
            row["rollout/prefix_cache_hit_frac"] = self._cached_tokens / self._prompt_tokens
            self._prompt_tokens = self._cached_tokens = 0
        if self._agents:
            row |= {metric: float(self._agents[name]) for name, metric in AGENT_METRICS.items()}
            self._agents.clear()
        self._record(step, row)
        self.health.step(step, row)
        shown = row if self._accuracy is None else {**row, "eval/accuracy": self._accuracy}
        self._table.step(step, shown)
        self.waiting = f"The learner took step {step} and waits for groups"
        self._table.waiting(
            f"groups: {groups['leased']} being sampled, {groups['pending']} wait for scores, {groups['ready']} ready"
        )
        evaluations = (self._config.evaluation, *self._config.evaluations)
        if any(section.due(step) for section in evaluations) and step < self._config.learner.steps:
            self._evaluate(step)

    def _record(self, step: int, row: dict[str, float]) -> None:
        """Write a row and show it to the monitors. Raises Alarmed."""
        self._recorder.record(step, row)
        for monitor, section in zip(self._monitors, self._config.monitors, strict=True):
            with calling(f"the monitor {type(monitor).__name__}"):
                alarm, found = monitor.observe(step, row), monitor.report()
            if found:
                self._recorder.record(step, dict(found))
            if alarm is None:
                continue
            log.warning("%s at step %d: %s", alarm.monitor, alarm.step, alarm.message)
            self._recorder.record(step, {f"monitor/{alarm.monitor}_alarms": 1})
            self._recorder.alarm(asdict(alarm))
            if section.on_alarm != "warn":
                raise Alarmed(alarm, monitor.reads, roll_back=section.on_alarm == "rollback")

    def _on_dropped(self, event: GroupDropped) -> None:
        """The buffer itself dropped a group with its rollouts; what a learner drops comes as a sample."""
        self._dropped[self._step] += 1
        if self._dropped[self._step] > self._config.tracking.samples_per_step:
            return
        stored = self._buffer.dropped(event.id)
        if stored is not None:
            self._recorder.sample(row_of(self._step + 1, stored.group, stored.scores, reason=event.reason))

    def _on_rollout(self, event: RolloutReport) -> None:
        self._recorder.trace(event.worker, event.spans)
        self._tokens += event.tokens
        if event.claims:  # the tokens of other policies' engines are in the groups of those that claim
            self._seconds += event.seconds / self._num_engines()
        self._leases_lost += event.leases_lost
        self._groups += event.groups
        self._agents.update(event.agents)
        self._prompt_tokens += event.prompt_tokens
        self._cached_tokens += event.cached_tokens
        if event.replaced_threads:
            self._threads[event.worker] = event.hung_threads, event.replaced_threads
        self._spend(event)

    def _num_engines(self) -> float:
        return self._counts().get("workers/num_rollout") or self._config.rollout.workers

    def _num_devices(self) -> float:
        return self._num_engines() * self._config.engine.tensor_parallel

    def _spend(self, event: RolloutReport | RewardReport) -> None:
        if not event.data_failures:
            return
        self._data_failures += event.data_failures
        failure = {"step": self._step + 1, "trained": False, "reason": "data_failure", "error": event.last_failure}
        self._recorder.sample(failure)
        section = self._config.run
        allowed = max(section.max_data_failures, int(section.max_data_failure_frac * self._groups))
        if self._data_failures > allowed:
            raise BudgetSpent(
                f"{self._data_failures} groups failed in a task, an environment or a reward; allowed are {allowed} "
                f"(run.max_data_failures = {section.max_data_failures}, run.max_data_failure_frac = "
                f"{section.max_data_failure_frac:g} of {self._groups} groups). Fix the cause, or raise one of the two. "
                f"The last: {event.last_failure}"
            )

    def _on_logprob_diff(self, event: LogprobDiff) -> None:
        policy, mean, worst = event.policy, event.mean, event.max
        if event.floor:
            self._floors[policy] = max(self._floors.get(policy, 0.0), mean)
            self._recorder.record(self._step, _of(policy, {"policy/logprob_diff_floor_nats": mean}))
            return
        row = {"policy/logprob_diff_mean_nats": mean, "policy/logprob_diff_max_nats": worst}
        self._recorder.record(self._step, _of(policy, row))
        # Without a floor the run was resumed: the initial weights, whose floor it was, are gone.
        floor = self._floors.setdefault(policy, mean)
        bound = 3 * floor + self._config.weights.max_logprob_diff_nats
        self._drifts[policy] = self._drifts[policy] + 1 if mean > bound or mean != mean else 0
        if self._drifts[policy] >= 2:
            raise LogprobDiffTooLarge(
                f"engine and learner differ by {mean:.3g} nats (bound {bound:.3g}) at version {event.version}, "
                "twice running: rollouts are sampled from other weights than are trained. "
                f"Check weights.transport and engine.options of '{policy}'."
            )


def _of(policy: str, row: dict[str, float]) -> dict[str, float]:
    """Metrics of a policy beside the one that claims are called `NAME/area/quantity`."""
    return row if policy == POLICY else {f"{policy}/{name}": value for name, value in row.items()}
