"""Plausible wrong numbers made of right ones: of many kinds, or a reward model learns one kind and no other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


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
    """A positive number of two digits or more, with one of the MISTAKES, each as likely; again a positive number."""
    kinds = list(MISTAKES.values())
    while True:
        text = kinds[int(rng.integers(len(kinds)))](right, rng)
        if text != right and not text.startswith(("0", "-")):
            return text
