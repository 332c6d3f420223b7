"""Credit per turn: rewards that come at a token are worth something to the turns before them, and to no later one.

A rollout's turn k begins with the policy's k-th turn and ends where the next one begins: what the environment answers
belongs to the turn that caused it. With rewards u at tokens and a reward s for the rollout as a whole, turn k returns

    R_k = s + Σ_{j≥k} γ^(j−k) u_j,     u_j the sum of u over turn j,

the reward-to-go of the policy gradient (Sutton & Barto, 2nd edition, section 13.3). The estimator that compares whole
rollouts of a group (`learner.advantages`) then compares, for each k, the R_k of those rollouts that have a turn k. All
tokens of a turn share its advantage. With u = 0 or a single turn this is what the estimator makes of s + Σ u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cluster.types import Group, GroupReward, Rollout
from learner.advantages.estimators import Advantage, checked


def turn_starts(rollout: Rollout) -> Int[np.ndarray, " K"]:
    """Where the policy's turns begin; a rollout without any is one turn."""
    return np.array([turn.start for turn in rollout.turns if turn.role == "assistant"] or [0])


def returns_to_go(
    rewards: Float[np.ndarray, " T"], starts: Int[np.ndarray, " K"], discount: float
) -> Float[np.ndarray, " K"]:
    """Σ_{j≥k} γ^(j−k) u_j of every turn k; what stands before the first turn counts for the first."""
    per_turn = [rewards[begin:end].sum() for begin, end in pairwise([0, *starts[1:], len(rewards)])]
    result = np.empty(len(starts))
    total = 0.0
    for k in range(len(starts) - 1, -1, -1):
        total = result[k] = per_turn[k] + discount * total
    return result


def returns_of(
    group: Group, mixed: GroupReward, rewards: Float[np.ndarray, " G"], discount: float
) -> Float[np.ndarray, "G K"]:
    """What each turn of each rollout returns; [G, 1] where no signal has token values. NaN: no such turn, or left out.

    `rewards` are those of `mixed`, NaN also where the learner leaves a rollout out.
    """
    if mixed.tokens is None:
        return rewards[:, None]
    starts = [turn_starts(rollout) for rollout in group.rollouts]
    returns = np.full((len(group), max(map(len, starts))), np.nan)
    for i, (values, begun) in enumerate(zip(mixed.tokens, starts, strict=True)):
        whole = rewards[i] - values.sum()
        returns[i, : len(begun)] = whole + returns_to_go(values, begun, discount)
    return returns


def all_equal(returns: Float[np.ndarray, "G K"]) -> bool:
    """Whether no turn returns more in one rollout than in another: there is no gradient."""
    known = (column[np.isfinite(column)] for column in returns.T)
    return all(len(column) == 0 or np.ptp(column) == 0 for column in known)


def comparable(group: Group) -> list[Int[np.ndarray, " _"]]:
    """Places of the rollouts of each view, in the order in which views first appear: another prompt is no baseline."""
    views = np.array([rollout.view for rollout in group.rollouts])
    return [np.flatnonzero(views == view) for view in dict.fromkeys(views)]


def tells_nothing(group: Group, returns: Float[np.ndarray, "G K"]) -> bool:
    """Whether there is no gradient in any view of the task."""
    return all(all_equal(returns[places]) for places in comparable(group))


def advantages_of(
    advantage: Advantage,
    use: str,
    groups: Sequence[Group],
    returns_G: Sequence[Float[np.ndarray, "G K"]],
    mixed_G: Sequence[GroupReward] = (),
    memory: Any = None,
) -> tuple[tuple[Float[np.ndarray, " _"], ...], ...]:
    """Per group and rollout: [1] for all its tokens, or [T] with each turn's own, 0 outside of the policy's turns.

    Rollouts are compared with those of the same view of the task. `use` is what the recipe calls the estimator,
    `memory` what it remembers; one that is `token_level` looks at `mixed_G` instead of the returns. Raises PluginError
    for what it must not return.
    """
    parts = [(g, places) for g, group in enumerate(groups) for places in comparable(group)]
    alone = [part_of(groups[g], places) for g, places in parts]
    if advantage.token_level:
        mixed = [part_of_mixed(mixed_G[g], places) for g, places in parts]
        values = checked(advantage, use, alone, [m.rewards for m in mixed], mixed)
    else:
        values = _of_parts(advantage, use, alone, [returns_G[g][places] for g, places in parts], memory)
    found: list[dict[int, Any]] = [{} for _ in groups]
    for (g, places), of_part in zip(parts, values, strict=True):
        found[g] |= dict(zip(places.tolist(), of_part, strict=True))
    return tuple(tuple(credit[i] for i in range(len(credit))) for credit in found)


def part_of(group: Group, places: Int[np.ndarray, " _"]) -> Group:
    return replace(group, rollouts=tuple(group.rollouts[i] for i in places))


def part_of_mixed(mixed: GroupReward, places: Int[np.ndarray, " _"]) -> GroupReward:
    def of(values: tuple[np.ndarray, ...] | None) -> tuple[np.ndarray, ...] | None:
        return None if values is None else tuple(values[i] for i in places)

    return GroupReward(mixed.rewards[places], tokens=of(mixed.tokens), token_weights=of(mixed.token_weights))


def _of_parts(
    advantage: Advantage, use: str, groups: Sequence[Group], returns_G: Sequence[Float[np.ndarray, "G K"]], memory: Any
) -> tuple[tuple[Float[np.ndarray, " _"], ...], ...]:
    """As `advantages_of`, of groups of one view."""
    found = [[[] for _ in group.rollouts] for group in groups]
    for k in range(max((returns.shape[1] for returns in returns_G), default=0)):
        having = [i for i, returns in enumerate(returns_G) if k < returns.shape[1]]
        columns = [returns_G[i][:, k] for i in having]
        values = checked(advantage, use, [groups[i] for i in having], columns, memory=memory)
        for i, of_group in zip(having, values, strict=True):
            for turns, value in zip(found[i], of_group, strict=True):
                turns.append(value)
    return tuple(tuple(map(_spread, group.rollouts, turns)) for group, turns in zip(groups, found, strict=True))


def _spread(rollout: Rollout, turns: Sequence[Float[np.ndarray, " _"]]) -> Float[np.ndarray, " _"]:
    """`turns`: of each turn [1], or [T] of which its own tokens count."""
    ours = [turn for turn in rollout.turns if turn.role == "assistant"]
    if len(turns) == 1 or not ours or np.isnan(turns[0]).all():
        return turns[0]
    spread = np.zeros(len(rollout.tokens), np.float32)
    for turn, value in zip(ours, turns, strict=False):
        spread[turn.start : turn.end] = value if len(value) == 1 else value[turn.start : turn.end]
    return spread


class StepAdvantages:
    """A recipe's estimator, applied to the groups of a step."""

    policies: Sequence[str] = ()
    """Where several policies have rollouts in one group: all of them, each compared with itself alone."""

    def __init__(self, estimator: Advantage, use: str, state: Callable[[], Any] = lambda: None) -> None:
        """`use` is what the recipe calls the estimator; `state` returns what it remembers of earlier steps."""
        self.estimator = estimator
        self._use, self._state = use, state

    def of(
        self, groups: Sequence[Group], returns_G: Sequence[Float[np.ndarray, "G K"]], rewards_G: Sequence[GroupReward]
    ) -> tuple[tuple[Float[np.ndarray, " _"], ...], ...]:
        """Return advantages per group and rollout: [1] for all its tokens, or one for each of its T tokens."""
        return advantages_of(self.estimator, self._use, groups, returns_G, rewards_G, self._state())

    def all_equal(self, group: Group, returns: Float[np.ndarray, "G K"]) -> bool:
        """Whether no rollout's turn returns more than another's it is compared with."""
        return tells_nothing(group, returns)

    def no_gradient(self, group: Group, returns: Float[np.ndarray, "G K"], reward: GroupReward) -> bool:
        """Whether all advantages of a group are 0."""
        if not self.all_equal(group, returns):
            return False
        if not self.estimator.token_level:
            return True
        (found,) = checked(self.estimator, self._use, [group], [reward.rewards], [reward])
        return not any(np.nan_to_num(values).any() for values in found)
