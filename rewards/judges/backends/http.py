"""A judge behind any URL that speaks OpenAI's chat completions.

The border for what httpx raises and servers answer: everything leaves here as a `JudgeError`. The key travels in a
header and is nowhere else: not in the name, not in messages, not in what a server echoes.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import math
import os
import ssl
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Literal

import httpx

from cluster.config import without_password
from cluster.errors import ConfigError
from rewards.judges.dialect import TOO_MUCH, Dialect
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

log = logging.getLogger(__name__)

CONNECT_S = 5.0
"""An address that takes longer to accept a connection is dead: nothing that answers is so far away."""
MAX_ANSWER_BYTES = 8 << 20
"""Twenty log-probs at each of 4,000 tokens are about 5 MB."""
MOST_BRACKETS = 500_000
"""Most objects and lists of a JSON answer: each takes fifty times its two bytes."""
LONGEST_EXCERPT = 300
LONGEST_NAME = 200
"""Longest name of a model, a version or a reason to end: they go into every score."""
LONGEST_WAIT_S = 60.0
MOST_TOKENS = 1 << 40
"""A count beyond this is none."""
Structured = Literal["off", "structured_outputs", "guided_choice"]
__all__ = ["MAX_ANSWER_BYTES", "TOO_MUCH", "HttpClient", "Structured", "key_from"]


def key_from(name: str, where: str) -> str | None:
    """The key in the environment variable `name`; None if no name is given. Raises ConfigError if it is not set."""
    if not name:
        return None
    if not os.environ.get(name):
        raise ConfigError(f"{where}.key_env = '{name}', but there is no such environment variable, or it is empty.")
    return os.environ[name]


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return the authorities that clients of this process trust; reading their file takes 40 ms."""
    return httpx.create_ssl_context()


class HttpClient:
    """One base URL, which ends in `/v1` as a rule; closes with `close`.

    Each call has a connection of its own. On one that is used again, bytes that a server sent behind one answer would
    be read as the answer to the next question.
    """

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
        omit: Sequence[str] = (),
    ) -> None:
        """`model` empty: the first that the server lists. `body`: further fields of every request. `omit`: fields that
        the server does not take, `system` for the role; others are found out by asking."""
        self.url, self._model, self._key = url.rstrip("/"), model, key
        self.name = without_password(self.url)
        self._revision, self._structured = revision, structured
        self._body, self._max_bytes = dict(body or {}), max_answer_bytes
        self._dialect, self._timeout_s = Dialect.omitting(omit), timeout_s
        identity = {"Accept-Encoding": "identity", "Connection": "close", "Content-Type": "application/json"}
        self._client = httpx.AsyncClient(
            headers=identity | {"Authorization": f"Bearer {key}"} if key else identity,
            verify=_certificates(),
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=0),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none: a server could fill memory with them
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
        answer = await self._asked(body)
        try:
            return _completion(answer, self._revision)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise JudgeProtocolError(
                f"{self.name} answered with no chat completion ({type(error).__name__}: {self._excerpt(str(error))}): "
                f"{self._excerpt(_shown(answer))}"
            ) from error

    async def _asked(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer, in the server's dialect: a field that it refuses by name is renamed or left out.

        What was learnt counts once a request is taken: a server that refuses everything has no dialect.
        """
        dialect, first = self._dialect, None
        while True:
            spoken = dialect.spoken(body) | self._body
            try:
                answer = await self._send("POST", f"{self.url}/chat/completions", spoken)
            except (JudgeRejected, JudgeServerError) as error:
                first = first or error
                changed = dialect.without(error.said, body, self._body)
                if changed is None and first is not error:
                    left_out = "; ".join(dialect.news(self._dialect))
                    raise JudgeRejected(
                        f"{first} It was asked again ({left_out}), and {error}", status=getattr(error, "status", 0)
                    ) from error
                if changed is None:
                    raise
                dialect = changed
            else:
                news = list(dialect.news(self._dialect))
                self._dialect = self._dialect.joined(dialect)
                if news:
                    log.warning("%s does not take every field of a request. From now on %s", self.name, ", ".join(news))
                return answer

    async def tokens(self, text: str) -> Sequence[str] | None:
        """By vLLM's `/tokenize`; None where a server has no such thing."""
        root = self.url.removesuffix("/v1")
        body = {"model": await self._served_model(), "prompt": text, "add_special_tokens": False}
        try:
            answer = await self._send("POST", f"{root}/tokenize", body | {"return_token_strs": True})
        except JudgeRejected:
            return None
        strings = answer.get("token_strs")
        known = isinstance(strings, list) and strings and all(isinstance(s, str) for s in strings)
        return strings if known else None

    async def close(self) -> None:
        await self._client.aclose()

    async def _served_model(self) -> str:
        if not self._model:
            answer = await self._send("GET", f"{self.url}/models", None)
            try:
                name = answer["data"][0]["id"]
            except (LookupError, TypeError):
                name = None
            if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
                raise JudgeProtocolError(f"{self.name}/models lists no model; name one in 'model'.")
            self._model = _encodable(name)
        return self._model

    async def _send(self, method: str, url: str, body: Any) -> dict[str, Any]:
        """The JSON object of a 200. Raises JudgeError."""
        content = None if body is None else json.dumps(body).encode()
        try:
            async with asyncio.timeout(self._timeout_s), self._client.stream(method, url, content=content) as response:
                data = await self._body_of(response)
        except JudgeError:
            raise
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise JudgeAbsent(f"{self.name}: {type(error).__name__}: {self._excerpt(str(error))}") from error
        except (httpx.TimeoutException, TimeoutError) as error:
            raise JudgeTimeout(f"{self.name} did not answer in time ({type(error).__name__}).") from error
        except Exception as error:  # the border: what httpx and the libraries below it make of a server's bytes
            raise JudgeUnreachable(f"{self.name}: {type(error).__name__}: {self._excerpt(str(error))}") from error
        if response.status_code != 200:
            raise self._refusal(response, data)
        if data.count(b"[") + data.count(b"{") > MOST_BRACKETS:
            raise JudgeProtocolError(f"{self.name} answered with JSON of more than {MOST_BRACKETS} objects and lists.")
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise JudgeProtocolError(f"{self.name} answered with no JSON: {self._excerpt(data)}") from error
        if not isinstance(answer, dict):
            raise JudgeProtocolError(f"{self.name} answered with JSON that is no object: {self._excerpt(data)}")
        return answer

    async def _body_of(self, response: httpx.Response) -> bytes:
        """At most `max_answer_bytes`, as sent and unpacked. Raises JudgeError.

        No compression was asked for. One layer of gzip or deflate is unpacked all the same, a little at a time: a
        hundred kilobytes may hold gigabytes.
        """
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise JudgeProtocolError(f"{self.name} answered in the encoding {self._excerpt(encoding)}; send it plain.")
        unpack = None if encoding in ("", "identity") else zlib.decompressobj(47)  # gzip or zlib, whichever it is
        data, raw = bytearray(), 0
        async for chunk in response.aiter_raw():
            raw += len(chunk)
            try:
                data += chunk if unpack is None else unpack.decompress(chunk, self._max_bytes - len(data) + 1)
            except zlib.error as error:
                raise JudgeProtocolError(f"{self.name} answered with damaged {encoding}: {error}.") from error
            if max(raw, len(data)) > self._max_bytes:
                raise JudgeAnswerTooLong(
                    f"{self.name} answered with more than {self._max_bytes} bytes; the rest was not read."
                )
        return bytes(data)

    def _refusal(self, response: httpx.Response, data: bytes) -> JudgeError:
        status = response.status_code
        message = f"{self.name} answered {status}: {self._excerpt(data)}"
        if status in (401, 403):
            return JudgeUnauthorised(f"{message}. Check the variable that 'key_env' names.")
        if status == 429:
            return JudgeBusy(message, retry_after_s=_seconds(response.headers.get("retry-after")))
        said = data.decode("utf-8", errors="replace")
        if status >= 500:
            wait_s = _seconds(response.headers.get("retry-after"))
            return JudgeServerError(message, retry_after_s=wait_s, said=said)
        return JudgeRejected(message, status=status, said=said)

    def _excerpt(self, text: str | bytes) -> str:
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        if self._key:
            text = text.replace(self._key, "…")  # before cutting: half a key must not survive either
        return repr(text[:LONGEST_EXCERPT])


def _seconds(header: str | None) -> float:
    """Seconds, or until a date, that a server asks to wait; 0 for what is neither, a minute at most."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            at = parsedate_to_datetime(header or "")
            seconds = (at - datetime.now(at.tzinfo and UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT_S) if not math.isnan(seconds) else 0.0


def _shown(answer: Any) -> str:
    try:
        return json.dumps(answer)
    except RecursionError:
        return "(nested too deeply to be shown)"


def _completion(answer: dict[str, Any], revision: str) -> Completion:
    choice = answer["choices"][0]
    text, usage = choice["message"]["content"], answer.get("usage") or {}
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}")
    content = (choice.get("logprobs") or {}).get("content") or []
    return Completion(
        _encodable(text),
        _name(choice.get("finish_reason")),
        _name(answer.get("model", "")),
        tuple(_token(t) for t in content),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        revision or _name(answer.get("system_fingerprint") or ""),
    )


def _encodable(text: str) -> str:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode()


def _name(found: Any) -> str:
    return _encodable(str(found)[:LONGEST_NAME])


def _count(tokens: Any) -> int:
    """Tokens that a server says were used; what is no plausible count is 0, for it is bookkeeping and no verdict."""
    found = int(tokens or 0)
    return found if 0 <= found < MOST_TOKENS else 0


def _token(token: dict[str, Any]) -> Token:
    top = tuple((_encodable(str(t["token"])), float(t["logprob"])) for t in token.get("top_logprobs") or ())
    return Token(_encodable(str(token["token"])), float(token["logprob"]), top)
