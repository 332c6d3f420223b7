"""Recipes of the repository with some values replaced at random, by what a user may write there by mistake."""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

from cluster import config
from cluster.driver import preflight_plugins
from cluster.errors import ConfigError
from tests.end_to_end.jobs import ROOT

ODD: tuple[Any, ...] = (
    True, 0, -1, 1, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan"), float("inf"), -float("inf"),
    "", "x", "\x00", "é\n", "tests.nope:Nope", "os:system", "rewards.base:Reward", ":", "a:", "../x", "0", "exact",
    [], [1], ["x"], [{}], [[1, 2]], {}, {"x": 1}, {"use": 1}, {"use": "exact", "options": 3},
    datetime.datetime(2020, 1, 1), datetime.date(2020, 1, 1), datetime.time(1, 2),
)  # fmt: skip
"""Values of every type that TOML has."""


@cache
def recipes() -> list[dict[str, Any]]:
    """Every recipe, complete with its defaults."""
    files = sorted((ROOT / "deploy" / "recipes").rglob("*.toml"))
    return [config.tree_of(config.load(file)) for file in files if file.parent.name != "offline"]


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every section or list, with each of its keys or numbers."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield node, key
        yield from places(value)


def read(seed: int, count: int, *, build: bool) -> tuple[int, int]:
    """Read `count` odd recipes, and build their plug-ins with `build`; return how many were accepted and refused.

    Each is refused by a ConfigError, or is read again as it was written.
    """
    draw, accepted, refused = random.Random(seed), 0, 0
    for _ in range(count):
        tree = deepcopy(draw.choice(recipes()))
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            node, key = draw.choice(list(places(tree)))
            node[key] = deepcopy(draw.choice(ODD))
        try:
            settings = config.parse(tree)
            assert config.dump(config.parse(config.tree_of(settings))) == config.dump(settings)
            if build:
                preflight_plugins.plugins(settings)
        except ConfigError:
            refused += 1
        else:
            accepted += 1
    return accepted, refused
