"""When two numbers are the same.

Whole numbers are equal exactly; others within 10⁻⁶ of the larger and no further apart than 10⁻⁴, or within 10⁻⁹ of the
larger: 6.63e-34 is not 1.6e-19, 1234567.89 is not 1234568, 0.333333 is 1/3, 1.414 is not √2.
"""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction

Number = Fraction | float | complex
RELATIVE, LARGEST, NOISE = 1e-6, 1e-4, 1e-9
"""Largest difference as a share of the larger number; in all; and what arithmetic alone may be off by."""
DIGITS, BEHIND_POINT = 6, 4


def close(a: Number, b: Number) -> bool:
    """Whether two numbers are the same within the tolerances of this module, whole ones exactly."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if a == b or (a.denominator == b.denominator == 1):
            return a == b
        return _near(abs(a - b), max(abs(a), abs(b)))
    try:
        x, y = complex(a), complex(b)
    except OverflowError:
        return False
    if math.isinf(abs(x)) or math.isinf(abs(y)):
        return x == y
    return _near(Fraction(abs(x - y)), Fraction(max(abs(x), abs(y)))) or abs(x - y) < 1e-12


def _near(apart: Fraction, larger: Fraction) -> bool:
    slack = Fraction(1 + 1e-9)
    return apart <= max(larger * Fraction(NOISE), min(larger * Fraction(RELATIVE) * slack, Fraction(LARGEST)))


def number_key(value: Number) -> str:
    """Return a text that equal numbers share: whole ones exactly, others to six significant digits, or to four behind
    the point where those are more."""
    if isinstance(value, complex):
        return f"{number_key(value.real)}{number_key(value.imag)}i"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Fraction) and value.denominator == 1:
        return f"{value.numerator}" if value.numerator.bit_length() < 10_000 else f"{value.numerator:x}h"
    context = Context(prec=12, rounding=ROUND_HALF_UP)
    if isinstance(value, Fraction):
        exact = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    else:
        exact = context.create_decimal(0.0 if abs(value) < 1e-12 else value)
    whole_digits = exact.adjusted() + 1
    result = (
        Context(prec=min(12, max(DIGITS, whole_digits + BEHIND_POINT)), rounding=ROUND_HALF_UP)
        .create_decimal(exact)
        .normalize()
    )
    return f"{int(result)}" if result == result.to_integral_value() and result.adjusted() < 300 else f"{result}"
