"""Shared prefixes: the sequences of a group as a tree of tokens, whose every branch a model computes once.

    prompt a b c ─┬─ d e        row     prompt a b c d e f g h
                  └─ f ─┬─ g    ends       8   8 8 8 5 5 8 7 8
                        └─ h

A row holds the tree in preorder. Token q descends from token k where k ≤ q < ends[k], which is all that the mask needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from cluster.types import SharedRows

LINEAR_COST = 1000
"""What a token costs in all matrices of a layer, in the unit of attention to one token: 6 times the hidden size by
operations (24·d² to 4·d). This is the cost in a small model; the larger one is, the more it gains by sharing."""


@dataclass(frozen=True, slots=True)
class TreeRow:
    """Sequences of one group as a tree."""

    tokens: Int[np.ndarray, " W"]
    positions: Int[np.ndarray, " W"]
    ends: Int[np.ndarray, " W"]
    paths: dict[int, Int[np.ndarray, " L"]]
    """Number of a sequence → the column of each of its tokens."""


def tree_rows(sequences: Sequence[Int[np.ndarray, " L"]], numbers: Iterable[int], capacity: int) -> Iterator[TreeRow]:
    """Yield the sequences of these numbers as trees of at most `capacity` tokens; a longer sequence is a tree alone.

    Trees are smaller where that costs less. Attention under a mask computes the whole square of a row, so of k trees of
    a prefix P with S tokens behind it a token costs `LINEAR_COST` + P + S/k, and there are k·P + S of them: least where
    S/k = √(P·(LINEAR_COST + P)).
    """
    # Sequences with a common prefix are neighbours in this order, the shorter one first.
    order = sorted(numbers, key=lambda n: sequences[n].astype(">i8").tobytes())
    if not order:
        return
    prefix = _common(sequences[order[0]], sequences[order[-1]])
    capacity = min(capacity, prefix + int((prefix * (LINEAR_COST + prefix)) ** 0.5))
    row = _Row()
    for number in order:
        common = _common(row.last, sequences[number])
        if row.width and row.width + len(sequences[number]) - common > capacity:
            yield row.finished()
            row, common = _Row(), 0
        row.add(number, sequences[number], common)
    yield row.finished()


def _common(one: Int[np.ndarray, " L"], other: Int[np.ndarray, " M"]) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length


class _Row:
    """A tree under construction; sequences come in lexicographic order."""

    def __init__(self) -> None:
        self.width = 0
        self.last = self._path = np.zeros(0, np.int64)
        self._tokens: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._closed: list[tuple[np.ndarray, int]] = []
        self._paths: dict[int, np.ndarray] = {}

    def add(self, number: int, sequence: np.ndarray, common: int) -> None:
        self._closed.append((self._path[common:], self.width))
        new = np.arange(len(sequence) - common)
        self._tokens.append(sequence[common:])
        self._positions.append(new + common)
        self._path = np.concatenate([self._path[:common], self.width + new])
        self.last, self._paths[number] = sequence, self._path
        self.width += len(new)

    def finished(self) -> TreeRow:
        ends = np.full(self.width, self.width, np.int64)
        for columns, end in self._closed:
            ends[columns] = end
        return TreeRow(np.concatenate(self._tokens), np.concatenate(self._positions), ends, self._paths)


def shared_rows(rows: Sequence[TreeRow]) -> SharedRows:
    """Return trees as rows of one micro-batch, whose sequences follow one another in the order of `paths`."""
    width = max(len(row.tokens) for row in rows)
    tokens, positions = np.zeros((2, len(rows), width), np.int64)
    ends = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding attends to itself
    for i, row in enumerate(rows):
        used = len(row.tokens)
        tokens[i, :used], positions[i, :used], ends[i, :used] = row.tokens, row.positions, row.ends
    paths = [i * width + path for i, row in enumerate(rows) for path in row.paths.values()]
    place = np.zeros((len(paths), max(map(len, paths))), np.int64)
    for i, path in enumerate(paths):
        place[i, : len(path)] = path
    return SharedRows(tokens, positions, ends, place)
