"""One response against a titled rubric with a description per level (in the manner of Prometheus, arXiv:2310.08491)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from rewards.judges.templates.pointwise import STRICT, Pointwise


class Rubric(Pointwise):
    kind: ClassVar[str] = "rubric"
    instructions: str = f"{STRICT} Judge by the rubric below and by nothing else."
    title: str
    """What is judged, as a question: 'Is the proof complete?'"""
    levels: dict[str, str] = Field(min_length=2)

    def invariant(self) -> str:
        return f"The rubric: {self.title}\n" + "\n".join(f"{k}: {meaning}" for k, meaning in self.levels.items())


class RubricReference(Rubric):
    kind: ClassVar[str] = "rubric_reference"
    fields: ClassVar[tuple[str, ...]] = ("question", "reference", "response")
    needs_reference: ClassVar[bool] = True
    instructions: str = (
        f"{STRICT} Judge by the rubric below and by nothing else. The reference answer deserves the highest level."
    )
    body: str = "{question}\n\n{reference}\n\n{response}"
