"""A prompt for a judge with its parser beside it.

Each is a versioned artefact: `hash` goes into the provenance of every score and changes with every word that is asked;
change a rule of a parser and raise `version`. What does not change within a group (instructions, scale, question,
reference) comes first and what is judged last, so that a server's prefix cache is shared.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from cluster.plugins import Plugin
from cluster.thoughts import thoughts_end, unfinished
from cluster.types import Message
from rewards.judges.errors import Declined, Unreadable

Mode = Literal["label", "text", "reason"]
"""`label`: the verdict at once, one token. `text`: reasons, then the verdict, in one answer. `reason`: reasons in one
answer, the verdict asked for in a second one (the reasons are then in the server's prefix cache)."""

TAIL_CHARS = 80
"""A verdict counts only if it begins so close to the end (RM-R1, arXiv:2505.02387, examines as much)."""
VERDICT = re.compile(r"^[^\w\n]*(?P<word>verdict)[^\w\n]*?[:=](?P<value>[^\n]*)$", re.IGNORECASE | re.MULTILINE)
TRIMMED = " \t\r*_`'\"[](){}<>.!"
MARKS = re.compile(r"<{3,}")


@dataclass(frozen=True, slots=True)
class Item:
    """What is judged."""

    question: str
    responses: tuple[str, ...]
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a parser found in the text of an answer."""

    values: tuple[float, ...]
    """One per response; of two responses that were compared one number, 1 if the first is better."""
    start: int | None = None
    """Offset of the label, where there is one label."""


class Template(Plugin):
    """Its fields are its options. `instructions` and `body` may be rewritten; their `{fields}` are checked."""

    version: ClassVar[int] = 1
    kind: ClassVar[str]
    modes: ClassVar[tuple[Mode, ...]] = ("label", "text", "reason")
    fields: ClassVar[tuple[str, ...]] = ("question", "response")
    """What `body` is filled with; it must name all of them."""
    num_responses: ClassVar[int | None] = 1
    """None: any number."""
    needs_reference: ClassVar[bool] = False

    instructions: str
    body: str

    @model_validator(mode="after")
    def _filled(self) -> Template:
        named = _names("body", self.body)
        for name in sorted(named - set(self.fields)):
            raise ValueError(f"body has the unknown field '{{{name}}}'. Known: {', '.join(self.fields)}")
        for name in self.fields:
            if name not in named:
                raise ValueError(f"body does not name '{{{name}}}', so the judge would not see it")
        return self

    @cached_property
    def hash(self) -> str:
        """Of everything that decides what is asked and how the answer is read."""
        probe = Item("question", ("response",) * (self.num_responses or 2), "reference")
        asked = [[m.content for m in self.messages(probe, mode)] + [self.follow_up()] for mode in self.modes]
        artefact = [self.kind, self.version, self.model_dump(mode="json"), asked]
        return hashlib.sha256(json.dumps(artefact, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def labels(self) -> Mapping[str, float]:
        """The single-token verdicts and their values; empty where a verdict is more than one token."""
        return {}

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        values = self.labels.values()
        return min(values), max(values)

    def messages(self, item: Item, mode: Mode) -> tuple[Message, ...]:
        system = "\n\n".join(filter(None, (self.instructions, self.invariant(), self.contract(item, mode))))
        return Message("system", system), Message("user", self.body.format_map(self.blocks(item)))

    def invariant(self) -> str:
        """Scale or criteria: what stands before the question."""
        return ""

    def blocks(self, item: Item) -> dict[str, str]:
        """What the fields of `body` are filled with."""
        blocks = {"question": marked("QUESTION", item.question)}
        if self.needs_reference:
            assert item.reference is not None, f"{self.kind} was asked about an item without a reference"
            blocks["reference"] = marked("REFERENCE", item.reference)
        if self.num_responses == 1:
            blocks["response"] = marked("RESPONSE", item.responses[0])
        return blocks

    def contract(self, item: Item, mode: Mode) -> str:
        """What the answer must look like."""
        if mode == "reason":
            return "Explain your judgement in a few sentences. Do not give the verdict yet; you will be asked for it."
        if mode == "label":
            return f"{self.follow_up()} Write no other word."
        return (
            f"Explain your judgement in a few sentences. Then end with one line 'Verdict: X', where X is one of "
            f"{', '.join(self.labels)}. If this cannot be judged, let the line be 'Verdict: none'."
        )

    def follow_up(self) -> str:
        """Asks for the verdict, alone."""
        return f"Answer with exactly one of: {', '.join(self.labels)}."

    def parse(self, text: str, item: Item, mode: Mode) -> Parsed:
        """Raises Unreadable, or Declined."""
        return read_label(text, self.labels, alone=mode != "text")


def marked(name: str, text: str) -> str:
    """`text` between markers that it cannot forge."""
    return f"<<<{name}>>>\n{neutral(text)}\n<<<END {name}>>>"


def neutral(text: str) -> str:
    """Without anything that looks like one of our markers."""
    return MARKS.sub(lambda m: "‹" * len(m[0]), text)


def read_label(text: str, labels: Mapping[str, float], *, alone: bool) -> Parsed:
    """The one label on a `Verdict:` line near the end; `alone`, the first line itself may be the label.

    A label inside the reasons does not count, nor does one in a thought; two different verdicts are none.
    """
    begin = after_thought(text)
    first = next((line for line in text[begin:].splitlines() if line.strip()), "")
    if alone and (label := _label(first, labels)) is not None:
        return Parsed((labels[label],), text.index(first, begin) + first.index(first.strip(TRIMMED)))
    cut = max(begin, len(text.rstrip()) - TAIL_CHARS)
    found = {_value(m): m for m in VERDICT.finditer(text, begin) if m.start("word") >= cut}
    if not found:
        raise Unreadable(f"no line 'Verdict: …' within the last {TAIL_CHARS} characters of {text[-120:]!r}")
    if len(found) > 1:
        raise Unreadable(f"{len(found)} verdicts: {', '.join(sorted(found))}")
    written, match = found.popitem()
    if written == "none":
        raise Declined(text[begin:][:200].strip())
    label = _label(written, labels)
    if label is None:
        raise Unreadable(f"the verdict '{written[:40]}' is none of {', '.join(labels)}")
    return Parsed((labels[label],), match.start("value") + match["value"].index(match["value"].strip(TRIMMED)))


def after_thought(text: str) -> int:
    """Where the answer begins behind the judge's own thoughts. Raises Unreadable."""
    if not text.strip():
        raise Unreadable("the answer is empty")
    if unfinished(text):
        raise Unreadable("the answer ends inside a thought")
    begin = thoughts_end(text)
    if not text[begin:].strip():
        raise Unreadable("the answer is empty behind its thought")
    return begin


def _value(match: re.Match[str]) -> str:
    return match["value"].strip(TRIMMED).casefold()


def _label(written: str, labels: Mapping[str, float]) -> str | None:
    bare = written.strip(TRIMMED).casefold()
    return next((label for label in labels if label.casefold() == bare), None)


def _names(where: str, text: str) -> set[str]:
    try:
        return {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ValueError(f"{where}: {error}; a literal brace is written twice") from error


def scale_values(labels: Mapping[str, Any]) -> dict[str, float]:
    """Label → value: the number it is, or else its place in the order given."""
    try:
        return {label: float(label) for label in labels}
    except ValueError:
        return {label: float(i) for i, label in enumerate(labels)}
