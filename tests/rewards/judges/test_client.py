"""Whatever a judge's server does wrong is a named error, and its key is in none of them."""

from __future__ import annotations

import asyncio
import json
import logging
import socket

import pytest
from aiohttp import web

from cluster.errors import ConfigError
from cluster.types import Message
from rewards.judges.backends.http import HttpClient, key_from
from rewards.judges.errors import (
    JudgeAnswerTooLong,
    JudgeBusy,
    JudgeProtocolError,
    JudgeRejected,
    JudgeServerError,
    JudgeTimeout,
    JudgeUnauthorised,
    JudgeUnreachable,
)
from rewards.judges.types import Call
from tests.rewards.judges.servers import chat, half, says, serving

CALL = Call((Message("system", "judge"), Message("user", "this")), max_tokens=4, seed=3, top_logprobs=20)


async def ask(handler, call: Call = CALL, **options):
    async with serving(handler) as url:
        client = HttpClient(url, **options)
        try:
            return await client.complete(call)
        finally:
            await client.close()


async def test_a_good_answer_arrives_whole():
    got = await ask(says(chat("4", top={"4": -0.1, "5": -2.5})))
    assert (got.text, got.finish, got.model, got.version) == ("4", "stop", "served", "rev-7")
    assert (got.prompt_tokens, got.completion_tokens) == (11, 3)
    assert got.tokens[0].top == (("4", -0.1), ("5", -2.5))


async def test_what_is_sent_is_what_was_called():
    sent = {}

    async def keep(request: web.Request) -> web.Response:
        sent.update(await request.json(), authorization=request.headers.get("Authorization"))
        return web.json_response(chat("4"))

    call = Call(CALL.messages, 4, 0.7, 3, 5, ("1", "2"))
    await ask(keep, call, key="secret", structured="structured_outputs", body={"top_k": 1})
    assert sent["model"] == "served"
    assert sent["messages"] == [{"role": "system", "content": "judge"}, {"role": "user", "content": "this"}]
    assert (sent["max_tokens"], sent["temperature"], sent["seed"], sent["top_k"]) == (4, 0.7, 3, 1)
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 5)
    assert sent["structured_outputs"] == {"choice": ["1", "2"]}
    assert sent["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (says({"error": "no"}, 401), JudgeUnauthorised),
        (says({"error": "no"}, 403), JudgeUnauthorised),
        (says("slow down", 429, **{"Retry-After": "7"}), JudgeBusy),
        (says("oops", 500), JudgeServerError),
        (says("bad gateway", 502), JudgeServerError),
        (says({"error": "top_logprobs"}, 400), JudgeRejected),
        (says("", 302, Location="http://127.0.0.1:1/"), JudgeRejected),
        (half, JudgeUnreachable),
        (says(chat("x" * (10 << 20))), JudgeAnswerTooLong),
        (says('{"choices": [{"mess'), JudgeProtocolError),
        (says("<html>hello</html>"), JudgeProtocolError),
        (says([1, 2]), JudgeProtocolError),
        (says({"choices": []}), JudgeProtocolError),
        (says({"choices": [{"text": "4"}]}), JudgeProtocolError),
        (says({"choices": [{"message": {"content": ["4"]}}]}), JudgeProtocolError),
        (says({"choices": [{"message": "4"}]}), JudgeProtocolError),
        (says({"model": "m", "choices": {"0": 1}}), JudgeProtocolError),
        (says(chat("4", usage={"prompt_tokens": "many"})), JudgeProtocolError),
        (says("\x00\xff garbage"), JudgeProtocolError),
    ],
)
async def test_a_bad_answer_is_a_named_error(answer, error):
    with pytest.raises(error) as caught:
        await ask(answer)
    assert "127.0.0.1" in str(caught.value)
    if error is JudgeBusy:
        assert caught.value.retry_after_s == 7


async def test_nobody_there():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    client = HttpClient(f"http://127.0.0.1:{port}/v1", model="m")
    with pytest.raises(JudgeUnreachable, match=str(port)):
        await client.complete(CALL)
    with pytest.raises(JudgeUnreachable):
        await HttpClient("http://", model="m").complete(CALL)


async def test_no_answer_in_time():
    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    with pytest.raises(JudgeTimeout):
        await ask(hang, timeout_s=0.2, model="m")


async def test_the_key_is_in_no_message_and_no_log(caplog):
    caplog.set_level(logging.DEBUG)

    async def echo(request: web.Request) -> web.Response:
        return web.Response(status=401, text="x" * 280 + request.headers["Authorization"])

    with pytest.raises(JudgeUnauthorised) as caught:
        await ask(echo, key="sk-very-secret", model="m")
    client = HttpClient("http://user:pass@127.0.0.1:1/v1", key="sk-very-secret", model="m")
    with pytest.raises(JudgeUnreachable) as refused:
        await client.complete(CALL)
    for text in (str(caught.value), str(refused.value), client.name, caplog.text):
        assert "sk-very" not in text
    assert "pass" not in client.name + str(refused.value)


def test_a_key_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "k")
    monkeypatch.delenv("NO_KEY", raising=False)
    assert (key_from("SOME_KEY", "judges.x"), key_from("", "judges.x")) == ("k", None)
    with pytest.raises(ConfigError, match="NO_KEY"):
        key_from("NO_KEY", "judges.x")


async def test_tokens_are_asked_of_the_server():
    async def tokenize(request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"tokens": [1] * len(body["prompt"]), "token_strs": list(body["prompt"])})

    async with serving(says(chat("4")), tokenize=tokenize) as url:
        assert await HttpClient(url).tokens("10") == ["1", "0"]
    async with serving(says(chat("4"))) as url:
        assert await HttpClient(url).tokens("10") is None


async def test_an_answer_without_content_is_empty_and_not_an_error():
    """A refusal or a tool call: nothing to read, which the parser says."""
    assert (await ask(says(chat(None)))).text == ""
    assert json.loads(json.dumps(chat(None)))["choices"][0]["message"]["content"] is None
