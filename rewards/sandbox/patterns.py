"""Regular expressions on foreign text: backtracking can take forever."""

from __future__ import annotations

import re


def matches(pattern: str, anywhere: bool, texts: list[str]) -> list[bool]:
    compiled = re.compile(pattern, re.DOTALL)
    return [(compiled.search(t) if anywhere else compiled.fullmatch(t)) is not None for t in texts]


def ends(pattern: str, text: str) -> list[int]:
    """The offset behind each match."""
    return [match.end() for match in re.finditer(pattern, text)]
