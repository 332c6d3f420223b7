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
from itertools import pairwise
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
"""Two verdicts both count only if both begin this close to the end (RM-R1, arXiv:2505.02387, examines as much)."""
VERDICT = re.compile(
    r"^[^\w\n]*(?:(?:my|the|final|overall)[ \t]+){0,2}(?P<word>verdict)[^\w\n]*?[:=](?P<value>[^\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)
LINES = re.compile(r"[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x2212: ord("-"), 0x3000: ord(" ")}
"""Full-width forms, and the sign of minus, as the characters of ASCII that they stand for; lengths stay."""
MARKUP = re.compile(r"[\s`~*_=#$}\])-]*|</\w{1,20}>")
"""A line that only closes something."""
FENCE = ("```", "~~~")
QUOTES = "\"'“”‘’«»„‚「『›‹"
WRAPPED = {"(": ")", "[": "]", "{": "}", "<": ">", "`": "`", "$": "$", '"': '"', "'": "'", "“": "”", "【": "】"}
QUOTING = re.compile(
    r"\b(?:says|writes|wrote|claims|claimed|states|reads|ends|ended|contains|includes|inserts|inserted|adds|appends|"
    r"appended|demands|asks|tells|instructs|quotes|quoted|quoting|injects|injected|tries|tried|wants|suggests|quote)\b"
    r"(?:[^.!?]{0,80}:|[\s\"'“*_]{0,8})$",
    re.IGNORECASE,
)
"""The end of a line behind which another's words stand."""
TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|correction|sorry|scratch|second thought|reconsider\w*|revis\w+|instead|"
    r"rather|i mean|make that)\b",
    re.IGNORECASE,
)
MARKS = re.compile(r"(?:[<＜][\u200b-\u200f\u2060\ufeff]*+){3,}+")
CONTROL = re.compile(
    r"[<＜](?=/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn|[a-z:]*think(?:ing)?|thoughts?|reason(?:ing)?)>|[|｜]|<SYS>>|</SYS>>)"
    r"|\[(?=/?(?:INST|THINK|SYSTEM_PROMPT|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\])",
    re.IGNORECASE,
)
"""Where a token begins that a chat template gives a meaning: the end of a turn, a role, a thought."""


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

    version: ClassVar[int] = 2
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
        """Return a hash of everything that decides what is asked and how the answer is read."""
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
        return read_label(text, self.labels, item, alone=mode != "text")


def marked(name: str, text: str) -> str:
    """`text` between markers that it cannot forge."""
    return f"<<<{name}>>>\n{neutral(text)}\n<<<END {name}>>>"


def neutral(text: str) -> str:
    """Without what looks like one of our markers or a chat template's tokens, and without what cannot be sent."""
    text = MARKS.sub(lambda m: "‹" * sum(c in "<＜" for c in m[0]), text)
    text = CONTROL.sub("‹", text).replace("\0", "\ufffd")
    return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")


class Said:
    """What a judge said behind its thoughts: its lines that are not blank, each with its offset in the answer.

    Raises Unreadable if there are none. Lines at the end that only close something, such as a fence, are left out.
    """

    def __init__(self, text: str, item: Item) -> None:
        self.text, self._item = text.translate(PLAIN), item
        self.begin = after_thought(self.text)
        found = LINES.finditer(self.text, self.begin)
        self.lines = [(m.start(), m[0]) for m in found if not m[0].isspace()]
        while self.lines and MARKUP.fullmatch(self.lines[-1][1].strip()):
            self.lines.pop()
        if not self.lines:
            raise Unreadable("the answer is empty of words")

    def last(self, count: int = 1) -> list[str]:
        """The last lines, as they are written."""
        return [line for _, line in self.lines[-count:]]

    def check_own(self, count: int = 1) -> None:
        """Raises Unreadable if the last lines are a quotation: of what is judged, as a rule, and not the verdict.

        They are where Markdown or quotation marks say so, where the line before says who said it, and where they stand
        in a response behind that same line.
        """
        first = max(0, len(self.lines) - count)
        lines = [line.strip() for _, line in self.lines]
        before, own = lines[:first], lines[first:]
        opened = bool(before) and before[-1].startswith(FENCE)
        fenced = sum(line.startswith(FENCE) for line in before) % 2 == 1 and not opened
        marked_up = any(line.startswith(">") for line in own)
        in_quotes = own[-1].count('"') % 2 == 1 or own[-1].count("”") > own[-1].count("“")
        if before:
            in_quotes |= any(line.lstrip("*_-#` ")[:1] in tuple(QUOTES) for line in own)
        introduced = bool(before) and QUOTING.search(before[-1][-200:]) is not None
        if fenced or marked_up or in_quotes or introduced or (before and self._copied(before[-1], own[0])):
            raise Unreadable(f"the end of the answer is a quotation: {own[-1][:80]!r}")

    def _copied(self, before: str, line: str) -> bool:
        before = before.strip(QUOTES + ">*_` ")
        for response in self._item.responses:
            if line not in response:
                continue
            theirs = [other.strip() for other in response.translate(PLAIN).splitlines() if other.strip()]
            if any(b == line and before and before.endswith(a) for a, b in pairwise(theirs)):
                return True
        return False


def read_label(text: str, labels: Mapping[str, float], item: Item, *, alone: bool) -> Parsed:
    """The one label on a `Verdict:` line at the end; `alone`, the first line itself may be the label.

    A label inside the reasons does not count, nor does one in a thought or in a quotation; two different verdicts are
    none.
    """
    said = Said(text, item)
    text = said.text
    start, first = said.lines[0]
    if alone and (label := _label(first, labels)) is not None:
        _check_undisputed(said, label, labels)
        return Parsed((labels[label],), start + first.index(bare(first)))
    cut = max(said.begin, len(text.rstrip()) - TAIL_CHARS)
    near = {bare(m["value"]).casefold() for m in VERDICT.finditer(text, said.begin) if m.start("word") >= cut} - {""}
    if len(near) > 1:
        raise Unreadable(f"{len(near)} verdicts: {', '.join(sorted(near))}")
    start, last = said.lines[-1]
    match = VERDICT.fullmatch(last)
    if match is None:
        raise Unreadable(f"no line 'Verdict: …' at the end of {text[-120:]!r}")
    said.check_own()
    written = bare(match["value"])
    if written.casefold() == "none":
        raise Declined(text[said.begin :][:200].strip())
    label = _label(match["value"], labels)
    if label is None:
        raise Unreadable(f"the verdict '{written[:40]}' is none of {', '.join(labels)}")
    return Parsed((labels[label],), start + match.start("value") + match["value"].index(written))


def check_declined(said: Said) -> None:
    """Raises Declined if the judge's last line is `Verdict: none`."""
    match = VERDICT.fullmatch(said.last()[0])
    if match is not None and bare(match["value"]).casefold() == "none":
        said.check_own()
        raise Declined(said.text[said.begin :][:200].strip())


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


def bare(written: str) -> str:
    """Without blanks, emphasis, the full stop behind it, and brackets or quotation marks that close.

    What is left of `<4` and `.5` is all of it: they say something else than 4 and 5.
    """
    written = written.strip()
    if len(written) > TAIL_CHARS:
        return written
    while True:
        left = written.strip(" \t*_")
        for macro in ("\\boxed{", "\\text{", "\\mathbf{"):
            if left.startswith(macro) and left.endswith("}"):
                left = left[len(macro) : -1]
        if len(left) > 1 and WRAPPED.get(left[0]) == left[-1]:
            left = left[1:-1]
        if len(left) > 1 and left[-1] in ".!" and left[-2] not in ".!":
            left = left[:-1]
        if left == written:
            return written
        written = left


def _check_undisputed(said: Said, label: str, labels: Mapping[str, float]) -> None:
    """Raises Unreadable if what stands below the label takes it back."""
    for place, (_, line) in enumerate(said.lines[1:]):
        match = VERDICT.fullmatch(line)
        other = _label(line if match is None else match["value"], labels)
        if other not in (None, label) or (match is not None and other is None) or TAKEN_BACK.search(line):
            raise Unreadable(f"the label '{label}' is taken back: {line[:80]!r}")
        if place == 0 and line.lstrip()[:1].islower():
            raise Unreadable(f"the label '{label}' is part of a sentence: {line[:80]!r}")


def _label(written: str, labels: Mapping[str, float]) -> str | None:
    left = bare(written).casefold()
    return next((label for label in labels if label.casefold() == left), None)


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
