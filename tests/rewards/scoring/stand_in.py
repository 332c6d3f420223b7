"""A scorer whose distributions are given, not computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rewards.base import Services
from rewards.scorers.pool import LogprobScorer
from rewards.scorers.types import TokenSequence, TokenStats

Read = Callable[[TokenSequence], TokenStats]


def reading_of(probabilities: Sequence[Sequence[float]], tokens: Sequence[int], version: str = "1.3") -> TokenStats:
    """Of [N + 1][V] probabilities, all above 0."""
    p = np.array(probabilities, np.float64)
    logs = np.log(p)
    return TokenStats(
        np.array([logs[i, t] for i, t in enumerate(tokens)]),
        -(p * logs).sum(1),
        logs.sum(1),
        np.empty((len(p), 0)),
        p.shape[1],
        version,
    )


def of_logprobs(logprobs: Sequence[float], version: str = "1.3") -> TokenStats:
    values = np.array(logprobs, np.float64)
    unknown = np.full(len(values) + 1, np.nan)
    return TokenStats(values, unknown, unknown, np.empty((len(values) + 1, 0)), 4, version)


class Given:
    """A replica that says what `read` says; keeps what it was asked."""

    def __init__(self, read: Read) -> None:
        self._read, self.asked = read, []

    async def read(self, passages: Sequence[TokenSequence], timeout_s: float) -> list[TokenStats]:
        self.asked.append(list(passages))
        return [self._read(p) for p in passages]


async def services_with(read: Read, name: str = "scorer") -> tuple[Services, Given]:
    scorer, replica = LogprobScorer(name, deadline_s=5), Given(read)
    scorer.set({f"scorer:{name}-0": replica})
    return Services(scorers={name: scorer}), replica
