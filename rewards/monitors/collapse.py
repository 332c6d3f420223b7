"""Label-free rewards collapse: all agree, the reward is perfect, and the answers are wrong. Seen without labels."""

from __future__ import annotations

from pydantic import Field, PositiveInt, PrivateAttr

from rewards.monitors.base import Alarm, Monitor, Row, known


class CollapseGuard(Monitor):
    """Alarms when groups are nearly unanimous and the entropy of their answers is a fraction of what it was.

    It needs no references, so it cannot tell a collapsed policy from one that has learnt all its tasks: with a reward
    that knows the truth, expect an alarm on success. One alarm per collapse: it rearms when groups disagree again. A
    row without the two metrics is passed over. What is unanimous from the start raises none. The metrics are those of
    the rewards `majority` and `answer_entropy`, the latter with weight 0.
    """

    share: str = "reward/majority_mean"
    """Metric of the commonest answer's share of its group."""
    entropy: str = "reward/answer_entropy_mean"
    """Metric of the entropy of a group's answers, in nats."""

    max_share: float = Field(default=0.92, gt=0, le=1)
    """Share of the commonest answer from which a step counts as unanimous."""
    entropy_frac: float = Field(default=0.35, gt=0, le=1)
    """And the entropy has fallen to this share of its start."""
    patience: PositiveInt = 3
    """Steps in a row before the alarm."""
    baseline_steps: PositiveInt = 5
    """Steps whose mean entropy is its start."""
    rearm: float = Field(default=0.05, ge=0, lt=1)
    """After an alarm the share must fall so far below `max_share` before there is another."""
    _start: list[float] = PrivateAttr(default_factory=list)
    _unanimous: int = PrivateAttr(default=0)
    _raised: bool = PrivateAttr(default=False)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.share, self.entropy

    def observe(self, step: int, row: Row) -> Alarm | None:
        share, entropy = known(row, self.share), known(row, self.entropy)
        if share is None or entropy is None:
            return None
        if len(self._start) < self.baseline_steps:
            self._start.append(entropy)
            return None
        start = sum(self._start) / len(self._start)
        if self._raised:
            self._raised = share >= self.max_share - self.rearm
        self._unanimous = self._unanimous + 1 if share >= self.max_share and entropy <= self.entropy_frac * start else 0
        if self._raised or self._unanimous < self.patience:
            return None
        self._raised = True
        return Alarm(
            "collapse",
            step,
            self.share,
            f"the commonest answer has {share:.2f} of its group, and the entropy of answers fell from {start:.2f} to "
            f"{entropy:.2f} nats. With a label-free reward that is how a collapse begins: look at samples.jsonl and at "
            "heldout/accuracy; stop, go back to an earlier checkpoint, raise learner.loss.kl_coef.",
        )
