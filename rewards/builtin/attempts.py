"""Each attempt of a rollout checked by itself (for SCoRe, arXiv:2409.12917)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PrivateAttr, model_validator

from cluster.config import RewardSection
from cluster.types import Group, Provenance, Rollout, Scores, Task, Turn
from rewards.base import Reward, Services
from rewards.registry import build_reward

ATTEMPTS = 2
Value = Literal["last", "first", "gained", "lost"]


class Attempts(Reward):
    """What another reward says of each of two turns as if it were the whole answer, at the last token of the turn.

    The score itself is the last attempt's. `value = "first"` gives the first's, `gained` 1 where only the last is right
    and `lost` where only the first was: shadows to watch, with weight 0. A rollout that ended before its last attempt,
    or one of whose attempts cannot be checked, is unknown.
    """

    services: ClassVar = ("verify", "judge")
    verifier: str = "exact"
    """The reward that is asked; anything that `rewards.use` takes."""
    verifier_options: dict[str, Any] = {}
    """Options of the reward that `verifier` names."""
    value: Value = "last"
    """Score of the rollout: the last attempt's, the first's, or 1 where the second attempt gained or lost the
    answer."""
    _verifier: Reward = PrivateAttr()

    @model_validator(mode="after")
    def _built(self) -> Attempts:
        section = RewardSection(use=self.verifier, options=self.verifier_options)
        self._verifier = build_reward(section, f"the verifier '{self.verifier}' of 'attempts'")
        return self

    def evaluates(self) -> bool:
        return self._verifier.evaluates()

    async def prepare(self, services: Services) -> None:
        await self._verifier.prepare(services)

    def version(self) -> str:
        return self._verifier.version()

    def declines(self, task: Task) -> str:
        return self._verifier.declines(task)

    async def score(self, group: Group, services: Services) -> Scores:
        if self.declines(group.task):
            return Scores.abstained(len(group), self.declines(group.task))
        turns = [attempts_of(r) for r in group.rollouts]
        whole = [i for i, found in enumerate(turns) if len(found) == ATTEMPTS]
        checked = np.full((len(group), ATTEMPTS), np.nan)
        for k in range(ATTEMPTS):
            if whole:
                alone = tuple(_alone(group.rollouts[i], turns[i][k]) for i in whole)
                scores = await self._verifier.score(replace(group, rollouts=alone), services)
                checked[whole, k] = scores.values
        known = np.isfinite(checked).all(1)
        scores = Scores.of(
            np.where(known, _valued(checked, self.value), np.nan),
            Provenance(note="an attempt is missing or was not checked"),
            version=self.version(),
        )
        tokens = [_at_ends(r, t, c) for r, t, c in zip(group.rollouts, turns, checked, strict=True)]
        return replace(scores, tokens=tuple(tokens)) if self.value == "last" else scores


def attempts_of(rollout: Rollout) -> list[Turn]:
    """The policy's turns."""
    return [turn for turn in rollout.turns if turn.role == "assistant"]


def _alone(rollout: Rollout, turn: Turn) -> Rollout:
    return replace(rollout, text=turn.text, opened=turn.opened, answer=None, turns=(turn,))


def _valued(checked: np.ndarray, value: Value) -> np.ndarray:
    first, last = checked.T
    found = {"last": last, "first": first, "gained": (first < 1) & (last >= 1), "lost": (first >= 1) & (last < 1)}
    return found[value].astype(np.float64)


def _at_ends(rollout: Rollout, turns: list[Turn], checked: np.ndarray) -> np.ndarray:
    """[T] what each attempt got, at its last token; NaN everywhere if one of them is unknown."""
    if len(turns) != ATTEMPTS or not np.isfinite(checked).all():
        return np.full(len(rollout.tokens), np.nan)
    values = np.zeros(len(rollout.tokens))
    for turn, value in zip(turns, checked, strict=True):
        values[turn.end - 1] = value
    return values
