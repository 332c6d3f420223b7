"""When two answers are the same. Exact, numeric and mathematical rewards and all votes ask here.

An answer is read as a number, an expression, a relation, a list, a tuple or interval, a matrix, or else as text.

*Numbers* are equal within a relative tolerance (`rewards.parsing.tolerance`), whole ones exactly. A vote needs an
equivalence: it rounds them instead.

*Percent*. `25%` is 0.25, and equals 25 too where one side alone has the sign. *Units* and currencies do not count
unless both sides have one that is known (`rewards.parsing.units`). A sentence with one number in it (`There are 12
apples`) equals that number; what holds several numbers, or a number under a condition (`at least 5`), does not.

*Variables* may be negative: `√(x²)` is `|x|`, not x. `ln(x²)` is `2 ln x`, which says nothing of a negative x.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rewards.parsing.notation import MAX_CHARS, cleaned
from rewards.parsing.reading import NOTHING, Reading, key_of, reading
from rewards.parsing.tolerance import close
from rewards.parsing.units import agree, quantity_key


def is_empty(answer: str) -> bool:
    r"""Whether nothing is left of an answer without its notation: `\boxed{}`, `.`, `$$`."""
    return reading(answer) is NOTHING


def key(answer: str | None) -> str | None:
    """Equal for equal answers, None where there is none."""
    found = NOTHING if answer is None else reading(answer)
    return None if found is NOTHING else f"{found.kind}:{found.key}"


def votes(answers: Sequence[str | None]) -> list[str | None]:
    """One key per answer, the same for equal ones of this vote; None for what is no answer.

    A percentage, or a sentence with one number, votes with the plain number that it may stand for, if that is there.
    """
    found = [NOTHING if a is None else reading(a) for a in answers]
    plain = {key_of(r) for r in found if not r.also}
    keys = []
    for one in found:
        other = next((key_of(a) for a in one.also if key_of(a) in plain), None)
        keys.append("" if one is NOTHING else key_of(one) if key_of(one) in plain else other or key_of(one))
    said = [_said_beyond(one) for one in found]
    vague = {key for key, more in zip(keys, said, strict=True) if not more}
    return [None if not key else key if key in vague else more for key, more in zip(keys, said, strict=True)]


def _said_beyond(one: Reading) -> str:
    """What keeps apart answers of one key if all of them say it: a known unit, the values of negative variables."""
    if one.number is not None:
        return quantity_key(one.number, one.unit)
    if not one.signed or any(math.isnan(v) for v in one.signed):
        return ""
    return ",".join([key_of(one), *(f"{0.0 if abs(v) < 1e-12 else v:.8g}" for v in one.signed)])


def number(answer: str) -> float | None:
    """The finite real number that an answer wholly is, None for anything else. `3/4` and `75%` are 0.75."""
    found = reading(answer).number
    if found is None or isinstance(found, complex):
        return None
    try:
        value = float(found)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def stated_number(answer: str) -> float | None:
    """The number that an answer is, or the only one in a sentence."""
    found = reading(answer)
    if found.number is not None or found.kind != "text":
        return number(answer)
    other = next((a.number for a in found.also if a.number is not None), None)
    return None if other is None or isinstance(other, complex) else float(other)


def same(reference: str, answer: str, *, ignore_case: bool = True) -> bool | None:
    """Whether an answer is right; None where the notation of one is not understood and an algebra system may know."""
    a, b = reading(reference, ignore_case), reading(answer, ignore_case)
    if NOTHING in (a, b):
        return False
    if _agree(a, b) or _squeezed(reference) == _squeezed(answer):
        return True
    if _units_differ(a, b):
        return False
    if any(_agree(x, y) for x in (a, *a.also) for y in (b, *b.also) if not (x in a.also and y in b.also)):
        return True
    kinds = {a.kind, b.kind}
    return None if "unclear" in kinds and not kinds & {"text", "huge"} else False


def _agree(a: Reading, b: Reading) -> bool:
    if a.number is not None and b.number is not None:
        with_units = agree(a.number, a.unit, b.number, b.unit)
        return close(a.number, b.number) if with_units is None else with_units
    return a.kind == b.kind and a.key == b.key and _agree_where_negative(a.signed, b.signed)


def _agree_where_negative(a: Sequence[float], b: Sequence[float]) -> bool:
    """√(x²) is not x; ln(x²) is 2 ln x, which has no value there."""
    return not any(abs(x - y) > 1e-8 * max(1.0, abs(x), abs(y)) for x, y in zip(a, b, strict=False))


def _units_differ(a: Reading, b: Reading) -> bool:
    return a.number is not None and b.number is not None and agree(a.number, a.unit, b.number, b.unit) is False


def _squeezed(answer: str) -> str:
    """Without braces, and without the spaces that keep no two words or numbers apart."""
    if len(answer) > MAX_CHARS:
        return answer
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", re.sub(r"[{}]", "", cleaned(answer))).strip(".")
