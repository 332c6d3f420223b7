"""PPO's critic: a value head on the policy, and what it makes of a step's rewards. After the cut, on every rank.

    micros ─► values and log-probs, no gradient ─► token rewards ─► GAE per rollout ─► whitened over the step ─► update

A cut records rewards; these advantages follow from the record and the weights at the cut, so a repeated step gets them
again to the last bit, and nobody stores them. A rollout lies in one row of one rank, so packing changes nothing.

Turns: a rollout is the sequence of the tokens that the policy chose, whatever the environment said in between. The
state after a turn's last token is the one in which the next turn's first token is chosen: the answer of the environment
is read before the value is, and costs neither discount nor λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cluster.config import ValueSection
from cluster.types import Batch, Micro
from learner.kl import kl_to_reference
from learner.tokens import Tokens
from learner.values import clipped_value_loss, generalized_advantages, token_rewards

EPS = 1e-8


class ValueHead(nn.Module):
    """A causal LM and the value of every state in it. Starts at 0: the first step's advantages are the returns."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        head = policy.get_output_embeddings()
        self.value_head = nn.Linear(head.in_features, 1, dtype=head.weight.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.config = policy.config
        self._hidden: Tensor | None = None
        self._values: Tensor | None = None
        # Ahead of the row selection, which leaves the trained positions alone: what a turn ends with is valued too.
        head.register_forward_pre_hook(self._keep, prepend=True)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._hidden = args[0]

    def forward(self, **inputs: Any) -> Any:
        output = self.policy(**inputs)
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        self._values = self.value_head(hidden).squeeze(-1).float()
        # Part of the output: DeepSpeed clears bf16 gradients when the first gradient reaches an output that it knows.
        output["state_values"] = self._values
        return output

    def values(self, micro: Micro) -> Float[Tensor, "B L+1"]:
        """Of the micro-batch that was just run, once: at t of the state in which token t is chosen.

        The last column is the state after a row's last token; the first is no state, and 0.
        """
        after, self._values = self._values, None
        assert after is not None
        return nn.functional.pad(after.view(micro.tokens.shape), (1, 0))


class Valuer(Protocol):
    """The part of the engine that a critic uses."""

    def logprobs_and_values(self, micro: Micro) -> tuple[Tensor, Tensor, Tensor]: ...
    def total(self, values: dict[str, float]) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True)
class Targets:
    """What the value head learns on one micro-batch, [B, L]; 0 where nothing is trained."""

    old_values: Float[np.ndarray, "B L"]
    returns: Float[np.ndarray, "B L"]


@dataclass(frozen=True, slots=True)
class Credited:
    """A rank's micro-batches with generalised advantages, and what the value head learns on each."""

    micros: list[Micro]
    targets: list[Targets]
    metrics: dict[str, float]
    section: ValueSection

    def split(self, batches: Sequence[Batch]) -> list[Credited]:
        """The part of each of the mini-batches that `whole_batch` joined, its rollouts numbered as there."""
        parts, start = [], 0
        for batch in batches:
            own = slice(start, start + len(batch.micros))
            micros = [
                replace(micro, advantages=found.advantages)
                for micro, found in zip(batch.micros, self.micros[own], strict=True)
            ]
            parts.append(replace(self, micros=micros, targets=self.targets[own]))
            start += len(batch.micros)
        return parts

    def value_loss(self, i: int, values: Float[Tensor, "B L+1"], tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Micro-batch i's term of the objective, a sum, and metrics as sums over trained tokens."""
        target = self.targets[i]
        old, returns = (torch.as_tensor(a, device=values.device) for a in (target.old_values, target.returns))
        loss, metrics = clipped_value_loss(
            values[:, :-1], old, returns, tokens.loss_mask, tokens.weight, clip=self.section.clip
        )
        return self.section.coef * loss, {"loss/value": loss.detach(), **metrics}


def credit(batch: Batch, section: ValueSection, engine: Valuer, references: Sequence[Tensor | None]) -> Credited:
    """Values under the weights at hand, and what follows from them and the rewards. Collective.

    A value that is not finite makes its rollout's advantages NaN: the update is then skipped, with a count.
    """
    micros, targets = [], []
    for micro, reference in zip(batch.micros, references, strict=True):
        with torch.no_grad():
            logprobs, _, values = engine.logprobs_and_values(micro)
        penalty = _penalty(logprobs, reference, micro, section)
        advantages, target = _credit_micro(micro, values.double().cpu().numpy(), penalty, batch, section)
        micros.append(replace(micro, advantages=advantages))
        targets.append(target)
    found = _explained(micros, targets, engine)
    if section.whiten:
        micros = _whitened(micros, engine)
    micros = [replace(m, advantages=m.advantages.astype(np.float32)) for m in micros]
    return Credited(micros, targets, found, section)


def _penalty(
    logprobs: Tensor, reference: Tensor | None, micro: Micro, section: ValueSection
) -> Float[np.ndarray, "B L"] | None:
    if not section.reward_kl_coef or reference is None:
        return None
    mask = torch.as_tensor(micro.loss_mask.copy(), device=logprobs.device)
    return section.reward_kl_coef * kl_to_reference(logprobs, reference, mask, "k1").double().cpu().numpy()


def _credit_micro(
    micro: Micro,
    values: Float[np.ndarray, "B L+1"],
    penalty: Float[np.ndarray, "B L"] | None,
    batch: Batch,
    section: ValueSection,
) -> tuple[Float[np.ndarray, "B L"], Targets]:
    advantages, returns = np.zeros(micro.tokens.shape), np.zeros(micro.tokens.shape)
    old_values = np.where(micro.loss_mask, values[:, :-1], 0.0)
    for row in range(len(micro.tokens)):
        for number in np.unique(micro.rollout[row][micro.loss_mask[row]]):
            mine = micro.rollout[row] == number
            chosen = np.flatnonzero(mine & micro.loss_mask[row])
            rewards = token_rewards(
                float(batch.rewards[number]), len(chosen), None if penalty is None else penalty[row, chosen]
            )
            goes_on = section.bootstrap_truncated and batch.truncated[number]
            at_cut = float(values[row, np.flatnonzero(mine)[-1] + 1]) if goes_on else None
            known = np.isfinite(values[row, chosen]).all() and np.isfinite(at_cut or 0.0) and np.isfinite(rewards).all()
            if known:
                found = generalized_advantages(
                    rewards, values[row, chosen], gamma=section.gamma, lam=section.lam, value_at_cut=at_cut
                )
            else:
                found = np.full(len(chosen), np.nan), np.full(len(chosen), np.nan)
            advantages[row, chosen], returns[row, chosen] = found
    return advantages, Targets(old_values.astype(np.float32), returns.astype(np.float32))


def _whitened(micros: Sequence[Micro], engine: Valuer) -> list[Micro]:
    """Advantages as standard scores of the step's trained tokens, all ranks'; fewer than two are left as they are."""
    of_tokens = [m.advantages[m.loss_mask] for m in micros]
    sums = engine.total({"count": float(sum(map(len, of_tokens))), "sum": float(sum(a.sum() for a in of_tokens))})
    count, mean = sums["count"], sums["sum"] / max(sums["count"], 1.0)
    # Centred before it is squared: a mean far from 0 would drown the deviation.
    square = engine.total({"square": float(sum(((a - mean) ** 2).sum() for a in of_tokens))})["square"]
    if count < 2:
        return list(micros)
    scale = np.sqrt(square / (count - 1)) + EPS
    return [replace(m, advantages=np.where(m.loss_mask, (m.advantages - mean) / scale, 0.0)) for m in micros]


def _explained(micros: Sequence[Micro], targets: Sequence[Targets], engine: Valuer) -> dict[str, float]:
    """Means of values and returns under the weights at the cut, and the share of the returns' variance explained."""
    pairs = [(t.returns[m.loss_mask], t.old_values[m.loss_mask]) for m, t in zip(micros, targets, strict=True)]
    returns, values = (np.concatenate([np.zeros(0), *column]) for column in zip(*pairs, strict=True))
    sums = engine.total({"n": float(len(returns)), "returns": float(returns.sum()), "values": float(values.sum())})
    count = max(sums["n"], 1.0)
    mean, mean_value = sums["returns"] / count, sums["values"] / count
    residual, spread = returns - values - (mean - mean_value), returns - mean
    squares = engine.total({"left": float((residual**2).sum()), "all": float((spread**2).sum())})
    found = {"value/mean": mean_value, "value/return_mean": mean}
    if squares["all"] > 0:
        found["value/explained_variance"] = 1 - squares["left"] / squares["all"]
    return found
