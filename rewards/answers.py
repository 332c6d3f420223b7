"""Reading the final answer out of what a model wrote. Where several places look like one, the last counts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from cluster.types import Rollout

# Linear on hostile text: nothing lazy before something that may never come.
OPENED, CLOSED = re.compile(r"<answer>", re.IGNORECASE), re.compile(r"</answer>", re.IGNORECASE)
HASHES = re.compile(r"^[ \t]*####(.+)$", re.MULTILINE)
PHRASE = re.compile(r"\b(?:final\s+)?answer(?:\s+is\b|\s*:)[ \t]*:?(.+)$", re.IGNORECASE | re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)")
BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def final_answer(text: str) -> str | None:
    """What the text gives as its answer, None if it gives none.

    In this order: `<answer>…</answer>`, `\\boxed{…}`, `#### …` (GSM8K), "the answer is …", and a text of one line as a
    whole. What stands in `<think>…</think>` is no answer; nor is anything before a thought that never ends.
    """
    text = spoken(text)
    for find in (tagged, boxed, hashed, phrased):
        found = find(text)
        if found is not None:
            return found or None
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0].strip() if len(lines) == 1 else None


def answer_of(rollout: Rollout, extract: str = "auto") -> str | None:
    """The answer of a rollout: its environment's if it gives one, else read from its text."""
    return rollout.answer if rollout.answer is not None else EXTRACT[extract](rollout.text)


def spoken(text: str) -> str:
    """The text after its last thought."""
    _, _, after = text.rpartition("</think>")
    return after.partition("<think>")[0] if "<think>" not in text or "</think>" in text else ""


def tagged(text: str) -> str | None:
    end = _last(CLOSED, text)
    start = end and _last(OPENED, text[: end.start()])
    return text[start.end() : end.start()].strip() if start and end else None


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` whose braces close."""
    open_braces: list[int | None] = []
    start = end = -1
    for match in BRACES.finditer(text):
        if match[0] == "}":
            opened = open_braces.pop() if open_braces else None
            if opened is not None and opened > start:
                start, end = opened, match.start()
        elif match[0].endswith("{") and match[0] != "\\{":
            open_braces.append(match.end() if len(match[0]) > 1 else None)
    return text[start:end].strip() if end >= 0 else None


def hashed(text: str) -> str | None:
    found = _last(HASHES, text)
    return found[1].strip() if found else None


def phrased(text: str) -> str | None:
    found = _last(PHRASE, text)
    return found[1].strip() if found else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    return match


def last_number(text: str) -> str | None:
    found = [m for m in NUMBER.findall(spoken(text)) if any(c.isdigit() for c in m)]
    return found[-1] if found else None


def normalised(answer: str, *, ignore_case: bool = True) -> str:
    """Equal for answers that differ in spacing, width of characters, case, quotes, `$` or a final stop only."""
    answer = " ".join(unicodedata.normalize("NFKC", answer).split())
    answer = answer.removesuffix(".").strip("\"'`$* ").removesuffix(".")
    return answer.casefold() if ignore_case else answer


EXTRACT: dict[str, Callable[[str], str | None]] = {
    "auto": final_answer,
    "text": str.strip,
    "tag": lambda text: tagged(spoken(text)),
    "boxed": lambda text: boxed(spoken(text)),
    "hashes": lambda text: hashed(spoken(text)),
    "last_number": last_number,
}
"""Ways to read an answer, by the name used in recipes."""
