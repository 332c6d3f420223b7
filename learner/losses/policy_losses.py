"""Losses as plug-ins, and the whole objective: policy loss, KL to the reference, entropy. Sums over tokens.

The caller divides by the step's count. The maths is in `surrogates` and `learner.tensors`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from cluster.config import LossSection
from cluster.errors import KanaboError, PluginError, one_line
from cluster.plugins import Plugin
from learner.losses.surrogates import (
    Metrics,
    bounded_importance_loss,
    clipped_policy_loss,
    corrected,
    decoupled_policy_loss,
    gspo_loss,
    left_out,
    penalised,
)
from learner.tensors import TokenBatch, kl_to_reference, log_importance


class PolicyLoss(Plugin):
    """Base of policy losses: one method, `(logprobs, tokens) → (sum, {name: sum over trained tokens})`."""

    need_reference: ClassVar[bool] = False
    """Whether it reads `tokens.reference_logprobs`."""

    def loss(self, logprobs: Float[Tensor, "B L"], tokens: TokenBatch) -> tuple[Float[Tensor, ""], Metrics]:
        raise NotImplementedError


class Clipped(PolicyLoss):
    """PPO's surrogate with separate bounds; DAPO's with `clip_high = 0.28`."""

    clip_low: float = Field(default=0.2, ge=0, le=1)
    """Ratios below 1 − this are clipped."""
    clip_high: float = Field(default=0.2, ge=0)
    """Ratios above 1 + this are clipped."""
    dual_clip: float | None = Field(default=None, gt=1)
    """A token of negative advantage costs at most this many times its advantage."""

    def loss(self, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
        return clipped_policy_loss(
            logprobs, tokens.behaviour_logprobs, tokens.advantages, tokens.loss_mask, tokens.weight,
            clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip,
        )  # fmt: skip


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
    """A clipped surrogate of one ratio per rollout (GSPO); the default bounds are those of the paper's experiments."""

    clip_low: float = Field(default=3e-4, ge=0, le=1)
    """Ratios of whole rollouts below 1 − this are clipped."""
    clip_high: float = Field(default=4e-4, ge=0)
    """Ratios of whole rollouts above 1 + this are clipped."""

    def loss(self, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
        return gspo_loss(
            logprobs, tokens.behaviour_logprobs, tokens.advantages, tokens.loss_mask, tokens.weight, tokens.rollout,
            clip_low=self.clip_low, clip_high=self.clip_high,
        )  # fmt: skip


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
        return bounded_importance_loss(
            logprobs, tokens.behaviour_logprobs, tokens.advantages, tokens.loss_mask, tokens.weight,
            low=1 - self.clip_low, high=1 + self.clip_high,
        )  # fmt: skip


class TruncatedImportance(PolicyLoss):
    """REINFORCE with truncated importance ratios."""

    cap: PositiveFloat = 2.0
    """Importance ratios are lowered to at most this."""

    def loss(self, logprobs: Tensor, tokens: TokenBatch) -> tuple[Tensor, Metrics]:
        return bounded_importance_loss(
            logprobs, tokens.behaviour_logprobs, tokens.advantages, tokens.loss_mask, tokens.weight,
            low=0.0, high=self.cap,
        )  # fmt: skip


class Decoupled(PolicyLoss):
    """A clipped surrogate around the policy at the start of the step, weighted by its ratio to the behaviour policy.

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
        return decoupled_policy_loss(
            logprobs, logprobs.detach() if tokens.proximal_logprobs is None else tokens.proximal_logprobs,
            tokens.behaviour_logprobs, tokens.advantages, tokens.loss_mask, tokens.weight,
            clip_low=self.clip_low, clip_high=self.clip_high, cap=self.cap,
        )  # fmt: skip


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

    The metrics are sums over trained tokens too, without gradient; `loss/policy` alone carries the tokens' weights.
    """
    weighted, found = corrected(logprobs, tokens, section)
    loss, metrics = _checked(policy_loss, section.use, logprobs, weighted)
    metrics = {"loss/policy": loss, **found, **metrics}
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
    with torch.no_grad():
        log_ratio = log_importance(logprobs, tokens.behaviour_logprobs, mask)
        ratio = log_ratio.exp()
        metrics["loss/ratio_mean"] = (ratio * mask).sum()
        metrics["loss/ratio_square"] = (ratio.square() * mask).sum()
        metrics["policy/behaviour_kl_nats"] = -log_ratio.sum()
    return loss, {name: value.detach() for name, value in metrics.items()}
