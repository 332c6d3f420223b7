"""What of a model's text is said aloud: everything outside `<think>` blocks, those that the prompt opened included."""

from __future__ import annotations

import re

from cluster.types import Rollout

BEGIN, END = re.compile(r"<think(?:ing)?>", re.IGNORECASE), re.compile(r"</think(?:ing)?>", re.IGNORECASE)


def spoken(text: str) -> str:
    """Return the text after its last thought; nothing where that thought never ends."""
    ends = list(END.finditer(text))
    after = text[ends[-1].end() :] if ends else text
    begin = BEGIN.search(after)
    if begin is None:
        return after
    return after[: begin.start()] if ends else ""


def whole_text(rollout: Rollout) -> str:
    """Return the rollout's text with what the prompt opened before each turn, such as `<think>\\n`."""
    turns = [turn for turn in rollout.turns if turn.role == "assistant"]
    if "\n".join(turn.text for turn in turns) == rollout.text and any(turn.opened for turn in turns):
        return "\n".join(turn.opened + turn.text for turn in turns)
    return rollout.opened + rollout.text


def spoken_by(rollout: Rollout) -> str:
    """Return what the policy said after its thoughts; nothing where its last turn is a thought that never ends."""
    turns = [turn for turn in rollout.turns if turn.role == "assistant"]
    if turns and "\n".join(turn.text for turn in turns) == rollout.text:
        last = turns[-1].opened + turns[-1].text
        if END.search(last) is None and BEGIN.search(last):
            return ""
    return spoken(whole_text(rollout))
