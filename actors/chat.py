"""Messages to token ids, once and in one direction: what the policy wrote is never tokenised again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from actors.tools import AUTO, PROMPT, Schema, Tools, ToolTurn
from cluster.errors import ConfigError, DataError, one_line
from cluster.thoughts import opened_at_end, spoken, unfinished
from cluster.types import Message
from cluster.types.wire import clean_text

_HOLE = "\u241e\u241f"
Row = Mapping[str, Any]
"""A message, or a tool, as it stands in a request of OpenAI's clients."""


class Chat:
    """Renders prompts and observations with the tokenizer's chat template, or as plain text where it has none."""

    def __init__(self, tokenizer: Any, *, stop: Sequence[str | int] = (), tool_parser: str = AUTO) -> None:
        """`stop` names further tokens and strings that end a turn, `tool_parser` how tools are shown and called.

        Raises ConfigError for a token that is unknown.
        """
        self._tokenizer = tokenizer
        self.tools = Tools(tokenizer, tool_parser)
        self._templated = bool(tokenizer.chat_template)
        if tokenizer.eos_token_id is None:
            raise ConfigError("model.path: its tokenizer has no end-of-sequence token, so no rollout could end.")
        template_ends = self._template_ends()
        self._end = template_ends[0] if template_ends else int(tokenizer.eos_token_id)
        self._turn_end = self.written(self._end)
        ends = [int(tokenizer.eos_token_id), *template_ends, *_generation_ends(tokenizer)]
        self._ends = frozenset(ends)
        tokens, self._stop_strings = self._stops(stop)
        self.stop_tokens = list(dict.fromkeys([*ends, *tokens]))
        self._generation = self._generation_prompt() if self._templated else ""
        # All rollouts of a group begin with one prompt.
        self._prompt = lru_cache(maxsize=256)(self._prompt_ids)
        self._text_ids = lru_cache(maxsize=256)(self._ids_of_text)
        self._opened = lru_cache(maxsize=256)(self._opened_text)
        self._tokens_with = lru_cache(maxsize=8)(self._ids_with)

    def _prompt_ids(self, messages: tuple[Message, ...], tools: str) -> tuple[int, ...]:
        return tuple(self._encode_first(self._first_text(messages, json.loads(tools) if tools else ())))

    def _ids_of_text(self, text: str, plain: bool) -> tuple[int, ...]:
        return tuple(self._encode_plain(text) if plain else self._encode(text))

    def prompt(self, messages: Sequence[Message], tools: Sequence[Schema] = ()) -> list[int]:
        """Ids of a first observation, ready for the policy to go on, with the tools that it may call.

        Raises DataError if the template refuses the messages or has no place for tools.
        """
        return list(self._prompt(tuple(messages), json.dumps(tools) if tools else ""))

    def passage(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Return the ids of all that stands before the last message's text, and the ids of that text.

        The last message may have any role; an assistant's stands behind the opening of the policy's turn. The two parts
        are encoded apart, so that the ids of one text are the same behind every conversation. Raises DataError if the
        template refuses the messages, or leaves out the last one.
        """
        *before, last = messages
        text = self._encode(clean_text(last.content))
        if not self._templated or last.role == "assistant":
            return self.prompt(before), text
        head, hole, _ = self._render((*before, Message(last.role, _HOLE))).partition(_HOLE)
        if not hole:
            raise DataError(f"the model's chat template leaves out the message of role '{last.role}'.")
        return self._encode(head), text

    def turn(self, text: str) -> list[int]:
        """Return the ids of a turn of the policy that says `text`, with the token that ends it."""
        return [*self._encode(clean_text(text)), self._end]

    def observation(self, messages: Sequence[Message], *, after: int, tools: Sequence[Schema] = ()) -> list[int]:
        """Ids that follow the policy's turn: what closes that turn, `messages`, and the opening of its next.

        `after` is the last id of its turn, which may have closed it already; `tools` are those of the first prompt.
        """
        ids = self._encode(self.observation_text(messages, tools))
        return ids[1:] if self._templated and ids and ids[0] == after else ids

    def observation_text(self, messages: Sequence[Message], tools: Sequence[Schema] = ()) -> str:
        """Text that follows the policy's turn: what closes that turn, `messages`, and the opening of its next."""
        if tools and self.tools.in_prompt:
            messages = self.tools.responses(messages)
        return self._render_observation(messages, tools) if self._templated else "".join(m.content for m in messages)

    def opened(self, messages: Sequence[Message], *, first: bool = True, tools: Sequence[Schema] = ()) -> str:
        """Text such as `<think>\\n` that the prompt ends in, so that the policy's turn begins inside it; else ''.

        `first` says that `messages` begin the conversation.
        """
        return self._opened(tuple(messages), first, json.dumps(tools) if tools else "")

    def _opened_text(self, messages: tuple[Message, ...], first: bool, tools: str) -> str:
        schemas = json.loads(tools) if tools else ()
        text = self._first_text(messages, schemas) if first else self.observation_text(messages, schemas)
        return self.opened_by(text)

    def opened_by(self, prompt: str) -> str:
        """Text such as `<think>\\n` that a rendered prompt ends in, so that the policy begins inside it; else ''."""
        if not self._templated:
            return opened_at_end(prompt)
        # The template's own words may go on behind the tag; a message's must not count.
        own = unfinished(self._generation) if prompt.endswith(self._generation) else ""
        return own or opened_at_end(prompt)

    def rendered(self, rows: Sequence[Row], *, tools: Sequence[Schema] = (), **variables: Any) -> str:
        """Return the prompt of a conversation as text, ready for the policy to go on.

        `rows` are messages as OpenAI's clients send them, with text as their content; `variables` are handed to the
        template. A tokenizer without a template makes a prompt of the contents alone. Raises DataError if the template
        refuses the messages, or leaves out one of them, a tool or a call.
        """
        if self.tools.in_prompt:
            rows, tools = self.tools.written(rows, tools), ()
        messages = [Message(str(row["role"]), row.get("content") or "") for row in rows]
        calls = [call for row in rows for call in row.get("tool_calls") or ()]
        if not self._templated:
            if tools or calls:
                raise DataError(
                    "the model's tokenizer has no chat template, so the prompt has no place for tools. Use "
                    f"rollout.tool_parser = '{PROMPT}': Kanabo then writes them into the prompt."
                )
            return clean_text("".join(m.content for m in messages))
        begin = merge_system(messages)
        if len(begin) < len(messages):
            rows = [{"role": "system", "content": begin[0].content}, *rows[len(messages) - len(begin) + 1 :]]
        text = self._templated_text(rows, begin, tools=list(tools) or None, **variables)
        _check_shown(tools, text, "tool")
        _check_shown(calls, text, "call of tool")
        return text

    def restored(
        self, rows: Sequence[Row], written: Sequence[str | None], *, tools: Sequence[Schema] = (), **variables: Any
    ) -> str:
        """Return the prompt of `rendered`, with turns as the policy wrote them; `written` has None for other rows.

        Raises DataError if the template refuses the messages.
        """
        turns = [
            row if raw is None else {"role": row["role"], "content": raw}
            for row, raw in zip(rows, written, strict=True)
        ]
        try:
            return self.rendered(turns, tools=tools, **variables)
        except DataError:  # a result without a call before it, for example: the turns are put into the text then
            # A template may leave out the text beside calls.
            known = [raw is not None and bool(row.get("tool_calls")) for row, raw in zip(rows, written, strict=True)]
            rows = [{**row, "content": ""} if k else row for row, k in zip(rows, known, strict=True)]
            text = self.rendered(rows, tools=tools, **variables)
        for i in (i for i in reversed(range(len(rows))) if i and written[i] is not None):
            head, upto = (self.rendered(rows[:k], tools=tools, **variables) for k in (i, i + 1))
            upto = upto.removesuffix(self._generation)
            if text.startswith(upto) and upto.startswith(head):
                _, end, behind = upto[len(head) :].rpartition(self._turn_end)
                turn = str(written[i]).removeprefix(self.opened_by(head))
                text = head + turn + end + behind * bool(end) + text[len(upto) :]
        return text

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Return the ids of rendered text; `first` says that it begins a conversation."""
        return list(self._text_ids(text, first and not self._templated))

    def is_end(self, token: int) -> bool:
        """Return whether the token ends a turn and is no part of its text."""
        return token in self._ends

    def tokens_with(self, strings: Sequence[str]) -> tuple[int, ...]:
        """Return the ids of all tokens whose text holds one of `strings`. Takes seconds for a large vocabulary."""
        return self._tokens_with(tuple(strings))

    def _ids_with(self, strings: tuple[str, ...]) -> tuple[int, ...]:
        ids = (i for i in range(len(self._tokenizer)) if i not in self._ends)
        return tuple(i for i in ids if strings and any(s in self.written(i) for s in strings))

    def is_token(self, token: int) -> bool:
        """Return whether the tokenizer has this id."""
        return 0 <= token < len(self._tokenizer)

    def written(self, token: int) -> str:
        """Return the text of one token, special ones included."""
        return self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def tool_turn(self, text: str, tools: Sequence[Schema]) -> ToolTurn:
        """Return the calls of `tools` in what the policy wrote in one turn."""
        return self.tools.parse(text, tools)

    def check_tools(self) -> None:
        """Raise ConfigError unless this model can be shown tools and its calls can be read."""
        self.tools.check()
        tried = {
            "name": "tool_of_this_check",
            "description": "Tried.",
            "parameters": {"type": "object", "properties": {}},
        }
        try:
            self._first_text((Message("user", "Question of this check?"),), ({"type": "function", "function": tried},))
        except DataError as error:
            raise ConfigError(f"rollout.tool_parser = '{self.tools.asked}': {error}") from error

    def check_turns(self, messages: Sequence[Message], role: str) -> str:
        """Return what is odd about a made-up conversation with observations of this role; "" where nothing is.

        `messages` begin it; without them a made-up question does. Raises DataError if the template cannot write the
        conversation, or an observation behind the policy's turn.
        """
        if not self._templated:
            return ""
        if self.tools.in_prompt and role == "tool":
            role = "user"  # what results are written as
        observations = [Message(role, f"Observation {number} of this check: 46.") for number in (1, 2)]
        turns = [Message("assistant", f"Answer {number} of this check: 12.") for number in (1, 2)]
        begin = tuple(messages) or (Message("user", "Question of this check: 34?"),)
        self._render((*begin, turns[0], observations[0], turns[1], observations[1]))
        appended = self._render_observation(observations[:1])
        _, _, behind = self._render((*begin, turns[0], observations[0])).partition(turns[0].content)
        if behind == appended:
            return ""
        return (
            f"the model's chat template writes a conversation anew once a message of role '{role}' is added: behind "
            f"the policy's answer stands {behind!r:.120}, and a rollout is continued with {appended!r:.120}."
        )

    def text(self, tokens: Sequence[int]) -> str:
        """Decode what the policy wrote: only end-of-turn tokens are left out, other special tokens are text."""
        kept = [int(t) for t in tokens if int(t) not in self._ends]
        return self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def stopped_at(self, tokens: Sequence[int], strings: Sequence[str] | None = None) -> int | None:
        """Return the length of the shortest prefix of `tokens` whose text holds a stop string, None if none does.

        `strings` are those of one request, by default the recipe's.
        """
        strings = self._stop_strings if strings is None else strings

        def holds(length: int) -> bool:
            text = self.text(tokens[:length])
            return any(s in text for s in strings)

        if not strings or not holds(len(tokens)):
            return None
        low, high = 1, len(tokens)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle + 1, high)
        return low

    def _stops(self, stop: Sequence[str | int]) -> tuple[list[int], list[str]]:
        tokens: list[int] = []
        strings: list[str] = []
        added = {str(t): i for i, t in self._tokenizer.added_tokens_decoder.items()}
        for one in stop:
            if isinstance(one, str) and one in added:
                tokens.append(added[one])
            elif isinstance(one, str) and one:
                strings.append(one)
            elif isinstance(one, int) and 0 <= one < len(self._tokenizer):
                tokens.append(one)
            else:
                raise ConfigError(
                    f"rollout.stop = {list(stop)!r}: {one!r} is neither a text nor a token id below "
                    f"{len(self._tokenizer)}. Name tokens by their text or id, and strings that end a turn."
                )
        return tokens, strings

    def _generation_prompt(self) -> str:
        """What the template writes behind the messages to open the policy's turn; "" where that cannot be told."""
        rows = [{"role": "user", "content": "."}]
        try:
            texts = [
                self._tokenizer.apply_chat_template(rows, add_generation_prompt=a, tokenize=False)
                for a in (False, True)
            ]
        except Exception:  # a template is a program of others; prompts of real tasks say what it refuses
            return ""
        return texts[1].removeprefix(texts[0]) if texts[1].startswith(texts[0]) else ""

    def _template_ends(self) -> list[int]:
        """The special token that the template writes after an assistant's turn, if it writes one."""
        if not self._templated:
            return []
        rows = [{"role": "user", "content": "."}, {"role": "assistant", "content": _HOLE}]
        try:
            text = self._tokenizer.apply_chat_template(rows, add_generation_prompt=False, tokenize=False)
        except Exception:  # a template is a program of others; prompts of real tasks say what it refuses
            return []
        special = set(self._tokenizer.added_tokens_decoder) | set(self._tokenizer.all_special_ids)
        for token in self._encode(text.rpartition(_HOLE)[2]) if _HOLE in text else []:
            if token in special:
                return [token]
            if self._tokenizer.decode([token]).strip():
                break  # a turn that ends in plain text has no token of its own
        return []

    def _first_text(self, messages: Sequence[Message], tools: Sequence[Schema]) -> str:
        """The text of a prompt that begins with `messages`. Raises ConfigError for tools that have no place in it."""
        if tools and self.tools.in_prompt:
            messages = self.tools.preface(messages, tools)
        elif tools and not self._templated:
            raise ConfigError(
                f"rollout.tool_parser = '{self.tools.asked}': the model's chat template is missing, so its prompt "
                f"has no place for tools. Use '{PROMPT}': Kanabo then writes them into the prompt."
            )
        return self._render(messages, tools) if self._templated else "".join(m.content for m in messages)

    def _encode_first(self, text: str) -> list[int]:
        return self._encode(text) if self._templated else self._encode_plain(text)

    def _render_observation(self, messages: Sequence[Message], tools: Sequence[Schema] = ()) -> str:
        around = self._render([Message("user", "."), Message("assistant", _HOLE), *messages], tools)
        if _HOLE not in around:
            raise DataError("the model's chat template leaves out the assistant's text; no observation can follow it.")
        return around.split(_HOLE, 1)[1]

    def _render(self, messages: Sequence[Message], tools: Sequence[Schema] = ()) -> str:
        messages = merge_system(messages)
        rows = [row_of(m) for m in messages]
        if not tools or self.tools.in_prompt:
            return self._templated_text(rows, messages)
        text = self._templated_text(rows, messages, tools=list(tools))
        _check_shown(tools, text, "tool")
        return text

    def _templated_text(self, rows: Sequence[Row], messages: Sequence[Message], **variables: Any) -> str:
        """Return what the template makes of `rows`, whose roles and texts are `messages`. Raises DataError."""
        try:
            text = self._tokenizer.apply_chat_template(
                rows, **{**variables, "add_generation_prompt": True, "tokenize": False}
            )
        except Exception as error:  # a template is a program of others, and may refuse roles or their order
            roles = ", ".join(m.role for m in messages)
            raise DataError(f"the model's chat template refuses messages of {roles}: {one_line(error)}") from error
        _check_rendered(messages, text)
        return clean_text(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of a text after the tokens that the tokenizer itself puts before a text, once."""
        plain = self._encode(text)
        if plain and plain[0] == self._tokenizer.bos_token_id:
            return plain
        whole = list(self._tokenizer.encode(text, add_special_tokens=True))
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[: start + len(plain)]  # an end-of-sequence token after a prompt would end it
        return whole


def row_of(message: Message) -> dict[str, str]:
    """A message as a chat template gets it; templates of some families want to know whose result a tool's is."""
    row = {"role": message.role, "content": message.content}
    return row | {"name": "tool", "tool_call_id": "call00000"} if message.role == "tool" else row


def merge_system(messages: Sequence[Message]) -> list[Message]:
    """Join the system messages that begin a conversation to one: templates keep one, or write it twice."""
    count = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    if count < 2:
        return list(messages)
    return [Message("system", "\n\n".join(m.content for m in messages[:count])), *messages[count:]]


def _check_shown(rows: Sequence[Row], text: str, kind: str) -> None:
    """Raises DataError if the rendered prompt lacks the name of a tool or a call."""
    if missing := [name for row in rows if (name := row["function"]["name"]) not in text]:
        raise DataError(
            f"the model's chat template leaves out the {kind} '{missing[0]}'. Use a model whose template has tools, "
            f"or rollout.tool_parser = '{PROMPT}': Kanabo then writes them into the prompt."
        )


def _check_rendered(messages: Sequence[Message], text: str) -> None:
    """Raises DataError if the rendered prompt lacks a message's text or has a system message's text twice."""
    place = 0
    for message in messages:
        content = message.content.strip()
        if message.role == "assistant":  # templates leave out thoughts of earlier turns
            content = spoken(content).strip()
        spellings = (content, json.dumps(content)[1:-1], json.dumps(content, ensure_ascii=False)[1:-1])
        found = next((s for s in spellings if s in text[place:]), None)
        if found is None:
            found = next((s for s in spellings if message.role == "system" and s in text), None)
            if found is None:
                raise DataError(
                    f"the model's chat template leaves out the message of role '{message.role}': {content!r:.80} is "
                    "not in the prompt. Use roles that the template knows, such as 'user', or another chat_template."
                )
            continue
        place = text.index(found, place) + len(found) if message.role != "system" else place
        expected = sum(m.content.count(found) for m in messages)
        if message.role == "system" and len(found) >= 8 and text.count(found) > expected:
            raise DataError(f"the model's chat template writes the system message {found!r:.80} more than once.")


def _generation_ends(tokenizer: Any) -> list[int]:
    """End-of-sequence tokens that the generation_config.json beside the tokenizer names."""
    path = Path(str(tokenizer.name_or_path or "")) / "generation_config.json"
    if not path.is_file():
        return []
    try:
        ends = json.loads(path.read_text("utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"model.path: '{path}' is not a JSON object: {error}") from error
    ends = ends if isinstance(ends, list) else [ends]
    return [e for e in ends if isinstance(e, int) and 0 <= e < len(tokenizer)]
