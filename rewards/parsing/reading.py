"""What an answer says: a number, an expression, a relation, a list, a tuple or interval, a matrix, or text.

`rewards.parsing.equality` compares what is read here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from rewards.parsing.codes import coded
from rewards.parsing.expressions import PLAIN, POSITIVE, TooLarge, Unreadable, Value, evaluate, variable
from rewards.parsing.notation import MAX_CHARS, NEXT_ROW, cleaned
from rewards.parsing.tolerance import Number, close, number_key
from rewards.parsing.units import is_unit

SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
SMALL = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = {word: i for i, word in enumerate(SMALL.split())}

CURRENCY = r"[$€£¥₹]|(?:US|USD|EUR|Rs\.?)\s*(?=\d)"
APPROXIMATELY = re.compile(
    r"^(?:\\approx|≈|approximately|approx\.?|about|around|roughly|nearly|circa|exactly|equals?|is|=|just|only)\s*",
    re.IGNORECASE,
)
# Possessive: a long row of words is tried in one way alone.
UNIT_WORD = r"[^\W\d_]++\.?+(?:\s*+\^\s*+\{?\s*+-?\d\s*+\}?)?+"
UNIT_WORDS = rf"{UNIT_WORD}(?:\s*+(?:/|\\times)?+\s*+{UNIT_WORD})*+"
UNIT = re.compile(rf"(?P<value>.*?[\d)}}\]!])\s*+(?P<unit>(?:\\degree\s*+)?+{UNIT_WORDS}|\\degree|[$€£¥₹¢])")
PERCENT = re.compile(r"(?P<value>.+?)\s*(?:\\?%|\\?\s*percent|per cent)(?:\s+[a-z ]+)?", re.IGNORECASE)
NAMED = re.compile(
    r"(?:[^\W\d_][\w']*+(?: [\w']++){0,2}|\\(?:[a-zA-Z]+)|[A-Za-z])(?:_\{?\w+\}?)?"
    r"(?:\s*\([A-Za-z\d, ]*\))?'*\s*=(?!=)\s*(?P<rest>.+)",
    re.DOTALL,
)
BELONGS = re.compile(r"[A-Za-z]\s*(?:\\in\s*|\s+in\s+(?=[(\[]))(?P<rest>.+)", re.DOTALL)
CHOICE = re.compile(
    r"(?:[Oo]ption|[Cc]hoice)\s+(?P<named>[A-Z])(?:[.:]\s.*)?|(?:[Oo]ption|[Cc]hoice)?\s*[(\[]?\s*(?P<letter>[A-Z])\s*(?:[)\]]|[.:](?=\s|$))(?:\s+[^\s=+*^-].*)?",
    re.DOTALL,
)
CONDITION = re.compile(
    r"\b(?:not|no|never|least|most|than|between|under|over|above|below|almost|up|or|and|to|except|without|minus|step|"
    r"january|february|(?:march|may)(?=\s+\d)|(?<=\d\s)(?:march|may)|april|june|july|august|september|october|november|december|"
    r"part|question|problem|line|page|room|route|figure|chapter|n't)\b|n't\b",
    re.IGNORECASE,
)
UNDERLINED = re.compile(r"(_{1,3})(?!_)(.+?)(?<!_)\1", re.DOTALL)
VERDICT = re.compile(r"(yes|no|true|false)[,;.:]\s", re.IGNORECASE)
"""What a sentence begins with that answers a question."""
IN_TEXT = re.compile(r"(?<![\w.,:/^\\{(\[-])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?(?![\w^/:{(\[]|[.,]\d|-\w)")
REALS = re.compile(r"\\mathbb\s*(?:\{\s*R\s*\}|R)|(?:all )?real numbers|all reals", re.IGNORECASE)
RELATIONS = re.compile(r"\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z])|<=|>=|!=|<|>|=")
OPEN, CLOSE = "([{", ")]}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says."""

    kind: str
    """number, expression, relation, list, tuple, matrix, text; huge for a number of too many digits, unclear for a
    notation that is not known."""
    key: str
    """Equal for equal answers of this kind."""
    number: Number | None = None
    """Where the answer is wholly a number."""
    also: tuple[Reading, ...] = ()
    """What it may stand for as well, where the other side asks for that."""
    unit: str = ""
    signed: tuple[float, ...] = ()
    """An expression's values where variables are negative, NaN where it has none."""


def key_of(one: Reading) -> str:
    """Equal for equal answers."""
    return f"{one.kind}:{one.key}"


NOTHING = Reading("nothing", "")


@lru_cache(maxsize=4096)
def reading(answer: str, ignore_case: bool = True) -> Reading:
    """What an answer says. Never raises: what cannot be read is text."""
    if len(answer) > MAX_CHARS:
        return _text(answer, ignore_case)
    text = _bare(cleaned(answer))
    if not any(c.isalnum() or c in "\\∞" for c in text):
        return NOTHING
    return _read(text, ignore_case)


def _bare(text: str) -> str:
    """Without quotes, marks of emphasis and final stops."""
    before = None
    while text != before:
        before = text
        text = text.strip(" \"'`*#•").rstrip(".;,?\\")
        if text.startswith(":"):
            text = text[1:]
        if underlined := UNDERLINED.fullmatch(text):
            text = underlined[2]
    return text


def _text(text: str, ignore_case: bool) -> Reading:
    words = " ".join(unicodedata.normalize("NFKC", text).split()).strip(" \"'`$*").rstrip(".!")
    if len(words) == 1:
        return Reading("text", words)
    return Reading("text", words.casefold() if ignore_case else words)


def _read(text: str, ignore_case: bool) -> Reading:
    if (code := coded(text)) is not None:
        return Reading("text", code[0], also=tuple(Reading("text", other) for other in code[1:]))
    if choice := CHOICE.fullmatch(text):
        return Reading("text", choice["letter"] or choice["named"])
    if len(text) == 1 and text.isupper():
        return Reading("text", text)
    for read in (_quantity, _mathematical):
        try:
            if (found := read(text)) is not None:
                return found
        except TooLarge:
            return Reading("huge", re.sub(r"[\s{}]", "", text))
    return _in_words(text, ignore_case)


def _in_words(text: str, ignore_case: bool) -> Reading:
    """Text, perhaps with one number in it."""
    if text.casefold() in NUMBER_WORDS:
        return _numeric(Fraction(NUMBER_WORDS[text.casefold()]))
    plain = _text(text, ignore_case)
    if "\\" in text and not re.search(r"[^\W\d_]{4,}\s+[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+", "", text)):
        return Reading("unclear", re.sub(r"\s", "", text))
    numbers = IN_TEXT.findall(text)
    digits = len(re.findall(r"\d+(?:\.\d+)?(?:\s*/\s*\d+)?", text))
    if len(numbers) == digits == 1 and not CONDITION.search(text) and _is_sentence(text):
        found = _quantity(numbers[0])
        if found is not None:
            return replace(plain, also=(found,))
    if verdict := VERDICT.match(text):
        return replace(plain, also=(_text(verdict[1], ignore_case),))
    if re.search(r"[<>^]", text) and "=" not in text and not _is_sentence(text):
        return Reading("unclear", re.sub(r"\s", "", text))
    return plain


def _is_sentence(text: str) -> bool:
    return bool(re.search(r"[^\W\d_]{2,}", text)) and not re.search(r"[=<>^\\]", text)


def _numeric(value: Number, unit: str = "") -> Reading:
    return Reading("number", number_key(value), value, unit=unit)


def _of(value: Value) -> Reading:
    """An expression's reading."""
    if value.is_number:
        real = value.real
        return _numeric(value.number if real is None else real)
    places, signed = value.at()[:POSITIVE], tuple(p.real for p in value.at()[POSITIVE:])
    constant = all(abs(p - places[0]) < 1e-12 and p.imag == 0 for p in places)
    if constant and not any(abs(v - places[0].real) > 1e-12 for v in signed):
        return _numeric(places[0].real)  # sin²x + cos²x
    key = ",".join(f"{_rounded(p.real, 8)}/{_rounded(p.imag, 8)}" for p in places)
    return Reading("expression", key, signed=signed)


def _rounded(value: float, digits: int) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:.{digits}g}"


def _evaluated(text: str) -> Value | None:
    words_alone = not re.search(r"\d|\\|[-+*/^()|]|^\W*\w\W*$", text) and text.lower() not in PLAIN
    if words_alone or not re.search(r"[^\W_]", text):
        return None
    try:
        return evaluate(text)
    except TooLarge:
        raise
    except (Unreadable, RecursionError):
        return None


def _quantity(text: str) -> Reading | None:
    """A number, perhaps with a sign of percent, a currency or a unit."""
    text = _named(APPROXIMATELY.sub("", text).strip())
    text = APPROXIMATELY.sub("", text).strip()
    currency = re.match(rf"([-+]?)\s*\\?({CURRENCY})\s*(?=[\d.(\\-])", text)
    if currency:
        text = currency[1] + text[currency.end() :]
    if match := PERCENT.fullmatch(text):
        value = _evaluated(match["value"])
        real = value.real if value is not None else None
        if real is None or (isinstance(real, float) and not math.isfinite(real)):
            return None
        share = real / 100
        return replace(_numeric(share, "%"), also=(_numeric(real, "%"),))
    scaled = re.fullmatch(rf"(.*[\d}})])\s*({'|'.join(SCALES)})s?(?:\s+(.*))?", text, re.IGNORECASE)
    if scaled and (value := _evaluated(scaled[1])) is not None and value.exact is not None:
        return _numeric(value.exact * SCALES[scaled[2].lower()])
    value = _evaluated(text)
    if value is not None and value.is_number:
        return replace(_of(value), unit=currency[2] if currency else "degree" if text.endswith("\\degree") else "")
    return _with_unit(text)


def _with_unit(text: str) -> Reading | None:
    match = UNIT.fullmatch(text)
    if match is None:
        return None
    unit = match["unit"].strip()
    words = re.findall(r"[^\W\d_]+", unit.replace("\\degree", " ").replace("\\times", " "))
    is_known = "\\degree" in unit or unit in "$€£¥₹¢" or (words and is_unit(words[0]))
    apart = text[len(match["value"])].isspace()
    if not is_known and not (apart and words and len(words[0]) >= 3):
        return None
    if words and len(words[0]) == 1 and not apart and "\\degree" not in unit:
        return None  # 5m is a product, 5 m a length
    if CONDITION.search(text, len(match["value"])) or len(words) > 6:
        return None
    value = _evaluated(match["value"])
    if value is None or not value.is_number:
        return None
    return replace(_of(value), unit=unit)


def _named(text: str) -> str:
    """The value of the name in front: `x = 5` is 5, `f(x) = 2x` is 2x; of `2 + 3 = 5` the sides are kept."""
    for pattern in (BELONGS, NAMED):
        match = pattern.fullmatch(text)
        if match and not (pattern is NAMED and _is_constant(text[: match.start("rest")].rstrip("= "))):
            return match["rest"].strip()
    return text


def _is_constant(text: str) -> bool:
    value = _evaluated(text)
    return value is not None and value.is_number


def _mathematical(text: str) -> Reading | None:
    text = APPROXIMATELY.sub("", text).strip()
    if belongs := BELONGS.fullmatch(text):
        text = belongs["rest"]
    if REALS.fullmatch(text):
        return _tuple("(", ["number:-inf", "number:inf"], ")")
    if re.fullmatch(r"\\emptyset|\\\{\s*\\\}", text):
        return Reading("list", "")
    for read in (_matrix, _list, _relation, _union, _bracketed, _signs, _expression):
        if (found := read(text)) is not None:
            return found
    return None


def _element(text: str) -> Reading | None:
    text = text.strip()
    return None if not text else _quantity(text) or _mathematical(text)


def _expression(text: str) -> Reading | None:
    value = _evaluated(text)
    return None if value is None else _of(value)


def _split(text: str, separators: str) -> list[str]:
    """At the separators that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf"{separators}|\\.|[()\[\]{{}}]", text):
        token = match[0][-1]
        if re.fullmatch(separators, match[0]):
            if depth == 0:
                parts.append(text[start : match.start()])
                start = match.end()
        elif token in OPEN:
            depth += 1
        elif token in CLOSE:
            depth -= 1
    return [*parts, text[start:]]


SEPARATORS = r",\s*(?:and|or)\s|[,;]|\s(?:and|or)\s|\\(?:lor|vee|land)\s"


def _list(text: str) -> Reading | None:
    r"""Elements in any order: `1, 2`, `1 or 2`, `\{1, 2\}`, `{1, 2}`."""
    if re.fullmatch(r"\{[^{}]*,[^{}]*\}", text):
        text = f"\\{text[:-1]}\\}}"
    inner = text
    is_set = text.startswith("\\{") and text.endswith("\\}")
    if is_set:
        inner = text[2:-2].strip()
        if not inner:
            return Reading("list", "")
        builder = re.fullmatch(r"[A-Za-z]\s*[|:]\s*(.+)", inner)
        if builder:
            return _mathematical(builder[1])
    parts = _split(inner, SEPARATORS)
    if len(parts) == 1 and not is_set:
        return None
    names = [_name(p) for p in parts]
    found = [_element(p) for p in parts]
    if any(f is None or f.kind in ("list", "text") for f in found):
        return None
    keys = [key_of(f) for f in found if f is not None]
    distinct_names = {n for n in names if n}
    if len(distinct_names) > 1:
        keys = [f"{n}={k}" for n, k in zip(names, keys, strict=True)]
    numbers = {*keys}
    if len(numbers) == 1 and not is_set:
        return found[0]
    return replace(
        Reading("list", ";".join(sorted(numbers))),
        also=_only(found) if is_set else _in_order(names, found),
    )


def _only(found: list[Reading | None]) -> tuple[Reading, ...]:
    """The one element of a set."""
    return () if len(found) != 1 or found[0] is None else (found[0],)


def _in_order(names: list[str], found: list[Reading | None]) -> tuple[Reading, ...]:
    """The point that a list may mean: `5, 3`, or `x=5, y=3` by the names in their order."""
    named = [n for n in names if n]
    if named and (len(named) < len(names) or sorted(set(named)) != named):
        return ()
    return (Reading("tuple", ";".join(key_of(f) for f in found if f is not None)),)


def _name(text: str) -> str:
    match = re.match(r"\s*([A-Za-z](?:_\{?\w+\}?)?)\s*=(?!=)", text)
    return match[1] if match else ""


def _signs(text: str) -> Reading | None:
    r"""Both values of `\pm`."""
    if text.count("\\pm") != 1:
        return None
    found = [_element(text.replace("\\pm", sign)) for sign in ("+", "-")]
    if any(f is None for f in found):
        return None
    return Reading("list", ";".join(sorted({key_of(f) for f in found if f is not None})))


def _bracketed(text: str) -> Reading | None:
    """A tuple or an interval, by its brackets and in its order."""
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]" or not _closes_at_end(text):
        return None
    parts = _split(text[1:-1], r"[,;]")
    if len(parts) < 2:
        return None
    found = [_element(p) for p in parts]
    if any(f is None or f.kind == "list" for f in found):
        return None
    return _tuple(text[0], [key_of(f) for f in found if f is not None], text[-1])


def _tuple(opening: str, keys: list[str], closing: str) -> Reading:
    # ( ) are left out: a point and an open interval are written alike, and a bare list in order may mean the point.
    edges = "" if (opening, closing) == ("(", ")") else f"{opening}{closing}"
    return Reading("tuple", edges + ";".join(keys))


def _closes_at_end(text: str) -> bool:
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if depth == 0:
            return i == len(text) - 1
    return False


def _union(text: str) -> Reading | None:
    parts = _split(text, r"\\cup(?![a-zA-Z])|\sU\s|(?<=[)\]])U(?=[(\[])")
    if len(parts) < 2:
        return None
    found = [_element(p) for p in parts]
    if any(f is None for f in found):
        return None
    return Reading("list", ";".join(sorted(key_of(f) for f in found if f is not None)))


def _matrix(text: str) -> Reading | None:
    match = re.fullmatch(r"[(\[]?\s*\\matrix\{(.*)\}\s*[)\]]?", text, re.DOTALL)
    if match is None:
        return None
    rows = [_split(row, "&") for row in match[1].split(NEXT_ROW)]
    found = [[_element(cell) for cell in row] for row in rows]
    if any(cell is None for row in found for cell in row):
        return None
    return Reading("matrix", "|".join(";".join(key_of(c) for c in row if c is not None) for row in found))


def _relation(text: str) -> Reading | None:
    sides = _split(text, RELATIONS.pattern)
    signs = [m[0] for m in RELATIONS.finditer(text)]
    if len(sides) < 2 or len(signs) != len(sides) - 1:
        return None
    if signs[0] == "=" and (rest := _named(text)) != text:
        return _solved(sides, _element(rest))
    values = [_evaluated(s) for s in sides]
    if any(v is None for v in values):
        return None
    known = [v for v in values if v is not None]
    if set(signs) == {"="}:
        return _equation(known, text)
    if len(known) == 3:
        return _between(known, signs)
    return _inequality(known[0], _sign(signs[0]), known[1]) if len(known) == 2 else None


def _solved(sides: list[str], rest: Reading | None) -> Reading | None:
    """`y = 2x` is 2x, and stands for the equation as well; `x = y` is the equation, and stands for y as well."""
    values = (
        [_evaluated(s) for s in sides] if len(sides) == 2 and rest is not None and rest.kind == "expression" else []
    )
    if len(values) != 2 or values[0] is None or values[1] is None or not _is_variable(values[0]):
        return rest
    equation = _difference(values[0], values[1])
    if rest is not None and _is_variable(values[1]):
        return replace(equation, also=(rest,))
    return None if rest is None else replace(rest, also=(*rest.also, equation))


def _sign(sign: str) -> str:
    return {"\\le": "<=", "\\ge": ">=", "\\ne": "!="}.get(sign, sign)


def _equation(sides: list[Value], text: str) -> Reading | None:
    if all(v.is_number for v in sides):
        if all(close(sides[0].number, v.number) for v in sides[1:]):
            return _of(sides[-1])
        return Reading("text", re.sub(r"\s", "", text))
    ends_in_name = len(sides[-1].names) == 1 and re.fullmatch(r"[^=]+=\s*[A-Za-z]", text)
    if len(sides) == 2 and ends_in_name and not sides[1].names & sides[0].names:
        return _of(sides[0])  # 5 = x, 2x = y
    if len(sides) != 2:
        return None
    return _difference(*sides)


def _difference(left: Value, right: Value) -> Reading:
    """An equation, by its two sides' difference up to a factor."""
    places = [a - b for a, b in zip(left.at(), right.at(), strict=True)]
    scale = next((p for p in places[:POSITIVE] if abs(p) > 1e-9), 1)
    scaled = [(p / scale).real for p in places]
    key = ",".join(_rounded(p, 8) for p in scaled[:POSITIVE])
    return Reading("relation", f"={key}", signed=tuple(scaled[POSITIVE:]))


def _inequality(left: Value, sign: str, right: Value) -> Reading | None:
    flip = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
    if left.is_number and right.names:
        left, right, sign = right, left, flip[sign]
    if not right.is_number or not _is_variable(left):
        places = [a - b for a, b in zip(left.at()[:POSITIVE], right.at()[:POSITIVE], strict=True)]
        if sign in (">", ">="):
            places, sign = [-p for p in places], flip[sign]
        scale = abs(next((p for p in places if abs(p) > 1e-9), 1))
        return Reading("relation", sign + ",".join(_rounded((p / scale).real, 8) for p in places))
    bound = key_of(_of(right))
    if sign == "!=":
        return Reading("relation", f"!={bound}")
    if sign in (">", ">="):
        return _tuple("[" if sign == ">=" else "(", [bound, "number:inf"], ")")
    return _tuple("(", ["number:-inf", bound], "]" if sign == "<=" else ")")


def _is_variable(value: Value) -> bool:

    return len(value.names) == 1 and value.places == variable(next(iter(value.names))).places


def _between(sides: list[Value], signs: list[str]) -> Reading | None:
    low, middle, high = sides
    first, second = map(_sign, signs)
    if first in (">", ">=") and second in (">", ">="):
        low, high, first, second = high, low, second.replace(">", "<"), first.replace(">", "<")
    if first not in ("<", "<=") or second not in ("<", "<=") or not (low.is_number and high.is_number):
        return None
    if not _is_variable(middle):
        return None
    return _tuple("[" if first == "<=" else "(", [key_of(_of(low)), key_of(_of(high))], "]" if second == "<=" else ")")
