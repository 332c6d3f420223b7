"""`[[controllers]]`, which change a run while it goes on, and what neither they nor generators can stand beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.config.base import Use

if TYPE_CHECKING:
    from cluster.config.run_config import RunConfig


class ControllerSection(Use):
    """`[[controllers]]`: what changes settings of the running job between steps. What holds in a step is part of its
    batch's record and of its metrics (`settings/…`); a checkpoint has what a controller remembers."""


def check_steering(config: RunConfig) -> None:
    """Raises ValueError for what no run can have."""
    if config.generators and (config.learner.loss.coef or config.policies):
        raise ValueError(
            f"learner.loss.coef = {config.learner.loss.coef:g} beside [generators]: what they write is not the "
            "policy's, and a policy gradient must not follow it. Set learner.loss.coef = 0 and train on pairs, in a "
            "run of one policy."
        )
    if config.controllers and config.weights.transport == "nccl":
        raise ValueError(
            "weights.transport = 'nccl' has no place for what [[controllers]] change in rollouts. Set "
            'weights.transport = "pull".'
        )
