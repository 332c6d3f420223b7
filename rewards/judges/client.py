"""A judge behind any URL that speaks OpenAI's chat completions.

The border for what httpx raises and servers answer: everything leaves here as a `JudgeError`. The key travels in a
header and is nowhere else: not in the name, not in messages, not in what a server echoes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx

from cluster.config import without_password
from cluster.errors import ConfigError
from rewards.judges.errors import (
    JudgeAbsent,
    JudgeAnswerTooLong,
    JudgeBusy,
    JudgeError,
    JudgeProtocolError,
    JudgeRejected,
    JudgeServerError,
    JudgeTimeout,
    JudgeUnauthorised,
    JudgeUnreachable,
)
from rewards.judges.types import Call, Completion, Token

MAX_ANSWER_BYTES = 8 << 20
"""Twenty log-probs at each of 4,000 tokens are about 5 MB."""
LONGEST_EXCERPT = 300
Structured = Literal["off", "structured_outputs", "guided_choice"]


def key_from(name: str, where: str) -> str | None:
    """The key in the environment variable `name`; None if no name is given. Raises ConfigError if it is not set."""
    if not name:
        return None
    if not os.environ.get(name):
        raise ConfigError(f"{where}.key_env = '{name}', but there is no such environment variable, or it is empty.")
    return os.environ[name]


class HttpClient:
    """One base URL, which ends in `/v1` as a rule. One connection pool; closes with `close`."""

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        key: str | None = None,
        revision: str = "",
        timeout_s: float = 60.0,
        max_connections: int = 256,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        structured: Structured = "off",
        body: Mapping[str, Any] | None = None,
    ) -> None:
        """`model` empty: the first that the server lists. `body`: further fields of every request."""
        self.url, self._model, self._key = url.rstrip("/"), model, key
        self.name = without_password(self.url)
        self._revision, self._structured = revision, structured
        self._body, self._max_bytes = dict(body or {}), max_answer_bytes
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            follow_redirects=False,  # a redirect would carry the key elsewhere
        )

    async def complete(self, call: Call) -> Completion:
        body: dict[str, Any] = {
            "model": await self._served_model(),
            "messages": [{"role": m.role, "content": m.content} for m in call.messages],
            "max_tokens": call.max_tokens,
            "temperature": call.temperature,
            "seed": call.seed,
        }
        if call.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": call.top_logprobs}
        if call.choices and self._structured == "structured_outputs":
            body["structured_outputs"] = {"choice": list(call.choices)}
        elif call.choices and self._structured == "guided_choice":  # vLLM before 0.12
            body["guided_choice"] = list(call.choices)
        answer = await self._send("POST", f"{self.url}/chat/completions", body | self._body)
        try:
            return _completion(answer, self._revision)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise JudgeProtocolError(
                f"{self.name} answered with no chat completion ({type(error).__name__}: {error}): "
                f"{self._excerpt(json.dumps(answer))}"
            ) from error

    async def tokens(self, text: str) -> Sequence[str] | None:
        """By vLLM's `/tokenize`; None where a server has no such thing."""
        root = self.url.removesuffix("/v1")
        body = {"model": await self._served_model(), "prompt": text, "add_special_tokens": False}
        try:
            answer = await self._send("POST", f"{root}/tokenize", body | {"return_token_strs": True})
        except JudgeRejected:
            return None
        strings = answer.get("token_strs")
        return [str(s) for s in strings] if isinstance(strings, list) else None

    async def close(self) -> None:
        await self._client.aclose()

    async def _served_model(self) -> str:
        if not self._model:
            answer = await self._send("GET", f"{self.url}/models", None)
            try:
                self._model = str(answer["data"][0]["id"])
            except (KeyError, IndexError, TypeError) as error:
                raise JudgeProtocolError(f"{self.name}/models lists no model; name one in 'model'.") from error
        return self._model

    async def _send(self, method: str, url: str, body: Any) -> dict[str, Any]:
        """The JSON object of a 200. Raises JudgeError."""
        try:
            async with self._client.stream(method, url, json=body) as response:
                data = bytearray()
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > self._max_bytes:
                        raise JudgeAnswerTooLong(
                            f"{self.name} answered with more than {self._max_bytes} bytes; the rest was not read."
                        )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise JudgeAbsent(f"{self.name}: {type(error).__name__}: {self._excerpt(str(error))}") from error
        except httpx.TimeoutException as error:
            raise JudgeTimeout(f"{self.name} did not answer in time ({type(error).__name__}).") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise JudgeUnreachable(f"{self.name}: {type(error).__name__}: {self._excerpt(str(error))}") from error
        if response.status_code != 200:
            raise self._refusal(response, bytes(data))
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise JudgeProtocolError(f"{self.name} answered with no JSON: {self._excerpt(bytes(data))}") from error
        if not isinstance(answer, dict):
            raise JudgeProtocolError(f"{self.name} answered with JSON that is no object: {self._excerpt(bytes(data))}")
        return answer

    def _refusal(self, response: httpx.Response, data: bytes) -> JudgeError:
        status, said = response.status_code, self._excerpt(data)
        message = f"{self.name} answered {status}: {said}"
        if status in (401, 403):
            return JudgeUnauthorised(f"{message}. Check the variable that 'key_env' names.")
        if status == 429:
            return JudgeBusy(message, retry_after_s=_seconds(response.headers.get("retry-after")))
        if status >= 500:
            return JudgeServerError(message, retry_after_s=_seconds(response.headers.get("retry-after")))
        return JudgeRejected(message)

    def _excerpt(self, text: str | bytes) -> str:
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        if self._key:
            text = text.replace(self._key, "…")  # before cutting: half a key must not survive either
        return repr(text[:LONGEST_EXCERPT])


def _seconds(header: str | None) -> float:
    try:
        return min(max(float(header or 0), 0.0), 60.0)
    except ValueError:  # a date
        return 0.0


def _completion(answer: dict[str, Any], revision: str) -> Completion:
    choice = answer["choices"][0]
    text, usage = choice["message"]["content"], answer.get("usage") or {}
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}")
    content = (choice.get("logprobs") or {}).get("content") or []
    return Completion(
        text,
        str(choice.get("finish_reason")),
        str(answer.get("model", "")),
        tuple(_token(t) for t in content),
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        revision or str(answer.get("system_fingerprint") or ""),
    )


def _token(token: dict[str, Any]) -> Token:
    top = tuple((str(t["token"]), float(t["logprob"])) for t in token.get("top_logprobs") or ())
    return Token(str(token["token"]), float(token["logprob"]), top)
