"""Episodes whose context was rewritten between turns: a chain of rollouts is credited, and left out, as one. Pure.

An environment that opens a new context (`Observation.new_context`) leaves a rollout for each context. Advantages are
estimated for the chain as if it were one rollout, tokens and turns one after the other, and then cut apart again: a
reward at a token counts for all turns before it, in whichever rollout they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from cluster.types import Group, GroupReward, Rollout, ScoredGroup

Places = list[list[int]]
"""Places of the rollouts of each episode in the group, in their order."""


def episodes_of(group: Group) -> Places:
    """Return the places of each chain's rollouts; a rollout of no chain stands alone."""
    members: dict[object, list[int]] = {}
    for i, r in enumerate(group.rollouts):
        members.setdefault((r.variant, r.policy, r.agent, r.episode) if r.chained else i, []).append(i)
    return list(members.values())


def joined(scored: ScoredGroup) -> tuple[ScoredGroup, Places]:
    """Return a group with one rollout for each chain, and what that rollout was made of.

    Its reward is the mean of what its rollouts got as a whole plus the sum of what came at their tokens. One unknown
    reward makes the chain's unknown.
    """
    group, places = scored.group, episodes_of(scored.group)
    if len(places) == len(group):
        return scored, places
    whole = replace(group, rollouts=tuple(one_rollout([group.rollouts[i] for i in at]) for at in places))
    reward, selected = (None if r is None else _reward(r, places) for r in (scored.reward, scored.selected))
    return replace(scored, group=whole, reward=reward, selected=selected), places


def parted(
    values: Sequence[Float[np.ndarray, " _"]], group: Group, places: Places
) -> tuple[Float[np.ndarray, " _"], ...]:
    """Return advantages of the rollouts of `group` from those of its chains: [1] as it is, [T] cut at the borders."""
    result: list[np.ndarray] = [np.empty(0)] * len(group)
    for at, value in zip(places, values, strict=True):
        lengths = [len(group.rollouts[i].tokens) for i in at]
        parts = [value] * len(at) if len(value) == 1 else np.split(value, np.cumsum(lengths)[:-1])
        for i, part in zip(at, parts, strict=True):
            result[i] = part
    return tuple(result)


def unbroken(group: Group, reward: GroupReward) -> GroupReward:
    """Return the reward of a group in which a chain is left out as a whole, or not at all."""
    rewards = reward.rewards.copy()
    for at in episodes_of(group):
        if np.isnan(rewards[at]).any():
            rewards[at] = np.nan
    if np.array_equal(rewards, reward.rewards, equal_nan=True):
        return reward
    kept = reward.pairs and tuple(p for p in reward.pairs if np.isfinite(rewards[[p.chosen, p.rejected]]).all())
    return replace(reward, rewards=rewards, pairs=kept)


def one_rollout(rollouts: Sequence[Rollout]) -> Rollout:
    """Return a chain as one rollout, the tokens of its contexts one after the other."""
    if len(rollouts) == 1:
        return replace(rollouts[0], chained=False, episode=None) if rollouts[0].chained else rollouts[0]
    turns, spans, events, start, spoken = [], [], [], 0, 0
    for r in rollouts:
        turns += [replace(t, start=t.start + start, end=t.end + start) for t in r.turns]
        spans += [replace(s, start=s.start + start, end=s.end + start) for s in r.spans]
        events += [replace(e, turn=e.turn + spoken) for e in r.events]
        start += len(r.tokens)
        spoken += sum(t.role == "assistant" for t in r.turns)
    return replace(
        rollouts[0],
        tokens=np.concatenate([r.tokens for r in rollouts]),
        loss_mask=np.concatenate([r.loss_mask for r in rollouts]),
        logprobs=np.concatenate([r.logprobs for r in rollouts]),
        text="\n".join(r.text for r in rollouts),
        turns=tuple(turns),
        spans=tuple(spans),
        events=tuple(events),
        finish=rollouts[-1].finish,
        num_cut_observations=sum(r.num_cut_observations for r in rollouts),
        episode=None,
        chained=False,
    )


def _reward(reward: GroupReward, places: Places) -> GroupReward:
    def together(values: tuple[np.ndarray, ...] | None) -> tuple[np.ndarray, ...] | None:
        return None if values is None else tuple(np.concatenate([values[i] for i in at]) for at in places)

    came = np.zeros(len(reward.rewards)) if reward.tokens is None else np.array([u.sum() for u in reward.tokens])
    rest = reward.rewards - came
    return GroupReward(
        np.array([rest[at].mean() + came[at].sum() for at in places]),
        drop=reward.drop,
        metrics=reward.metrics,
        token_weights=together(reward.token_weights),
        tokens=together(reward.tokens),
        parts={
            name: np.array([values[at].sum() if name in reward.at_tokens else values[at].mean() for at in places])
            for name, values in reward.parts.items()
        },
        at_tokens=reward.at_tokens,
    )
