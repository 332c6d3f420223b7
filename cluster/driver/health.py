"""Whether a run learns: steps that trained on nothing, rewards and judges that fail, rollouts that are all cut short.

    step, reward, judge and rollout events ─► `Health` ─► a warning, once per cause; all of them are in the summary
                                                      └─► NothingLearned after `run.max_empty_steps`

A run that trains on nothing must not look like one that works: each warning names the cause and what to change.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cluster.config import RunConfig
from cluster.errors import KanaboError
from cluster.types.events import RewardReport

DROPPED = "num_dropped_"
SKIPPED = "learner/num_skipped"
MIN_CALLS = 8
"""A reward's failures say something from so many rollouts on."""
MAX_FAILED_FRAC = 0.5

INVALID = "_invalid_frac"
PATIENCE = 3
"""Reports in a row of judges that do not answer, or steps in a row without a score of a reward that does not block,
before the driver says so: a judge takes a while to start, and to answer."""

NEWS_STEPS = 20
"""A warning of so many steps ago is no news any more."""
SAME = 1e-9
"""A standard deviation below this is that of equal numbers."""
LOOK = "samples.jsonl in the run's directory has what was sampled, with the reason."

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
    """Reads a run's events; `warn` is called once with each cause. Its warnings are kept."""

    def __init__(
        self, config: RunConfig, warn: Callable[[int, str], None], before: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """`before`: the rows that earlier lives of the run recorded."""
        self._config, self._warn = config, warn
        self.warnings: list[str] = []
        """What was said, each with its step."""
        self._said: set[str] = set()
        self._unknown: Counter[str] = Counter()
        """Steps in a row in which a reward had no score, by reward."""
        self._asked: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._causes: dict[str, str] = {}
        self._empty_steps, self._trained_steps, self._num_skipped = 0, 0, 0.0
        for row in before:
            self._trained_steps += bool(row.get("learner/tokens"))
            if (skipped := row.get(SKIPPED)) is not None:
                self._num_skipped = skipped
        self._empty_because = ""
        self._in_trouble, self._trouble = 0, ""
        self._step = self._warned_at = 0

    def step(self, step: int, row: Mapping[str, float]) -> None:
        """A step of the learner, with its metrics. Raises NothingLearned."""
        self._step = step
        self._check_truncation(row.get("rollout/truncated_frac", math.nan))
        self._check_scores(row)
        self._check_update(row)
        if row.get("learner/tokens", 1.0) > 0:
            self._empty_steps, self._trained_steps = 0, self._trained_steps + 1
            return
        self._empty_steps += 1
        why = self._empty_because = self._why(row)
        allowed = self._config.run.max_empty_steps
        self.say("empty", f"step {step} trained on nothing: {why} After {allowed} such steps in a row the run fails.")
        if self._empty_steps >= allowed:
            raise NothingLearned(
                f"{self._empty_steps} steps in a row trained on nothing (run.max_empty_steps = {allowed}): {why} {LOOK}"
            )

    def rewards(self, report: RewardReport) -> None:
        """A reward worker's counts: rollouts asked about and failed, and the last cause, by reward."""
        self._asked.update(report.asked)
        self._failed.update(report.failed)
        self._causes.update(report.causes)
        for name, failed in self._failed.items():
            asked = self._asked[name]
            if asked >= MIN_CALLS and failed > MAX_FAILED_FRAC * asked:
                self.say(
                    f"reward {name}",
                    f"reward '{name}' failed on {failed} of {asked} rollouts. The last cause: {self._causes.get(name)}",
                )

    def judges(self, row: Mapping[str, float], trouble: str = "") -> None:
        """A reward worker's metrics of its judges, and what keeps them from answering, in words."""
        shares = {key: share for key, share in row.items() if key.startswith("judge/") and key.endswith(INVALID)}
        for key, share in shares.items():
            if share == 1.0:
                name = key.removeprefix("judge/").removesuffix(INVALID)
                self.say(f"judge {name}", f"judge '{name}' has not given one verdict so far. {self._cause(trouble)}")
        answered = any(share < 1 for share in shares.values())
        self._trouble = trouble
        self._in_trouble = self._in_trouble + 1 if trouble and not answered else 0
        if self._in_trouble == PATIENCE:
            self._say_trouble()

    def finish(self) -> None:
        """The run has ended: say what was not said yet for want of patience."""
        if self._in_trouble:
            self._say_trouble()
        for name in self._unknown:
            if self._unknown[name]:
                self._say_unknown(name)

    def problem(self) -> str:
        """Why the run as a whole cannot have learnt anything, in a sentence; nothing if it may have."""
        if self._trained_steps == 0 and self._empty_steps:
            return f"none of the {self._empty_steps} steps trained on anything: {self._empty_because} {LOOK}"
        return ""

    def _say_trouble(self) -> None:
        self.say("judges", f"no judge has answered so far: {self._trouble}")

    def _check_scores(self, row: Mapping[str, float]) -> None:
        """Rewards that failed on over half of a step's rollouts, or have no score of any."""
        for name, section in zip(self._config.reward_names, self._config.rewards, strict=True):
            failed = row.get(f"reward/{name}_failed_frac", 0.0)
            unknown = row.get(f"reward/{name}_known_frac", 1.0) == 0
            self._unknown[name] = self._unknown[name] + 1 if unknown else 0
            if failed > MAX_FAILED_FRAC:
                share = f"{failed:.0%} of the rollouts of step {self._step}"
                self.say(f"reward {name}", f"reward '{name}' failed on {share}. The last cause: {self._cause_of(name)}")
            elif unknown and (section.blocking or self._unknown[name] == PATIENCE):
                self._say_unknown(name)

    def _say_unknown(self, name: str) -> None:
        steps = self._unknown[name]
        self.say(
            f"reward {name}",
            f"reward '{name}' had no score for any rollout of step {self._step}"
            + (f" and the {steps - 1} steps before" if steps > 1 else "")
            + f": it abstained, or had not answered when the step was assembled. {self._cause_of(name)}",
        )

    def _check_update(self, row: Mapping[str, float]) -> None:
        """Steps that trained and left the weights as they were."""
        skipped = row.get(SKIPPED, self._num_skipped)
        if skipped > self._num_skipped:
            self.say(
                "skipped",
                f"the gradient of step {self._step} was not finite, and its update was skipped. Lower "
                "learner.schedule.lr, or look at the step with `python -m cluster.commands.replay`.",
            )
        self._num_skipped = skipped
        if row.get("learner/tokens", 0.0) > 0 and row.get("learner/grad_norm") == 0:
            self.say(
                "still",
                f"step {self._step} trained on {row['learner/tokens']:.0f} tokens and changed nothing: its gradient is "
                f"exactly 0. {self._constant(row)}",
            )

    def _check_truncation(self, share: float) -> None:
        if share == 1.0:
            self.say(
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
        constant = self._constant(row) if "zero_variance" in reasons else ""
        return " ".join(filter(None, ("; ".join(parts) + ".", constant, self._failures())))

    def _constant(self, row: Mapping[str, float]) -> str:
        """What the rewards of a step were whose groups have nothing to compare."""
        mean, std = row.get("reward/mean", math.nan), row.get("reward/std", math.nan)
        if math.isnan(mean):
            return ""
        means = [
            self._mean_in_words(name, section.missing_value, row)
            for name, section in zip(self._config.reward_names, self._config.rewards, strict=True)
            if section.weight
        ]
        same = f"Every rollout of the step got the reward {mean:.4g}" if std < SAME else (
            f"Over the step the reward has mean {mean:.4g} and std {std:.3g}, and none within a group"
        )  # fmt: skip
        return f"{same} ({'; '.join(means)})."

    def _mean_in_words(self, name: str, missing: float | None, row: Mapping[str, float]) -> str:
        known = row.get(f"reward/{name}_known_frac", math.nan)
        if known == 0 and missing is not None:
            return f"'{name}' has no score, so that missing = {missing:g} took the place of all"
        return f"'{name}' has mean {row.get(f'reward/{name}_mean', math.nan):.4g}, known for {known:.0%}"

    def _failures(self) -> str:
        return " ".join(
            f"Reward '{name}' failed on {failed} of {self._asked[name]} rollouts, the last with: {self._causes[name]}."
            for name, failed in self._failed.items()
            if name in self._causes
        )

    def _cause(self, trouble: str) -> str:
        last = next(reversed(self._causes.values()), "")
        return trouble or (f"The last failure: {last}" if last else "Look at its log and its address.")

    def _cause_of(self, name: str) -> str:
        return self._causes.get(name) or f"'unscored' in samples.jsonl has the reason. {self._trouble}".strip()

    @property
    def newest(self) -> str:
        """The last warning while it is news, for the console's first line; else nothing."""
        return self.warnings[-1] if self.warnings and self._step - self._warned_at < NEWS_STEPS else ""

    def say(self, cause: str, message: str) -> None:
        """Warn once per cause."""
        if cause not in self._said:
            self._said.add(cause)
            self._warned_at = self._step
            self.warnings.append(f"step {self._step}: {message}")
            self._warn(self._step, message)
