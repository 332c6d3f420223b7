"""When two answers are the same. Exact, numeric and mathematical rewards and all votes ask here.

An answer is read as a number, an expression, a relation, a list, a tuple or interval, a matrix, or else as text.

*Numbers* are equal within a relative tolerance (`rewards.parsing.tolerance`), whole ones exactly. A vote needs an
equivalence: it rounds them instead.

*Percent*. `25%` is 0.25, and equals 25 too where one side alone has the sign. *Units* and currencies do not count
unless both sides have one of the same kind. A sentence with one number in it (`There are 12 apples`) equals that
number; what holds several numbers, or a number under a condition (`at least 5`), does not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rewards.parsing.notation import MAX_CHARS, cleaned
from rewards.parsing.reading import CANONICAL, KIND, NOTHING, Reading, key_of, reading
from rewards.parsing.tolerance import close

POWERS = {"square": 2, "sq": 2, "cubic": 3}
UNITS_IN = re.compile(r"([^\W\d_]+|[$€£¥₹¢])(?:\s*\^\s*\{?\s*(-?\d))?|(/)")


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
        keys.append(None if one is NOTHING else key_of(one) if key_of(one) in plain else other or key_of(one))
    return keys


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
    if _units_differ(a, b):
        return False
    if a.number is not None and b.number is not None:
        return close(a.number, b.number)
    return a.kind == b.kind and a.key == b.key


def _units_differ(a: Reading, b: Reading) -> bool:
    """Whether both have a unit, of one kind, and another: metres and kilometres, metres and square metres."""
    one, two = powers(a.unit), powers(b.unit)
    if not one or not two or one == two:
        return False
    kinds = {KIND[next(iter(one))], KIND[next(iter(two))]}
    return len(kinds) == 1 and "other" not in kinds


def powers(unit: str) -> dict[str, int]:
    """The power of every unit, in its shortest spelling: m and s of `m/s`; empty where a word is no known unit."""
    found: dict[str, int] = {}
    sign, power = 1, 1
    for word, exponent, other in UNITS_IN.findall(unit):
        if other or word == "per":
            sign = -1
        elif word in POWERS:
            power = POWERS[word]
        elif word not in KIND:
            return {}
        else:
            name = str(CANONICAL.get(word, word))
            found[name] = found.get(name, 0) + sign * power * int(exponent or 1)
            power = 1
    if len(found) > 1:
        found.pop("deg", None)  # °C
    return found


def _squeezed(answer: str) -> str:
    """Without braces, and without the spaces that keep no two words or numbers apart."""
    if len(answer) > MAX_CHARS:
        return answer
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", re.sub(r"[{}]", "", cleaned(answer))).strip(".")
