"""Reading the final answer out of what a model wrote. Where several places look like one, the last counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from cluster.thoughts import spoken, spoken_by
from cluster.types import Rollout
from rewards.parsing.equality import is_empty, reading, votes

# Linear on hostile text: nothing lazy before something that may never come.
OPENED, CLOSED = re.compile(r"<answer>", re.IGNORECASE), re.compile(r"</answer>", re.IGNORECASE)
HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")
PHRASE = re.compile(
    r"(?:\b(?:answers?|solutions?|results?|(?:correct|right|best)\s(?:option|choice))\b(?:\s+(?:to|of|for)\b[^\n.:=]{0,80}?)?"
    r"(?:[ \t*_]*(?:\s(?:is|are|was|would\s+be|should\s+be|must\s+be|will\s+be|equals|comes\s+out\s+to(?:\s+be)?)\b"
    r"(?:\s+(?:that\b)?)?[ \t]*:?|[:：]|=))|答案\s?(?:是|为|[:：]))[ \t*_]*",
    re.IGNORECASE,
)
"""`the answer is`, `Answer:`, `**Final answer**:`, `the solution to the problem is`, `the correct option is`."""
EMPHASIS = re.compile(r"([*_]+)\s*$")
BULLET = re.compile(r"[-\u2022]\s+")
"""A list item on the line after "the answer is:"."""
ADVERB = re.compile(
    r"(?:therefore|thus|then|hence|so|simply|just|clearly|indeed|now|again|probably)[,:]?\s+", re.IGNORECASE
)
CLAUSE = re.compile(
    r"[。！？]|[.!?](?=\s|$|[\"')\]*]+(?:\s|$))|[,;:(\u2014-]?\s+(?:because|since|which|whereas|while|as|but|that|where|thus|hence|therefore|not|"
    r"rather|instead|when|if|after|given|using|i\.e|e\.g|for\s+the|and\s+(?:i|we|it|this|that|the|you|not)|so)\b"
    r"|\s\((?:because|since|as|i\.e|e\.g)\b|[,;]\s+(?:i|we|you|it|this|the|let|please|hope|right)\b|\s\u2014\s|\s-\s(?=[a-z])",
    re.IGNORECASE,
)
"""Where the sentence's answer ends: a sentence, or what explains it."""
ABBREVIATED = re.compile(
    r"(?:^|[\s(])(?:[A-Z]\.[A-Z]|approx|no|vs|st|mr|mrs|dr|sq|ft|lbs|oz|hrs?|mins?|secs?|a\.m|p\.m)$", re.IGNORECASE
)
MATHEMATICS = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")
NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)")
BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
BARE_BOX = re.compile(r"\\boxed(?:\s+|(?=\d))([^\s${}\\]+)")
JOINED = re.compile(r"^\s*[,;]?\s*(?:or|and)?\s*$|\bor\b")
MATHEMATICAL = frozenset({"number", "list", "tuple", "matrix", "expression", "relation", "unclear"})
MAX_PHRASE = 400


def final_answer(text: str) -> str | None:
    r"""What the text gives as its answer, None if it gives none.

    In this order: `<answer>…</answer>`, `\boxed{…}`, `#### …` (GSM8K), "the answer is …" up to the end of its sentence,
    and a text of one line as a whole; of several lines the last, if it is a number or holds mathematics between dollar
    signs. What stands in `<think>…</think>` is no answer; nor is anything before a thought that never ends, nor what is
    empty without its notation: `\boxed{}`, `.`.
    """
    return _meant(_stated(spoken(text)))


def answer_of(rollout: Rollout, extract: str = "auto") -> str | None:
    """The answer of a rollout: its environment's if it gives one, else read from its text."""
    return _meant(rollout.answer if rollout.answer is not None else EXTRACT[extract](spoken_by(rollout)))


def votes_of(rollouts: Sequence[Rollout], extract: str = "auto") -> list[str | None]:
    """What each rollout votes for: the same key for equal answers, None for a rollout without one."""
    return votes([answer_of(r, extract) for r in rollouts])


def reference_of(answer: object) -> str:
    r"""What a reference says: of a worked solution its `\boxed{…}`, `<answer>…</answer>` or `#### …`; "" for none."""
    text = "" if answer is None else spoken(str(answer))
    for find in (tagged, boxed, hashed):
        if found := find(text):
            return _unwrapped(found)
    if len(text.splitlines()) > 1 and (found := phrased(text)):
        return found
    return text.strip()


def _meant(answer: str | None) -> str | None:
    return None if answer is None or is_empty(answer) else answer


def _stated(text: str) -> str | None:
    for find in (tagged, boxed, hashed, phrased):
        found = find(text)
        if found is not None:
            return _unwrapped(found) or None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    shown = [line for line in lines if not line.startswith("```")] or lines
    known = _of_line(shown[-1])
    return known if known is not None or len(lines) > 1 else lines[0]


def _unwrapped(answer: str) -> str:
    r"""Return what an answer marks as its own answer: `<answer>The answer is \boxed{5}</answer>`."""
    for find in (boxed, hashed, phrased):
        found = find(answer)
        if found is not None:
            return found
    return answer


def _of_line(line: str) -> str | None:
    """A line that is wholly mathematics, or else the last of it between dollar signs, if one is the last word."""
    if reading(line).kind in MATHEMATICAL - {"unclear", "relation"}:
        return line
    spans = list(MATHEMATICS.finditer(line))
    if not spans or (len(spans) > 1 and JOINED.search(line[spans[-2].end() : spans[-1].start()])):
        return None
    found = next(filter(None, spans[-1].groups())).strip()
    return found if reading(found).kind in MATHEMATICAL else None


def tagged(text: str) -> str | None:
    end = _last(CLOSED, text)
    start = end and _last(OPENED, text[: end.start()])
    return CLOSED.sub("", text[start.end() : end.start()]).strip() if start and end else None


def boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}` whose braces close; where none does, what follows `\boxed `."""
    open_braces: list[int | None] = []
    start = end = -1
    for match in BRACES.finditer(text):
        if match[0] == "}":
            opened = open_braces.pop() if open_braces else None
            if opened is not None and opened > start:
                start, end = opened, match.start()
        elif match[0].endswith("{") and match[0] != "\\{":
            open_braces.append(match.end() if len(match[0]) > 1 else None)
    if end >= 0:
        return text[start:end].strip()
    bare = _last(BARE_BOX, text)
    return bare[1].rstrip(".,;") if bare else None


def hashed(text: str) -> str | None:
    """What stands behind the last `####`, unless that is a heading of Markdown: words, with other lines below."""
    for match in reversed(list(HASHES.finditer(text))[-20:]):
        found = match[1].strip()
        is_last = not text[match.end() :].strip()
        if found and (is_last or reading(found).kind not in ("text", "unclear")):
            return found
    return None


def phrased(text: str) -> str | None:
    """What "the answer is" says, up to the end of its clause; on the next line where its own ends there."""
    match = _last(PHRASE, text)
    if match is None:
        return None
    after = text[match.end() : match.end() + MAX_PHRASE]
    rest = after.lstrip(" \t*_:\r\n")
    if "\n" in after[: len(after) - len(rest)]:
        rest = BULLET.sub("", rest, count=1)
    if opened := EMPHASIS.search(text[match.start() : match.end() + len(after) - len(rest)]):
        rest = rest.replace(opened[1], "", 1)  # of `**12** apples` the end
    found = ADVERB.sub("", rest.split("\n")[0], count=1)
    if mathematics := MATHEMATICS.match(found):
        return next(filter(None, mathematics.groups())).strip()
    return found[: _clause_end(found)].strip()


def _clause_end(text: str) -> int:
    """Outside brackets and dollar signs."""
    for match in CLAUSE.finditer(text):
        before = text[: match.start()]
        if match.start() == 0 or before.count("(") > before.count(")") or before.count("$") % 2:
            continue
        if match[0] == "." and ABBREVIATED.search(before) and text[match.end() :].strip():
            continue
        return match.start()
    return len(text)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    return match


def last_number(text: str) -> str | None:
    found = [m for m in NUMBER.findall(spoken(text)) if any(c.isdigit() for c in m)]
    return found[-1] if found else None


EXTRACT: dict[str, Callable[[str], str | None]] = {
    "auto": final_answer,
    "text": lambda text: spoken(text).strip(),
    "tag": lambda text: tagged(spoken(text)),
    "boxed": lambda text: boxed(spoken(text)),
    "hashes": lambda text: hashed(spoken(text)),
    "last_number": last_number,
}
"""Ways to read an answer, by the name used in recipes."""
