"""Advantages from rewards of single turns beside the episode's: OPRL's two levels, ExploRS's shaping that is learnt."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cluster.plugins import StatefulPlugin
from cluster.types import AssembledBatch, GroupReward, Rollout, ScoredGroup
from learner.advantages.chains import joined
from learner.advantages.estimators import (
    GroupAdvantage,
    LeaveOneOut,
    TokenAdvantage,
    TokenReturns,
    centre,
    reward_of,
    spread,
    standardize,
)


class EpisodeAndStep(TokenAdvantage):
    """A = A_episode + α A_step for every token of a turn (OPRL, arXiv:2509.19199).

    A_episode compares the rewards of whole rollouts (`GroupReward.rewards` less what came at tokens), A_step the
    rewards of single turns, what came at a turn's tokens, over all turns of the group: (r − mean) / std. The released
    code takes the baseline from first turns alone, which is not followed. Without rewards at tokens it is A_episode.
    """

    alpha: float = 1.0
    """α: weight of the advantages of turns beside the episode's."""
    episode: Literal["group", "leave_one_out"] = "group"
    """How whole rollouts are compared: as the advantage of that name does."""
    eps: float = 1e-6
    """Added to a standard deviation before the division."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[Float[np.ndarray, " _"]]]:
        return [self._of_group(scored, reward_of(scored)) for scored in groups]

    def _of_group(self, scored: ScoredGroup, reward: GroupReward) -> list[Float[np.ndarray, " _"]]:
        came = np.zeros(len(reward.rewards)) if reward.tokens is None else np.array([u.sum() for u in reward.tokens])
        rest = replace(scored, reward=GroupReward(reward.rewards - came), selected=None)
        compared = GroupAdvantage(eps=self.eps) if self.episode == "group" else LeaveOneOut()
        (whole,) = compared.advantages([rest])
        if reward.tokens is None:
            return [np.array([a]) for a in whole]
        steps = [turn_sums(r, u) for r, u in zip(scored.group.rollouts, reward.tokens, strict=True)]
        counted = [s if np.isfinite(w) else np.full(len(s), np.nan) for s, w in zip(steps, reward.rewards, strict=True)]
        flat = standardize(centre(np.concatenate([np.empty(0), *counted])), self.eps)
        parts = np.split(flat, np.cumsum([len(s) for s in steps])[:-1])
        return [
            over_turns(r, a + self.alpha * part) for r, a, part in zip(scored.group.rollouts, whole, parts, strict=True)
        ]


def turn_sums(rollout: Rollout, tokens: Float[np.ndarray, " T"]) -> Float[np.ndarray, " K"]:
    """Return what came at the tokens of each of the policy's turns."""
    return np.array([tokens[t.start : t.end].sum() for t in rollout.turns if t.role == "assistant"], np.float64)


def over_turns(rollout: Rollout, values: Float[np.ndarray, " K"]) -> Float[np.ndarray, " T"]:
    """Return each turn's value at all its tokens; 0 outside of the policy's turns."""
    result = np.zeros(len(rollout.tokens))
    turns = [t for t in rollout.turns if t.role == "assistant"]
    for turn, value in zip(turns, values, strict=True):
        result[turn.start : turn.end] = value
    return result


class ExploRS(TokenReturns, StatefulPlugin):
    """Returns of r + w (b + φ) against the group's: a count bonus with a cap, and a shaping reward that is learnt.

        b = λ / √((λ / B)² + N(s′))              N(s′) how often s′ was seen in earlier steps
        φ(s, ·) += η π(a|s) (G − V(s)) (1_a − π(·|s)),     V(s) += ν (G − V(s))

    Exploration-guided reward shaping, the agent-driven part of a thesis on reward design (arXiv:2503.21949; formulas by
    that chapter's released code); the teacher-driven part is not here. s is the observation before a turn, a the turn's
    text, s′ the observation behind it; G is the episode's reward. π(a|s) is the probability of the turn's tokens when
    they were sampled; another action has the one it had when it was last taken. A table stands in for the critic V. φ
    is updated after every step, where the released code does so every five episodes. For small worlds: tables hold
    `max_states`, the oldest leave.
    """

    weight: NonNegativeFloat = 1.0
    """w: weight of bonus and shaping beside the rewards."""
    bonus: PositiveFloat = 1.0
    """λ: scale of the count bonus."""
    max_bonus: PositiveFloat = 1.0
    """B: the bonus of what was never seen."""
    rate: NonNegativeFloat = 0.01
    """η: rate at which the shaping is learnt."""
    value_rate: float = Field(default=0.01, gt=0, le=1)
    """ν: rate at which the values of observations are learnt."""
    max_states: PositiveInt = 20_000
    """Observations that the tables hold."""

    @property
    def uses_equal_rewards(self) -> bool:
        return True

    def init_state(self) -> dict[str, Any]:
        return {"counts": {}, "values": {}, "shaping": {}, "chosen": {}}

    def advantages(self, groups: Sequence[ScoredGroup], state: dict[str, Any]) -> list[list[Float[np.ndarray, " _"]]]:
        return [self._shaped(scored, state) for scored in groups]

    def _shaped(self, scored: ScoredGroup, state: dict[str, Any]) -> list[Float[np.ndarray, " _"]]:
        reward, rollouts = reward_of(scored), scored.group.rollouts
        tokens = [
            np.zeros(len(r.tokens)) if reward.tokens is None else reward.tokens[i].copy()
            for i, r in enumerate(rollouts)
        ]
        rewards = reward.rewards.copy()
        for i, rollout in enumerate(rollouts):
            for turn, here, action, there, _ in turns_of(rollout):
                extra = count_bonus(state["counts"].get(there, 0), self.bonus, self.max_bonus)
                extra += state["shaping"].get(here, {}).get(action, 0.0)
                tokens[i][turn.end - 1] += self.weight * extra
                rewards[i] += self.weight * extra
        whole = self.standard(rewards)
        unit = spread(rewards, self.eps) if self.normalize_std else 1.0
        return [a - (np.cumsum(u) - u) / unit for a, u in zip(whole, tokens, strict=True)]

    def update(self, state: dict[str, Any], batch: AssembledBatch) -> dict[str, Any]:
        counts, values, chosen = ({**state[name]} for name in ("counts", "values", "chosen"))
        shaping = {**state["shaping"]}
        for group, rewards in zip(batch.groups, batch.record.rewards, strict=True):
            whole, _ = joined(ScoredGroup(group, {}, reward=GroupReward(rewards)))
            for rollout, gained in zip(whole.group.rollouts, whole.rewards, strict=True):
                if not math.isfinite(gained):
                    continue
                for _, here, action, there, probability in turns_of(rollout):
                    counts[there] = counts.pop(there, 0) + 1
                    value = values.pop(here, 0.0)
                    known = {**chosen.pop(here, {}), action: probability}
                    actions = list(known)
                    change = shaping_update(
                        np.array([known[a] for a in actions]), actions.index(action), gained - value, self.rate
                    )
                    before = shaping.pop(here, {})
                    shaping[here] = {a: before.get(a, 0.0) + float(c) for a, c in zip(actions, change, strict=True)}
                    chosen[here], values[here] = known, value + self.value_rate * (float(gained) - value)
        tables = {"counts": counts, "values": values, "shaping": shaping, "chosen": chosen}
        return {name: dict(list(table.items())[-self.max_states :]) for name, table in tables.items()}

    def metrics(self, state: dict[str, Any]) -> dict[str, float]:
        return {"advantage/num_states": float(len(state["counts"]))}


def count_bonus(count: float, weight: float = 1.0, most: float = 1.0) -> float:
    """λ / √((λ / B)² + N)."""
    return weight / math.sqrt((weight / most) ** 2 + count)


def shaping_update(
    probabilities: Float[np.ndarray, " A"], chosen: int, advantage: float, rate: float = 0.01
) -> Float[np.ndarray, " A"]:
    """η π(a|s) A (1_a − π(·|s)): what is added to φ(s, ·) after action a with advantage A."""
    return rate * probabilities[chosen] * advantage * (np.arange(len(probabilities)) == chosen) - (
        rate * probabilities[chosen] * advantage * probabilities
    )


def turns_of(rollout: Rollout) -> list[tuple[Any, str, str, str, float]]:
    """Return each turn of the policy with the keys of what was seen before it, of what it says and of what was seen
    behind it, and the probability that it was sampled with."""
    found, seen = [], ""
    for turn in rollout.turns:
        if turn.role != "assistant":
            seen = turn.text
            if found:
                found[-1] = (*found[-1][:3], _key(seen), found[-1][4])
        elif turn.end > turn.start:
            chance = math.exp(float(rollout.logprobs[turn.start : turn.end].sum()))
            found.append((turn, _key(seen), _key(turn.text), _key(f"end {rollout.finish}"), chance))
    return found


def _key(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
