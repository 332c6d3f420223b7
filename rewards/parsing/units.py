"""Units of measurement: what a unit measures, and how large it is in SI units.

Two quantities are equal where both measure one thing and their sizes agree: `5 km` is `5000 m`, `10 J` is `10 N m`,
`5 N` is not `5 J`. A word that is no known unit (`apples`) says nothing.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

from rewards.parsing.tolerance import Number, close, number_key

TABLE = """
length: m meter meters metre metres = 1
length: mm millimeter millimeters millimetre millimetres = 0.001
length: cm centimeter centimeters centimetre centimetres = 0.01
length: dm decimeter decimeters decimetre decimetres = 0.1
length: km kilometer kilometers kilometre kilometres = 1000
length: in inch inches = 0.0254
length: ft foot feet = 0.3048
length: yd yard yards = 0.9144
length: mi mile miles = 1609.344
mass: kg kilogram kilograms = 1
mass: g gram grams = 0.001
mass: mg milligram milligrams = 0.000001
mass: t ton tons tonne tonnes = 1000
mass: lb lbs pound pounds = 0.45359237
mass: oz ounce ounces = 0.028349523125
time: s sec secs second seconds = 1
time: ms millisecond milliseconds = 0.001
time: min mins minute minutes = 60
time: h hr hrs hour hours = 3600
time: day days = 86400
time: week weeks = 604800
months: month months = 1
months: year years = 12
dollars: $ dollar dollars usd USD US = 1
dollars: ¢ cent cents = 0.01
euros: € euro euros eur EUR = 1
pounds: £ pound pounds = 1
pounds: pence = 0.01
yen: ¥ yen = 1
rupees: ₹ rupee rupees Rs = 1
length^3: L l liter liters litre litres = 0.001
length^3: ml mL milliliter milliliters millilitre millilitres = 0.000001
length/time: mph = 0.44704
length/time: kph = 5/18
1/time: Hz hz hertz = 1
1/time: kHz kilohertz = 1000
1/time: MHz megahertz = 1000000
angle: rad radian radians = 1
angle: deg degree degrees = π/180
celsius: C celsius Celsius deg degree degrees = 1
fahrenheit: F fahrenheit Fahrenheit deg degree degrees = 1
kelvin: K kelvin kelvins = 1
mass length/time^2: N newton newtons = 1
mass length/time^2: kN = 1000
mass length^2/time^2: J joule joules = 1
mass length^2/time^2: kJ kilojoule kilojoules = 1000
mass length^2/time^2: kWh = 3600000
mass length^2/time^2: cal calorie calories = 4.184
mass length^2/time^2: kcal = 4184
mass length^2/time^2: eV = 1.602176634e-19
mass length^2/time^3: W watt watts = 1
mass length^2/time^3: kW kilowatt kilowatts = 1000
mass/length time^2: Pa pascal pascals = 1
mass/length time^2: kPa kilopascal kilopascals = 1000
mass length^2/time^3 current: V volt volts = 1
current: A amp amps ampere amperes = 1
amount: mol mole moles = 1
"""
WORD = re.compile(r"([^\W\d_]+|[$€£¥₹¢])(?:\s*\^\s*\{?\s*(-?\d))?|(/)")
POWERS = {"square": 2, "sq": 2, "cubic": 3}


class Unit(NamedTuple):
    """What a unit measures and how large it is."""

    dimensions: frozenset[tuple[str, int]]
    """Base quantities with their powers, none of them 0."""
    size: Fraction
    """In SI units."""


def _dimensions(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    above, _, below = text.partition("/")
    for side, sign in ((above, 1), (below, -1)):
        for word in side.split():
            name, _, power = word.partition("^")
            if name != "1":
                found[name] = found.get(name, 0) + sign * int(power or 1)
    return found


def _table() -> dict[str, list[Unit]]:
    found: dict[str, list[Unit]] = {}
    for line in TABLE.strip().splitlines():
        measure, _, rest = line.partition(": ")
        names, _, size = rest.partition(" = ")
        worth = Fraction(math.pi) / 180 if size == "π/180" else Fraction(size)
        for name in names.split():
            found.setdefault(name, []).append(Unit(frozenset(_dimensions(measure).items()), worth))
    return found


KNOWN = _table()
"""By spelling; a `pound` is a mass or money, a `degree` an angle or a temperature."""
NEUTRAL = frozenset({"unit", "units"})


def is_unit(word: str) -> bool:
    return word in KNOWN or word in NEUTRAL


def units_of(text: str) -> list[Unit]:
    """The units that a text may mean: `m/s`, `square feet`, `°C`; empty where a word is no known unit."""
    found = [Unit(frozenset(), Fraction(1))]
    sign, power, words = 1, 1, WORD.findall(text)
    if len(words) > 1:
        words = [word for word in words if word[0] not in ("degree", "degrees")] or words  # °C
    for word, exponent, other in words:
        if other or word == "per":
            sign = -1
        elif word in POWERS:
            power = POWERS[word]
        elif word not in KNOWN:
            return []
        else:
            times = sign * power * int(exponent or 1)
            found = [_times(one, other, times) for one in found for other in KNOWN[word]]
            power = 1
    return [] if not words or found == [Unit(frozenset(), Fraction(1))] else found


def _times(one: Unit, other: Unit, power: int) -> Unit:
    dimensions = dict(one.dimensions)
    for name, exponent in other.dimensions:
        dimensions[name] = dimensions.get(name, 0) + power * exponent
    return Unit(frozenset((name, n) for name, n in dimensions.items() if n), one.size * other.size**power)


def agree(a: Number, unit_a: str, b: Number, unit_b: str) -> bool | None:
    """Whether two quantities are the same; None where one has no known unit."""
    ours, theirs = units_of(unit_a), units_of(unit_b)
    if not ours or not theirs:
        return None
    pairs = [(x.size, y.size) for x in ours for y in theirs if x.dimensions == y.dimensions]
    return any(close(a, b) if x == y else close(_scaled(a, x), _scaled(b, y)) for x, y in pairs)


def quantity_key(value: Number, unit: str) -> str:
    """A text that equal quantities share; empty where the unit is not known, or may mean several things."""
    found = units_of(unit)
    if len(found) != 1:
        return ""
    return f"{number_key(_scaled(value, found[0].size))} {sorted(found[0].dimensions)}"


def _scaled(value: Number, size: Fraction) -> Number:
    return value * (size if isinstance(value, Fraction) else float(size))
