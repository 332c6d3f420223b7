"""Rollouts as passages: what the policy wrote, behind the prompt it was asked with or behind another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from cluster.types import ABSTAINED, SCORED, Message, Provenance, Rollout, Scores
from rewards.scorers.types import TokenSequence, TokenStats


def passage_of(rollout: Rollout, prompt: tuple[Message, ...] | None = None) -> TokenSequence:
    """All that follows the rollout's prompt, later observations included; behind `prompt` instead if there is one."""
    start = prompt_length(rollout)
    return TokenSequence(rollout.tokens[:start] if prompt is None else prompt, rollout.tokens[start:])


def prompt_length(rollout: Rollout) -> int:
    """Tokens before the first that the policy chose; all where it chose none."""
    return int(rollout.loss_mask.argmax()) if rollout.loss_mask.any() else len(rollout.tokens)


def chosen(rollout: Rollout) -> Bool[np.ndarray, " N"]:
    """Which tokens of its passage the policy chose."""
    return rollout.loss_mask[prompt_length(rollout) :]


def without_query(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return a conversation with every user's message emptied."""
    return tuple(replace(m, content="") if m.role == "user" else m for m in messages)


def scores_of(values: Float[np.ndarray, " G"], scorer: str, readings: Sequence[TokenStats]) -> Scores:
    """Scores of a group from values of which NaN abstains.

    Their provenance names the model and the version that read. Their own version does not: a live policy's would have
    every group read anew at each step, and the first reading is the one nearest to the weights that sampled.
    """
    state = np.where(np.isfinite(values), SCORED, ABSTAINED).astype(np.uint8)
    tokens = sum(len(reading.entropy) for reading in readings)
    model = readings[0].model if readings else ""
    provenance = Provenance(judge=f"scorer:{scorer}", model=model, cost_tokens=tokens)
    return Scores(np.asarray(values, np.float64), state, (provenance,))
