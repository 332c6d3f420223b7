"""Values of expressions in LaTeX or plain notation. Nothing is handed to `eval` or to an algebra system.

A rational expression gets its exact value; another its value at a few fixed places of its variables, which tells
expressions apart as well as an expansion would. Depth, digits and exponents are bounded: `10^{10^{10}}` is Unreadable.
"""

from __future__ import annotations

import cmath
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

POSITIVE, SIGNED = 3, 5
"""Places where every variable is positive; and where some are negative, at which only real values count."""
PLACES = POSITIVE + SIGNED
WIDE = 4
"""How much farther from 0 the last two places are: beyond them arcsin(sin x) is not x, and |x − 2| not 2 − x."""
MAX_DEPTH = 40
MAX_BITS = 20_000
"""Most bits of a numerator or denominator."""
MAX_TOKENS = 400
MAX_DIGITS = 1000
TOKEN = re.compile(
    r"\s+|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+(?![\d.]))?)|(?P<command>\\[a-zA-Z]+|\\[{}|%$])"
    r"|(?P<word>[^\W\d_]+)|(?P<symbol>[-+*/^_(){}\[\]|!=<>,])"
)


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GREEK = words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar"
)


class Unreadable(Exception):
    """A text that is no expression."""


class TooLarge(Unreadable):
    """An expression whose value has too many digits to be worked out."""


@dataclass(frozen=True, slots=True)
class Value:
    """What an expression is worth: exactly, where it is rational, and at each of the fixed places."""

    exact: Fraction | None
    places: tuple[complex, ...]
    """Empty where `exact` is known. NaN at a signed place where it is not real, or not defined."""
    names: frozenset[str] = frozenset()

    @property
    def is_number(self) -> bool:
        return not self.names

    @property
    def number(self) -> Fraction | complex:
        """Return the value of an expression without variables: a Fraction, or a complex number."""
        return self.exact if self.exact is not None else self.places[0]

    @property
    def real(self) -> Fraction | float | None:
        """The number, if this is a real one."""
        if self.names:
            return None
        if self.exact is not None:
            return self.exact
        value = self.places[0]
        return value.real if abs(value.imag) <= 1e-12 * max(1.0, abs(value)) else None

    def at(self) -> tuple[complex, ...]:
        if self.exact is None:
            return self.places
        try:
            return (complex(float(self.exact)),) * PLACES
        except OverflowError as error:
            raise TooLarge("too large") from error


def exactly(value: Fraction | int) -> Value:
    value = Fraction(value)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLarge("too large")
    return Value(value, ())


INFINITY = Value(None, (complex(math.inf),) * PLACES)
CONSTANTS = {"\\pi": Value(None, (complex(math.pi),) * PLACES), "\\infty": INFINITY}
LETTERS = {"e": Value(None, (complex(math.e),) * PLACES), "i": Value(None, (1j,) * PLACES)}


def _apply(function: Callable[..., complex], *values: Value) -> Value:
    names = frozenset().union(*(v.names for v in values))
    arguments = list(zip(*(v.at() for v in values), strict=True))
    try:
        places = tuple(complex(function(*found)) for found in arguments[:POSITIVE])
    except OverflowError as error:
        raise TooLarge("too large") from error
    except (ArithmeticError, ValueError) as error:
        raise Unreadable(str(error)) from error
    if any(cmath.isnan(p) for p in places):
        raise Unreadable("undefined")
    return Value(None, places + tuple(_real(function, found) for found in arguments[POSITIVE:]), names)


def _real(function: Callable[..., complex], arguments: tuple[complex, ...]) -> complex:
    """NaN where an argument or the value is not real: ln x and √x say nothing of a negative x."""
    if any(cmath.isnan(a) for a in arguments):
        return complex(math.nan)
    try:
        value = complex(function(*arguments))
    except (ArithmeticError, ValueError):
        return complex(math.nan)
    return complex(value.real) if abs(value.imag) <= 1e-12 * max(1.0, abs(value)) else complex(math.nan)


def plus(a: Value, b: Value) -> Value:
    if a.exact is not None and b.exact is not None:
        return exactly(a.exact + b.exact)
    return _apply(lambda x, y: x + y, a, b)


def times(a: Value, b: Value) -> Value:
    if a.exact is not None and b.exact is not None:
        return exactly(a.exact * b.exact)
    if INFINITY.places in (a.places, b.places):
        return _endless(a, b)
    return _apply(lambda x, y: x * y, a, b)


def _endless(a: Value, b: Value) -> Value:
    """A product with infinity: complex arithmetic would make it undefined."""
    signs = [v.real for v in (a, b)]
    if None in signs or 0 in signs:
        raise Unreadable("undefined")
    negative = sum(float(s) < 0 for s in signs if s is not None) % 2
    return Value(None, (complex(-math.inf if negative else math.inf, 0.0),) * PLACES)


def negative(a: Value) -> Value:
    return exactly(-a.exact) if a.exact is not None else Value(None, tuple(-p for p in a.places), a.names)


def divided(a: Value, b: Value) -> Value:
    if b.exact == 0:
        raise Unreadable("division by zero")
    if a.exact is not None and b.exact is not None:
        return exactly(a.exact / b.exact)
    return _apply(lambda x, y: x / y, a, b)


def power(a: Value, b: Value) -> Value:
    if a.exact is not None and b.exact is not None:
        if b.exact.denominator == 1:
            return _whole_power(a.exact, b.exact.numerator)
        root = _rational_root(a.exact, b.exact.denominator)
        if root is not None:
            return _whole_power(root, b.exact.numerator)
        if a.exact < 0 and b.exact.denominator % 2 == 1:  # the real root, as school has it
            found = _apply(lambda x, y: x**y, exactly(-a.exact), b)
            return negative(found) if b.exact.numerator % 2 else found
    return _apply(lambda x, y: x**y, a, b)


def _whole_power(base: Fraction, exponent: int) -> Value:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > MAX_BITS and base not in (0, 1, -1):
        raise TooLarge("too large")
    if base == 0 and exponent <= 0:
        raise Unreadable("undefined")
    if base in (1, -1):
        exponent %= 2
    return exactly(base**exponent)


def _rational_root(base: Fraction, degree: int) -> Fraction | None:
    """The exact root, if it is rational."""
    if base < 0 or degree > 64:
        return None
    parts = []
    for part in (base.numerator, base.denominator):
        root = _integer_root(part, degree)
        if root**degree != part:
            return None
        parts.append(root)
    return Fraction(*parts)


def _integer_root(value: int, degree: int) -> int:
    if degree == 2:
        return math.isqrt(value)
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low


def root(a: Value, degree: Value | None = None) -> Value:
    return power(a, divided(exactly(1), degree or exactly(2)))


def factorial(a: Value) -> Value:
    if a.names:
        return _apply(_gamma, a)
    if a.exact is None or a.exact.denominator != 1 or not 0 <= a.exact <= 1000:
        raise Unreadable("no factorial")
    return exactly(math.factorial(int(a.exact)))


def _gamma(x: complex) -> complex:
    """Γ(x + 1), which is x! where x is a natural number."""
    if x.imag:
        raise ValueError("the factorial of a complex number")
    return complex(math.gamma(x.real + 1))


def binomial(n: Value, k: Value) -> Value:
    if n.names or k.names:
        return divided(factorial(n), times(factorial(k), factorial(plus(n, negative(k)))))
    if n.exact is None or k.exact is None or not 0 <= k.exact <= n.exact <= 1000:
        raise Unreadable("no binomial coefficient")
    if n.exact.denominator != 1 or k.exact.denominator != 1:
        raise Unreadable("no binomial coefficient")
    return exactly(math.comb(int(n.exact), int(k.exact)))


def absolute(a: Value) -> Value:
    return exactly(abs(a.exact)) if a.exact is not None else _apply(lambda x: complex(abs(x)), a)


def logarithm(a: Value, base: Value | None) -> Value:
    if a.exact is not None and a.exact <= 0:
        raise Unreadable("undefined")
    return _apply(cmath.log, a) if base is None else _apply(lambda x, b: cmath.log(x) / cmath.log(b), a, base)


FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    **{name: getattr(cmath, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp")},
    **{f"arc{name}": getattr(cmath, f"a{name}") for name in ("sin", "cos", "tan")},
    **{f"a{name}": getattr(cmath, f"a{name}") for name in ("sin", "cos", "tan")},
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "cot": lambda x: 1 / cmath.tan(x),
}
CALLS = frozenset({*FUNCTIONS, "sqrt", "cbrt", "log", "ln", "lg", "abs"})
WORDS = words(
    "or and the is are not no yes of to in at by for if it an as be do go so we all any was has had can one two "
    "six ten let but per out off its day few cm mm km kg mg ml ft hr min sec mph am pm"
)
"""Words of two or three letters that are no product of variables."""
PLAIN = {"pi": "\\pi", "infty": "\\infty", "infinity": "\\infty"}


def variable(name: str) -> Value:
    """Another value at each place, the same in every process."""
    digest = hashlib.blake2b(name.encode(), digest_size=PLACES * 4).digest()
    numbers = [0.3 + 1.4 * int.from_bytes(digest[4 * i : 4 * i + 4], "big") / 2**32 for i in range(PLACES)]
    code = sum(name.encode())  # neighbours in the alphabet differ in one of its last two bits
    first, second = (-1) ** (code % 2), (-1) ** (code // 2 % 2)
    factors = [1] * POSITIVE + [-1, first, -first, WIDE * second, -WIDE * second]
    return Value(None, tuple(complex(n * k) for n, k in zip(numbers, factors, strict=True)), frozenset({name}))


def evaluate(text: str) -> Value:
    """The value of one expression. Raises Unreadable for anything else."""
    return _Parser(text).whole()


def literal(digits: str) -> Value:
    """The value of `12`, `.5` or `1.6e-19`."""
    mantissa, _, exponent = digits.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 5 or abs(int(exponent or 0)) > 2000:
        raise TooLarge("too large")
    return exactly(Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(exponent or 0))


class _Parser:
    """Recursive descent: sum → product → sign → power → atom."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._place = 0
        self._depth = 0

    def whole(self) -> Value:
        value = self._sum()
        if self._peek() is not None:
            raise Unreadable(f"'{self._peek()}' was not expected")
        return value

    def _peek(self) -> str | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def _next(self) -> str:
        if (token := self._peek()) is None:
            raise Unreadable("the expression ends too early")
        self._place += 1
        return token

    def _take(self, *wanted: str) -> bool:
        if self._peek() in wanted:
            self._place += 1
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise Unreadable(f"'{token}' was expected")

    def _sum(self) -> Value:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        value = self._product()
        while self._peek() in ("+", "-"):
            value = plus(value, self._product() if self._next() == "+" else negative(self._product()))
        self._depth -= 1
        return value

    def _product(self) -> Value:
        value = self._signed()
        while (token := self._peek()) is not None:
            if token in ("*", "\\times"):
                self._next()
                value = times(value, self._signed())
            elif token == "/":
                self._next()
                value = divided(value, self._signed())
            elif self._starts_factor(token):
                value = times(value, self._powered())
            else:
                break
        return value

    def _starts_factor(self, token: str) -> bool:
        return token in ("(", "{", "[") or token[0].isalnum() or (token[0] == "\\" and token[1:2].isalpha())

    def _signed(self) -> Value:
        self._depth += 1
        if self._depth > 4 * MAX_DEPTH:
            raise Unreadable("nested too deeply")
        if self._take("-"):
            value = negative(self._signed())
        else:
            self._take("+")
            value = self._powered()
        self._depth -= 1
        return value

    def _powered(self) -> Value:
        value = self._postfixed(self._mixed())
        if self._take("^"):
            self._depth += 1
            if self._depth > 4 * MAX_DEPTH:
                raise Unreadable("nested too deeply")
            exponent = negative(self._powered()) if self._take("-") else self._powered()
            self._depth -= 1
            value = self._postfixed(power(value, exponent))
        return value

    def _postfixed(self, value: Value) -> Value:
        while self._peek() in ("!", "\\%", "\\degree"):
            token = self._next()
            if token == "!":
                value = factorial(value)
            elif token == "\\%":
                value = divided(value, exactly(100))
        return value

    def _mixed(self) -> Value:
        r"""An atom, or a whole number with a fraction behind it: `1\frac{1}{2}` and `1 1/2` are 1.5."""
        token, value = self._peek(), self._atom()
        if token is None or not token.isdigit():
            return value
        if self._peek() == "\\frac":
            start = self._place
            part = self._atom()
            plain = all(t.isdigit() or t in ("\\frac", "{", "}") for t in self._tokens[start : self._place])
            if plain and part.exact is not None and 0 < part.exact < 1:
                return plus(value, part)
            self._place = start
        ahead = self._tokens[self._place : self._place + 3]
        if len(ahead) == 3 and ahead[1] == "/" and ahead[0].isdigit() and ahead[2].isdigit():
            part = divided(literal(ahead[0]), literal(ahead[2]))
            if part.exact is not None and part.exact < 1:
                self._place += 3
                return plus(value, part)
        if ahead and ahead[0][0].isdigit():
            raise Unreadable("two numbers side by side")
        return value

    def _atom(self) -> Value:
        token = self._next()
        if token[0].isdigit() or token[0] == ".":
            return literal(token)
        if token in ("(", "{", "["):
            value = self._sum()
            self._expect({"(": ")", "{": "}", "[": "]"}[token])
            return value
        if token in ("|", "\\|"):
            value = self._sum()
            self._expect(token)
            return absolute(value)
        if token in CONSTANTS:
            return CONSTANTS[token]
        if token == "\\frac":
            return divided(self._argument(), self._argument())
        if token == "\\binom":
            return binomial(self._argument(), self._argument())
        name = token.removeprefix("\\")
        if name in CALLS:
            return self._called(name)
        return self._variable(token, name)

    def _variable(self, token: str, name: str) -> Value:
        if not name.isalpha() or (token[0] == "\\" and name not in GREEK):
            raise Unreadable(f"'{token}' is not known")
        if self._take("_"):
            name += "_" + self._subscript()
        elif name in LETTERS:
            return LETTERS[name]
        return variable(name)

    def _subscript(self) -> str:
        if not self._take("{"):
            return self._next()
        parts = []
        while not self._take("}"):
            parts.append(self._next())
        return "".join(parts)

    def _argument(self) -> Value:
        r"""Read a command's argument: braces, or one character: `\frac12`."""
        token = self._peek()
        if token is not None and token[0].isdigit() and len(token) > 1:
            if not token.isdigit():
                raise Unreadable("an argument in braces was expected")
            self._tokens[self._place : self._place + 1] = [token[0], token[1:]]
        if token is None or not (token[0].isalnum() or token in CONSTANTS or token in ("{", "\\sqrt", "\\frac")):
            raise Unreadable("an argument was expected")
        return self._atom()

    def _called(self, name: str) -> Value:
        degree = base = exponent = None
        if name == "sqrt" and self._peek() == "[":
            degree = self._atom()
        if name == "log" and self._take("_"):
            base = self._argument()
        if self._take("^"):
            exponent = self._argument() if self._peek() != "-" else None
            if exponent is None:
                raise Unreadable("an inverse function")
        value, in_degrees = self._of()
        found = self._computed(name, value, degree, base, in_degrees)
        return found if exponent is None else power(found, exponent)

    def _of(self) -> tuple[Value, bool]:
        """What a function is applied to: one factor, with the factors behind it if it has no brackets."""
        if self._peek() in ("(", "{", "[", "|"):
            start = self._place
            value = self._atom()
            return value, "\\degree" in self._tokens[start : self._place] or self._take("\\degree")
        start = self._place
        value = self._powered()
        while self._tokens[start][0].isdigit() and (token := self._peek()) is not None:
            if not (token in CONSTANTS or (token.isalpha() and token not in CALLS)):
                break
            value = times(value, self._powered())
        return value, "\\degree" in self._tokens[start : self._place]

    def _computed(self, name: str, value: Value, degree: Value | None, base: Value | None, in_degrees: bool) -> Value:
        if name in ("sqrt", "cbrt"):
            return root(value, exactly(3) if name == "cbrt" else degree)
        if name == "abs":
            return absolute(value)
        if name in ("log", "lg", "ln"):
            return logarithm(value, None if name == "ln" else base or exactly(10))
        if in_degrees:
            value = times(value, divided(CONSTANTS["\\pi"], exactly(180)))
        return _apply(FUNCTIONS[name], value)


def _tokens(text: str) -> list[str]:
    found, place = [], 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise Unreadable(f"'{text[place]}' has no place in an expression")
        place = match.end()
        word = match["word"]
        if word is None:
            found += [] if match[0].isspace() else [match[0]]
        elif word in CALLS or word.lower() in PLAIN:
            found.append(PLAIN.get(word.lower(), word))
        elif len(word) == 1 or (len(word) <= 3 and word.lower() not in WORDS):
            found += list(word)
        else:
            raise Unreadable(f"'{word}' is a word")
    if len(found) > MAX_TOKENS:
        raise Unreadable("too long")
    return found
