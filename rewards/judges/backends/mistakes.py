"""Plausible wrong numbers made of right ones: of many kinds, or a reward model learns one kind and no other."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

DIGITS = "0123456789"
NUMBER = re.compile(r"(?<![\d.])[1-9]\d*(?![\d.]*\d)")
"""A positive whole number, in full."""


def changed(right: str, rng: np.random.Generator) -> str:
    """`right` with one digit replaced by another."""
    while True:
        place = int(rng.integers(len(right)))
        text = right[:place] + str(rng.integers(10)) + right[place + 1 :]
        if text != right and not text.startswith("0"):
            return text


def _off(right: str, by: int, rng: np.random.Generator) -> str:
    return str(int(right) + by * (1 if rng.random() < 0.5 else -1))


def _swapped(right: str, rng: np.random.Generator) -> str:
    place = int(rng.integers(len(right) - 1))
    return right[:place] + right[place + 1] + right[place] + right[place + 2 :]


def _dropped(right: str, rng: np.random.Generator) -> str:
    place = int(rng.integers(len(right)))
    return right[:place] + right[place + 1 :]


def _added(right: str, rng: np.random.Generator) -> str:
    place = int(rng.integers(len(right) + 1))
    return right[:place] + str(rng.integers(10)) + right[place:]


MISTAKES: dict[str, Callable[[str, np.random.Generator], str]] = {
    "a digit": changed,
    "two digits": lambda right, rng: changed(changed(right, rng), rng),
    "one off": lambda right, rng: _off(right, 1, rng),
    "a carry too many or too few": lambda right, rng: _off(right, 10, rng),
    "a little off": lambda right, rng: _off(right, int(rng.integers(2, 30)), rng),
    "digits swapped": _swapped,
    "a digit dropped": _dropped,
    "a digit added": _added,
}


def mistaken(right: str, rng: np.random.Generator) -> str:
    """A positive number with one of the MISTAKES, each as likely; again a positive number.

    A number of one digit becomes another one.
    """
    kinds = list(MISTAKES.values()) if len(right) > 1 else [changed]
    while True:
        text = kinds[int(rng.integers(len(kinds)))](right, rng)
        if text != right and not text.startswith(("0", "-")):
            return text


def miscalculated(solution: str, seed: int) -> str:
    """A solution with a mistake in its last whole number, or with another last digit; itself where it has none."""
    rng = np.random.default_rng(seed)
    if found := list(NUMBER.finditer(solution)):
        start, end = found[-1].span()
        return solution[:start] + mistaken(solution[start:end], rng) + solution[end:]
    place = max((i for i, letter in enumerate(solution) if letter in DIGITS), default=None)
    if place is None:
        return solution
    other = rng.choice([digit for digit in DIGITS if digit != solution[place]])
    return f"{solution[:place]}{other}{solution[place + 1 :]}"
