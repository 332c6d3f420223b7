"""A policy loss called once on made-up tokens, before anything starts."""

from __future__ import annotations

import torch

from cluster.config import LossSection
from cluster.errors import ConfigError, PluginError
from learner.losses.policy_losses import PolicyLoss, objective
from learner.pack import TokenBatch


def try_loss(policy_loss: PolicyLoss, section: LossSection) -> None:
    """Call a loss as the learner does, on two rollouts of three tokens each.

    Raises ConfigError where it raises, returns something else than a sum and metrics, or has no gradient.
    """
    where = f"learner.loss.use = '{section.use}'"
    logprobs = torch.tensor([[0.0, -0.5, -1.0, -2.0], [0.0, -0.1, -3.0, -0.7]], requires_grad=True)
    mask = torch.tensor([[False, True, True, True]] * 2)
    rollout = torch.tensor([[0] * 4, [1] * 4])
    advantages = torch.where(mask, torch.tensor([[1.0], [-1.0]]), 0.0)
    reference = logprobs.detach() - 0.1 if policy_loss.need_reference or section.kl_coef else None
    behaviour = torch.where(mask, logprobs.detach() + 0.05, 0.0)
    tokens = TokenBatch(mask, mask.float(), behaviour, advantages, rollout, rollout * 0, reference)
    alone = section.model_copy(update={"coef": 1.0, "kl_coef": 0.0, "entropy_coef": 0.0})
    try:
        loss, _ = objective(policy_loss, alone, logprobs, logprobs.detach().exp(), tokens)
    except PluginError as error:
        raise ConfigError(
            f"{error} It was tried on made-up tokens; in the run it would fail at the first step."
        ) from error
    if not loss.requires_grad:
        raise ConfigError(
            f"{where} has no gradient on made-up tokens: what it returns does not depend on `logprobs`. Do not detach "
            "them, and leave out `torch.no_grad()`."
        )
