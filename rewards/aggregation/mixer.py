"""Scores of several rewards → the one reward per rollout that is trained on. Pure: decided at assembly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from cluster.config import RewardSection
from cluster.errors import ConfigError, PluginError, calling
from cluster.plugins import StatefulPlugin, build
from cluster.types import FAILED, AssembledBatch, Group, GroupReward, Scores
from rewards.aggregation.shadow_metrics import agreement, sign_flip_frac
from rewards.aggregation.shaping import SHAPERS, Shaper, StepShaper, TokenShaper
from rewards.monitors import Judged, Monitor


class Mixer:
    """Weighted sum of the rewards, and what their unknown scores mean.

    Per reward a known score is shaped; an unknown one takes its `missing` value, or leaves its rollout out, or drops
    the group. A reward of weight 0 is a shadow: it is recorded and compared with the trained reward
    (`rewards.aggregation.shadow_metrics`), and decides nothing. Raises ConfigError for an unknown shaper.

    A reward that says at which token its reward came counts there, so that each turn is credited with what follows it
    (`GroupReward.tokens`); a rollout's reward from it is the sum over tokens, and an unknown token is an unknown score.
    All others, shaped ones among them, count for the rollout as a whole, unless their shaper is of tokens itself.
    """

    def __init__(
        self,
        rewards: Sequence[RewardSection],
        names: Sequence[str],
        min_scored: int,
        monitors: Sequence[Monitor] = (),
        state_of: Callable[[str], Any] = lambda name: None,
    ) -> None:
        """`state_of`: the state before this step of a stateful shaper, by its name in `states`."""
        self._monitors, self._state_of = monitors, state_of
        self._rewards = dict(zip(names, rewards, strict=True))
        self._min_scored = min_scored
        self._shapers = {
            name: build(SHAPERS, section.shape.use, section.shape.options, f"rewards[{i}].shape")
            for i, (name, section) in enumerate(self._rewards.items())
            if section.shape is not None
        }
        self._token_shapers = {name: s for name, s in self._shapers.items() if isinstance(s, TokenShaper)}

    @property
    def states(self) -> dict[str, StatefulPlugin]:
        """Stateful shapers by name, as the learner keeps them."""
        found = {n: s for n, s in self._shapers.items() if isinstance(s, StatefulPlugin)}
        return {state_name(n): ShaperState(reward=n, shaper=s) for n, s in found.items()}

    def __call__(self, group: Group, scores: Mapping[str, Scores]) -> GroupReward:
        """Aggregate the scores of a group that is the whole step."""
        return self.of_step([group], [scores])[0]

    def of_step(self, groups: Sequence[Group], scores: Sequence[Mapping[str, Scores]]) -> list[GroupReward]:
        """Aggregate the scores of all groups that a step could train on: a shaper may look at all of them."""
        shaped = {
            name: self._shaped(name, groups, scores) for name in self._shapers.keys() - self._token_shapers.keys()
        }
        mixed = [
            self._mix(group, found, {name: values[i] for name, values in shaped.items()})
            for i, (group, found) in enumerate(zip(groups, scores, strict=True))
        ]
        judged = [Judged(*one) for one in zip(groups, scores, mixed, strict=True)]
        for monitor in self._monitors:
            with calling(f"the monitor {type(monitor).__name__}"):
                found = monitor.measure(judged)
            for one in mixed:  # of the step as a whole: the same in each, and so their mean
                one.metrics.update(found)
        return mixed

    def _shaped(
        self, name: str, groups: Sequence[Group], scores: Sequence[Mapping[str, Scores]]
    ) -> list[Float[np.ndarray, " G"]]:
        values = [_evidence(name, g, s.get(name))[0] for g, s in zip(groups, scores, strict=True)]
        shaper = self._shapers[name]
        shape: Callable[..., Any] = shaper.shape
        with calling(f"the shaper of reward '{name}' ({type(shaper).__name__})"):
            copies = [v.copy() for v in values]
            if isinstance(shaper, StatefulPlugin):
                state = self._state_of(state_name(name))
                results = list(shape(copies, groups, shaper.init_state() if state is None else state))
            elif isinstance(shaper, StepShaper):
                results = list(shape(copies, groups))
            else:
                results = [shape(v, group) for v, group in zip(copies, groups, strict=True)]
        if len(results) != len(groups):
            raise PluginError(f"the shaper of reward '{name}' returned {len(results)} arrays for {len(groups)} groups.")
        return [_checked(name, shaper, v, r) for v, r in zip(values, results, strict=True)]

    def _mix(self, group: Group, scores: Mapping[str, Scores], shaped: Mapping[str, np.ndarray]) -> GroupReward:
        total, tokens = np.zeros(len(group)), None
        drop, shadows = None, {}
        metrics, added, at_tokens = {"reward/failed_scores": 0.0}, {}, set[str]()
        for name, section in self._rewards.items():
            found = scores.get(name)
            values, num_failed = _evidence(name, group, found)
            if name in self._token_shapers and np.isfinite(values).any() and found is not None and found.tokens is None:
                raise ConfigError(
                    f"the shaper of reward '{name}' ({type(self._token_shapers[name]).__name__}) is of token values, "
                    "and that reward has none. Use one that scores steps, such as 'step_scores'."
                )
            metrics |= _metrics(name, values, num_failed)
            metrics["reward/failed_scores"] += num_failed
            if name in shaped:
                values = shaped[name]
                metrics[f"reward/{name}_shaped_mean"] = _mean(values)
            elif found is not None and found.tokens is not None:
                parts = _known_tokens(name, group, self._said(name, group, found.tokens), section.missing_value)
                values = np.array([part.sum() for part in parts])
                at_tokens.add(name)
                if section.weight:
                    tokens = [t + section.weight * p for t, p in zip(tokens or [0.0] * len(group), parts, strict=True)]
            if section.weight == 0:
                shadows[name] = values
                continue
            unknown = np.isnan(values)
            if section.missing_value is not None:
                values = np.where(unknown, section.missing_value, values)
            elif unknown.any() and section.missing != "drop_rollout":
                drop = drop or f"{'waited' if section.missing == 'wait' else 'missing'}:{name}"
            added[name] = section.weight * values
            total += added[name]
        if drop is None and np.isfinite(total).sum() < min(self._min_scored, len(group)):
            drop = "too_few_scores"
        for name, values in shadows.items():
            metrics[f"reward/{name}_agreement"] = agreement(values, total)
            metrics[f"reward/{name}_sign_flip_frac"] = sign_flip_frac(values, total)
        return GroupReward(
            total,
            drop,
            metrics,
            tokens=None if tokens is None else tuple(tokens),
            parts=added,
            at_tokens=frozenset(at_tokens),
        )

    def _said(self, name: str, group: Group, tokens: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        shaper = self._token_shapers.get(name)
        if shaper is None:
            return tokens
        with calling(f"the shaper of reward '{name}' ({type(shaper).__name__})"):
            return shaper.shape(tokens, group)


class ShaperState(StatefulPlugin):
    """A stateful shaper as the learner keeps it: its state follows the scores of one reward."""

    reads_scores: ClassVar[bool] = True
    reward: str
    """Name of the reward whose scores are shaped."""
    shaper: StatefulPlugin

    def init_state(self) -> Any:
        return self.shaper.init_state()

    def update(self, state: Any, batch: AssembledBatch) -> Any:
        # In the order of their ids: sums of floats depend on it, and a repeated step must give the same.
        found = [batch.scores[i][self.reward].values for i in sorted(batch.scores) if self.reward in batch.scores[i]]
        return self.shaper.update(state, np.concatenate([np.empty(0), *found]))

    def metrics(self, state: Any) -> dict[str, float]:
        return {f"reward/{self.reward}_{name}": value for name, value in self.shaper.metrics(state).items()}


def state_name(reward: str) -> str:
    """Return the name under which a checkpoint has the state of a reward's shaper."""
    return f"rewards.{reward}.shape"


def _evidence(name: str, group: Group, scores: Scores | None) -> tuple[np.ndarray, int]:
    """[G] values, NaN where unknown, and how many failed. A reward that has not answered is unknown, not failed."""
    if scores is None:
        return np.full(len(group), np.nan), 0
    assert len(scores.values) == len(group), f"{len(scores.values)} scores of '{name}' for {len(group)} rollouts"
    return scores.values, int((scores.state == FAILED).sum())


def _known_tokens(name: str, group: Group, tokens: Sequence[np.ndarray], missing: float | None) -> list[np.ndarray]:
    """Per rollout [T]; an unknown token takes the value `missing`, if there is one."""
    lengths, asked = [len(t) for t in tokens], [len(r.tokens) for r in group.rollouts]
    assert lengths == asked, f"'{name}' scored {lengths} tokens of rollouts that have {asked}"
    return [t if missing is None else np.where(np.isnan(t), missing, t) for t in tokens]


def _checked(name: str, shaper: Shaper, values: np.ndarray, result: np.ndarray) -> np.ndarray:
    if np.shape(result) != values.shape or (np.isfinite(result) & np.isnan(values)).any():
        raise ConfigError(
            f"the shaper of reward '{name}' ({type(shaper).__name__}) made {np.round(result, 3).tolist()!s:.200} of "
            f"{np.round(values, 3).tolist()!s:.200}: a shaper keeps the shape, and unknown scores unknown."
        )
    return np.where(np.isfinite(result), result, np.nan)


def _metrics(name: str, values: np.ndarray, num_failed: int) -> dict[str, float]:
    return {
        f"reward/{name}_mean": _mean(values),
        f"reward/{name}_known_frac": float(np.isfinite(values).mean()),
        f"reward/{name}_failed_frac": num_failed / len(values),
    }


def _mean(values: np.ndarray) -> float:
    """Return the mean of the known values, NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
