"""The value head in the training step (`learner.value`): its values credit tokens, and it learns returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cluster.config import ValueSection
from cluster.types import Batch, MicroBatch
from learner.losses.policy_losses import kl_to_reference
from learner.pack import TokenBatch, whole_batch
from learner.step_plugin import Outputs, StepPlugin, Update
from learner.types import Engine, ReferenceModel


class ValueLoss(StepPlugin):
    """Replace a step's advantages by generalised ones (GAE, arXiv:1506.02438) and add the value head's loss."""

    needs_values = True
    uses_equal_rewards = True

    def __init__(self, section: ValueSection) -> None:
        self._section = section
        self._credited: list[Credited] = []

    def before_updates(self, updates: Sequence[Update], engine: Engine, reference: ReferenceModel | None) -> None:
        """Credit the whole step's tokens at once: advantages are whitened over it, not over a mini-batch."""
        batches = [update.batch for update in updates]
        references = [logprobs for update in updates for logprobs in update.references]
        self._credited = credit(whole_batch(batches), self._section, engine, references).split(batches)
        for update, credited in zip(updates, self._credited, strict=True):
            update.batch = replace(update.batch, micros=tuple(credited.micros))

    def before_update(self, update: Update, engine: Engine, reference: ReferenceModel | None) -> dict[str, float]:
        return self._credited[update.number].metrics

    def loss(self, update: Update, i: int, tokens: TokenBatch, outputs: Outputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert outputs.values is not None
        loss, metrics = self._credited[update.number].value_loss(i, outputs.values, tokens)
        return loss / update.denominator, metrics


def token_rewards(
    reward: float, num_tokens: int, penalty: Float[np.ndarray, " T"] | None = None
) -> Float[np.ndarray, " T"]:
    """What each token earned: the rollout's reward at its last token, minus `penalty` at every one.

    The penalty is coef · (log policy − log reference), k1 in the reward (arXiv:2203.02155, equation 2; token by token
    as in https://github.com/openai/lm-human-preferences). Truncated rollouts: the budget ended at their last token.
    """
    rewards = np.zeros(num_tokens)
    rewards[-1] = reward
    return rewards if penalty is None else rewards - penalty


def generalized_advantages(
    rewards: Float[np.ndarray, " T"],
    values: Float[np.ndarray, " T"],
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    value_at_cut: float | None = None,
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """(advantages, returns) of the T tokens that the policy chose (GAE, arXiv:1506.02438, equation 16).

    `values[t]` is that of the state in which token t was chosen, `rewards[t]` what the token earned; tokens of the
    environment stand in neither. Returns are advantages + values: what the value head learns.

    A rollout that came to its end is worth nothing afterwards. A *truncated* one would have gone on: `value_at_cut`,
    the value of the state after its last token, stands for what was cut off (arXiv:1712.00378, section 3); None is not
    truncated, or a budget that belongs to the task. Without it the head learns that long answers are worth little
    because time was up. What its last token
    earned counts too, so a verifier's 0 for "no answer yet" says more than is known.

    Raises ValueError where a number is not finite: an unknown value would spread to every token before it.
    """
    after = 0.0 if value_at_cut is None else value_at_cut
    if rewards.shape != values.shape or rewards.ndim != 1:
        raise ValueError(f"rewards have shape {rewards.shape}, values {values.shape}; both must be [T].")
    if not (np.isfinite(rewards).all() and np.isfinite(values).all() and np.isfinite(after)):
        raise ValueError(f"rewards, values or value_at_cut = {after} are not finite; leave such a rollout out.")
    next_values = np.append(values[1:], after)
    errors = rewards + gamma * next_values - values
    advantages = np.zeros(len(rewards))
    running = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        running = errors[t] + gamma * lam * running
        advantages[t] = running
    return advantages, advantages + values


def clipped_value_loss(
    values: Float[Tensor, "B L"],
    old_values: Float[Tensor, "B L"],
    returns: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    weight: Float[Tensor, "B L"],
    *,
    clip: float | None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Half the squared error, the worse of the value and of the value within `clip` of the old one. A sum.

    From PPO's reference code (https://github.com/openai/baselines, ppo2); `clip` is in units of the return, None is
    off. With one optimizer step per batch values are the old ones and nothing is clipped. Masked positions may hold
    anything finite. Truncated rollouts: like others, their returns hold the value after the last token.
    """
    error = torch.where(loss_mask, values - returns, 0.0)
    squared = error.square()
    if clip is not None:
        moved = torch.where(loss_mask, values - old_values, 0.0)
        near = torch.where(loss_mask, old_values - returns, 0.0) + moved.clamp(-clip, clip)
        bound = near.square() > squared
        squared = torch.maximum(squared, near.square())
    else:
        bound = torch.zeros_like(loss_mask)
    return (squared * weight).sum() / 2, {"value/clipped_frac": (bound & loss_mask).sum()}


EPS = 1e-8


class Valuer(Protocol):
    """The part of the engine that a critic uses."""

    def logprobs_and_values(self, micro: MicroBatch) -> tuple[Tensor, Tensor, Tensor]: ...
    def total(self, values: dict[str, float]) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True)
class Targets:
    """What the value head learns on one micro-batch, [B, L]; 0 where nothing is trained."""

    old_values: Float[np.ndarray, "B L"]
    returns: Float[np.ndarray, "B L"]


@dataclass(frozen=True, slots=True)
class Credited:
    """A rank's micro-batches with generalised advantages, and what the value head learns on each."""

    micros: list[MicroBatch]
    targets: list[Targets]
    metrics: dict[str, float]
    section: ValueSection

    def split(self, batches: Sequence[Batch]) -> list[Credited]:
        """The part of each of the mini-batches that `whole_batch` joined, its rollouts numbered as there."""
        parts, start = [], 0
        for batch in batches:
            own = slice(start, start + len(batch.micros))
            micros = [
                replace(micro, advantages=found.advantages)
                for micro, found in zip(batch.micros, self.micros[own], strict=True)
            ]
            parts.append(replace(self, micros=micros, targets=self.targets[own]))
            start += len(batch.micros)
        return parts

    def value_loss(
        self, i: int, values: Float[Tensor, "B L+1"], tokens: TokenBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Micro-batch i's term of the objective, a sum, and metrics as sums over trained tokens."""
        target = self.targets[i]
        old, returns = (torch.as_tensor(a, device=values.device) for a in (target.old_values, target.returns))
        loss, metrics = clipped_value_loss(
            values[:, :-1], old, returns, tokens.loss_mask, tokens.weight, clip=self.section.clip
        )
        return self.section.coef * loss, {"loss/value": loss.detach(), **metrics}


def credit(batch: Batch, section: ValueSection, engine: Valuer, references: Sequence[Tensor | None]) -> Credited:
    """Values under the weights at hand, and what follows from them and the rewards. Collective.

    A value that is not finite makes its rollout's advantages NaN: the update is then skipped, with a count.
    """
    micros, targets = [], []
    for micro, reference in zip(batch.micros, references, strict=True):
        with torch.no_grad():
            logprobs, _, values = engine.logprobs_and_values(micro)
        penalty = _penalty(logprobs, reference, micro, section)
        advantages, target = _credit_micro(micro, values.double().cpu().numpy(), penalty, batch, section)
        micros.append(replace(micro, advantages=advantages))
        targets.append(target)
    found = _explained(micros, targets, engine)
    if section.whiten:
        micros = _whitened(micros, engine)
    micros = [replace(m, advantages=m.advantages.astype(np.float32)) for m in micros]
    return Credited(micros, targets, found, section)


def _penalty(
    logprobs: Tensor, reference: Tensor | None, micro: MicroBatch, section: ValueSection
) -> Float[np.ndarray, "B L"] | None:
    if not section.reward_kl_coef or reference is None:
        return None
    mask = torch.as_tensor(micro.loss_mask.copy(), device=logprobs.device)
    return section.reward_kl_coef * kl_to_reference(logprobs, reference, mask, "k1").double().cpu().numpy()


def _credit_micro(
    micro: MicroBatch,
    values: Float[np.ndarray, "B L+1"],
    penalty: Float[np.ndarray, "B L"] | None,
    batch: Batch,
    section: ValueSection,
) -> tuple[Float[np.ndarray, "B L"], Targets]:
    advantages, returns = np.zeros(micro.tokens.shape), np.zeros(micro.tokens.shape)
    old_values = np.where(micro.loss_mask, values[:, :-1], 0.0)
    for row in range(len(micro.tokens)):
        for number in np.unique(micro.rollout[row][micro.loss_mask[row]]):
            mine = micro.rollout[row] == number
            chosen = np.flatnonzero(mine & micro.loss_mask[row])
            rewards = token_rewards(
                float(batch.rewards[number]), len(chosen), None if penalty is None else penalty[row, chosen]
            )
            goes_on = section.bootstrap_truncated and batch.truncated[number]
            at_cut = float(values[row, np.flatnonzero(mine)[-1] + 1]) if goes_on else None
            known = np.isfinite(values[row, chosen]).all() and np.isfinite(at_cut or 0.0) and np.isfinite(rewards).all()
            if known:
                found = generalized_advantages(
                    rewards, values[row, chosen], gamma=section.gamma, lam=section.lam, value_at_cut=at_cut
                )
            else:
                found = np.full(len(chosen), np.nan), np.full(len(chosen), np.nan)
            advantages[row, chosen], returns[row, chosen] = found
    return advantages, Targets(old_values.astype(np.float32), returns.astype(np.float32))


def _whitened(micros: Sequence[MicroBatch], engine: Valuer) -> list[MicroBatch]:
    """Advantages as standard scores of the step's trained tokens, all ranks'; fewer than two are left as they are."""
    of_tokens = [m.advantages[m.loss_mask] for m in micros]
    sums = engine.total({"count": float(sum(map(len, of_tokens))), "sum": float(sum(a.sum() for a in of_tokens))})
    count, mean = sums["count"], sums["sum"] / max(sums["count"], 1.0)
    # Centred before it is squared: a mean far from 0 would drown the deviation.
    square = engine.total({"square": float(sum(((a - mean) ** 2).sum() for a in of_tokens))})["square"]
    if count < 2:
        return list(micros)
    scale = np.sqrt(square / (count - 1)) + EPS
    return [replace(m, advantages=np.where(m.loss_mask, (m.advantages - mean) / scale, 0.0)) for m in micros]


def _explained(micros: Sequence[MicroBatch], targets: Sequence[Targets], engine: Valuer) -> dict[str, float]:
    """Means of values and returns under the first weights, and the share of the returns' variance explained."""
    pairs = [(t.returns[m.loss_mask], t.old_values[m.loss_mask]) for m, t in zip(micros, targets, strict=True)]
    returns, values = (np.concatenate([np.zeros(0), *column]) for column in zip(*pairs, strict=True))
    sums = engine.total({"n": float(len(returns)), "returns": float(returns.sum()), "values": float(values.sum())})
    count = max(sums["n"], 1.0)
    mean, mean_value = sums["returns"] / count, sums["values"] / count
    residual, spread = returns - values - (mean - mean_value), returns - mean
    squares = engine.total({"left": float((residual**2).sum()), "all": float((spread**2).sum())})
    found = {"value/mean": mean_value, "value/return_mean": mean}
    if squares["all"] > 0:
        found["value/explained_variance"] = 1 - squares["left"] / squares["all"]
    return found
