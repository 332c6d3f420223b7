"""Policy-gradient surrogates: pure functions of log-probs, sums over tokens. The caller divides by the step's count.

Everything is [B, L] over packed rows; masked positions may hold anything finite and reach neither a loss nor a
gradient. Each returns (sum of per-token losses × weight, {metric: sum over trained tokens}).

Truncated rollouts are trained on like any other, up to their last token: the policy chose those tokens, and what a cut
is worth is for the reward to say (`length_penalty`) or for `learner.drop_truncated`.

Importance corrections stand in front of every surrogate, apart for two causes, engine mismatch and staleness.
A learner knows of each token the behaviour log-prob, its own log-prob under the current weights, and how many steps old
the weights were that sampled it. Where they are the current ones the two differ by *mismatch* alone: another kernel,
another precision. On older tokens they differ by mismatch × staleness, and only the log-probs of a learner with the old
weights, which nobody keeps, would tell the factors apart. So each correction has its own tokens:

    staleness == 0 ──► `learner.loss.mismatch`
    staleness  > 0 ──► `learner.loss.staleness`

    truncate  weight = the ratio, within [low, high]; the loss's own ratio starts from 1 (nothing is counted twice)
    mask      weight = 0 where the ratio is outside [low, high], else 1; the loss keeps its own ratio

Truncated rollouts are corrected like others, over the tokens that there are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cluster.config import CorrectionSection, LossSection
from learner.tensors import TokenBatch, log_importance, mean_by_rollout, sum_by_rollout

Metrics = dict[str, Tensor]
Level = Literal["token", "sequence", "geometric"]


def ratio_at(
    log_ratio: Float[Tensor, "B L"], rollout: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], level: Level
) -> Float[Tensor, "B L"]:
    """Importance ratio of each token in `mask`, of its rollout (the product over those tokens), or the geometric mean.

    1 outside `mask`. The product is the unbiased one, and of a spread that grows with length; tokens alone are biased,
    of a small spread (https://fengyao.notion.site/off-policy-rl); the geometric mean judges a rollout whatever its
    length, but is no importance weight: use it to mask.
    """
    kept = torch.where(mask, log_ratio, 0.0)
    if level == "sequence":
        kept = sum_by_rollout(kept, rollout)
    elif level == "geometric":
        kept = mean_by_rollout(kept, rollout, mask)
    return torch.where(mask, kept, 0.0).exp()


def truncated_weight(
    ratio: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"], *, low: float, high: float
) -> Float[Tensor, "B L"]:
    """The ratio within [low, high]; 1 outside `mask`.

    Truncated importance sampling: https://fengyao.notion.site/off-policy-rl for engine mismatch, with low = 0.
    """
    return torch.where(mask, ratio.clamp(low, high), 1.0)


def masked_weight(
    ratio: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"], *, low: float, high: float
) -> Float[Tensor, "B L"]:
    """0 where the ratio is outside [low, high], else 1; 1 outside `mask`.

    Masked importance sampling: by token as in IcePop (Ring-1T, arXiv:2510.18855), by rollout for the other levels. In
    IcePop what is kept is weighted by its ratio too: `truncated_is` beside the mask does that. What is masked still
    counts in the step's denominator, so masking shrinks a step and never scales up the rest.
    """
    return torch.where(mask & ((ratio < low) | (ratio > high)), 0.0, 1.0)


@torch.no_grad()
def corrected(
    logprobs: Float[Tensor, "B L"], tokens: TokenBatch, section: LossSection
) -> tuple[TokenBatch, dict[str, Tensor]]:
    """The tokens with corrected weights, and what was found: {metric: sum over trained tokens}."""
    log_ratio = log_importance(logprobs, tokens.behaviour_logprobs, tokens.loss_mask)
    stale = tokens.loss_mask & (tokens.staleness > 0)
    fresh = tokens.loss_mask & (tokens.staleness == 0)
    metrics = {"policy/stale_frac": stale.sum()}
    for name, mask, correction in (("mismatch", fresh, section.mismatch), ("staleness", stale, section.staleness)):
        metrics[f"policy/{name}_kl_nats"] = -torch.where(mask, log_ratio, 0.0).sum()
        if correction is not None:
            ratio = ratio_at(log_ratio, tokens.rollout, mask, correction.level)
            tokens = _apply(correction, ratio, mask, logprobs, tokens)
            bound = mask & ((ratio < correction.low) | (ratio > correction.high))
            metrics[f"loss/{name}_bound_frac"] = bound.sum()
    return tokens, metrics


def _apply(
    correction: CorrectionSection, ratio: Tensor, mask: Tensor, logprobs: Tensor, tokens: TokenBatch
) -> TokenBatch:
    bounds = {"low": correction.low, "high": correction.high}
    if correction.how == "mask":
        return replace(tokens, weight=tokens.weight * masked_weight(ratio, mask, **bounds))
    return replace(
        tokens,
        weight=tokens.weight * truncated_weight(ratio, mask, **bounds),
        behaviour_logprobs=torch.where(mask, logprobs, tokens.behaviour_logprobs),
    )


def clipped_policy_loss(
    logprobs: Float[Tensor, "B L"],
    behaviour_logprobs: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    weight: Float[Tensor, "B L"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Clipped surrogate (PPO, arXiv:1707.06347, equation 7) with separate bounds (DAPO, arXiv:2503.14476, section 3.1).

    With `dual_clip` c > 1 a token of negative advantage costs at most c·|A| (arXiv:1912.09729): without it a large
    ratio there is unbounded. Truncated rollouts: like others.
    """
    ratio = log_importance(logprobs, behaviour_logprobs, loss_mask).exp()
    return _clipped(ratio, advantages, loss_mask, weight, clip_low, clip_high, dual_clip)


def gspo_loss(
    logprobs: Float[Tensor, "B L"],
    behaviour_logprobs: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    weight: Float[Tensor, "B L"],
    rollout: Int[Tensor, "B L"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Clipped surrogate of one ratio per rollout: s = exp(mean over its tokens of the log-ratio).

    GSPO, arXiv:2507.18071, equations 5 to 7, in the token form of equations 13 and 14, which has the same value and
    gradient where a rollout has one advantage and allows one per token. A rollout is clipped as a whole, so useful
    bounds are far narrower than a token's. In the paper rollouts have equal votes: `aggregate = "sequence"`.

    Truncated rollouts: like others; the mean is over the tokens that there are, so a cut makes s no smaller.
    """
    log_ratio = log_importance(logprobs, behaviour_logprobs, loss_mask)
    log_s = mean_by_rollout(log_ratio.detach(), rollout, loss_mask)
    # In value s; the gradient of each token is its own.
    ratio = torch.where(loss_mask, log_s + log_ratio - log_ratio.detach(), 0.0).exp()
    return _clipped(ratio, advantages, loss_mask, weight, clip_low, clip_high)


def _clipped(
    ratio: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    weight: Float[Tensor, "B L"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    advantages = torch.where(loss_mask, advantages, 0.0)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = torch.maximum(-ratio * advantages, -clipped * advantages)
    if dual_clip is not None:
        per_token = torch.where(advantages < 0, torch.minimum(per_token, -dual_clip * advantages), per_token)
    bound = (ratio > 1 + clip_high) & (advantages > 0) | (ratio < 1 - clip_low) & (advantages < 0)
    return (per_token * weight).sum(), {"loss/clipped_frac": (bound & loss_mask).sum()}


def bounded_importance_loss(
    logprobs: Float[Tensor, "B L"],
    behaviour_logprobs: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    weight: Float[Tensor, "B L"],
    *,
    low: float,
    high: float,
) -> tuple[Float[Tensor, ""], Metrics]:
    """REINFORCE on off-policy tokens: the ratio, within [low, high] and without gradient, times the log-prob.

    With low = 0 this is a truncated importance weight (IMPALA, arXiv:1802.01561, section 4.1); with bounds 1 − ε and
    1 + ε' it is CISPO (MiniMax-M1, arXiv:2506.13585, equations 4 and 5). Unlike in a clipped surrogate no token loses
    its gradient: a bound token has that of the bound. Truncated rollouts: like others.
    """
    ratio = log_importance(logprobs.detach(), behaviour_logprobs, loss_mask).exp()
    advantages = torch.where(loss_mask, advantages, 0.0)
    per_token = -ratio.clamp(low, high) * advantages * torch.where(loss_mask, logprobs, 0.0)
    bound = ((ratio > high) | (ratio < low)) & loss_mask
    return (per_token * weight).sum(), {"loss/clipped_frac": bound.sum()}


def decoupled_policy_loss(
    logprobs: Float[Tensor, "B L"],
    proximal_logprobs: Float[Tensor, "B L"],
    behaviour_logprobs: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    weight: Float[Tensor, "B L"],
    *,
    clip_low: float,
    clip_high: float,
    cap: float,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Clipped surrogate around a proximal policy, weighted by min(proximal / behaviour, cap) without gradient.

    Decoupled PPO (arXiv:2110.00641; AReaL, arXiv:2505.24298, section 5.2): what corrects for old data is apart from
    what keeps the update small, so a stale token is not clipped for being stale. The proximal policy is the learner's
    own at the start of the step. Truncated rollouts: like others.
    """
    ratio = log_importance(proximal_logprobs.detach(), behaviour_logprobs, loss_mask).exp()
    loss, metrics = clipped_policy_loss(
        logprobs, proximal_logprobs.detach(), advantages, loss_mask, weight * ratio.clamp(max=cap),
        clip_low=clip_low, clip_high=clip_high,
    )  # fmt: skip
    return loss, {**metrics, "loss/capped_frac": ((ratio > cap) & loss_mask).sum()}


def covariances(
    advantages: Float[Tensor, "B L"], logprobs: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """(A − mean A)(log π − mean log π) of each token, nats; means over the masked tokens, 0 elsewhere."""
    count = mask.sum().clamp(min=1)
    centred = [
        torch.where(mask, x - torch.where(mask, x, 0.0).sum() / count, 0.0) for x in (advantages, logprobs.detach())
    ]
    return centred[0] * centred[1]


def left_out(
    advantages: Float[Tensor, "B L"],
    logprobs: Float[Tensor, "B L"],
    behaviour_logprobs: Float[Tensor, "B L"],
    mask: Bool[Tensor, "B L"],
    *,
    low: float,
    high: float,
    frac: float,
    clip_low: float,
    clip_high: float,
) -> Bool[Tensor, "B L"]:
    """Covariance clip (SPEAR, arXiv:2509.22601, by its released code): true on tokens whose loss becomes 0.

    Eligible are tokens with low < covariance < high that the clipped ratio has not stopped already. Of them
    max(1, ⌊frac · masked tokens⌋) are drawn evenly, all if there are fewer; by a generator seeded with the number of
    masked tokens, so that a step can be run again.
    """
    ratio = log_importance(logprobs.detach(), behaviour_logprobs, mask).exp()
    stopped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    found = covariances(advantages, logprobs, mask)
    eligible = (mask & ~stopped & (found > low) & (found < high)).flatten().nonzero().flatten()
    total = int(mask.sum())
    count = min(len(eligible), max(1, int(frac * total)))
    generator = torch.Generator().manual_seed(total)
    drawn = eligible[torch.randperm(len(eligible), generator=generator)[:count].to(eligible.device)]
    result = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device)
    result[drawn] = True
    return result.reshape(mask.shape)


def turn_of_token(mask: Bool[Tensor, "B L"], rollout: Int[Tensor, "B L"]) -> tuple[Tensor, Tensor]:
    """([B, L] run, [B, L] turn): which run of trained tokens a token is in, numbered over all rows, and which of its
    rollout's, from 0; −1 where not trained.

    What the policy said without an interruption is one turn: the environment's tokens between two are not trained.
    """
    before = torch.nn.functional.pad(mask[:, :-1] & (rollout[:, 1:] == rollout[:, :-1]), (1, 0))
    run = (mask & ~before).flatten().long().cumsum(0).reshape(mask.shape) - 1
    run = torch.where(mask, run, -1)
    first = torch.full((mask.numel() + 1,), mask.numel(), device=mask.device)
    first = first.scatter_reduce(0, rollout.flatten(), torch.where(mask, run, mask.numel()).flatten(), "amin")
    return run, torch.where(mask, run - first[rollout], -1)


def mean_by_turn(values: Float[Tensor, "B L"], run: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """At each trained token the mean over its turn; 0 elsewhere."""
    mask = run >= 0
    slots = torch.where(mask, run, run.numel()).flatten()
    size = run.numel() + 1
    sums = values.new_zeros(size).index_add(0, slots, torch.where(mask, values, 0.0).flatten())
    counts = values.new_zeros(size).index_add(0, slots, mask.to(values.dtype).flatten())
    return torch.where(mask, (sums / counts.clamp(min=1))[slots].reshape(run.shape), 0.0)


def penalised(
    advantages: Float[Tensor, "B L"],
    logprobs: Float[Tensor, "B L"],
    reference_logprobs: Float[Tensor, "B L"],
    mask: Bool[Tensor, "B L"],
    rollout: Int[Tensor, "B L"],
    betas: tuple[float, ...],
) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """(A_k − β_k · mean over turn k of log π − log reference, that mean in nats), at each token of turn k.

    Turns beyond the last β take that one. k1 without gradient; the mean makes β independent of length.
    """
    run, turn = turn_of_token(mask, rollout)
    kl = mean_by_turn(torch.where(mask, logprobs.detach() - reference_logprobs, 0.0), run)
    beta = torch.tensor(betas, dtype=kl.dtype, device=kl.device)[turn.clamp(min=0, max=len(betas) - 1)]
    return torch.where(mask, advantages - beta * kl, 0.0), kl
