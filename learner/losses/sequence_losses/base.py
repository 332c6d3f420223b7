"""What a loss term is: `[[learner.sequence_losses]]` adds it to the policy loss.

A term sees the whole step at once, one number per rollout (`SequenceStats`), so it chooses its divisor (pairs,
rollouts) and neither micro-batches nor ranks change its gradient. `sums` says how the gradient reaches the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cluster.errors import ConfigError, calling
from cluster.plugins import Plugin
from cluster.types import Batch, Group, Message, MicroBatch, Rollout
from learner.losses.sequence_sums import Credits, Pairs, SequenceStats, sums_of
from learner.pack import TokenBatch, at_temperature_one
from learner.step_plugin import Outputs, StepPlugin, Update
from learner.types import Engine, ReferenceModel


@dataclass(frozen=True, slots=True)
class Question:
    """A sequence that a term brings: messages, and the reply whose log-prob behind them it reads."""

    messages: tuple[Message, ...]
    reply: str
    """As the policy would begin its turn; nothing ends it."""


class LossTerm(Plugin):
    """Base of loss terms: a scalar of the step's sums, and metrics without gradient."""

    needs_pairs: ClassVar[bool] = False
    """Whether it has a use for pairs alone, which selectors make."""
    asks: ClassVar[bool] = False
    """Whether it brings sequences of its own (`questions`)."""

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

    def questions(self, rollouts: Sequence[tuple[Group, Rollout]], pairs: Pairs) -> Sequence[Question]:
        """The M sequences that it brings, made of the N rollouts of a mini-batch: `SequenceStats.brought` has their
        log-probs. Every rank asks the same ones. Called where `asks`."""
        return ()

    def advantages(self, sums: SequenceStats) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]] | None:
        """(factor, addend) that turn each rollout's advantages into others, or None to leave them alone."""
        return None


class Terms(StepPlugin):
    """All terms of a recipe, with their names and weights, in the training step.

    Those that bring sequences of their own (`LossTerm.asks`) are evaluated by `AskingTerms`, which can write them.
    """

    total: ClassVar[str] = "loss/sequence"

    def __init__(self, terms: Sequence[tuple[str, float, LossTerm]]) -> None:
        self._terms, self._credits = [term for term in terms if not term[2].asks], _NOTHING
        self._references: list[Sequence[Tensor | None]] = []
        self.needs_reference = any(t.needs_reference for _, _, t in terms)
        wanted = {t.appended_token for _, _, t in terms} - {None}
        if len(wanted) > 1:
            raise ConfigError(
                f"learner.sequence_losses want {sorted(wanted, key=str)} appended; a rollout can end in one token."
            )
        self.appended_token = next(iter(wanted), None)
        self.need_pairs = any(t.needs_pairs for _, _, t in terms)
        self.uses_equal_rewards = any(not t.needs_pairs for _, _, t in terms)

    def before_updates(self, updates: Sequence[Update], engine: Engine, reference: ReferenceModel | None) -> None:
        """Read the reference model at temperature 1, as preference losses are defined."""
        self._references = [update.references for update in updates]
        for update in updates:
            if update.batch.tempered and self._read_reference and reference is not None:
                micros = map(at_temperature_one, update.batch.micros)
                self._references[update.number] = [reference.logprobs(micro) for micro in micros]

    @property
    def _read_reference(self) -> bool:
        return any(term.needs_reference for _, _, term in self._terms)

    def before_update(self, update: Update, engine: Engine, reference: ReferenceModel | None) -> dict[str, float]:
        """Differentiate the terms by each rollout's sums, which is one pass over the mini-batch without gradient."""
        self._credits = self.credits(update.batch, engine, self._references[update.number])
        return self._credits.metrics

    def change_tokens(self, update: Update, micro: MicroBatch, tokens: TokenBatch) -> TokenBatch:
        return self._credits.applied(micro, tokens)

    def loss(self, update: Update, i: int, tokens: TokenBatch, outputs: Outputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the terms through log-probs at the sampling temperature, which may be those at temperature 1 too."""
        at_one = None if update.batch.tempered else outputs.logprobs
        return self._credits.surrogate(update.batch.micros[i], at_one, outputs.logprobs), {}

    def further_losses(self, update: Update, micro: MicroBatch, engine: Engine) -> Iterator[Tensor]:
        """Yield the terms through log-probs at temperature 1, where tokens were sampled at another one.

        They need a second pass and not a second look at the logits, which are the largest tensor of a step.
        """
        if update.batch.tempered and self._terms:
            yield self._credits.surrogate(micro, engine.logprobs(at_temperature_one(micro))[0], None)

    def credits(self, batch: Batch, engine: Engine, references: Sequence[Tensor | None]) -> Credits:
        """What each rollout's tokens are to be credited with. Collective if there is any term.

        `references` are the reference model's log-probs of each micro-batch at temperature 1, if there is one.
        """
        if not self._terms:
            return _NOTHING
        return self._differentiated(sums_of(batch, engine, references), {})[0]

    def _differentiated(
        self, sums: SequenceStats, brought: Mapping[int, tuple[Tensor, Tensor]]
    ) -> tuple[Credits, list[Tensor]]:
        """The credits, and the terms' derivatives by what each of them brought: by place, log-probs and whether they
        are known."""
        total = torch.zeros((), dtype=torch.float64)
        factor, addend = torch.ones_like(sums.behaviour), torch.zeros_like(sums.behaviour)
        metrics: dict[str, float] = {}
        for place, (name, coef, term) in enumerate(self._terms):
            logprobs, known = brought.get(place, (sums.brought, sums.has_brought))
            own = replace(sums, brought=logprobs, has_brought=known)
            with calling(f"learner.sequence_losses: '{name}'"):
                loss, found = term.loss(own)
                changed = term.advantages(own)
            total = total + coef * loss
            metrics |= {f"loss/{name}": float(loss.detach()), **found}
            if changed is not None:
                factor, addend = factor * changed[0].detach(), addend * changed[0].detach() + changed[1].detach()
        leaves = [sums.logprobs, sums.sampled, sums.weighted, sums.appended, *(found for found, _ in brought.values())]
        metrics[self.total] = float(total.detach())
        # A step without pairs may hang on nothing: the 0 keeps it differentiable.
        total = total + 0 * sums.logprobs.sum()
        found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        by_sum, by_sampled, by_weighted, by_appended, *by_brought = found
        return Credits(by_sum, by_sampled, by_weighted, by_appended, factor, addend, metrics), by_brought


_EMPTY = torch.zeros(0)
_NOTHING = Credits(_EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY)
