"""The prompt of a row: a text, or a conversation in the form of OpenAI, of content parts, or of ShareGPT."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.tasks.columns import find, plain, reference_text
from cluster.errors import DataError, nearest
from cluster.types import Message
from cluster.types.wire import brief

COLUMNS = ("prompt", "messages", "conversations")
"""Where a prompt is looked for while the recipe names no column."""
SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""`from` of a ShareGPT message → role."""
COLUMN = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w.]*)\}")
"""In a template: a brace that is meant, written twice, or a column."""
TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Prompt:
    """What a column says: the messages to answer, and the answer to them where the conversation ends in one."""

    messages: tuple[Message, ...]
    answer: str | None = None
    conversational: bool = False
    """Whether the column holds a list of messages."""


def filled(template: str, row: Mapping[str, Any]) -> str:
    """Return the template with columns of the row in place of their names in braces; lists and dicts are JSON.

    Raises DataError for a name that looks like a column and is none, and for one without a value.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        text = reference_text(plain(find(row, match[1]), match[1]))
        if text is None:
            what = "has no value in this row" if match[1].partition(".")[0] in row else "is no column"
            raise DataError(
                f"'{{{match[1]}}}' of tasks.options.prompt_template {what}. {nearest(match[1], row)}The row has: "
                f"{', '.join(sorted(map(str, row))) or 'none'}."
            )
        return text

    return COLUMN.sub(value, template)


def read(name: str, value: Any) -> Prompt:
    """Return the prompt that column `name` holds. Raises DataError for what is neither a text nor a conversation."""
    said = conversation(name, value)
    if said is None:
        raise DataError(
            f"'{name}' is {brief(value)}. A text or a list of {{role, content}} is expected; "
            "set tasks.options.prompt_key if another column holds it."
        )
    if isinstance(said, str):
        return Prompt((Message("user", said),))
    messages, answer = said, None
    if messages[-1].role == "assistant":
        messages, answer = messages[:-1], messages[-1].content
    if not any(m.content.strip() for m in messages if m.role != "system"):
        raise DataError(f"'{name}' is {brief(value)}: no message in it asks for anything. Fix or remove the row.")
    if messages[-1].role == "assistant":
        raise DataError(f"'{name}' ends in two messages of the assistant. Fix or remove the row.")
    return Prompt(messages, answer, True)


def conversation(name: str, value: Any) -> str | tuple[Message, ...] | None:
    """Return the text or the messages that column `name` holds; None where it holds neither, or nothing.

    Raises DataError for a message that is none.
    """
    value = _decoded(value)
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, list) or not value:
        return None
    return tuple(_message(f"'{name}'", i, one) for i, one in enumerate(value))


def _decoded(value: Any) -> Any:
    """Return the list that a text such as a cell of a CSV file holds, where it is the JSON of a conversation."""
    if not isinstance(value, str) or not re.match(r"\s*\[\s*\{", value):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    talks = isinstance(found, list) and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in found)
    return found if talks else value


def _message(name: str, place: int, said: Any) -> Message:
    where = f"message {place + 1} of {name}"
    if not isinstance(said, dict):
        raise DataError(f"{name} is a list, and its entry {place + 1} is {brief(said)}; {{role, content}} is expected.")
    role, content = said.get("role"), said.get("content")
    if role is None and "from" in said:
        role, content = _sharegpt_role(where, said["from"]), said.get("value")
    if not isinstance(role, str) or not role:
        raise DataError(f"{name} is a list, and its entry {place + 1} is {brief(said)}; {{role, content}} is expected.")
    if content is None and said.get("tool_calls"):
        raise DataError(f"{where} has tool_calls and no content; conversations of text are expected.")
    return Message(role, _text(where, content))


def _sharegpt_role(where: str, name: Any) -> str:
    if name not in SHAREGPT:
        raise DataError(f"{where} is from {brief(name)}; {', '.join(SHAREGPT)} are known.")
    return SHAREGPT[name]


def _text(where: str, content: Any) -> str:
    """Return a message's text, its parts joined. Raises DataError for a part that is no text."""
    if isinstance(content, str):
        return content
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list) or not parts:
        raise DataError(f"{where} has the content {brief(content)}; {{role, content}} with a text is expected.")
    return "".join(_part(where, i, part) for i, part in enumerate(parts))


def _part(where: str, place: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    shown = f"of type '{kind}'" if isinstance(kind, str) and kind not in TEXT_PARTS else brief(part)
    raise DataError(f"{where}: its part {place + 1} is {shown}. Policies here read text: leave the row out.")
