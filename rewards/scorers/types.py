"""What a scorer is asked and what it says: a text read by a model that is told every token (teacher forcing).

TokenSequence ─► LogprobScorer (replicas) ─► ScoringServer (a queue, batches) ─► Forward (the model) ─► TokenStats
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cluster.errors import InfrastructureError
from cluster.types import Message

INITIAL = "initial"
LIVE = re.compile(r"\d+\.(\d+)")


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """N tokens to be scored behind a prompt."""

    prompt: np.ndarray | tuple[Message, ...]
    """[P] token ids, or messages that the model's chat template makes a prompt of, ready for an answer. Where nothing
    is left of it, as of an empty message without a template, the model's first token of a sequence stands there."""
    tokens: np.ndarray
    """[N] token ids."""
    choices: tuple[int, ...] = ()
    """K token ids whose log-prob is wanted at every place."""


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Float64 arrays in nats, at temperature 1. Place i < N is the distribution that token i was chosen from; place N
    is the one behind the last token.
    """

    logprobs: np.ndarray
    """[N] of the tokens."""
    entropy: np.ndarray
    """[N + 1]."""
    sum_logprobs: np.ndarray
    """[N + 1] sum of the log-probs of the whole vocabulary."""
    choices: np.ndarray
    """[N + 1, K] log-probs."""
    vocabulary: int
    """V, as the model is configured."""
    version: str
    """`epoch.step` of the live policy's weights; else the model's name, such as `initial` or `policy@40`."""

    @property
    def model(self) -> str:
        """Return the model whose weights read, as provenance names it."""
        return f"policy@{self.version}" if LIVE.fullmatch(self.version) else self.version

    @property
    def is_initial(self) -> bool:
        """Whether these are the weights that the run began with."""
        live = LIVE.fullmatch(self.version)
        return self.version == INITIAL or bool(live and live[1] == "0")


class ScorerUnavailable(InfrastructureError):
    """No scorer answered in time, or none is up."""


class ScorerReplica(Protocol):
    """One process that reads."""

    async def read(self, passages: Sequence[TokenSequence], timeout_s: float) -> list[TokenStats]:
        """All under the same weights. Raises ScorerUnavailable, or DataError for what the model cannot read."""
        ...
