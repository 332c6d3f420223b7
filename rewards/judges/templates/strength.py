"""Two responses, which is better and by how much: six levels without a tie (Think-RM, arXiv:2505.16265)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rewards.judges.templates.base import Item, Mode, Parsed, read_label
from rewards.judges.templates.pairwise import NEUTRAL, Pairwise

STRENGTHS = {str(level): 0.5 - level / 6 for level in (-3, -2, -1, 1, 2, 3)}
"""Verdict → value: below 0 response A is better, above 0 response B. 2 · value − 1 is the strength in threes."""


class PairwiseStrength(Pairwise):
    """Value = ½ − verdict / 6, in [0, 1]: the paper's strength from −3 (A is much better) to 3 (B is), rescaled.

    A verdict is two tokens, so it is parsed and not read from log-probs.
    """

    kind: ClassVar[str] = "pairwise_strength"
    modes: ClassVar[tuple[Mode, ...]] = ("text",)
    instructions: str = (
        f"{NEUTRAL} Weigh whether each response is helpful, correct, coherent, as deep as the question asks, no longer "
        "than it needs to be, and safe."
    )

    @property
    def labels(self) -> Mapping[str, float]:
        return {}

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, 1.0

    def invariant(self) -> str:
        return (
            "-3: response A is much better\n-2: response A is better\n-1: response A is slightly better\n"
            "1: response B is slightly better\n2: response B is better\n3: response B is much better"
        )

    def contract(self, item: Item, mode: Mode) -> str:
        return (
            f"Explain your judgement in a few sentences. Then end with one line 'Verdict: X', where X is one of "
            f"{', '.join(STRENGTHS)}. If this cannot be judged, let the line be 'Verdict: none'."
        )

    def follow_up(self) -> str:
        return f"Answer with exactly one of: {', '.join(STRENGTHS)}."

    def parse(self, text: str, item: Item, mode: Mode) -> Parsed:
        return Parsed(read_label(text, STRENGTHS, item, alone=False).values)
