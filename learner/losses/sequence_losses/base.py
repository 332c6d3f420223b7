"""What a loss term is: `[[learner.terms]]` adds it to the policy loss.

A term sees the whole step at once, one number per rollout (`SequenceStats`), so it chooses its divisor (pairs,
rollouts) and neither micro-batches nor ranks change its gradient. `sums` says how the gradient reaches the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cluster.errors import ConfigError, calling
from cluster.plugins import Plugin
from cluster.types import Batch
from learner.losses.sequence_sums import Credits, SequenceStats, sums_of
from learner.types import Engine


class LossTerm(Plugin):
    """Base of loss terms: a scalar of the step's sums, and metrics without gradient."""

    needs_pairs: ClassVar[bool] = False
    """Whether it has a use for pairs alone, which selectors make."""

    @property
    def needs_reference(self) -> bool:
        """Whether it looks at the reference model's log-probs."""
        return False

    @property
    def appended_token(self) -> int | None:
        """A token to put behind every rollout, whose log-prob it wants to know."""
        return None

    def loss(self, sums: SequenceStats) -> tuple[Float[Tensor, ""], dict[str, float]]:
        raise NotImplementedError

    def advantages(self, sums: SequenceStats) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]] | None:
        """(factor, addend) that turn each rollout's advantages into others, or None to leave them alone."""
        return None


class Terms:
    """All terms of a recipe, with their weights and names."""

    def __init__(self, terms: Sequence[tuple[str, float, LossTerm]]) -> None:
        self._terms = terms
        self.need_reference = any(t.needs_reference for _, _, t in terms)
        wanted = {t.appended_token for _, _, t in terms} - {None}
        if len(wanted) > 1:
            raise ConfigError(f"learner.terms want {sorted(wanted, key=str)} appended; a rollout can end in one token.")
        self.appended_token: int | None = next(iter(wanted), None)
        self.need_pairs = any(t.needs_pairs for _, _, t in terms)
        self.act_without_pairs = any(not t.needs_pairs for _, _, t in terms)

    def credits(self, batch: Batch, engine: Engine, references: Sequence[Tensor | None]) -> Credits:
        """What each rollout's tokens are to be credited with. Collective if there is any term.

        `references` are the reference model's log-probs of each micro-batch at temperature 1, if there is one.
        """
        if not self._terms:
            return _NOTHING
        sums = sums_of(batch, engine, references)
        total = torch.zeros((), dtype=torch.float64)
        factor, addend = torch.ones_like(sums.behaviour), torch.zeros_like(sums.behaviour)
        metrics: dict[str, float] = {}
        for name, coef, term in self._terms:
            with calling(f"learner.terms: '{name}'"):
                loss, found = term.loss(sums)
                changed = term.advantages(sums)
            total = total + coef * loss
            metrics |= {f"loss/{name}": float(loss.detach()), **found}
            if changed is not None:
                factor, addend = factor * changed[0].detach(), addend * changed[0].detach() + changed[1].detach()
        leaves = [sums.logprobs, sums.sampled, sums.weighted, sums.appended]
        # A step without pairs may hang on nothing: the 0 keeps it differentiable.
        total = total + 0 * sums.logprobs.sum()
        found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        by_sum, by_sampled, by_weighted, by_appended = found
        return Credits(by_sum, by_sampled, by_weighted, by_appended, factor, addend, metrics)


_EMPTY = torch.zeros(0)
_NOTHING = Credits(_EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY)
NO_TERMS = Terms(())
