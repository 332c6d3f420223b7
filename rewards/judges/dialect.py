"""What of a chat completion's request a server takes, learnt from what it refuses. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OPTIONAL = ("max_tokens", "temperature", "seed", "top_logprobs", "logprobs", "structured_outputs", "guided_choice")
"""Fields that a judge can do without. A server that refuses one is asked again without it, from then on."""
SYSTEM = "system"
"""The role of the first message: a server without it gets that text at the head of the user's message."""
RENAMED = {"max_tokens": "max_completion_tokens"}
"""Newer names, tried before a field is left out."""
TOO_MUCH = re.compile(
    r"too (large|long|many)|context length|exceed|greater than|less than|at most|maximum", re.IGNORECASE
)
"""A refusal of a value, not of a field: the request would be another one without it."""
REFUSES = re.compile(
    r"unsupported|support|unknown|unrecogni[sz]ed|unexpected|extra|permitted|forbidden|allowed|accept|deprecated|removed|"
    r"disabled|unavailable|not available|implemented|no such|not valid|cannot|can't|must not|omit|ignored|disallowed|"
    r"invalid[_ ](?:parameter|field|argument|key|option|property|request[_ ]parameter)|instead|additional propert",
    re.IGNORECASE,
)
"""Words of a server that does not know a field or does not want it; without them it only echoes the request."""
NO_SYSTEM = re.compile(
    r"\bsystem\b.{0,80}\b(?:role|message|prompt|instruction)|\brole\b.{0,80}\bsystem\b|roles must alternate|"
    r"\bsystem role\b|messages\.?\[?0\]?\.role",
    re.IGNORECASE | re.DOTALL,
)
UNSUPPORTED = re.compile(r"unsupported_(?:parameter|value)|extra_forbidden|unsupported parameter", re.IGNORECASE)
NEAR = 120
"""Characters between a field's name and the words that refuse it."""
LONGEST_REFUSAL = 20_000


class Dialect:
    """Field → its name for this server, empty where the server refuses it. Never changes: `without` makes another."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self._names = dict(names or {})

    @classmethod
    def omitting(cls, fields: Sequence[str]) -> Dialect:
        return cls(dict.fromkeys(fields, ""))

    def spoken(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request as this server takes it."""
        spoken = {self._names.get(name, name): value for name, value in body.items()}
        spoken.pop("", None)
        if self._names.get(SYSTEM) == "":
            spoken["messages"] = _without_system(body["messages"])
        return spoken

    def without(self, refusal: str, body: Mapping[str, Any], fixed: Mapping[str, Any]) -> Dialect | None:
        """The dialect without the field that a refusal of `body` names; None if it names none that could be left out.

        `fixed`: fields that the recipe itself asks for.
        """
        refusal = refusal[:LONGEST_REFUSAL]
        blamed = _blamed(refusal)
        if TOO_MUCH.search(refusal) and not UNSUPPORTED.search(refusal):
            return None
        for name in OPTIONAL:
            sent = self._names.get(name, name)
            if name in body and sent and sent not in fixed and _refused(sent, refusal, blamed):
                return self._leaving_out(name)
        has_system = self._names.get(SYSTEM) != "" and _has_system(body)
        if has_system and NO_SYSTEM.search(refusal) and (REFUSES.search(refusal) or "alternate" in refusal):
            return Dialect(self._names | {SYSTEM: ""})
        return None

    def joined(self, other: Dialect) -> Dialect:
        return Dialect(self._names | other._names)

    def news(self, before: Dialect) -> Iterator[str]:
        """In words, what this dialect knows that `before` did not."""
        for name, known in self._names.items():
            if before._names.get(name, name) != known:
                yield f"'{name}' is called '{known}'" if known else f"'{name}' is left out"

    def _leaving_out(self, name: str) -> Dialect:
        newer = RENAMED.get(name, "") if name not in self._names else ""
        changed = {name: newer}
        if name == "logprobs":
            changed["top_logprobs"] = ""
        return Dialect(self._names | changed)


def _refused(sent: str, refusal: str, blamed: str) -> bool:
    """Whether a refusal is about the field `sent`: its `param` says so, or words of refusal stand near its name."""
    if blamed:
        return blamed == sent
    for found in re.finditer(rf"(?<![\w]){re.escape(sent)}(?!\w)", refusal):
        if REFUSES.search(refusal, max(0, found.start() - NEAR), found.end() + NEAR):
            return True
    return False


def _blamed(refusal: str) -> str:
    """The field that OpenAI's `param` names, "" where there is none."""
    try:
        error = json.loads(refusal)
    except (ValueError, RecursionError):
        return ""
    for _ in range(2):
        if isinstance(error, dict) and isinstance(error.get("param"), str):
            return re.split(r"[.\[]", error["param"])[0]
        error = error.get("error") if isinstance(error, dict) else None
    return ""


def _has_system(body: Mapping[str, Any]) -> bool:
    messages = body.get("messages") or [{}]
    return messages[0].get("role") == "system"


def _without_system(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The system's text at the head of the first message behind it."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return list(messages)
    first, second, *rest = messages
    return [{"role": second["role"], "content": f"{first['content']}\n\n{second['content']}"}, *rest]
