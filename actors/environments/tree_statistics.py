"""Numbers that tree searches keep of their nodes: who is visited next, and what a node is worth. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from actors.environments.search import Node

NAN = float("nan")


@dataclass(slots=True)
class Visited:
    """A node of a search with what the search has learnt of it."""

    node: Node
    value: float
    """V of ReST-MCTS*; of AlphaLLM the sum of rewards that came from at or below the node, Q."""
    visits: int = 0
    children: list[Visited] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Q / N, 0 before the first visit."""
        return self.value / self.visits if self.visits else 0.0

    def below(self) -> list[Visited]:
        """Return the node and all nodes below it."""
        return [self, *(found for child in self.children for found in child.below())]


def uct(value: float, parent_visits: int, visits: int, exploration: float, factor: float = 2.0) -> float:
    """v + c √(factor · ln N_parent / N), in the units of the value.

    ReST-MCTS* (arXiv:2406.03816) has the factor 2 and v = V, AlphaLLM (arXiv:2404.12253) the factor 1 and v = Q / N.
    """
    return value + exploration * math.sqrt(factor * math.log(max(1, parent_visits)) / visits)


def weighted_value(children: Sequence[tuple[float, int]]) -> float:
    """Σ N_c V_c / Σ N_c of children (V_c, N_c); NaN where none was visited (ReST-MCTS*, arXiv:2406.03816)."""
    visits = sum(n for _, n in children)
    return sum(v * n for v, n in children) / visits if visits else NAN


def importance(means: Sequence[float]) -> float:
    """max_c |q_c − mean q| over children: how much the choice among them matters (AlphaLLM, arXiv:2404.12253)."""
    if not means:
        return 0.0
    mean = sum(means) / len(means)
    return max(abs(q - mean) for q in means)


def allowance(current: int, found: float, kappa: float, most: int = 10) -> int:
    """max(current, min(⌊κ I⌋, most)): children that a node of importance I may have (AlphaLLM, arXiv:2404.12253)."""
    return max(current, min(int(kappa * found), most))


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and substitutions of characters between two texts."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row, before = [i], row
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
    return row[-1]


def first_of_best(found: Sequence[Visited], key: Callable[[Visited], float], random: Random) -> Visited:
    """Return the node of the highest key; equal ones are drawn from."""
    highest = max(map(key, found))
    return random.choice([one for one in found if key(one) == highest])
