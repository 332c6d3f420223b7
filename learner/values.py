"""Value functions: generalised advantages and returns of one rollout, and the loss of a value head. Pure functions."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


def token_rewards(
    reward: float, num_tokens: int, penalty: Float[np.ndarray, " T"] | None = None
) -> Float[np.ndarray, " T"]:
    """What each token earned: the rollout's reward at its last token, minus `penalty` at every one.

    The penalty is coef · (log policy − log reference), k1 in the reward (arXiv:2203.02155, equation 2; token by token
    as in https://github.com/openai/lm-human-preferences). Truncated rollouts: their last token is where they were cut.
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
    off. With one optimizer step per cut values are the old ones and nothing is clipped. Masked positions may hold
    anything finite. Truncated rollouts: like others, their returns hold the value at the cut.
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
