"""Advantages: what a reward is worth against the others of its group or of the step. Plug-ins, pure, numpy.

Rewards of truncated rollouts count like any other; under `learner.drop_truncated` they are NaN here.

Credit per turn: rewards that come at a token are worth something to the turns before them, and to no later one.

A rollout's turn k begins with the policy's k-th turn and ends where the next one begins: what the environment answers
belongs to the turn that caused it. With rewards u at tokens and a reward s for the rollout as a whole, turn k returns

    R_k = s + Σ_{j≥k} γ^(j−k) u_j,     u_j the sum of u over turn j,

the reward-to-go of the policy gradient (Sutton & Barto, 2nd edition, section 13.3). An estimator of whole
rollouts then compares, for each k, the R_k of those rollouts that have a turn k. All
tokens of a turn share its advantage. With u = 0 or a single turn this is what the estimator makes of s + Σ u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from cluster.errors import ConfigError, PluginError, one_line
from cluster.plugins import Plugin, StatefulPlugin
from cluster.types import AssembledBatch, Group, GroupReward, Rollout, ScoredGroup
from learner.advantages.chains import joined, parted

EQUAL = 1e-9
"""Numbers that differ by less, relative to the rewards that they are differences of, are equal."""


class Advantage(Plugin):
    """Base of advantage estimators: one method, called with all groups of a step.

    A NaN reward is a rollout that is left out: it moves no baseline, and its advantage is NaN. An estimator that needs
    to know what stood in earlier steps is a `cluster.plugins.StatefulPlugin` too, and its method has the parameter
    `state`. One that reads what is known of single tokens derives from `TokenAdvantage`.
    """

    @property
    def uses_equal_rewards(self) -> bool:
        """Whether a group whose rewards are all equal has advantages other than 0."""
        return False

    def advantages(self, groups: Sequence[ScoredGroup]) -> Sequence[Any]:
        """Return the advantages of each group in order: [G], or per rollout [1] or one for each of its T tokens.

        `rewards` of a group [G] is what a turn of each rollout returns, or the rollout where its reward is one number.
        Groups may differ in size; all rollouts of one are of the same variant of the task.
        """
        raise NotImplementedError


class TokenAdvantage(Advantage):
    """Base of estimators that say each token's advantage themselves, from the whole rollouts' rewards and their parts.

    Their method is called once for a step, with rewards of whole rollouts, and not for each turn.
    """


class GroupAdvantage(Advantage):
    """Reward minus the group's mean, in units of its standard deviation (GRPO, arXiv:2402.03300).

    Without `normalize_std` it is the estimator of Dr. GRPO (arXiv:2503.20783), which does not favour groups
    that are nearly all right or nearly all wrong; its other half is `learner.loss.aggregate = "constant"`.
    """

    normalize_std: bool = True
    """Divide by the standard deviation of the group's rewards."""
    eps: float = 1e-6
    """Added to the standard deviation before the division."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> Sequence[Any]:
        return [self.standard(scored.rewards) for scored in groups]

    def standard(self, rewards: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
        """Return the advantages of one group by its rewards alone."""
        centred = centre(rewards)
        return standardize(centred, self.eps) if self.normalize_std else centred


class DrGrpo(GroupAdvantage):
    """Reward minus the group's mean (Dr. GRPO, arXiv:2503.20783); its loss is `learner.loss.use = "dr_grpo"`."""

    normalize_std: bool = False


class LeaveOneOut(Advantage):
    """Reward minus the mean of the *other* rollouts' (RLOO, arXiv:2402.14740): unbiased, no division by a spread."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[Float[np.ndarray, " G"]]:
        result = []
        for scored in groups:
            count = int(np.isfinite(scored.rewards).sum())
            result.append(centre(scored.rewards) * (count / (count - 1) if count > 1 else 1.0))
        return result


class ReinforcePlusPlus(Advantage):
    """Reward in units of the step's standard deviation, from the step's mean (REINFORCE++, arXiv:2501.03262).

    With `group_baseline` the group's mean is taken off first: the paper's variant for several rollouts a task. Hard and
    easy groups keep the size of their advantages, where `group` makes them equal. Mean and deviation are over rollouts.
    Without `group_baseline` a group of equal rewards has advantages too, so such groups stay. The paper's KL term is
    `learner.loss.kl_coef` here, in the loss; in the reward it is PPO's alone, see `learner.value`.
    """

    group_baseline: bool = False
    """Take the group's mean off before the step's statistics."""
    eps: float = 1e-6
    """Added to the standard deviation before the division."""

    @property
    def uses_equal_rewards(self) -> bool:
        return not self.group_baseline

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[Float[np.ndarray, " G"]]:
        if not groups:
            return []
        rewards = [centre(scored.rewards) if self.group_baseline else scored.rewards for scored in groups]
        standard = standardize(centre(np.concatenate(rewards)), self.eps)
        return np.split(standard, np.cumsum([len(r) for r in rewards])[:-1])


class RoleBaseline(Advantage, StatefulPlugin):
    """Role-conditioned advantage estimation: A = R − b of its game and agent, and then b ← decay · b + (1 − decay) · R.

    b is used before it moves, starts at 0 and is one per (task's source, rollout's agent): the agent that opens wins
    more often than the other, and that is no merit of its moves. Groups play no part: let a group be a single game, as
    many games of one deal would pull b to its cards. Groups of equal rewards are kept: a draw moves baselines too. The
    order is that of groups and rollouts in the step. The released code keeps baselines per worker; here there is one
    set, on rank 0, in the checkpoint. Advantages are [1] a rollout, or [T] where `gamma` < 1: turn k of K gets
    A · γ^(K − 1 − k).
    """

    decay: float = Field(default=0.95, ge=0, lt=1)
    """Weight of the old baseline in the moving average."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per turn from the last one back."""

    @property
    def uses_equal_rewards(self) -> bool:
        return True

    def init_state(self) -> Baselines:
        return {}

    def advantages(self, groups: Sequence[ScoredGroup], state: Baselines) -> Any:
        members = [scored.group for scored in groups]
        advantages_G, _ = role_advantages(keys_of(members), [s.rewards for s in groups], state, self.decay)
        if self.gamma == 1:
            return advantages_G
        return [
            [discounted(r, a, self.gamma) for r, a in zip(g.rollouts, advantages, strict=True)]
            for g, advantages in zip(members, advantages_G, strict=True)
        ]

    def update(self, state: Baselines, batch: AssembledBatch) -> Baselines:
        return role_advantages(keys_of(batch.groups), batch.record.rewards, state, self.decay)[1]

    def metrics(self, state: Baselines) -> dict[str, float]:
        return {f"advantage/baseline_{key}": value for key, value in state.items()}


class TokenReturns(GroupAdvantage, TokenAdvantage):
    """What is still to come from each token on, minus the group's mean of the whole, in units of its deviation.

        A_{i,t} = (r_i − Σ_{t'<t} u_{i,t'} − mean_j r_j) / std_j r_j,        r_i the whole reward, Σ_t u_{i,t} included

    Undiscounted. u [T] is the part of the reward that came at a token (`GroupReward.tokens`): a process reward at a
    step's last token counts for that step and those before it, and for none after it. Without such parts it is
    `group`. For step rewards such as `clip_delta`, whose paper (arXiv:2410.15115) has PPO's value function for a
    baseline: the group's mean in its place is ours.
    """

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[Float[np.ndarray, " _"]]]:
        return [self._of_group(scored.rewards, reward_of(scored)) for scored in groups]

    def _of_group(self, rewards: Float[np.ndarray, " G"], reward: GroupReward) -> list[Float[np.ndarray, " _"]]:
        whole = self.standard(rewards)
        if reward.tokens is None:
            return [np.array([a]) for a in whole]
        unit = spread(rewards, self.eps) if self.normalize_std else 1.0
        return [a - (np.cumsum(u) - u) / unit for a, u in zip(whole, reward.tokens, strict=True)]


class TokenRewards(GroupAdvantage, TokenAdvantage):
    """Each token's own reward as its advantage, beside the group's advantage of what came for the rollout as a whole.

        A_{i,t} = u_{i,t} + (s_i − mean_j s_j) / std_j s_j,        s_i = r_i − Σ_t u_{i,t}

    u [T] is the part of the reward that came at a token (`GroupReward.tokens`), s the rest. Nothing of u is carried to
    earlier tokens, and it has no baseline: for rewards that are log-ratios, such as `teacher`, whose expectation is a
    divergence at each place (on-policy distillation, arXiv:2306.13649). Without such parts it is `group`. A group of
    equal rewards is kept, since its tokens differ.
    """

    @property
    def uses_equal_rewards(self) -> bool:
        return True

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[Float[np.ndarray, " _"]]]:
        return [self._of_group(scored.rewards, reward_of(scored)) for scored in groups]

    def _of_group(self, rewards: Float[np.ndarray, " G"], reward: GroupReward) -> list[Float[np.ndarray, " _"]]:
        if reward.tokens is None:
            return [np.array([a]) for a in self.standard(rewards)]
        rest = rewards - [u.sum() for u in reward.tokens]
        known = np.isfinite(rest)
        # Equal but for the rounding of the sums, which the division by a deviation would blow up.
        if known.any() and np.ptp(rest[known]) <= EQUAL * max(1.0, float(np.abs(rewards[known]).max())):
            rest = np.where(known, 0.0, np.nan)
        return [a + u for a, u in zip(self.standard(rest), reward.tokens, strict=True)]


class MultiAdvantage(TokenAdvantage):
    """Each reward normalised within the group, then weighted and summed: no reward drowns another by its scale.

        A_i = Σ_k w_k (x_{i,k} − mean_j x_{j,k}) / (std_j x_{j,k} + 10⁻⁸)

    x_k [G] is what reward k contributes (`GroupReward.parts`, its weight included, of which only the sign is left by
    the normalisation), std the population's; a reward that is equal for all contributes 0. SLIM (arXiv:2402.00823)
    normalises and sums the advantages of one critic for each reward, with w = 1; the group's mean in the place of
    critics is ours. Rollouts of unknown reward are left out of every mean.
    """

    weights: dict[str, float] = {}
    """w by name of the reward; 1 for those that are not named."""

    @property
    def named_rewards(self) -> tuple[str, ...]:
        """Rewards that the options name."""
        return tuple(self.weights)

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[Float[np.ndarray, " _"]]]:
        return [self._of_group(scored.rewards, reward_of(scored)) for scored in groups]

    def _of_group(self, rewards: Float[np.ndarray, " G"], reward: GroupReward) -> list[Float[np.ndarray, " _"]]:
        if unknown := sorted(self.weights.keys() - reward.parts.keys()):
            known = ", ".join(reward.parts)
            raise ConfigError(f"learner.advantage.options.weights.{unknown[0]}: the trained rewards are {known}.")
        known = np.isfinite(rewards)
        total = np.where(known, 0.0, np.nan)
        for name, values in reward.parts.items():
            total[known] += self.weights.get(name, 1.0) * normalized(values[known])
        return [np.array([a]) for a in total]


def normalized(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """(x − mean x) / (std x + 10⁻⁸) with the population's deviation; 0 where all are equal."""
    if len(values) == 0 or np.ptp(values) == 0:
        return np.zeros(len(values))
    return (values - values.mean()) / (values.std() + 1e-8)


class ThoughtCredit(GroupAdvantage, TokenAdvantage):
    """The group's advantage of the outcome, less where a right solution erred and nothing where a wrong one did not.

        right: r̂ − α · acc in a thought that it takes back, else r̂
        wrong: 0 in a thought unlike its answer, else r̂

    TP-GRPO (arXiv:2507.23317, by a write-up of it: the closed form of its two propositions). r̂ is the outcome reward
    against its group's; acc the share of right rollouts in the group, so that a policy that cannot yet solve a task is
    not corrected for how it explores; thoughts are runs of equally labelled steps, and being closed the form does not
    depend on how many steps one has. Labels are `GroupReward.token_weights` [T], 1 in such a thought, 0 elsewhere, of
    the reward `thoughts` through the selector `token_weights`; unknown (NaN) counts as 0, the group's advantage alone.

    Of a group that is all right only the taken-back thoughts have a gradient: it is kept for them.
    """

    alpha: float = 1.0
    """α; the paper's is not known to us."""
    correct: float = 1.0
    """Rewards from here on are right."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[Float[np.ndarray, " _"]]]:
        return [self._of_group(scored.rewards, reward_of(scored)) for scored in groups]

    def _of_group(self, rewards: Float[np.ndarray, " G"], reward: GroupReward) -> list[Float[np.ndarray, " _"]]:
        outcome = self.standard(rewards)
        if reward.token_weights is None:
            return [np.array([a]) for a in outcome]
        right, known = rewards >= self.correct, np.isfinite(rewards)
        correction = self.alpha * right[known].mean() if known.any() else 0.0
        flags = [np.nan_to_num(w) for w in reward.token_weights]
        return [
            a - correction * flag if ok else a * (1 - flag) for a, ok, flag in zip(outcome, right, flags, strict=True)
        ]


class Undivided(Advantage):
    """The reward itself, recorded where a critic divides it among the tokens later (`learner.losses.value_loss`)."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[Float[np.ndarray, " G"]]:
        return [scored.rewards for scored in groups]


def checked(
    advantage: Advantage, use: str, groups: Sequence[ScoredGroup], state: Any = None
) -> list[list[Float[np.ndarray, " N"]]]:
    """What the plug-in named `use` says of a step: per group and rollout [1], or one for each of its T tokens.

    Raises PluginError, which ends the run, where it raises, has another shape, or is not a finite number for a rollout
    whose reward is known. An advantage is the recipe's own code and deterministic: it would fail again.
    """
    where = f"learner.advantage.use = '{use}'"
    estimate: Callable[..., Sequence[Any]] = advantage.advantages
    try:
        found = list(estimate(groups, state) if isinstance(advantage, StatefulPlugin) else estimate(groups))
    except BaseException as error:  # whatever the recipe's own code raises
        shown = "; ".join(f"{s.group.id}: {np.array2string(s.rewards, precision=6)}" for s in groups)
        raise PluginError(f"{where} raised {one_line(error)} The rewards by group were {shown:.500}.") from error
    if len(found) != len(groups):
        raise PluginError(
            f"{where} gave the advantages of {len(found)} groups, but the step has {len(groups)}. "
            "`advantages` must return one array for each group, in their order."
        )
    return [_of_group(where, s.group, s.rewards, credit) for s, credit in zip(groups, found, strict=True)]


def _of_group(where: str, group: Group, rewards: Float[np.ndarray, " G"], found: Any) -> list[np.ndarray]:
    where = f"{where}, group {group.id}"
    shape = (len(found),) if isinstance(found, list | tuple) else np.shape(found)
    if not shape or shape[0] != len(group):
        raise PluginError(f"{where}: advantages have shape {shape}, its rewards ({len(group)},). Return [G] or [G][T].")
    result = []
    for i, (rollout, reward, credit) in enumerate(zip(group.rollouts, rewards, found, strict=True)):
        try:
            with np.errstate(over="ignore"):  # is found out below
                values = np.asarray(credit, np.float32).reshape(-1)
        except (TypeError, ValueError) as error:
            raise PluginError(f"{where}, rollout {i}: {credit!r:.80} is no number. Return floats.") from error
        if len(values) not in (1, len(rollout.tokens)):
            raise PluginError(
                f"{where}, rollout {i}: {len(values)} advantages. Return 1, or one for each of its "
                f"{len(rollout.tokens)} tokens, prompt included."
            )
        bad = values[~np.isfinite(values) & (rollout.loss_mask if len(values) > 1 else True)]
        if np.isfinite(reward) and len(bad):
            raise PluginError(
                f"{where}, rollout {i}: the advantage is {bad[0]}, though its reward {reward:g} is known. Return a "
                "finite number: 0 leaves a rollout out, NaN is for rewards that are NaN."
            )
        result.append(values)
    return result


def centre(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Minus the mean of the known ones; NaN stays NaN. Exactly 0 where all are equal, whatever the mean's rounding."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return np.full(values.shape, np.nan)
    if np.ptp(known) == 0:
        return np.where(np.isfinite(values), 0.0, np.nan)
    return values - known.mean()


def standardize(values: Float[np.ndarray, " N"], eps: float) -> Float[np.ndarray, " N"]:
    """Centred values over the sample deviation of the known ones; fewer than two, or all 0, are left as they are."""
    return values / spread(values, eps)


def spread(values: Float[np.ndarray, " N"], eps: float) -> float:
    """Sample deviation of the known ones plus `eps`; 1 of fewer than two, or where all are equal."""
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1) + eps) if len(known) > 1 and np.ptp(known) else 1.0


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


def reward_of(scored: ScoredGroup) -> GroupReward:
    """Return the aggregated scores of a group, as they are trained on."""
    found = scored.selected or scored.reward
    assert found is not None, f"the scores of group {scored.group.id} are not aggregated yet"
    return found


def returns_of(scored: ScoredGroup, discount: float) -> Float[np.ndarray, "G K"]:
    """What each turn of each rollout returns; [G, 1] where no reward has token values. NaN: no such turn, or left
    out."""
    reward, group = reward_of(scored), scored.group
    if reward.tokens is None:
        return reward.rewards[:, None]
    starts = [turn_starts(rollout) for rollout in group.rollouts]
    returns = np.full((len(group), max(map(len, starts))), np.nan)
    for i, (values, begun) in enumerate(zip(reward.tokens, starts, strict=True)):
        whole = reward.rewards[i] - values.sum()
        returns[i, : len(begun)] = whole + returns_to_go(values, begun, discount)
    return returns


def all_equal(returns: Float[np.ndarray, "G K"]) -> bool:
    """Whether no turn returns more in one rollout than in another: there is no gradient."""
    known = (column[np.isfinite(column)] for column in returns.T)
    return all(len(column) == 0 or np.ptp(column) == 0 for column in known)


def comparable(group: Group) -> list[Int[np.ndarray, " _"]]:
    """Return the places of each variant's rollouts, in the order of first appearance: another prompt is no baseline."""
    variants = np.array([rollout.variant for rollout in group.rollouts])
    return [np.flatnonzero(variants == variant) for variant in dict.fromkeys(variants)]


def tells_nothing(group: Group, returns: Float[np.ndarray, "G K"]) -> bool:
    """Whether there is no gradient in any variant of the task."""
    return all(all_equal(returns[places]) for places in comparable(group))


def advantages_of(
    advantage: Advantage, use: str, groups: Sequence[ScoredGroup], discount: float = 1.0, state: Any = None
) -> tuple[tuple[Float[np.ndarray, " _"], ...], ...]:
    """Per group and rollout: [1] for all its tokens, or [T] with each turn's own, 0 outside of the policy's turns.

    Rollouts are compared with those of the same variant of the task. `use` is what the recipe calls the estimator,
    `discount` that of a turn's return, `state` what the estimator remembers. Raises PluginError for what it must not
    return.
    """
    by_token = isinstance(advantage, TokenAdvantage)
    if not by_token and any(r.episode is not None for scored in groups for r in scored.group.rollouts):
        return _of_episodes(advantage, use, groups, discount, state)
    parts = [(g, places) for g, scored in enumerate(groups) for places in comparable(scored.group)]
    alone = [part_of(groups[g], places) for g, places in parts]
    if by_token:
        values = checked(advantage, use, alone, state)
    else:
        values = _of_turns(advantage, use, alone, discount, state)
    found: list[dict[int, Any]] = [{} for _ in groups]
    for (g, places), of_part in zip(parts, values, strict=True):
        found[g] |= dict(zip(places.tolist(), of_part, strict=True))
    return tuple(tuple(credit[i] for i in range(len(credit))) for credit in found)


def _of_episodes(
    advantage: Advantage, use: str, groups: Sequence[ScoredGroup], discount: float, state: Any
) -> tuple[tuple[Float[np.ndarray, " _"], ...], ...]:
    """As `advantages_of`, where an episode may have left several rollouts: episodes are compared, and each of an
    episode's rollouts has the episode's advantage. Its return is the mean of what its rollouts return as a whole."""
    firsts, members_G, returns_G = [], [], []
    for scored in groups:
        returns = returns_of(scored, discount)[:, 0]
        members: dict[object, list[int]] = {}
        for i, rollout in enumerate(scored.group.rollouts):
            members.setdefault((rollout.variant, i if rollout.episode is None else (rollout.episode,)), []).append(i)
        places = list(members.values())
        first = replace(
            scored.group, rollouts=tuple(replace(scored.group.rollouts[at[0]], episode=None) for at in places)
        )
        firsts.append(ScoredGroup(first, {}, reward=GroupReward(np.array([_mean(returns[at]) for at in places]))))
        members_G.append(places)
        returns_G.append(returns)
    found = advantages_of(advantage, use, firsts, state=state)
    result = []
    for scored, returns, places, values in zip(groups, returns_G, members_G, found, strict=True):
        credit: list[Any] = [None] * len(scored.group)
        for at, value in zip(places, values, strict=True):
            for i in at:  # a rollout that is left out stays so
                whole = value[:1] if np.isfinite(returns[i]) else np.full(1, np.nan, value.dtype)
                credit[i] = value if len(at) == 1 else whole
        result.append(tuple(credit))
    return tuple(result)


def _mean(values: Float[np.ndarray, " N"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def part_of(scored: ScoredGroup, places: Int[np.ndarray, " _"]) -> ScoredGroup:
    """Return a group with these rollouts alone, and what is trained on of their reward."""
    reward = reward_of(scored)

    def taken(values: tuple[np.ndarray, ...] | None) -> tuple[np.ndarray, ...] | None:
        return None if values is None else tuple(values[i] for i in places)

    part = GroupReward(
        reward.rewards[places],
        tokens=taken(reward.tokens),
        token_weights=taken(reward.token_weights),
        parts={name: values[places] for name, values in reward.parts.items()},
        at_tokens=reward.at_tokens,
    )
    group = replace(scored.group, rollouts=tuple(scored.group.rollouts[i] for i in places))
    return replace(scored, group=group, reward=part, selected=None)


def _of_turns(
    advantage: Advantage, use: str, groups: Sequence[ScoredGroup], discount: float, state: Any
) -> tuple[tuple[Float[np.ndarray, " _"], ...], ...]:
    """As `advantages_of`, of groups of one variant: the estimator is asked for each turn."""
    returns_G = [returns_of(scored, discount) for scored in groups]
    found = [[[] for _ in scored.group.rollouts] for scored in groups]
    for k in range(max((returns.shape[1] for returns in returns_G), default=0)):
        having = [i for i, returns in enumerate(returns_G) if k < returns.shape[1]]
        turn = [replace(groups[i], reward=replace(reward_of(groups[i]), rewards=returns_G[i][:, k])) for i in having]
        values = checked(advantage, use, turn, state)
        for i, of_group in zip(having, values, strict=True):
            for turns, value in zip(found[i], of_group, strict=True):
                turns.append(value)
    return tuple(tuple(map(_spread, scored.group.rollouts, turns)) for scored, turns in zip(groups, found, strict=True))


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

    def of(self, groups: Sequence[ScoredGroup], discount: float) -> tuple[tuple[Float[np.ndarray, " _"], ...], ...]:
        """Return advantages per group and rollout: [1] for all its tokens, or one for each of its T tokens."""
        whole = [joined(scored) for scored in groups]
        found = advantages_of(self.estimator, self._use, [s for s, _ in whole], discount, self._state())
        return tuple(parted(v, s.group, at) for v, s, (_, at) in zip(found, groups, whole, strict=True))

    def all_equal(self, scored: ScoredGroup, discount: float) -> bool:
        """Whether no rollout's turn returns more than another's it is compared with."""
        whole, _ = joined(scored)
        return tells_nothing(whole.group, returns_of(whole, discount))

    def no_gradient(self, scored: ScoredGroup, discount: float) -> bool:
        """Whether all advantages of a group are 0."""
        if not self.all_equal(scored, discount):
            return False
        if not isinstance(self.estimator, TokenAdvantage):
            return True
        (found,) = checked(self.estimator, self._use, [joined(scored)[0]], self._state())
        return not any(np.nan_to_num(values).any() for values in found)


Baselines = dict[str, float]
"""By game and agent."""


def role_advantages(
    keys_G: Sequence[Sequence[str]], rewards_G: Sequence[Float[np.ndarray, " G"]], before: Baselines, decay: float
) -> tuple[list[Float[np.ndarray, " G"]], Baselines]:
    """Advantages, one rollout after the other, and the baselines after the last. A NaN moves none and stays NaN."""
    baselines, advantages_G = dict(before), []
    for keys, rewards in zip(keys_G, rewards_G, strict=True):
        advantages = np.full(len(rewards), np.nan)
        for i, (key, reward) in enumerate(zip(keys, rewards, strict=True)):
            if np.isfinite(reward):
                baseline = baselines.get(key, 0.0)
                advantages[i] = reward - baseline
                baselines[key] = decay * baseline + (1 - decay) * float(reward)
        advantages_G.append(advantages)
    return advantages_G, baselines


def discounted(rollout: Rollout, advantage: float, gamma: float) -> Float[np.ndarray, " T"]:
    """The advantage of each token: less by γ for every turn of this agent that came after its own."""
    ours = [turn for turn in rollout.turns if turn.role == "assistant"]
    result = np.full(len(rollout.tokens), np.nan if np.isnan(advantage) else 0.0)
    for k, turn in enumerate(ours):
        result[turn.start : turn.end] = advantage * gamma ** (len(ours) - 1 - k)
    return result


def keys_of(groups: Sequence[Group]) -> list[list[str]]:
    """Game and agent of every rollout."""
    return [[f"{g.task.source or 'task'}_{r.agent or 'alone'}" for r in g.rollouts] for g in groups]
