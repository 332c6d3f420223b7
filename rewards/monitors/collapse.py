"""Label-free rewards collapse: all agree, the reward is perfect, and the answers are wrong. Seen without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import Field, PositiveInt, PrivateAttr

from rewards.monitors.base import Alarm, Monitor, Row, known

ACCURACY, AGREEMENT, DUPLICATES = "eval/accuracy", "eval/anchor_agreement", "reward/duplicate_mean"

REMEDY = (
    "With a label-free reward that is how a collapse goes: look at samples.jsonl; go back to an earlier checkpoint, "
    "raise learner.loss.kl_coef or lower the learning rate."
)


@dataclass(slots=True)
class _Probe:
    """A held-out measure: its first, last and best value, the last step near it, how often running it was low."""

    first: float = float("nan")
    last: float = float("nan")
    best: float = 0.0
    good: int = 0
    low: int = 0

    def see(self, step: int, value: float, drop: float) -> None:
        if math.isnan(self.first):
            self.first = value
        self.last = value
        self.best = max(self.best, value)
        self.low = self.low + 1 if value < (1 - drop) * self.best else 0
        if value >= (1 - drop / 2) * self.best:
            self.good = step


class CollapseGuard(Monitor):
    """Alarms when a held-out probe falls, or when groups become unanimous and no probe says that they are right.

    Two probes: evaluation accuracy, where there are references, and `eval/anchor_agreement`, the share of tasks that
    the initial policy was surest of and that are still answered as then, which needs none: it is the drift from the
    initial policy beyond what learning causes. Both are measured every `evaluation.every_steps`. Unanimity is the
    commonest answer's share (reward `majority`), with an entropy of answers that is a fraction of what it was (reward
    `answer_entropy`, weight 0); or a rate of equal texts (reward `duplicate`, weight 0, if recorded) near 1. What is
    unanimous from the start raises no alarm, nor does unanimity while the last probes are near their best: a policy
    that has learnt all its tasks agrees with itself as well. Without evaluation it cannot tell the two apart. One alarm
    per collapse: it rearms when groups disagree again and probes recover.
    """

    share: str = "reward/majority_mean"
    """Metric of the commonest answer's share of its group."""
    entropy: str = "reward/answer_entropy_mean"
    """Metric of the entropy of a group's answers, in nats."""
    drop: float = Field(default=0.1, gt=0, lt=1)
    """Part of its best value that the accuracy has lost when it counts as low. With few evaluation tasks take more: of
    n tasks at accuracy p the error is a part √((1 − p) / (p n)) of it."""
    anchor_drop: float = Field(default=0.25, gt=0, lt=1)
    """Part of its best value that the agreement has lost when it counts as low. It does not count while the accuracy is
    above its first value by `drop`: learning costs some of it too, up to 0.26 in the quickstart, seed 0."""
    low_probes: PositiveInt = 2
    """Low values in a row before the alarm: one alone is noise."""
    max_share: float = Field(default=0.92, gt=0, le=1)
    """Share of the commonest answer from which a step counts as unanimous."""
    entropy_frac: float = Field(default=0.35, gt=0, le=1)
    """And the entropy has fallen to this share of its start."""
    max_duplicates: float = Field(default=0.99, gt=0, le=1)
    """Rate of equal texts from which a step counts as unanimous, unless it began there."""
    patience: PositiveInt = 3
    """Unanimous steps in a row before the alarm."""
    baseline_steps: PositiveInt = 5
    """Steps whose means are the start."""
    rearm: float = Field(default=0.05, ge=0, lt=1)
    """After an alarm the share must fall so far below `max_share` before there is another."""
    _start: list[tuple[float, float]] = PrivateAttr(default_factory=list)
    """(entropy, rate of equal texts) of the first steps."""
    _unanimous: int = PrivateAttr(default=0)
    _disagreed: int = PrivateAttr(default=0)
    """The last step that was not unanimous."""
    _raised: bool = PrivateAttr(default=False)
    _probes: dict[str, _Probe] = PrivateAttr(default_factory=dict)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.share, self.entropy

    def observe(self, step: int, row: Row) -> Alarm | None:
        alarm = self._fallen(step, row) or self._agreed(step, row)
        if alarm is None or self._raised:
            return None
        self._raised = True
        return alarm

    def _fallen(self, step: int, row: Row) -> Alarm | None:
        for name, drop in ((ACCURACY, self.drop), (AGREEMENT, self.anchor_drop)):
            if (value := known(row, name)) is None:
                continue
            probe = self._probes.setdefault(name, _Probe())
            probe.see(step, value, drop)
            if name == AGREEMENT and self._has_learnt():
                continue  # what was sure at first and is given up by then was wrong
            if probe.low >= self.low_probes:
                words = f"{name} fell from {probe.best:.3f} to {value:.3f}. {REMEDY}"
                return Alarm("collapse", step, name, words, probe.good)
        return None

    def _agreed(self, step: int, row: Row) -> Alarm | None:
        share, entropy = known(row, self.share), known(row, self.entropy)
        if share is None or entropy is None:
            return None
        duplicates = known(row, DUPLICATES) or 0.0
        if len(self._start) < self.baseline_steps:
            self._start.append((entropy, duplicates))
            return None
        entropies, rates = zip(*self._start, strict=True)
        start = sum(entropies) / len(entropies)
        same_answers = share >= self.max_share and entropy <= self.entropy_frac * start
        same_texts = duplicates >= self.max_duplicates > sum(rates) / len(rates)
        if self._raised:
            low = any(probe.low for probe in self._probes.values())
            self._raised = low or same_texts or share >= self.max_share - self.rearm
        if not (same_answers or same_texts):
            self._unanimous, self._disagreed = 0, step
            return None
        self._unanimous += 1
        if self._unanimous < self.patience or self._proven():
            return None
        words = (
            f"the commonest answer has {share:.2f} of its group, and the entropy of answers went from {start:.2f} to "
            f"{entropy:.2f} nats; {duplicates:.2f} of the texts are repeated. {REMEDY}"
        )
        return Alarm("collapse", step, self.share if same_answers else DUPLICATES, words, self._disagreed)

    def _has_learnt(self) -> bool:
        """Whether the last accuracy was clearly above the first. One without references, a vote of one, is always 1."""
        accuracy = self._probes.get(ACCURACY)
        return accuracy is not None and accuracy.last >= (1 + self.drop) * accuracy.first

    def _proven(self) -> bool:
        """Whether there are probes, and all are near their best."""
        return bool(self._probes) and not any(probe.low for probe in self._probes.values())
