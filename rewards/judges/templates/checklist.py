"""k yes-or-no criteria with weights; the score is their weighted share, so anybody can add it up again."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field, PositiveFloat, model_validator

from rewards.judges.errors import Unreadable
from rewards.judges.templates.base import Item, Mode, Parsed, Said, Template, check_declined
from rewards.judges.templates.pointwise import STRICT

LINE = re.compile(
    r"[\s*_#-]*(?:criterion )?(?P<number>[0-9]{1,4})[*_]{0,3}[.:)]"
    r"[\s*_`]{0,6}(?P<quote>['\"]?)(?P<held>yes|no)(?P=quote)[\s*_`]{0,6}[.!]?[\s*_`]{0,6}",
    re.IGNORECASE,
)


class Checklist(Template):
    """Value = Σ weights of the criteria that hold / Σ weights, in [0, 1]."""

    kind: ClassVar[str] = "checklist"
    modes: ClassVar[tuple[Mode, ...]] = ("text",)
    instructions: str = f"{STRICT} Decide every criterion below on its own."
    body: str = "{question}\n\n{response}"
    criteria: tuple[str, ...] = Field(min_length=1)
    weights: tuple[PositiveFloat, ...] = ()
    """One per criterion; equal if empty."""

    @model_validator(mode="after")
    def _weighted(self) -> Checklist:
        if self.weights and len(self.weights) != len(self.criteria):
            raise ValueError(f"{len(self.weights)} weights for {len(self.criteria)} criteria")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, 1.0

    def invariant(self) -> str:
        return "The criteria:\n" + "\n".join(f"{i}. {c}" for i, c in enumerate(self.criteria, 1))

    def contract(self, item: Item, mode: Mode) -> str:
        return (
            "Explain your judgement in a few sentences. Then end with one line per criterion and nothing after them: "
            "its number, a colon, and yes or no, as in '1: yes'. If this cannot be judged, end with 'Verdict: none'."
        )

    def parse(self, text: str, item: Item, mode: Mode) -> Parsed:
        """The last k lines, numbered 1 to k; a criterion mentioned before them does not count."""
        said, k = Said(text, item), len(self.criteria)
        check_declined(said)
        read = [LINE.fullmatch(line) for line in said.last(k)]
        if [m and int(m["number"]) for m in read] != list(range(1, k + 1)):
            raise Unreadable(f"the last {k} lines are not '1: yes' to '{k}: no', but {said.last(k)!r:.200}")
        said.check_own(k)
        if len(said.lines) > k and LINE.fullmatch(said.last(k + 1)[0]):
            raise Unreadable(f"more than one answer to a criterion: {said.last(2 * k)!r:.200}")
        held = [m is not None and m["held"].casefold() == "yes" for m in read]
        weights = self.weights or (1.0,) * k
        return Parsed((sum(w for w, h in zip(weights, held, strict=True) if h) / sum(weights),))
