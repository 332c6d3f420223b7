"""Whether a run learns: steps that trained on nothing, rewards and judges that fail, rollouts that are all cut short.

    step, reward, judge and rollout events ─► `Health` ─► a warning, once per cause
                                                      └─► NothingLearned after `run.max_empty_steps`

A run that trains on nothing must not look like one that works: each warning names the cause and what to change.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from cluster.config import RunConfig
from cluster.errors import KanaboError

DROPPED = "num_dropped_"
MIN_CALLS = 8
"""A reward's failures say something from so many rollouts on."""
MAX_FAILED_FRAC = 0.5

INVALID = "_invalid_frac"
PATIENCE = 3
"""Reports in a row of judges that do not answer, before that is said: a judge takes a while to start."""

ADVICE = {
    "zero_variance": "all rollouts of a task got the same reward. Check what the reward returns, or choose tasks that "
    "the model solves sometimes",
    "too_few_scores": "their rewards are unknown. Look at the failures of the rewards below",
    "truncated": "every rollout was cut short. Raise rollout.max_tokens or rollout.max_turns, or set "
    "learner.drop_truncated = false",
    "no_pairs": "the selectors found no pair to compare",
    "below_threshold": "no rollout was above the selector's threshold",
}
"""By the reason that a group was dropped for."""


class NothingLearned(KanaboError):
    """Step after step trained on nothing."""


class Health:
    """Reads a run's events; `warn` is called once with each cause."""

    def __init__(self, config: RunConfig, warn: Callable[[int, str], None]) -> None:
        self._config, self._warn = config, warn
        self._said: set[str] = set()
        self._asked: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._causes: dict[str, str] = {}
        self._empty_steps = self._trained_steps = 0
        self._in_trouble = 0
        self._step = 0

    def step(self, step: int, row: Mapping[str, float]) -> None:
        """A step of the learner, with its metrics. Raises NothingLearned."""
        self._step = step
        self._check_truncation(row.get("rollout/truncated_frac", math.nan))
        if row.get("learner/tokens", 1.0) > 0:
            self._empty_steps, self._trained_steps = 0, self._trained_steps + 1
            return
        self._empty_steps += 1
        why = self._why(row)
        allowed = self._config.run.max_empty_steps
        self._say("empty", f"step {step} trained on nothing: {why} After {allowed} such steps in a row the run fails.")
        if self._empty_steps >= allowed:
            raise NothingLearned(
                f"{self._empty_steps} steps in a row trained on nothing (run.max_empty_steps = {allowed}): {why} "
                "samples.jsonl in the run's directory has what was sampled, with the reason."
            )

    def rewards(self, fields: Mapping[str, Any]) -> None:
        """A reward worker's counts: rollouts asked about and failed, and the last cause, by reward."""
        self._asked.update(fields.get("asked", {}))
        self._failed.update(fields.get("failed", {}))
        self._causes.update(fields.get("causes", {}))
        for name, failed in self._failed.items():
            asked = self._asked[name]
            if asked >= MIN_CALLS and failed > MAX_FAILED_FRAC * asked:
                self._say(
                    f"reward {name}",
                    f"reward '{name}' failed on {failed} of {asked} rollouts. The last cause: {self._causes.get(name)}",
                )

    def judges(self, row: Mapping[str, float], trouble: str = "") -> None:
        """A reward worker's metrics of its judges, and what keeps them from answering, in words."""
        shares = {key: share for key, share in row.items() if key.startswith("judge/") and key.endswith(INVALID)}
        for key, share in shares.items():
            if share == 1.0:
                name = key.removeprefix("judge/").removesuffix(INVALID)
                self._say(f"judge {name}", f"judge '{name}' has not given one verdict so far. {self._cause(trouble)}")
        answered = any(share < 1 for share in shares.values())
        self._in_trouble = self._in_trouble + 1 if trouble and not answered else 0
        if self._in_trouble == PATIENCE:
            self._say("judges", f"no judge has answered so far: {trouble}")

    def problem(self) -> str:
        """Why the run as a whole cannot have learnt anything, in a sentence; nothing if it may have."""
        if self._trained_steps == 0 and self._empty_steps:
            return f"none of the {self._empty_steps} steps trained on anything."
        return ""

    def _check_truncation(self, share: float) -> None:
        if share == 1.0:
            self._say(
                "truncated",
                "every rollout of the step was cut short by its budget. Raise rollout.max_tokens (now "
                f"{self._config.rollout.max_tokens}) or rollout.max_turns (now {self._config.rollout.max_turns}), or "
                "check that the model knows how to end its turn (rollout.stop).",
            )

    def _why(self, row: Mapping[str, float]) -> str:
        reasons = {key.partition(DROPPED)[2]: int(n) for key, n in row.items() if DROPPED in key and n}
        if not reasons:
            return self._failures() or "no group was ready before the step was assembled."
        parts = [f"{n} groups were dropped as '{r}' ({ADVICE.get(r, 'see the log')})" for r, n in reasons.items()]
        return "; ".join(parts) + "." + (f" {failures}" if (failures := self._failures()) else "")

    def _failures(self) -> str:
        return " ".join(
            f"Reward '{name}' failed on {failed} of {self._asked[name]} rollouts, the last with: {self._causes[name]}."
            for name, failed in self._failed.items()
            if name in self._causes
        )

    def _cause(self, trouble: str) -> str:
        last = next(reversed(self._causes.values()), "")
        return trouble or (f"The last failure: {last}" if last else "Look at its log and its address.")

    def _say(self, cause: str, message: str) -> None:
        if cause not in self._said:
            self._said.add(cause)
            self._warn(self._step, message)
