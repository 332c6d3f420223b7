"""How much is imitated and how much explored, by the policy's entropy (AMFT, arXiv:2508.06944)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, NonNegativeFloat

from learner.controllers.base import Controller

if TYPE_CHECKING:
    from cluster.types import AssembledBatch

LOWEST, HIGHEST = 0.05, 0.95


class Amft(Controller):
    """(1 − μ) · policy loss + μ · loss of `[learner.demonstrations]`, with μ ← clip(μ + η_H · (H* − H), 0.05, 0.95).

    A policy that is surer than H* imitates more. H is the mean −log-prob of the step's sampled tokens, which estimates
    their entropy at the sampling temperature; the released code takes H* from demonstrations. That code adds a
    look-ahead term η_m · ⟨∇L_val, g_SFT − g_RL⟩ · η every twenty steps, with the wrong sign and, at its rates, in the
    ninth decimal place (`balanced`); it is not measured here. The paper's record says that it is under investigation
    and that its authors asked to withdraw it: this is an idea to try, and none of its numbers is a target.
    """

    target_nats: NonNegativeFloat
    """H*: entropy of a token to hold."""
    rate: NonNegativeFloat = 5e-4
    """η_H: how far μ moves for a nat of entropy too much or too little."""
    start: float = Field(default=0.5, ge=LOWEST, le=HIGHEST)
    """μ before the first step; 0.8 in the released configuration."""

    def init_state(self) -> float:
        return self.start

    def update(self, state: float, batch: AssembledBatch) -> float:
        chosen = [r.logprobs[r.loss_mask] for group in batch.groups for r in group.rollouts]
        found = np.concatenate(chosen) if chosen else np.zeros(0)
        if not len(found):
            return state
        return balanced(state, self.target_nats, float(-found.mean()), rate=self.rate)

    def patch(self, state: float) -> dict[str, Any]:
        return {"learner.loss.coef": 1 - state, "learner.demonstrations.coef": state}


def balanced(
    mu: float,
    target: float,
    entropy: float,
    *,
    rate: float = 5e-4,
    inner: float = 0.0,
    lr: float = 1e-5,
    meta_rate: float = 1e-4,
    released: bool = False,
) -> float:
    """The next μ. `inner` is ⟨∇L_val, g_SFT − g_RL⟩; with `released` its term has the released code's sign, which
    raises the validation loss."""
    meta = meta_rate * lr * inner
    return float(np.clip(mu + (-meta if released else meta) + rate * (target - entropy), LOWEST, HIGHEST))
