"""Scores of several signals → the one reward per rollout that is trained on. Pure: decided when a batch is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cluster.config import RewardSection
from cluster.errors import ConfigError
from cluster.plugins import build
from cluster.types import FAILED, Group, Mixed, Scores
from rewards.shadow import agreement, sign_flip_frac
from rewards.shaping import SHAPERS, Shaper


class Mixer:
    """Weighted sum of the signals, and what their unknown scores mean.

    Per signal a known score is shaped; an unknown one takes its `missing` value, or leaves its rollout out, or drops
    the group. A signal of weight 0 is a shadow: it is recorded and compared with what is trained on (`rewards.shadow`),
    and decides nothing. Raises ConfigError for an unknown shaper.
    """

    def __init__(self, rewards: Sequence[RewardSection], names: Sequence[str], min_valid: int) -> None:
        self._rewards = dict(zip(names, rewards, strict=True))
        self._min_valid = min_valid
        self._shapers = {
            name: build(SHAPERS, section.shape.use, section.shape.options, f"rewards[{i}].shape")
            for i, (name, section) in enumerate(self._rewards.items())
            if section.shape is not None
        }

    def __call__(self, group: Group, scores: Mapping[str, Scores]) -> Mixed:
        total = np.zeros(len(group))
        drop, shadows = None, {}
        metrics = {"reward/failed_scores": 0.0}
        for name, section in self._rewards.items():
            values, num_failed = _evidence(name, group, scores.get(name))
            metrics |= _metrics(name, values, num_failed)
            metrics["reward/failed_scores"] += num_failed
            if name in self._shapers:
                values = _shaped(name, self._shapers[name], values, group)
                metrics[f"reward/{name}_shaped_mean"] = _mean(values)
            if section.weight == 0:
                shadows[name] = values
                continue
            unknown = np.isnan(values)
            if section.missing is not None:
                values = np.where(unknown, section.missing, values)
            elif unknown.any() and section.on_missing != "drop_rollout":
                drop = drop or f"{'waited' if section.on_missing == 'wait' else 'missing'}:{name}"
            total += section.weight * values
        if drop is None and np.isfinite(total).sum() < min(self._min_valid, len(group)):
            drop = "too_few_scores"
        for name, values in shadows.items():
            metrics[f"reward/{name}_agreement"] = agreement(values, total)
            metrics[f"reward/{name}_sign_flip_frac"] = sign_flip_frac(values, total)
        return Mixed(total, drop, metrics)


def _evidence(name: str, group: Group, scores: Scores | None) -> tuple[np.ndarray, int]:
    """[G] values, NaN where unknown, and how many failed. A signal that has not answered is unknown, not failed."""
    if scores is None:
        return np.full(len(group), np.nan), 0
    assert len(scores.values) == len(group), f"{len(scores.values)} scores of '{name}' for {len(group)} rollouts"
    return scores.values, int((scores.state == FAILED).sum())


def _shaped(name: str, shaper: Shaper, values: np.ndarray, group: Group) -> np.ndarray:
    result = shaper.shape(values.copy(), group)
    if np.shape(result) != values.shape or (np.isfinite(result) & np.isnan(values)).any():
        raise ConfigError(
            f"the shaper of reward '{name}' ({type(shaper).__name__}) made {np.round(result, 3).tolist()!s:.200} of "
            f"{np.round(values, 3).tolist()!s:.200}: it must keep the shape, and unknown scores unknown. Mend it."
        )
    return np.where(np.isfinite(result), result, np.nan)


def _metrics(name: str, values: np.ndarray, num_failed: int) -> dict[str, float]:
    return {
        f"reward/{name}_mean": _mean(values),
        f"reward/{name}_known_frac": float(np.isfinite(values).mean()),
        f"reward/{name}_failed_frac": num_failed / len(values),
    }


def _mean(values: np.ndarray) -> float:
    """Of the known ones."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
