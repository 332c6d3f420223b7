"""Tools that a policy calls: their schemas, how its chat template shows them, and the calls in what it wrote.

    check_schemas(tools)                         OpenAI's form, as chat templates read it
    Tools(tokenizer, "auto").parse(text, tools)  the calls in a turn, in the model family's own spelling
    check_call(call, tools)                      what is wrong with a call's name or arguments

A call that cannot be read is never dropped: `ToolTurn.error` says why, so that the policy can be told.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema

from cluster.errors import ConfigError, DataError, nearest, one_line
from cluster.thoughts import spoken
from cluster.types import Message

Schema = dict[str, Any]
"""`{"type": "function", "function": {"name", "description", "parameters"}}`, as OpenAI's API has it."""

AUTO, PROMPT = "auto", "prompt"
"""Values of `rollout.tool_parser` beside the names of vLLM's parsers: the family is read from the chat template; or
Kanabo writes the tools into the prompt itself."""

FAMILIES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("qwen3_coder", ("<function=", "<parameter="), "<tool_call>"),
    ("glm45", ("<arg_key>",), "<tool_call>"),
    ("minimax_m2", ("<minimax:tool_call>",), "<minimax:tool_call>"),
    ("seed_oss", ("<seed:tool_call>",), "<seed:tool_call>"),
    ("kimi_k2", ("<|tool_calls_section_begin|>",), "<|tool_calls_section_begin|>"),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json"), "<｜tool▁calls▁begin｜>"),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",), "<｜tool▁calls▁begin｜>"),
    ("mistral", ("[TOOL_CALLS]",), "[TOOL_CALLS]"),
    ("llama4_pythonic", ("<|python_start|>",), "<|python_start|>"),
    ("llama3_json", ("ipython", '"parameters"'), "<|python_tag|>"),
    ("functiongemma", ("<start_function_call>",), "<start_function_call>"),
    ("gemma4", ("<|tool_call>",), "<|tool_call>"),
    ("lfm2", ("<|tool_call_start|>",), "<|tool_call_start|>"),
    ("internlm", ("<|action_start|>",), "<|action_start|>"),
    ("granite", ("<|tool_call|>", "granite"), "<|tool_call|>"),
    ("phi4_mini_json", ("<|tool|>",), "functools"),
    ("olmo3", ("<function_calls>",), "<function_calls>"),
    ("jamba", ("<tool_calls>",), "<tool_calls>"),
    ("hermes", ("<tool_call>",), "<tool_call>"),
)
"""(vLLM's parser, what a chat template of the family contains, what a call begins with); the first that fits is it."""
STARTS = {name: start for name, _, start in FAMILIES}
HERMES = "hermes"

PREFACE = (
    "You can call these tools, each given as a JSON schema:\n<tools>\n{tools}\n</tools>\n\n"
    "To call a tool, write its name and arguments as JSON within tags, and nothing behind them:\n"
    '<tool_call>{{"name": "NAME", "arguments": {{}}}}</tool_call>'
)
"""What `rollout.tool_parser = "prompt"` puts before a conversation."""
CALL = "<tool_call>{}</tool_call>"
RESPONSE = "<tool_response>\n{}\n</tool_response>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the policy wrote it, read but not yet made."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolTurn:
    """A turn of the policy, taken apart."""

    text: str
    """What stands beside the calls, thoughts left out."""
    calls: tuple[ToolCall, ...] = ()
    error: str = ""
    """Why what looks like a call cannot be read, as a sentence for the policy; `calls` is empty then."""


def check_schemas(schemas: Sequence[Mapping[str, Any]]) -> tuple[Schema, ...]:
    """Return tools as chat templates read them. Raises DataError for one that is no tool, or two of one name."""
    found: list[Schema] = []
    for i, schema in enumerate(schemas):
        function = schema.get("function") if isinstance(schema, Mapping) else None
        function = function if isinstance(function, Mapping) else {}
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise DataError(f"tools[{i}] is no tool: an object with type 'function' and function.name is expected.")
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise DataError(f"tools[{i}].function.parameters is {parameters!r:.80}; a JSON schema is expected.")
        if any(other["function"]["name"] == name for other in found):
            raise DataError(f"tools[{i}]: there are two tools of the name '{name}'.")
        description = str(function.get("description") or "")
        known = {"name": name, "description": description, "parameters": parameters}
        found.append({"type": "function", "function": known})
    return tuple(found)


def check_call(call: ToolCall, schemas: Sequence[Schema]) -> str:
    """Return what is wrong with a call's name or arguments, as a sentence for the policy; "" where nothing is."""
    known = {s["function"]["name"]: s["function"] for s in schemas}
    if call.name not in known:
        return f"There is no tool '{call.name:.100}'. {nearest(call.name[:100], known)}Tools: {', '.join(known)}."
    parameters = known[call.name].get("parameters") or {}
    if "properties" in parameters:
        parameters = {"additionalProperties": False, **parameters}
    try:
        jsonschema.validate(call.arguments, _with_null(parameters))
    except jsonschema.ValidationError as error:
        place = ".".join(map(str, error.absolute_path))
        return f"{call.name}: {place + ': ' if place else ''}{error.message:.300}."
    except (jsonschema.SchemaError, RecursionError) as error:
        raise DataError(f"the schema of tool '{call.name}' is no JSON schema: {one_line(error)}") from error
    return ""


def _with_null(schema: Any) -> Any:
    """Return a schema in which null fits what is `nullable`: OpenAPI's word, which transformers writes for optional
    arguments and JSON schema does not know."""
    if isinstance(schema, list):
        return [_with_null(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("nullable") is True:
        rest = {key: value for key, value in schema.items() if key != "nullable"}
        if "type" in rest and not rest.keys() & {"enum", "const"}:  # so that an error names the type, not a choice
            kinds = rest["type"] if isinstance(rest["type"], list) else [rest["type"]]
            return _with_null(rest) | {"type": [*kinds, "null"]}
        return {"anyOf": [{"type": "null"}, _with_null(rest)]}
    return {key: value if key in ("enum", "const") else _with_null(value) for key, value in schema.items()}


class PolicyTurn(str):
    """The text of a turn, as an environment gets it that has shown tools; `turn` has the calls in it."""

    turn: ToolTurn

    @staticmethod
    def of(text: str, turn: ToolTurn) -> PolicyTurn:
        made = PolicyTurn(text)
        made.turn = turn
        return made


class Tools:
    """How one model is shown tools and calls them."""

    def __init__(self, tokenizer: Any, parser: str = AUTO) -> None:
        """`parser` is `rollout.tool_parser`. Nothing is looked up before the first use."""
        self._tokenizer, self.asked = tokenizer, parser
        self._family: str | None = None
        self._classes: Any = None

    @property
    def in_prompt(self) -> bool:
        """Whether Kanabo writes the tools into the prompt, not the chat template."""
        return self.asked == PROMPT

    @property
    def family(self) -> str:
        """Name of vLLM's parser. Raises ConfigError where the chat template does not tell."""
        if self._family is None:
            self._family = self._chosen()
        return self._family

    def check(self) -> None:
        """Raise ConfigError unless calls of this model can be read."""
        self._parser((_TRIED,))

    def preface(self, messages: Sequence[Message], schemas: Sequence[Schema]) -> list[Message]:
        """Return messages that begin a conversation with the tools written before them, for `in_prompt`."""
        text = PREFACE.format(tools="\n".join(json.dumps(s, ensure_ascii=False) for s in schemas))
        if messages and messages[0].role in ("system", "user"):
            first = Message(messages[0].role, f"{text}\n\n{messages[0].content}")
            return [first, *messages[1:]]
        return [Message("user", text), *messages]

    def responses(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with results of tools as a user's, for `in_prompt`."""
        return [Message("user", RESPONSE.format(m.content)) if m.role == "tool" else m for m in messages]

    def written(self, rows: Sequence[Mapping[str, Any]], schemas: Sequence[Schema]) -> list[dict[str, Any]]:
        """Return a conversation in OpenAI's form with tools, calls and results as text, for `in_prompt`."""
        made = [{k: v for k, v in row.items() if k not in ("tool_calls", "tool_call_id")} for row in rows]
        for row, source in zip(made, rows, strict=True):
            functions = [call["function"] for call in source.get("tool_calls") or ()]
            calls = [json.dumps({"name": f["name"], "arguments": f["arguments"]}) for f in functions]
            row["content"] = "\n".join(filter(None, (row["content"], *map(CALL.format, calls))))
            if row["role"] == "tool":
                row |= {"role": "user", "content": RESPONSE.format(row["content"])}
        if not schemas:
            return made
        first = self.preface([Message(made[0]["role"], made[0]["content"])], schemas)
        begin: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in first]
        begin[-1] = made[0] | begin[-1]
        return [*begin, *made[1:]]

    def parse(self, text: str, schemas: Sequence[Schema]) -> ToolTurn:
        """Return the calls in what the policy wrote in one turn; what stands in a thought is none.

        Raises ConfigError where this model's family is unknown.
        """
        said = spoken(text)
        parser, request = self._parser(schemas)
        start = STARTS.get(self.family) or getattr(parser, "tool_call_start_token", None) or ""
        quiet = logging.getLogger("vllm.tool_parsers")
        level = quiet.level
        quiet.setLevel(logging.CRITICAL)  # a policy in training writes calls that cannot be read all the time
        try:
            result = parser.extract_tool_calls(said, request)
            calls = tuple(_call(c.function.name, c.function.arguments) for c in result.tool_calls)
        except Exception as error:  # parsers are many, and the text is anything
            return ToolTurn(said, error=_unreadable(error))
        finally:
            quiet.setLevel(level)
        if calls:
            return ToolTurn((result.content or "").strip(), calls)
        if start and start in said:
            return ToolTurn(said, error=_unreadable(None))
        return ToolTurn(said.strip())

    def _parser(self, schemas: Sequence[Schema]) -> tuple[Any, Any]:
        """A parser for one turn and the request that it wants to see."""
        if self._classes is None:
            family = self.family  # before the import, which takes seconds
            from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
            from vllm.tool_parsers import ToolParserManager

            known = {**ToolParserManager.lazy_parsers, **ToolParserManager.tool_parsers}
            if self.family not in known:
                raise ConfigError(
                    f"rollout.tool_parser = '{self.family}' is no parser of vLLM. {nearest(self.family, known)}"
                    f"Known: {AUTO}, {PROMPT}, {', '.join(sorted(known))}."
                )
            self._classes = ToolParserManager.get_tool_parser(family), ChatCompletionRequest
        parser, request = self._classes
        made = request(messages=[{"role": "user", "content": ""}], model="policy", tools=list(schemas))
        try:
            return parser(self._tokenizer, made.tools), made
        except Exception as error:  # RuntimeError, ValueError and others, where the vocabulary lacks a token
            raise ConfigError(
                f"rollout.tool_parser = '{self.asked}': the parser '{self.family}' does not fit the model's "
                f"tokenizer: {one_line(error)} Name the parser of the model's family, or use '{PROMPT}'."
            ) from error

    def _chosen(self) -> str:
        if self.asked == PROMPT:
            return HERMES
        if self.asked != AUTO:
            return self.asked
        template = self._tokenizer.chat_template or ""
        if isinstance(template, dict):
            template = "\n".join(template.values())
        for name, needles, _ in FAMILIES:
            if all(needle in template for needle in needles):
                return name
        what = "knows no tools" if template else "is missing"
        raise ConfigError(
            f"rollout.tool_parser = '{AUTO}': the model's chat template {what}, so how the model calls a tool is "
            f"unknown. Name a parser of vLLM, or use '{PROMPT}': Kanabo then writes the tools into the prompt."
        )


_TRIED = {"type": "function", "function": {"name": "tried", "description": "", "parameters": {"type": "object"}}}


def _call(name: Any, arguments: Any) -> ToolCall:
    """Raises ValueError for arguments that are no JSON object."""
    if not isinstance(name, str) or not name:
        raise ValueError("a call needs the name of a tool")
    read = json.loads(arguments) if isinstance(arguments, str) and arguments.strip() else arguments
    if isinstance(read, str):  # some models write the object as a text
        read = json.loads(read)
    if not isinstance(read or {}, dict):
        raise ValueError(f"the arguments of '{name:.100}' are no JSON object")
    return ToolCall(name, read or {})


def _unreadable(error: Exception | None) -> str:
    why = f" {one_line(error)[:300]}" if error is not None else ""
    return f"The tool call cannot be read.{why} Write it again in the expected form."
