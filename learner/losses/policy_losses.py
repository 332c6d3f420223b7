"""Policy losses as plug-ins, importance corrections, and the whole objective with KL and entropy. Sums over tokens.

Everything is [B, L] over packed rows; the caller divides by the step's count. Masked positions may hold anything finite
and reach neither a loss nor a gradient. Truncated rollouts are trained on like any other, up to their last token: the
policy chose those tokens, and what a truncated answer is worth is for the reward to say (`length_penalty`) or for
`learner.drop_truncated`.

Importance corrections stand in front of every surrogate, apart for two causes, engine mismatch and staleness.
A learner knows of each token the behaviour log-prob, its own log-prob under the current weights, and how many steps old
the weights were that sampled it. Where they are the current ones the two differ by *mismatch* alone: another kernel,
another precision. On older tokens they differ by mismatch × staleness, and only the log-probs of a learner with the old
weights, which are not kept, would tell the factors apart. So each correction has its own tokens:

    staleness == 0 ──► `learner.loss.mismatch`
    staleness  > 0 ──► `learner.loss.staleness`

    truncate  weight = the ratio, within [low, high]; the loss's own ratio starts from 1 (nothing is counted twice)
    mask      weight = 0 where the ratio is outside [low, high], else 1; the loss keeps its own ratio
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveFloat
from torch import Tensor

from cluster.config import CorrectionSection, LossSection
from cluster.errors import KanaboError, PluginError, one_line
from cluster.plugins import Plugin
from learner.pack import TokenBatch

Metrics = dict[str, Tensor]
Level = Literal["token", "sequence", "geometric"]

MAX_LOG_RATIO = 20.0
"""Nats. exp(20) is 5e8: no loss has a use for a larger ratio, and exp(89) is infinite in fp32."""


class PolicyLoss(Plugin):
    """Base of policy losses: one method, `(logprobs, tokens) → (sum, {name: sum over trained tokens})`."""

    need_reference: ClassVar[bool] = False
    """Whether it reads `tokens.reference_logprobs`."""

    def loss(self, logprobs: Float[Tensor, "B L"], tokens: TokenBatch) -> tuple[Float[Tensor, ""], Metrics]:
        raise NotImplementedError


class Clipped(PolicyLoss):
    """Clipped surrogate (PPO, arXiv:1707.06347, equation 7) with separate bounds (DAPO, arXiv:2503.14476, section 3.1).

    With `dual_clip` c > 1 a token of negative advantage costs at most c·|A| (arXiv:1912.09729): without it a large
    ratio there is unbounded.
    """

    clip_low: float = Field(default=0.2, ge=0, le=1)
    """Ratios below 1 − this are clipped."""
    clip_high: float = Field(default=0.2, ge=0)
    """Ratios above 1 + this are clipped."""
    dual_clip: float | None = Field(default=None, gt=1)
    """A token of negative advantage costs at most this many times its advantage."""

    def loss(self, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
        ratio = log_importance(logprobs, tokens.behaviour_logprobs, tokens.loss_mask).exp()
        return _clipped(ratio, tokens, self.clip_low, self.clip_high, self.dual_clip)


class Dapo(Clipped):
    """DAPO's clipped surrogate: the upper bound is raised to 0.28 (arXiv:2503.14476, section 3.1).

    The paper's other three parts are recipe keys: `learner.drop_zero_variance = true` with `max_refills` (dynamic
    sampling), `learner.loss.aggregate = "token"` (the default), and the reward `length_penalty` (overlong shaping).
    """

    clip_high: float = Field(default=0.28, ge=0)


class ClippedCovariance(Clipped):
    """The clipped loss without a few tokens whose covariance of advantage and log-prob lies within bounds (SPEAR).

    Such tokens make the entropy collapse. The code's bounds are (1, 5) and 2e-4 on policy, (1, 40) and 2e-3 on replays.
    Means and draw are of a micro-batch, as there: the one loss that depends a little on how a step is split.
    """

    low: float = 1.0
    """Lower bound of the covariance of advantage and log-prob, in nats."""
    high: float = 5.0
    """Upper bound of that covariance, in nats."""
    frac: float = Field(default=2e-4, gt=0, le=1)
    """Share of a micro-batch's tokens within the bounds that is left out, at least one."""

    def loss(self, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
        out = left_out(
            tokens.advantages, logprobs, tokens.behaviour_logprobs, tokens.loss_mask,
            low=self.low, high=self.high, frac=self.frac, clip_low=self.clip_low, clip_high=self.clip_high,
        )  # fmt: skip
        loss, metrics = super().loss(logprobs, replace(tokens, weight=torch.where(out, 0.0, tokens.weight)))
        return loss, metrics | {"loss/covariance_clip_frac": out.sum().float()}


class Gspo(PolicyLoss):
    """Clipped surrogate of one ratio per rollout: s = exp(mean over its tokens of the log-ratio).

    GSPO, arXiv:2507.18071, equations 5 to 7, in the token form of equations 13 and 14, which has the same value and
    gradient where a rollout has one advantage and allows one per token. A rollout is clipped as a whole, so useful
    bounds are far narrower than a token's; the defaults are those of the paper's experiments. In the paper rollouts
    have equal votes: `aggregate = "sequence"`. A truncated rollout's mean is over the tokens that there are.
    """

    clip_low: float = Field(default=3e-4, ge=0, le=1)
    """Ratios of whole rollouts below 1 − this are clipped."""
    clip_high: float = Field(default=4e-4, ge=0)
    """Ratios of whole rollouts above 1 + this are clipped."""

    def loss(self, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
        log_ratio = log_importance(logprobs, tokens.behaviour_logprobs, tokens.loss_mask)
        log_s = mean_by_rollout(log_ratio.detach(), tokens.rollout, tokens.loss_mask)
        # In value s; the gradient of each token is its own.
        ratio = torch.where(tokens.loss_mask, log_s + log_ratio - log_ratio.detach(), 0.0).exp()
        return _clipped(ratio, tokens, self.clip_low, self.clip_high)


class TurnwiseReinforce(PolicyLoss):
    """−(A − β_k · mean KL of turn k) · log π, summed: REINFORCE with a KL penalty per turn in the reward (SCoRe).

    KL is k1 to `learner.reference`, a mean over the turn's tokens, so that the paper's β make sense at any length. In
    stage I the first attempt is held by β = (0.1, 0.01), in stage II both by (0.01, 0.01): the controller `stages` sets
    `learner.loss.options.betas`. There is no ratio: use `max_staleness = 0`, or `learner.loss.staleness`.
    """

    need_reference: ClassVar[bool] = True
    betas: tuple[float, ...] = Field(default=(0.1, 0.01), min_length=1)
    """Weight of the KL term in the first turn, the second, …; later turns take the last."""

    def loss(self, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
        # Without one, as in a first step that has not moved yet, the policy is its own reference.
        reference = logprobs.detach() if tokens.reference_logprobs is None else tokens.reference_logprobs
        advantages, kl = penalised(tokens.advantages, logprobs, reference, tokens.loss_mask, tokens.rollout, self.betas)
        loss = -(advantages * torch.where(tokens.loss_mask, logprobs, 0.0) * tokens.weight).sum()
        return loss, {"loss/turn_kl_nats": kl.sum()}


class Cispo(PolicyLoss):
    """REINFORCE with importance ratios within bounds (CISPO). As in the paper there is no lower bound by default."""

    clip_low: float = Field(default=1.0, ge=0, le=1)
    """Importance ratios are raised to at least 1 − this; 1 is no bound."""
    clip_high: float = Field(default=1.0, ge=0)
    """Importance ratios are lowered to at most 1 + this."""

    def loss(self, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
        return bounded_importance_loss(logprobs, tokens, low=1 - self.clip_low, high=1 + self.clip_high)


class TruncatedImportance(PolicyLoss):
    """REINFORCE with truncated importance ratios."""

    cap: PositiveFloat = 2.0
    """Importance ratios are lowered to at most this."""

    def loss(self, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
        return bounded_importance_loss(logprobs, tokens, low=0.0, high=self.cap)


class Decoupled(PolicyLoss):
    """Clipped surrogate around a proximal policy, weighted by min(proximal / behaviour, cap) without gradient.

    Decoupled PPO (arXiv:2110.00641; AReaL, arXiv:2505.24298, section 5.2): what corrects for old data is apart from
    what keeps the update small, so a stale token is not clipped for being stale. The proximal policy is the learner's
    own at the start of the step.

    With one update per batch (`learner.updates_per_batch`, `learner.passes_per_batch`) the proximal policy *is* the
    current one: the clipped ratio is 1, the clip never binds, and the gradient is that of `truncated_is` with the same
    cap. With several updates the proximal log-probs are those before the first.
    """

    clip_low: float = Field(default=0.2, ge=0, le=1)
    """Ratios to the proximal policy below 1 − this are clipped."""
    clip_high: float = Field(default=0.2, ge=0)
    """Ratios to the proximal policy above 1 + this are clipped."""
    cap: PositiveFloat = 5.0
    """Ratios of the proximal to the behaviour policy are lowered to at most this."""

    def loss(self, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
        proximal = (logprobs if tokens.proximal_logprobs is None else tokens.proximal_logprobs).detach()
        behind = log_importance(proximal, tokens.behaviour_logprobs, tokens.loss_mask).exp()
        weighted = replace(tokens, weight=tokens.weight * behind.clamp(max=self.cap))
        ratio = log_importance(logprobs, proximal, tokens.loss_mask).exp()
        loss, metrics = _clipped(ratio, weighted, self.clip_low, self.clip_high)
        return loss, {**metrics, "loss/capped_frac": ((behind > self.cap) & tokens.loss_mask).sum()}


def _checked(policy_loss: PolicyLoss, use: str, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
    """What the plug-in named `use` says; raises PluginError where it raises or says something of another shape.

    A loss that is not finite passes: log-probs that overflow make one too. Its update is skipped, with a count.
    """
    where = f"learner.loss.use = '{use}'"
    try:
        found = policy_loss.loss(logprobs, tokens)
    except (KanaboError, torch.OutOfMemoryError):
        raise
    except BaseException as error:  # whatever the recipe's own code raises
        raise PluginError(f"{where} raised {one_line(error)} Log-probs were [B, L] = {_shape(logprobs)}.") from error
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise PluginError(f"{where} returned {found!r:.80}. Return (sum over tokens, {{name: sum over tokens}}).")
    for name, value in {"the loss": found[0], **found[1]}.items():
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"of shape {_shape(value)}" if isinstance(value, Tensor) else f"{value!r:.80}"
            raise PluginError(f"{where}: {name} is {got}. Return the sum over tokens, a tensor of one number.")
    return found[0].reshape(()), found[1]


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


LOSSES: dict[str, type[PolicyLoss]] = {
    "clipped": Clipped,
    "ppo": Clipped,
    "grpo": Clipped,
    "dapo": Dapo,
    "dr_grpo": Clipped,
    "clipped_covariance": ClippedCovariance,
    "gspo": Gspo,
    "cispo": Cispo,
    "truncated_is": TruncatedImportance,
    "turnwise_reinforce": TurnwiseReinforce,
    "decoupled": Decoupled,
}


def objective(
    policy_loss: PolicyLoss,
    section: LossSection,
    logprobs: Float[Tensor, "B L"],
    entropy: Float[Tensor, "B L"],
    tokens: TokenBatch,
) -> tuple[Float[Tensor, ""], Metrics]:
    """coef · policy loss, corrected, + kl_coef · KL − entropy_coef · entropy, as a sum.

    The metrics are sums over trained tokens too, without gradient; `loss/policy` and `loss/total`, which is the sum
    returned, carry the tokens' weights.
    """
    weighted, found = corrected(logprobs, tokens, section)
    loss, metrics = _checked(policy_loss, section.use, logprobs, weighted)
    named = {name if "/" in name else f"loss/{name}": value for name, value in metrics.items()}
    metrics = {"loss/policy": loss, **found, **named}
    # Not 0 · loss: it may overflow on pairs whose rewards nobody meant to follow.
    loss = section.coef * loss if section.coef else logprobs.new_zeros(())
    mask = tokens.loss_mask
    kept_entropy = torch.where(mask, entropy, 0.0)
    metrics["loss/entropy_nats"] = kept_entropy.sum()
    if section.entropy_coef:
        loss = loss - section.entropy_coef * (kept_entropy * tokens.weight).sum()
    if tokens.reference_logprobs is not None:
        kl = kl_to_reference(logprobs, tokens.reference_logprobs, mask, section.kl_estimator)
        metrics["loss/kl_nats"] = kl.sum()
        if section.kl_coef:  # k3 may overflow, and 0 · inf is no 0
            loss = loss + section.kl_coef * (kl * tokens.weight).sum()
    metrics["loss/total"] = loss
    with torch.no_grad():
        log_ratio = log_importance(logprobs, tokens.behaviour_logprobs, mask)
        ratio = log_ratio.exp()
        metrics["loss/ratio_mean"] = (ratio * mask).sum()
        metrics["loss/ratio_square"] = (ratio.square() * mask).sum()
        metrics["policy/behaviour_kl_nats"] = -log_ratio.sum()
    return loss, {name: value.detach() for name, value in metrics.items()}


# ── maths ───────────────────────────────────────────────────────────────────────────────────────────────────────────


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


def _clipped(
    ratio: Float[Tensor, "B L"], tokens: TokenBatch, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> tuple[Float[Tensor, ""], Metrics]:
    """Sum of weighted clipped surrogates of these ratios, and how many tokens a bound holds."""
    advantages = torch.where(tokens.loss_mask, tokens.advantages, 0.0)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = torch.maximum(-ratio * advantages, -clipped * advantages)
    if dual_clip is not None:
        per_token = torch.where(advantages < 0, torch.minimum(per_token, -dual_clip * advantages), per_token)
    bound = (ratio > 1 + clip_high) & (advantages > 0) | (ratio < 1 - clip_low) & (advantages < 0)
    return (per_token * tokens.weight).sum(), {"loss/clipped_frac": (bound & tokens.loss_mask).sum()}


def bounded_importance_loss(
    logprobs: Float[Tensor, "B L"], tokens: TokenBatch, *, low: float, high: float
) -> tuple[Float[Tensor, ""], Metrics]:
    """REINFORCE on off-policy tokens: the ratio, within [low, high] and without gradient, times the log-prob.

    With low = 0 this is a truncated importance weight (IMPALA, arXiv:1802.01561, section 4.1); with bounds 1 − ε and
    1 + ε' it is CISPO (MiniMax-M1, arXiv:2506.13585, equations 4 and 5). Unlike in a clipped surrogate no token loses
    its gradient: a bound token has that of the bound.
    """
    mask = tokens.loss_mask
    ratio = log_importance(logprobs.detach(), tokens.behaviour_logprobs, mask).exp()
    advantages = torch.where(mask, tokens.advantages, 0.0)
    per_token = -ratio.clamp(low, high) * advantages * torch.where(mask, logprobs, 0.0)
    bound = ((ratio > high) | (ratio < low)) & mask
    return (per_token * tokens.weight).sum(), {"loss/clipped_frac": bound.sum()}


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


def log_importance(
    logprobs: Float[Tensor, "B L"], behaviour_logprobs: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """log π(token) − log behaviour(token), nats, within ±`MAX_LOG_RATIO`; 0 where masked.

    A token beyond the bound has no gradient: its ratio would overflow, or is 0 to six digits.
    """
    return torch.where(mask, logprobs - behaviour_logprobs, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def sum_by_rollout(values: Float[Tensor, "B L"], rollout: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """At each token the sum over its rollout. What must not count is 0 in `values`."""
    # One slot a token is more than enough, and needs no look at the numbers (on a GPU: no wait for it).
    sums = values.new_zeros(values.numel()).index_add(0, rollout.flatten(), values.flatten())
    return sums[rollout]


def mean_by_rollout(
    values: Float[Tensor, "B L"], rollout: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """At each token the mean over its rollout's tokens in `mask`; 0 for a rollout without any."""
    count = sum_by_rollout(mask.to(values.dtype), rollout)
    return sum_by_rollout(torch.where(mask, values, 0.0), rollout) / count.clamp(min=1)


def kl_to_reference(
    logprobs: Float[Tensor, "B L"],
    reference_logprobs: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    estimator: Literal["k1", "k2", "k3"],
) -> Float[Tensor, "B L"]:
    """Per-token estimates of KL(policy ‖ reference), nats (http://joschu.net/blog/kl-approx.html); 0 where masked.

    With r = reference / policy: k1 = −log r, k2 = (log r)² / 2, k3 = r − 1 − log r. On tokens of the policy itself k1
    and k3 are unbiased, k2 is close where the two are; k2 and k3 are never negative. As a loss only k2 has the
    gradient of this KL; k3's is that of KL(reference ‖ policy), k1's is zero on average.

    Tokens of truncated rollouts count like others: each has its own conditional divergence. Log-ratios are clamped as
    importance ratios are (`MAX_LOG_RATIO`), so that k3 cannot overflow.
    """
    log_ratio = log_importance(logprobs, reference_logprobs, loss_mask)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio
