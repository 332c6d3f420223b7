"""Judges' servers that take other fields than vLLM's, count tokens oddly, pack their answers, or think first."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from aiohttp import web

from cluster.types import Message, encode
from rewards.judges.client import HttpClient
from rewards.judges.errors import JudgeAnswerTooLong, JudgeProtocolError, JudgeRejected
from rewards.judges.pool import JudgePool
from rewards.judges.templates import TEMPLATES, Item
from rewards.judges.types import Call, Request
from tests.rewards.judges.servers import chat, says, serving

CALL = Call((Message("user", "this"),), max_tokens=4, seed=3, top_logprobs=20)


class Strict:
    """A server that refuses some fields, each by a message; `seen` are the bodies that it took."""

    def __init__(self, refused: dict[str, str]) -> None:
        self.refused, self.seen, self.asked = refused, [], 0

    async def __call__(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked += 1
        for name, message in self.refused.items():
            if name in body:
                return web.json_response({"error": {"message": message}}, status=400)
        self.seen.append(body)
        return web.json_response(chat("4"))


async def asked(handler, times: int = 1, **options):
    async with serving(handler) as url:
        client = HttpClient(url, model="m", **options)
        try:
            return [await client.complete(CALL) for _ in range(times)]
        finally:
            await client.close()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("seed", "Unsupported parameter: 'seed'."),
        ("temperature", "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1)."),
        ("seed", "extra fields not permitted: seed"),
        ("logprobs", "logprobs is not supported by this model"),
        ("max_tokens", "unknown field max_tokens"),
    ],
)
async def test_a_field_that_a_server_refuses_is_left_out_from_then_on(field, message):
    server = Strict({field: message})
    answers = await asked(server, times=3)
    assert [a.text for a in answers] == ["4"] * 3
    assert server.asked == 4, "the server is asked once more, and only the first time"
    assert all(field not in body and body["model"] == "m" for body in server.seen)
    assert field != "logprobs" or "top_logprobs" not in server.seen[0]


async def test_a_field_with_a_newer_name_is_called_by_it():
    server = Strict({"max_tokens": "Unsupported parameter: use 'max_completion_tokens' instead of 'max_tokens'."})
    await asked(server)
    assert server.seen[0]["max_completion_tokens"] == 4


async def test_several_refusals_are_learnt_one_after_the_other():
    server = Strict({name: f"unknown field '{name}'" for name in ("seed", "temperature", "top_logprobs", "logprobs")})
    await asked(server)
    assert server.seen[0].keys() == {"model", "messages", "max_tokens"}


async def test_a_recipe_may_say_what_is_left_out():
    server = Strict({})
    await asked(server, omit=("seed", "max_tokens"))
    assert not {"seed", "max_tokens"} & server.seen[0].keys()


@pytest.mark.parametrize(
    "message",
    [
        "'max_tokens' is too large: 4. This model's maximum context length is 3 tokens.",
        "the prompt is empty",
        "top_logprobs must be at most 5",
    ],
)
async def test_a_refusal_of_a_value_is_no_dialect(message):
    with pytest.raises(JudgeRejected):
        await asked(Strict({"messages": message}))


@pytest.mark.parametrize("count", [2**63, 2**100, -5, True, 3.0, None, 1e300])
async def test_a_count_of_tokens_that_cannot_be_is_none(count):
    (answer,) = await asked(says(json.dumps(chat("4", usage={"prompt_tokens": count, "completion_tokens": count}))))
    assert 0 <= answer.prompt_tokens < 1 << 41
    encode(answer)


async def test_half_a_surrogate_pair_in_an_answer_can_be_stored():
    (answer,) = await asked(says(json.dumps(chat("4")).replace('"4"', '"4\\ud83d"')))
    encode(answer)
    assert answer.text.startswith("4")


def packed(data: bytes, encoding: str):
    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=data, headers={"Content-Encoding": encoding, "Content-Type": "application/json"})

    return answer


GOOD = json.dumps(chat("4")).encode()
BOMB = gzip.compress(b" " * (400 << 20), 9)


@pytest.mark.parametrize(("data", "encoding"), [(gzip.compress(GOOD), "gzip"), (zlib.compress(GOOD), "deflate")])
async def test_one_layer_of_compression_is_unpacked(data, encoding):
    (answer,) = await asked(packed(data, encoding))
    assert answer.text == "4"


@pytest.mark.parametrize(
    ("data", "encoding", "error"),
    [
        (BOMB, "gzip", JudgeAnswerTooLong),
        (gzip.compress(BOMB, 9), "gzip, gzip", JudgeProtocolError),
        (GOOD, "br", JudgeProtocolError),
        (GOOD, "zstd", JudgeProtocolError),
        (b"not packed", "gzip", JudgeProtocolError),
    ],
)
async def test_packed_answers_are_bounded_or_refused(data, encoding, error):
    with pytest.raises(error):
        await asked(packed(data, encoding))


async def test_a_judge_that_thinks_first_has_room_in_its_second_attempt():
    room = []

    async def thinking(request: web.Request) -> web.Response:
        body = await request.json()
        room.append(body["max_tokens"])
        whole = "<think>" + "Well. " * 100 + "</think>4"
        cut = body["max_tokens"] < 100
        answer = chat("<think>Well." if cut else whole)
        answer["choices"][0]["finish_reason"] = "length" if cut else "stop"
        return web.json_response(answer)

    async with serving(thinking) as url:
        pool = JudgePool("j", [HttpClient(url, model="m")])
        verdict = await pool.ask(Request(TEMPLATES["pointwise"](), Item("q", ("a",)), logprobs=False))
        short = await pool.ask(Request(TEMPLATES["pointwise"](), Item("p", ("a",)), logprobs=False, max_tokens=50))
        await pool.close()
    assert verdict.values == (4.0,)
    assert room[:2] == [8, 1024]
    assert not short.scored
    assert "cut after" in short.note
    assert "max_tokens" in short.note
