r"""Pairs of answers by kind, from `pairs.txt`.

There each line is one answer in several spellings, with ` :: ` between them; the answers of a block are different, and
an empty line ends a block. Every two spellings of a line are a pair that is right, the first spellings of two lines of
a block a pair that is wrong.
"""

import re
from pathlib import Path

TABLE = (Path(__file__).parent / "pairs.txt").read_text("utf-8")
KINDS = dict(re.findall(r"^\[([a-z]+)\]\n(.*?)(?=^\[[a-z]+\]\n|\Z)", TABLE, re.DOTALL | re.MULTILINE))


def lines(kind: str) -> list[list[str]]:
    """The spellings of each answer of a kind."""
    return [line.split(" :: ") for line in KINDS[kind].split("\n") if line]


def pairs() -> list[tuple[str, str, str, bool]]:
    """(kind, reference, answer, whether it is right)."""
    found = []
    for kind, blocks in KINDS.items():
        for block in blocks.strip("\n").split("\n\n"):
            answers = [line.split(" :: ") for line in block.split("\n")]
            for spellings in answers:
                first = spellings[0]
                found += [(kind, first, other, True) for other in spellings]
                found += [(kind, other, first, True) for other in spellings[1:]]
                found += [(kind, first, other[0], False) for other in answers if other is not spellings]
    return found
