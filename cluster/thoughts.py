"""Thoughts in a model's text: which tags open and close one, and what of a text or a rollout is said aloud.

One table holds the tags of all families, so that what a prompt may open is what every reader of text knows.
"""

from __future__ import annotations

import re

from cluster.types import Rollout

WORDS = (
    ("think", "thinking"),
    ("thought", "thoughts"),
    ("reason", "reasoning"),
    ("seed:think",),
    ("analysis",),
    ("scratchpad",),
    ("reflection",),
)
"""Words of tags such as `<think>` and `</think>`; words of one line may close one another."""
PAIRS = (
    *(tuple(f"<{slash}(?:{'|'.join(words)})>" for slash in ("", "/")) for words in WORDS),
    (r"\[THINK\]", r"\[/THINK\]"),
    ("◁think▷", "◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|think(?:ing)?\|>", r"<\|/think(?:ing)?\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|channel\|>analysis<\|message\|>", r"<\|channel\|>final<\|message\|>"),
)
"""Patterns of what opens and of what closes a thought, in the order of their kinds."""
# Each tag begins with one of these; without the look-ahead, every alternative is tried at every character.
_BEGINS = r"(?=[<\[◁])"
_TAG = re.compile(rf"{_BEGINS}(?:{'|'.join(f'({begin})|({end})' for begin, end in PAIRS)})", re.IGNORECASE)
_OPENED = re.compile(rf"(?:(?:{'|'.join(begin for begin, _ in PAIRS)}|<answer>)\s*)+\Z", re.IGNORECASE)


def opened_at_end(text: str) -> str:
    """Return the opening tags of thoughts or an answer that a prompt ends in, with the space behind them; else ""."""
    # Tags are short, so that a long prompt is not searched from its beginning.
    match = _OPENED.search(text[-200:])
    return match[0] if match else ""


def unfinished(text: str) -> str:
    """Return the thought that is opened in a text and never ends, from its tag on; "" if there is none."""
    thoughts = _thoughts(text)
    return text[thoughts[-1][0] :] if thoughts and thoughts[-1][1] is None else ""


def spoken(text: str) -> str:
    """Return the text after its last thought, or before it where nothing follows; nothing where it never ends."""
    thoughts = _thoughts(text)
    if not thoughts:
        return text
    last = thoughts[-1][1]
    if last is None:
        return ""
    if text[last:].strip():
        return text[last:]
    ends = [0, *(end for _, end in thoughts if end)]
    return "".join(text[end:begin] for end, (begin, _) in zip(ends, thoughts, strict=False))


def thoughts_end(text: str) -> int:
    """Return the offset behind the last thought that ends, even one that was opened before the text; else 0."""
    return max((end or 0 for _, end in _thoughts(text)), default=0)


def whole_text(rollout: Rollout) -> str:
    """Return the rollout's text with what the prompt opened before each turn, such as `<think>\\n`."""
    return "\n".join(_turns(rollout))


def spoken_by(rollout: Rollout) -> str:
    """Return what the policy said after the thoughts of each turn; nothing where its last turn ends in a thought."""
    turns = _turns(rollout)
    return "" if unfinished(turns[-1]) else "\n".join(filter(None, map(spoken, turns)))


def _turns(rollout: Rollout) -> list[str]:
    """Texts of the policy's turns with what the prompt opened; the rollout's where its turns are of another text."""
    turns = [turn for turn in rollout.turns if turn.role == "assistant"]
    if "\n".join(turn.text for turn in turns) != rollout.text or not turns:
        return [rollout.opened + rollout.text]
    first = turns[0].opened or rollout.opened
    return [first + turns[0].text, *(turn.opened + turn.text for turn in turns[1:])]


def _thoughts(text: str) -> list[tuple[int, int | None]]:
    """Where each thought begins and ends; None for the end of one that never ends.

    Within a thought only its own kind of tag counts. A closing tag without an opening one ends a thought that began
    before the text: all that stands before the tag is of it.
    """
    thoughts: list[tuple[int, int | None]] = []
    kind, begin = None, 0
    for match in _TAG.finditer(text):
        place = (match.lastindex or 1) - 1
        if place % 2 == 0 and kind is None:
            kind, begin = place // 2, match.start()
        elif place % 2 and kind is None:
            thoughts = [(0, match.end())]
        elif place % 2 and place // 2 == kind:
            thoughts.append((begin, match.end()))
            kind = None
    return thoughts if kind is None else [*thoughts, (begin, None)]
