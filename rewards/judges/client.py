"""A judge behind any URL that speaks OpenAI's chat completions.

The border for what httpx raises and servers answer: everything leaves here as a `JudgeError`. The key travels in a
header and is nowhere else: not in the name, not in messages, not in what a server echoes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
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

log = logging.getLogger(__name__)

CONNECT_S = 5.0
"""An address that takes longer to accept a connection is dead: nothing that answers is so far away."""
MAX_ANSWER_BYTES = 8 << 20
"""Twenty log-probs at each of 4,000 tokens are about 5 MB."""
LONGEST_EXCERPT = 300
OPTIONAL = ("max_tokens", "temperature", "seed", "top_logprobs", "logprobs", "structured_outputs", "guided_choice")
"""Fields that a judge can do without. A server that refuses one is asked again without it, from then on."""
RENAMED = {"max_tokens": "max_completion_tokens"}
"""Newer names, used where a refusal mentions them."""
TOO_MUCH = re.compile(
    r"too (large|long|many)|context length|exceed|greater than|less than|at most|maximum", re.IGNORECASE
)
"""A refusal of a value, not of a field: the request would be another one without it."""
MOST_TOKENS = 1 << 40
"""A count beyond this is none."""
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
        omit: Sequence[str] = (),
    ) -> None:
        """`model` empty: the first that the server lists. `body`: further fields of every request. `omit`: fields of
        `OPTIONAL` that the server does not take; others are found out by asking."""
        self.url, self._model, self._key = url.rstrip("/"), model, key
        self.name = without_password(self.url)
        self._revision, self._structured = revision, structured
        self._body, self._max_bytes = dict(body or {}), max_answer_bytes
        self._dialect: dict[str, str] = dict.fromkeys(omit, "")
        """Field → its name for this server, empty where the server refuses it."""
        identity = {"Accept-Encoding": "identity"}
        self._client = httpx.AsyncClient(
            headers=identity | {"Authorization": f"Bearer {key}"} if key else identity,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)),
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
        answer = await self._asked(body)
        try:
            return _completion(answer, self._revision)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise JudgeProtocolError(
                f"{self.name} answered with no chat completion ({type(error).__name__}: {error}): "
                f"{self._excerpt(json.dumps(answer))}"
            ) from error

    async def _asked(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer, in the server's dialect: a field that it refuses by name is renamed or left out."""
        while True:
            spoken = {self._dialect.get(name, name): value for name, value in body.items()}
            spoken.pop("", None)
            try:
                return await self._send("POST", f"{self.url}/chat/completions", spoken | self._body)
            except JudgeRejected as error:
                if not self._learn(str(error), spoken):
                    raise

    def _learn(self, refusal: str, spoken: Mapping[str, Any]) -> bool:
        """Take a refused field into the dialect; whether there was one."""
        if TOO_MUCH.search(refusal):
            return False
        for name in OPTIONAL:
            sent = self._dialect.get(name, name)
            if sent not in spoken or sent in self._body or not re.search(rf"\b{sent}\b", refusal):
                continue
            newer = RENAMED.get(name, "")
            self._dialect[name] = newer if sent == name and newer and newer in refusal else ""
            if name == "logprobs":
                self._dialect["top_logprobs"] = ""
            log.warning("%s refuses '%s'; it is %s from now on", self.name, sent,
                        f"called '{newer}'" if self._dialect[name] else "left out")  # fmt: skip
            return True
        return False

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
                data = await self._body_of(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise JudgeAbsent(f"{self.name}: {type(error).__name__}: {self._excerpt(str(error))}") from error
        except httpx.TimeoutException as error:
            raise JudgeTimeout(f"{self.name} did not answer in time ({type(error).__name__}).") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise JudgeUnreachable(f"{self.name}: {type(error).__name__}: {self._excerpt(str(error))}") from error
        if response.status_code != 200:
            raise self._refusal(response, data)
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
        status, said = response.status_code, self._excerpt(data)
        message = f"{self.name} answered {status}: {said}"
        if status in (401, 403):
            return JudgeUnauthorised(f"{message}. Check the variable that 'key_env' names.")
        if status == 429:
            return JudgeBusy(message, retry_after_s=_seconds(response.headers.get("retry-after")))
        if status >= 500:
            return JudgeServerError(message, retry_after_s=_seconds(response.headers.get("retry-after")))
        return JudgeRejected(message, status=status)

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
        _encodable(text),
        _encodable(str(choice.get("finish_reason"))),
        _encodable(str(answer.get("model", ""))),
        tuple(_token(t) for t in content),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        revision or _encodable(str(answer.get("system_fingerprint") or "")),
    )


def _encodable(text: str) -> str:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode()


def _count(tokens: Any) -> int:
    """Tokens that a server says were used; what is no plausible count is 0, for it is bookkeeping and no verdict."""
    found = int(tokens or 0)
    return found if 0 <= found < MOST_TOKENS else 0


def _token(token: dict[str, Any]) -> Token:
    top = tuple((_encodable(str(t["token"])), float(t["logprob"])) for t in token.get("top_logprobs") or ())
    return Token(_encodable(str(token["token"])), float(token["logprob"]), top)
