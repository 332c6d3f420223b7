"""How long rollouts are in a benchmark: drawn beforehand, the same way here and in TRL's process.

Answers of a model this small end where they like, and a model that changes while it trains changes its lengths. So the
engine is told how many tokens to write, and no token ends a rollout earlier. Without imports of ours: `trl_side.py`
runs where there are none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

MEDIAN, SIGMA, LONGEST = 32, 0.9, 256
"""Tokens. Of the log-normal: its 99th percentile is `LONGEST`, where it is cut; the mean is 47."""
FIXED = {"fixed": 64, "short": 16}


def draws(kind: str, seed: int = 0) -> Iterator[int]:
    """Tokens of one rollout after another."""
    if kind not in (*FIXED, "lognormal"):
        raise ValueError(f"there are no lengths '{kind}'; known: {', '.join(FIXED)}, lognormal.")
    rng = random.Random(seed)
    while True:
        yield FIXED[kind] if kind in FIXED else min(LONGEST, max(1, round(rng.lognormvariate(math.log(MEDIAN), SIGMA))))


def longest(kind: str) -> int:
    return FIXED.get(kind, LONGEST)


def begins_right(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    """TRL's signature, which both sides take: 1 where the text begins with the sum."""
    return [float(text.startswith(right)) for text, right in zip(completions, answer, strict=True)]
