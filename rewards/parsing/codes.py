"""Answers in digits that are no number: times, dates, ratios, versions, digits in a base, places in an order."""

from __future__ import annotations

import math
import re
from fractions import Fraction

MONTHS = re.findall(r"\w+", "january february march april may june july august september october november december")
TIME = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?\s*(?:[ap]\.?\s?m\.?)?", re.IGNORECASE)
RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+")
CODES = [
    TIME,
    RATIO,
    re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{2,4}"),  # a date whose order is not said
    re.compile(r"v?\d+(?:\.\d+){2,}"),  # a version
    re.compile(r"[0-9A-Fa-f]+\s*_\s*\{?\s*\d+\s*\}?"),  # digits in a base
    re.compile(r"\d+(?:st|nd|rd|th)", re.IGNORECASE),  # a place in an order
]
DOTTED = re.compile(r"(?<=\d)([ap])\.?m\.?$")
YEAR_FIRST = re.compile(r"(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})")
NAMED_DATES = [
    re.compile(r"(?P<name>[a-z]{3,9})\.? (?P<day>\d{1,2})(?:st|nd|rd|th)?(?:,? (?P<year>\d{4}))?", re.IGNORECASE),
    re.compile(
        r"(?:the )?(?P<day>\d{1,2})(?:st|nd|rd|th)?(?: of)? (?P<name>[a-z]{3,9})\.?(?:,? (?P<year>\d{4}))?",
        re.IGNORECASE,
    ),
]


def coded(text: str) -> tuple[str, ...] | None:
    """One text for all spellings of a code, and what else it may stand for; None where the text is no code.

    `Jan. 2nd, 2020` and `2020-01-02` are one date, `6:8` and `3:4` one ratio. `2:10` is a time, or the ratio 1:5.
    """
    if (date := _date(text)) is not None:
        return (date,)
    if not any(pattern.fullmatch(text) for pattern in CODES):
        return None
    plain = DOTTED.sub(r"\1m", re.sub(r"[\s{}]", "", text).casefold())
    if not RATIO.fullmatch(text):
        return (plain,)
    return (plain, _ratio(plain)) if TIME.fullmatch(text) else (_ratio(plain),)


def _date(text: str) -> str | None:
    if match := YEAR_FIRST.fullmatch(text):
        month = int(match["month"])
    else:
        match = next((m for m in (p.fullmatch(text) for p in NAMED_DATES) if m), None)
        month = 0 if match is None else _month(match["name"])
    if match is None or not 1 <= month <= 12 or not 1 <= int(match["day"]) <= 31:
        return None
    return f"{match['year'] or '-'}-{month:02}-{int(match['day']):02}"


def _month(name: str) -> int:
    """1 to 12, 0 for a word that is no month: `jan`, `sept`, `January`."""
    name = name.casefold()
    return next((i for i, month in enumerate(MONTHS, 1) if month == name or name in (month[:3], month[:4])), 0)


def _ratio(text: str) -> str:
    """In whole numbers without a common divisor."""
    parts = [Fraction(part) for part in text.split(":")]
    whole = [part * math.lcm(*(p.denominator for p in parts)) for part in parts]
    divisor = math.gcd(*(int(part) for part in whole)) or 1
    return ":".join(str(int(part) // divisor) for part in whole)
