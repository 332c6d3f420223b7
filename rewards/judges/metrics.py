"""What a judge costs and how far it can be trusted, in numbers."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from rewards.judges.statistics import winner

KEPT_LATENCIES = 1000
MIN_PAIRS, MIN_CONSISTENCY, MAX_FIRST_BIAS = 50, 0.7, 0.1
MIN_CANARIES, MIN_CANARY_FRAC = 10, 0.8
"""When to raise an alarm; the thresholds are ours."""


class JudgeMetrics:
    """The counts of one judge. Its pool and the ensembles around it add to one object."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0
        """Requests to the pool, canaries included: scored, abstained, failed, cancelled or in flight."""
        self.in_flight = 0
        self.cancelled = 0
        """Requests that their askers gave up."""
        self.verdicts = 0
        """Answered from replicas: scored, failed or abstained."""
        self.joined = 0
        """Requests that were answered together with an equal one in flight."""
        self.hits = 0
        """Answered from the archive."""
        self.calls = 0
        """Completions asked of replicas."""
        self.unreadable = 0
        """Answers without a verdict, first attempts and retries."""
        self.abstained = 0
        self.failures: Counter[str] = Counter()
        """Requests without a verdict, by the name of the error."""
        self.tokens = 0
        """Prompt and completion tokens."""
        self.latencies_s: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._pairs = self._consistent = 0
        self._decided = self._first = 0
        self._compared = self._agreed = 0
        self._canaries = self._canaries_right = 0

    def orders(self, p_12: float, p_21: float) -> None:
        """A pair was judged in both orders; each is P(the one shown first is better)."""
        self._pairs += 1
        self._consistent += winner(p_12) == winner(1 - p_21)
        for p in (p_12, p_21):
            if winner(p) != "tie":
                self._decided += 1
                self._first += winner(p) == "first"

    def agreement(self, agreed: Sequence[bool]) -> None:
        """Pairs of answers to one question, by several judges or several samples: do they say the same?"""
        self._compared += len(agreed)
        self._agreed += sum(agreed)

    def canary(self, right: bool) -> None:
        """A question with a known answer was asked; no verdict is a wrong one."""
        self._canaries += 1
        self._canaries_right += right

    def snapshot(self, *, queue_depth: int = 0, queue_age_s: float = 0.0, open_circuits: int = 0) -> dict[str, float]:
        """By metric name; NaN for what has not been measured yet."""
        known, failed = self.verdicts + self.hits, sum(self.failures.values())
        p50, p95 = np.percentile(self.latencies_s, [50, 95]) if self.latencies_s else (float("nan"),) * 2
        values = {
            "queue_depth": float(queue_depth),
            "queue_age_s": queue_age_s,
            "open_circuits": float(open_circuits),
            "latency_p50_s": float(p50),
            "latency_p95_s": float(p95),
            "hit_frac": _share(self.hits + self.joined, known),
            "invalid_frac": _share(failed, self.verdicts),
            "abstained_frac": _share(self.abstained, self.verdicts),
            "consistency_frac": _share(self._consistent, self._pairs),
            "first_position_frac": _share(self._first, self._decided),
            "agreement_frac": _share(self._agreed, self._compared),
            "canary_frac": _share(self._canaries_right, self._canaries),
            "num_asked": float(self.asked),
            "num_answered": float(self.verdicts - failed),
            "num_failed": float(failed),
            "num_cancelled": float(self.cancelled),
            "num_in_flight": float(self.in_flight),
            "num_calls": float(self.calls),
            "num_unreadable": float(self.unreadable),
            "cost_tokens": float(self.tokens),
        }
        values |= {f"num_failed_{_snake(reason)}": float(count) for reason, count in self.failures.items()}
        return {f"judge/{self.name}_{key}": value for key, value in values.items()}

    def alarms(self) -> list[str]:
        """What makes this judge unfit, in words."""
        found, s = [], self.snapshot()
        consistency, first = (s[f"judge/{self.name}_{k}"] for k in ("consistency_frac", "first_position_frac"))
        if self._pairs >= MIN_PAIRS and consistency < MIN_CONSISTENCY:
            found.append(f"judge '{self.name}' names the same winner in both orders only {consistency:.0%} of the time")
        if self._pairs >= MIN_PAIRS and abs(first - 0.5) > MAX_FIRST_BIAS:
            found.append(f"judge '{self.name}' prefers what it is shown first {first:.0%} of the time")
        right = s[f"judge/{self.name}_canary_frac"]
        if self._canaries >= MIN_CANARIES and right < MIN_CANARY_FRAC:
            found.append(f"judge '{self.name}' gets only {right:.0%} of the questions with known answers right")
        return found


def _snake(error: str) -> str:
    """The name of an error as a part of a metric's: `JudgeTimeout` → `timeout`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", error.removeprefix("Judge")).lower()


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
