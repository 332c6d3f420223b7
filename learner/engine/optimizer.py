"""Optimizers and the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from cluster.config import LearnerSection, ScheduleSection
from learner.engine.value_head import ValueHead


def lr_at(step: int, schedule: ScheduleSection, steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of `steps`.

    Warm-up rises linearly to `lr`, reached at step `warmup_steps − 1`; the decay after it ends at `min_lr_frac · lr`
    one step past the last.
    """
    if step < schedule.warmup_steps:
        return schedule.lr * (step + 1) / schedule.warmup_steps
    done = min(1.0, (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps))
    left = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2}[schedule.decay]
    return schedule.lr * (schedule.min_lr_frac + (1.0 - schedule.min_lr_frac) * left)


class Guarded(torch.optim.Optimizer):
    """Mixin: clip to `max_norm` (0 is off) and leave parameters and state alone when the norm is not finite."""

    max_norm = 0.0
    grad_norm = 0.0
    skipped = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self.grad_norm = float(norm)
        self.skipped = not math.isfinite(self.grad_norm)
        if self.skipped:
            return
        if 0 < self.max_norm < self.grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_norm, norm)
        super().step(closure)


class GuardedAdamW(Guarded, torch.optim.AdamW):
    pass


class GuardedSGD(Guarded, torch.optim.SGD):
    pass


def parameter_groups(
    policy: torch.nn.Module, critic: ValueHead | None, section: LearnerSection
) -> tuple[list[dict[str, Any]], list[float]]:
    """The optimizer's groups and each one's rate as a multiple of the schedule's: the policy, and a value head."""
    groups, rates = [{"params": [p for p in policy.parameters() if p.requires_grad]}], [1.0]
    if critic is not None and section.value is not None:
        groups.append({"params": list(critic.value_head.parameters())})
        rates.append((section.value.lr or section.schedule.lr) / section.schedule.lr)
    return groups, rates


def make_optimizer(parameters: Iterable[Any], section: LearnerSection, *, guarded: bool) -> torch.optim.Optimizer:
    """What the recipe names. Unguarded where DeepSpeed's ZeRO clips and skips by itself."""
    if section.optimizer == "sgd":
        kind: Any = GuardedSGD if guarded else torch.optim.SGD
        options: dict[str, Any] = {}
    else:
        kind = GuardedAdamW if guarded else torch.optim.AdamW
        # On a CPU one pass over the memory in place of twelve. A GPU's has its count of steps on the device, where
        # `OptimizerState` does not restore it.
        options = {"betas": section.betas, "eps": section.eps, "fused": not torch.cuda.is_available()}
    optimizer = kind(parameters, lr=section.schedule.lr, weight_decay=section.weight_decay, **options)
    if guarded:
        optimizer.max_norm = section.clip_grad_norm
    return optimizer
