"""The learner's half of the log-prob probe: a fixed sequence whose log-probs travel with every publication.

An engine asks itself for the same tokens after each update. The sequence is longer than two cache blocks (128 tokens
on CPU) and always the same, so an engine that still reads a cache or a packed matrix of old weights gives itself away.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from cluster.types import LogprobProbe, MicroBatch

PROBE_TOKENS = 290
NUM_CUTS = 4


class Scorer(Protocol):
    def logprobs(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]: ...


class Probe:
    """Seeded tokens and the positions at which they are compared."""

    def __init__(self, vocab_size: int, max_model_len: int, seed: int = 0) -> None:
        length = min(PROBE_TOKENS, max_model_len - 1)
        self._tokens = np.random.default_rng(seed).integers(0, vocab_size, length)
        self._cuts = np.linspace(length * 0.9, length - 1, NUM_CUTS).astype(int)

    def measure(self, engine: Scorer) -> LogprobProbe:
        """Return log-probs (nats, temperature 1) under the current weights. Collective."""
        row = self._tokens[None]
        ones, none = np.ones(row.shape, np.float32), np.zeros(row.shape, np.float32)
        micro = MicroBatch(
            tokens=row,
            positions=np.arange(row.shape[1])[None],
            loss_mask=np.arange(row.shape[1])[None] > 0,
            logprobs=none,
            advantages=none,
            temperature=ones,
            rollout=np.zeros(row.shape, np.int64),
            staleness=np.zeros(row.shape, np.int64),
        )
        with torch.no_grad():
            logprobs = engine.logprobs(micro)[0][0]
        compared = logprobs[torch.as_tensor(self._cuts)].tolist()
        return LogprobProbe(tuple(self._tokens.tolist()), tuple(self._cuts.tolist()), tuple(compared))
