"""Judges around judges: both orders, several samples, the archive, several judges, a shuffled order.

They compose: `Vote(Swap(Cached(pool)), k=3)`. What one of them cannot make out of its parts is `failed`; an unknown
part is never counted as a value.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import numpy as np

from cluster.types import ABSTAINED
from rewards.judges.errors import Declined, Unreadable
from rewards.judges.metrics import JudgeMetrics
from rewards.judges.pool.pool import JudgePool
from rewards.judges.protocol import verdict_from
from rewards.judges.statistics import agreed, averaged, debiased, majority, win_posterior, winner
from rewards.judges.templates import Template
from rewards.judges.types import Judge, Request, Verdict, merged

SAME = 0.125
"""Share of a scale: answers that differ by less agree; half a level of five."""


class Swap:
    """Asks about a pair in both orders."""

    def __init__(self, judge: Judge, combine: Literal["probability", "log_odds", "winner"] = "probability") -> None:
        """`log_odds` removes any additive position offset, `winner` is 1, 0 or, if the orders disagree, 0.5."""
        self.name, self.metrics = judge.name, judge.metrics
        self._judge, self._combine = judge, combine

    async def ask(self, request: Request) -> Verdict:
        item = request.item
        assert len(item.responses) == 2, f"{len(item.responses)} responses cannot be swapped"
        swapped = replace(request, item=replace(item, responses=item.responses[::-1]))
        verdicts = await asyncio.gather(self._judge.ask(request), self._judge.ask(swapped))
        if unknown := _unknown(verdicts):
            return unknown
        one, other = verdicts
        p_12, p_21 = one.values[0], other.values[0]
        self.metrics.orders(p_12, p_21)
        if self._combine == "winner":
            value = agreed(p_12, p_21)
        elif self._combine == "log_odds" and math.isfinite(one.log_odds) and math.isfinite(other.log_odds):
            value, _ = debiased(one.log_odds, -other.log_odds)
        else:
            value, _ = averaged(p_12, p_21)
        return merged(verdicts, (value,))


class Shuffled:
    """Shows the responses in an order drawn from the request's own hash, and sorts the answer back (SPCT)."""

    def __init__(self, judge: Judge) -> None:
        self.name, self.metrics = judge.name, judge.metrics
        self._judge = judge

    async def ask(self, request: Request) -> Verdict:
        item, n = request.item, len(request.item.responses)
        order = np.random.default_rng(int(request.key(self.name)[:15], 16)).permutation(n)
        shown = replace(request, item=replace(item, responses=tuple(item.responses[i] for i in order)))
        verdict = await self._judge.ask(shown)
        if not verdict.scored:
            return verdict
        if request.num_values == 1:
            (p,) = verdict.values
            return verdict if n == 1 or order[0] == 0 else replace(verdict, values=(1 - p,), log_odds=-verdict.log_odds)
        return replace(verdict, values=tuple(float(verdict.values[i]) for i in np.argsort(order)))


class Vote:
    """k samples of the same question: their mean, or the majority of winners."""

    def __init__(
        self, judge: Judge, k: int, combine: Literal["mean", "majority"] = "mean", *, confidence: float | None = None
    ) -> None:
        """With a `confidence` a pair is asked about one sample at a time, until P(win rate > ½) or its opposite
        exceeds it, or k are spent."""
        assert k >= 1
        self.name, self.metrics = judge.name, judge.metrics
        self._judge, self._k, self._combine, self._confidence = judge, k, combine, confidence

    async def ask(self, request: Request) -> Verdict:
        samples = [replace(request, sample=request.sample * self._k + i) for i in range(self._k)]
        if self._confidence is None:
            verdicts = await asyncio.gather(*map(self._judge.ask, samples))
        else:
            verdicts = await self._until_sure(samples, self._confidence)
        valid = [v for v in verdicts if v.scored]
        self.metrics.agreement(_agreement(request.template, valid))
        if not valid:
            return _unknown(verdicts) or verdicts[0]
        columns = zip(*(v.values for v in valid), strict=True)
        combine = majority if self._combine == "majority" else np.mean
        return merged(valid, tuple(float(combine(column)) for column in columns))

    async def _until_sure(self, samples: Sequence[Request], confidence: float) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for sample in samples:
            verdicts.append(await self._judge.ask(sample))
            winners = [winner(v.values[0]) for v in verdicts if v.scored]
            p = win_posterior(winners.count("first"), winners.count("second"))
            if max(p, 1 - p) > confidence:
                break
        return verdicts


class Cached:
    """Answers from the archive what its pool was asked before, whenever that was; the raw answer is read anew."""

    def __init__(self, pool: JudgePool) -> None:
        self.name, self.metrics = pool.name, pool.metrics
        self._pool = pool

    async def ask(self, request: Request) -> Verdict:
        records = await self._pool.archive.get(self._pool.key(request))
        for record in reversed(records):
            try:
                verdict = verdict_from(request, record.completions)
            except (Unreadable, Declined):
                continue
            self.metrics.hits += 1
            return replace(verdict, judge=self.name, attempt=record.attempt, cached=True)
        return await self._pool.ask(request)


class Ensemble:
    """Several judges, each of its own family: the mean of their answers."""

    def __init__(self, name: str, judges: Sequence[Judge], *, min_valid: int | None = None) -> None:
        """With fewer than `min_valid` answers (all, if None) there is none: other judges are another scale."""
        assert judges
        self.name, self.metrics = name, JudgeMetrics(name)
        self._judges, self._min_valid = judges, len(judges) if min_valid is None else min_valid

    async def ask(self, request: Request) -> Verdict:
        verdicts = await asyncio.gather(*(judge.ask(request) for judge in self._judges))
        valid = [v for v in verdicts if v.scored]
        self.metrics.agreement(_agreement(request.template, valid))
        if len(valid) < max(1, self._min_valid):
            return _unknown(verdicts) or verdicts[0]
        columns = zip(*(v.values for v in valid), strict=True)
        return merged(valid, tuple(float(np.mean(column)) for column in columns))


def _unknown(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The failure among these, or else the abstention; None if all are scored."""
    unknown = sorted((v for v in verdicts if not v.scored), key=lambda v: v.state == ABSTAINED)
    return merged(unknown[:1], unknown[0].values, unknown[0].note) if unknown else None


def _agreement(template: Template, verdicts: Sequence[Verdict]) -> list[bool]:
    if template.num_responses == 2:
        return [winner(a.values[0]) == winner(b.values[0]) for a, b in combinations(verdicts, 2)]
    lowest, highest = template.bounds
    spread = SAME * (highest - lowest)
    return [bool(np.mean(np.abs(np.subtract(a.values, b.values))) <= spread) for a, b in combinations(verdicts, 2)]
