"""What a figure is, how its pairs are measured, and how figures are kept."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

PAIRS = int(os.environ.get("KANABO_BENCH_PAIRS", "5"))
"""Repetitions of each side; fewer to see whether a figure works at all."""

Side = Callable[[], float]
"""Does the work once and returns its rate."""


@dataclass(frozen=True)
class Figure:
    """Rates of our code and of a bare alternative, measured in pairs: `ours[i]` beside `other[i]`."""

    name: str
    unit: str
    """Of the rates; more is better."""
    ours: Sequence[float]
    other: Sequence[float]
    at_least: float | None = None
    """The ratio that is promised, if one is."""
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.ours) != len(self.other) or not self.ours:
            raise ValueError(f"{self.name}: {len(self.ours)} rates of ours beside {len(self.other)}; pairs are needed.")
        if min(*self.ours, *self.other) <= 0:
            raise ValueError(f"{self.name}: rates must be positive, not {self.ours} and {self.other}.")

    def row(self, *, commit: str, cores: int, load: float) -> dict[str, Any]:
        """As it is kept. `spread` is the lowest and the highest ratio of a pair, `load` the load average before."""
        ratios = [a / b for a, b in zip(self.ours, self.other, strict=True)]
        ratio = statistics.median(ratios)
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": rounded(statistics.median(self.ours)),
            "other": rounded(statistics.median(self.other)),
            "ratio": rounded(ratio),
            "spread": [rounded(min(ratios)), rounded(max(ratios))],
            "pairs": len(ratios),
            "at_least": self.at_least,
            "holds": None if self.at_least is None else ratio >= self.at_least,
            "details": {k: rounded(v) if isinstance(v, float) else v for k, v in self.details.items()},
            "load": rounded(load),
            "commit": commit,
            "cores": cores,
        }


def alternate(ours: Side, other: Side, pairs: int = PAIRS) -> tuple[list[float], list[float]]:
    """Rates of both sides, each warmed up once; who goes first changes from pair to pair."""
    ours(), other()
    found: dict[Side, list[float]] = {ours: [], other: []}
    for pair in range(pairs):
        for side in (ours, other) if pair % 2 == 0 else (other, ours):
            found[side].append(side())
    return found[ours], found[other]


async def alternate_here(ours: Callable[[], Awaitable[float]], other: Callable[[], Awaitable[float]]) -> Any:
    """`alternate` for coroutines, which stay in this event loop."""
    loop = asyncio.get_running_loop()

    def blocking(side: Callable[[], Any]) -> Side:
        return lambda: asyncio.run_coroutine_threadsafe(side(), loop).result()

    return await asyncio.to_thread(alternate, blocking(ours), blocking(other))


def merged(kept: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`new` rows in the place of those of the same name, others at the end; nothing else changes."""
    fresh = {row["name"]: row for row in new}
    known = [row["name"] for row in kept]
    return [fresh.get(row["name"], row) for row in kept] + [r for r in fresh.values() if r["name"] not in known]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as text, with the details of each below it."""
    lines = [f"{'':24}{'ours':>10}{'other':>10}  {'unit':<12}{'ratio':>7}  {'of pairs':<16}{'at least':>8}  holds"]
    for row in rows:
        low, high = row["spread"]
        floor = "" if row["at_least"] is None else f"{row['at_least']:g}"
        holds = {None: "", True: "yes", False: "NO"}[row["holds"]]
        rates = f"{row['ours']:>10g}{row['other']:>10g}  {row['unit']:<12}{row['ratio']:>7.3f}"
        lines.append(f"{row['name']:<24}{rates}  {f'{low:.3f} to {high:.3f}':<16}{floor:>8}  {holds}")
        told = ", ".join(f"{key} {value}" for key, value in row["details"].items())
        lines.append(
            f"{'':4}{row['pairs']} pairs, load {row['load']:g}, {row['commit']}" + (f"; {told}" if told else "")
        )
    return "\n".join(lines)


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")
