"""Requests and answers of the endpoint as OpenAI's clients, and verifiers' training client, write and read them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.chat import Chat, Row
from actors.endpoint.errors import ApiError
from actors.endpoint.session import Answer
from actors.tools import Schema, ToolCall, check_schemas
from cluster.errors import DataError, nearest
from cluster.types import Message
from cluster.types.wire import clean_text

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "typical_p": (1,),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "continue_final_message": (False,),
}
"""Fields that change what is sampled from, with the values that do not."""
OWN_VARIABLES = (
    "chat_template",
    "tokenize",
    "add_generation_prompt",
    "conversation",
    "tools",
    "continue_final_message",
)
"""What `chat_template_kwargs` cannot say: it is the endpoint's."""
MAX_CHOICES = 128
ID_LENGTH = 9
"""Letters and digits of a call's id; some chat templates refuse any other number."""
M = TypeVar("M", bound=BaseModel)


class _Request(BaseModel):
    """Fields that it does not know are left alone, except those of `NEUTRAL`: clients send ever new ones."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class StreamOptions(_Request):
    include_usage: bool = False


class ChatRequest(_Request):
    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=1, ge=1, le=MAX_CHOICES)
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    chat_template_kwargs: dict[str, Any] | None = None


class SamplingParams(_Request):
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    n: int | None = Field(default=1, ge=1, le=MAX_CHOICES)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None


class GenerateRequest(_Request):
    model: str = ""
    token_ids: list[int] = Field(min_length=1)
    sampling_params: SamplingParams = SamplingParams()
    stream: bool | None = False


class EndRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reward: Any = None
    answer: Any = None


def parsed(model: type[M], body: bytes) -> M:
    """Return the request in a body. Raises ApiError, which names the field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise ApiError(400, f"{where}: {first['msg']}.", param=where) from error


def check_neutral(request: BaseModel) -> None:
    """Raises ApiError for a field that changes the distribution which the policy is trained on."""
    for name, value in (request.model_extra or {}).items():
        if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
            allowed = f"leave it out, or send {json.dumps(NEUTRAL[name][0])}" if NEUTRAL[name] else "leave it out"
            raise ApiError(
                400,
                f"{name} = {json.dumps(value)[:80]} changes the distribution that the policy is sampled from, and it "
                f"would be trained on another one: {allowed}.",
                code="unsupported_parameter",
                param=name,
            )


def tools_of(request: ChatRequest) -> tuple[Schema, ...]:
    """Return the tools that the policy is shown. Raises ApiError for tools, or a choice of them, that it cannot be."""
    if request.functions or request.function_call:
        old = "functions" if request.functions else "function_call"
        raise ApiError(400, f"{old} is not read here: use tools and tool_choice.", param=old)
    if request.tool_choice not in (None, "auto", "none"):
        raise ApiError(
            400,
            f"tool_choice = {json.dumps(request.tool_choice)[:80]} forces a call, which changes the distribution that "
            "the policy is sampled from: leave it out, or send 'auto' or 'none'.",
            code="unsupported_parameter",
            param="tool_choice",
        )
    if request.parallel_tool_calls is False:
        raise ApiError(
            400,
            "parallel_tool_calls = false: nothing keeps the policy from several calls in one turn; leave it out.",
            code="unsupported_parameter",
            param="parallel_tool_calls",
        )
    try:
        return check_schemas(request.tools or ())
    except DataError as error:
        raise ApiError(400, str(error), param="tools") from error


def called(calls: Sequence[ToolCall]) -> list[Row]:
    """Return calls of the policy as clients read them, with ids of their own."""
    return [
        {
            "id": uuid4().hex[:ID_LENGTH],
            "type": "function",
            "function": {"name": clean_text(call.name), "arguments": json.dumps(call.arguments)},
        }
        for call in calls
    ]


def check_model(name: str, known: Sequence[str]) -> None:
    """Raises ApiError for a model that this endpoint does not serve."""
    if name not in known:
        raise ApiError(
            404,
            f"model '{name[:80]}' is not served here. {nearest(name, known)}Known: {', '.join(known)}. "
            "endpoint.aliases in the recipe adds names.",
            code="model_not_found",
            param="model",
        )


def rows_of(request: ChatRequest) -> list[Row]:
    """Return the messages as chat templates read them. Raises ApiError for what is no message of text."""
    return [_row(message, f"messages[{i}]") for i, message in enumerate(request.messages)]


def _row(message: dict[str, Any], where: str) -> Row:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ApiError(400, f"{where}.role is {role!r:.80}; 'user' or another role is expected.", param=f"{where}.role")
    row: dict[str, Any] = {"role": "system" if role == "developer" else role}
    row["content"] = _text(message.get("content"), f"{where}.content")
    if message.get("function_call"):
        raise ApiError(400, f"{where}.function_call is not read here: use tool_calls.", param=f"{where}.function_call")
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list):
            raise ApiError(400, f"{where}.tool_calls is {calls!r:.80}; a list is expected.", param=where)
        row["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    for name in ("name", "tool_call_id", "reasoning_content"):
        if isinstance(message.get(name), str):
            row[name] = message[name]
    return row


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where} is {content!r:.80}; text or a list of parts is expected.", param=where)
    parts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ApiError(
                400,
                f"{where}[{i}] is of type {kind!r:.40}; this policy reads parts of type 'text'.",
                param=where,
            )
        parts.append(part["text"])
    return "".join(parts)


def _call(call: Any, where: str) -> Row:
    """Return a tool call with its arguments as an object, as templates expect them."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(400, f"{where} is {call!r:.80}; a call with function.name is expected.", param=where)
    arguments = function.get("arguments", {})
    # What is no JSON, or too deep, a template writes as it is.
    with contextlib.suppress(ValueError, RecursionError):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {
        "id": call.get("id", ""),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def messages_of(rows: Sequence[Row], written: Sequence[str | None]) -> tuple[Message, ...]:
    """Return the texts of the messages: what the policy wrote, where it is known, and of one without text its calls."""
    return tuple(
        Message(row["role"], raw or row["content"] or json.dumps(row.get("tool_calls") or ""))
        for row, raw in zip(rows, written, strict=True)
    )


def strings(stop: str | list[str] | None) -> tuple[str, ...]:
    return tuple(filter(None, [stop] if isinstance(stop, str) else stop or ()))


def variables_of(request: ChatRequest) -> dict[str, Any]:
    """Return what the request tells the chat template. Raises ApiError for what is the endpoint's to say."""
    variables = request.chat_template_kwargs or {}
    if own := sorted(variables.keys() & OWN_VARIABLES):
        raise ApiError(400, f"chat_template_kwargs.{own[0]} is set by the endpoint; leave it out.", param=own[0])
    return variables


class Completion:
    """One answer to a chat request, whole or in chunks."""

    def __init__(self, request: ChatRequest, chat: Chat, answers: Sequence[tuple[Answer, Row, str]]) -> None:
        """Each choice: the turn, the message that the agent is shown, and why it ended."""
        self._request, self._chat, self._answers = request, chat, answers
        self._head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": request.model}
        tokens = sum(len(answer.tokens) for answer, _, _ in answers)
        prompt = answers[0][0].num_prompt_tokens
        self._usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}

    def whole(self) -> dict[str, Any]:
        choices = [
            {"index": i, "message": dict(message), "finish_reason": reason, "logprobs": self._logprobs(answer)}
            for i, (answer, message, reason) in enumerate(self._answers)
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage}

    def chunks(self) -> Iterator[str]:
        """Yield server-sent events."""
        for i, (answer, message, reason) in enumerate(self._answers):
            yield self._event([_choice(i, {"role": "assistant", "content": ""})])
            calls = [{"tool_calls": [{"index": k, **call}]} for k, call in enumerate(message.get("tool_calls") or ())]
            logprobs = self._logprobs(answer)
            text = [{"content": message["content"]}] * bool(message["content"])
            for delta in (text + calls) or [{}] * bool(logprobs):  # a turn of end tokens alone has log-probs, too
                yield self._event([_choice(i, delta, logprobs=logprobs)])
                logprobs = None
            yield self._event([_choice(i, {}, reason)])
        if self._request.stream_options and self._request.stream_options.include_usage:
            yield self._event([], usage=self._usage)
        yield "data: [DONE]\n\n"

    def _event(self, choices: list[Row], **more: Any) -> str:
        return f"data: {json.dumps({**self._head, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    def _logprobs(self, answer: Answer) -> Row | None:
        if not self._request.logprobs:
            return None
        written = [self._chat.written(token) for token in answer.tokens]
        content = [
            {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
            for text, logprob in zip(written, answer.logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}


def _choice(index: int, delta: Row, reason: str | None = None, logprobs: Row | None = None) -> Row:
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}


def generated(request: GenerateRequest, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return turns as token ids, as verifiers' training client reads them."""
    return {
        "request_id": uuid4().hex,
        "model": request.model,
        "choices": [
            {
                "index": i,
                "token_ids": list(answer.tokens),
                "finish_reason": answer.finish,
                "logprobs": {
                    "content": [
                        {"token": f"token_id:{token}", "token_id": token, "logprob": logprob}
                        for token, logprob in zip(answer.tokens, answer.logprobs, strict=True)
                    ]
                },
            }
            for i, answer in enumerate(answers)
        ],
    }
