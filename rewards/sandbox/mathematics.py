"""Mathematical equality of two texts, by math-verify."""

from __future__ import annotations

import logging
from typing import Any

from math_verify import parse, verify

from rewards.sandbox import expressions

expressions.guard()
logging.getLogger("math_verify").setLevel(logging.ERROR)  # warns at every call without a time limit


def warm() -> None:
    """Load what the first call would load."""
    for texts in (("\\frac{1}{2}", "\\boxed{0.5}"), ("\\sqrt{2} x^2", "$x^{2} \\sqrt 2$"), ("[1, 2)", "(1,2)")):
        equals(*texts, 6)


def equals(expected: str, answer: str, precision: int) -> bool:
    """Whether two texts hold the same mathematics. Raises ValueError for a bad reference."""
    # math-verify would keep time with the alarm signal; the sandbox keeps time for the whole process.
    no_limit: Any = None
    boxed = "\\boxed{" in expected or "\\fbox{" in expected
    forms = [expected] if boxed else [f"${expected}$", expected]
    gold = next((found for f in forms if (found := parse(f, parsing_timeout=no_limit))), None)
    if not gold:
        raise ValueError(f"math-verify cannot read the reference answer {expected!r}")
    found = parse(answer, parsing_timeout=no_limit)
    return bool(verify(gold, found, float_rounding=precision, timeout_seconds=no_limit))
