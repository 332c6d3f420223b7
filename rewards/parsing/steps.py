"""A rollout's steps: where each begins and ends, in its text and in its tokens."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cluster.types import Rollout

Decode = Callable[[Sequence[int]], str]
PARAGRAPH = r"\n[ \t]*\n\s*"
"""What ends a step by default: an empty line."""


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens [start, end) of a rollout, and their text."""

    text: str
    start: int
    end: int


def steps_of(rollout: Rollout, decode: Decode, breaks: Sequence[int] | None = None) -> list[Step]:
    """The steps of a rollout of one turn: nothing between them, and the last goes on to the end of the turn.

    `breaks` are offsets into the text just behind what separates steps; by default they are the empty lines.

    A step ends with the token that completes its text; two that end within one token are one step, and so is one that
    is blank with the one before it. Raises ValueError for a rollout of several turns.
    """
    turns = [turn for turn in rollout.turns if turn.role == "assistant"]
    if len(turns) > 1:
        raise ValueError(f"a rollout of {len(turns)} turns; steps are those of a single answer")
    chosen = rollout.loss_mask.nonzero()[0]
    if len(chosen) == 0:
        return []
    start, end = int(chosen[0]), int(chosen[-1]) + 1
    ends = text_ends(rollout.text, paragraphs(rollout.text) if breaks is None else breaks)
    cuts = [(0, start)]
    for stop, place in zip(ends, token_ends(ends, rollout.tokens[start:end].tolist(), decode), strict=True):
        if start + place > cuts[-1][1]:
            cuts.append((stop, start + place))
    # What no step has written, such as the end of sequence, is the last one's.
    cuts = [*(cuts[:-1] if len(cuts) > 1 else cuts), (len(rollout.text), end)]
    return [Step(rollout.text[a:b], i, j) for (a, i), (b, j) in pairwise(cuts)]


def paragraphs(text: str) -> list[int]:
    """The offset behind each empty line."""
    return [match.end() for match in re.finditer(PARAGRAPH, text)]


def text_ends(text: str, breaks: Sequence[int]) -> list[int]:
    """One past each step's last character, the separator behind it included."""
    ends = [end for end in breaks if end > 0]
    ends = [end for end, before in zip(ends, [0, *ends], strict=False) if text[before:end].strip()]
    if text[ends[-1] if ends else 0 :].strip():
        return [*ends, len(text)]
    return [*ends[:-1], len(text)] if ends else []


def token_ends(ends: Sequence[int], tokens: Sequence[int], decode: Decode) -> list[int]:
    """For each offset into the text: the fewest first tokens that write so much of it."""
    places = range(len(tokens) + 1)
    return [min(bisect_left(places, end, key=lambda n: len(decode(tokens[:n]))), len(tokens)) for end in ends]
