"""Judges' servers that take other fields than vLLM's, count tokens oddly, pack their answers, or think first."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import replace

import pytest
from aiohttp import web

from cluster.types import Message, encode
from rewards.judges.backends.http import HttpClient
from rewards.judges.errors import JudgeAnswerTooLong, JudgeProtocolError, JudgeRejected, JudgeServerError
from rewards.judges.pool.pool import JudgePool
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


def openai(message: str, param: str = "", code: str = "unsupported_parameter", status: int = 400):
    return status, {
        "error": {"message": message, "type": "invalid_request_error", "param": param or None, "code": code}
    }


def refusals(field: str) -> dict[str, tuple[int, object]]:
    """How servers of several makes say that they do not take a field."""
    detail = [{"type": "extra_forbidden", "loc": ["body", field], "msg": "Extra inputs are not permitted", "input": 3}]
    return {
        "OpenAI": openai(f"Unsupported parameter: '{field}' is not supported with this model.", field),
        "OpenAI, a value": openai(
            f"Unsupported value: '{field}' does not support 0 with this model.", field, "unsupported_value"
        ),
        "OpenAI, maximum": openai(f"Unsupported parameter: '{field}'. The maximum is set by the model.", field),
        "vLLM": (
            400,
            {"object": "error", "message": str(detail), "type": "BadRequestError", "param": None, "code": 400},
        ),
        "FastAPI": (422, {"detail": detail}),
        "llama.cpp": (500, {"error": {"code": 500, "message": f"Unsupported param: {field}", "type": "server_error"}}),
        "Ollama": (400, {"error": f'json: unknown field "{field}"'}),
        "Anthropic": (
            400,
            {
                "type": "error",
                "error": {"type": "invalid_request_error", "message": f"{field}: Extra inputs are not permitted"},
            },
        ),
        "Anthropic, deprecated": (
            400,
            {"type": "error", "error": {"message": f"`{field}` is deprecated for this model."}},
        ),
        "a schema": (422, {"error": f"Additional properties are not allowed ('{field}' was unexpected)"}),
        "Python": (400, f"create() got an unexpected keyword argument '{field}'"),
        "plain text": (400, f"Bad request: {field} not allowed here"),
        "an older one": (
            400,
            {"error": {"message": f"Unrecognized request argument supplied: {field}", "param": None}},
        ),
        "a long one": (400, {"error": {"message": f"{'x ' * 500} unknown field {field}"}}),
        "not implemented": (501, {"error": f"{field} is not implemented"}),
    }


class Refusing:
    """A server that refuses fields in the words of its make; `asked` are all bodies, `taken` those it answered."""

    def __init__(self, make: str, *fields: str) -> None:
        self.make, self.fields, self.asked, self.taken = make, fields, [], []

    async def __call__(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        for field in self.fields:
            if field in body:
                status, said = refusals(field)[self.make]
                text = said if isinstance(said, str) else json.dumps(said)
                return web.Response(status=status, text=text, content_type="application/json")
        self.taken.append(body)
        return web.json_response(chat("4"))


ALL = ("max_tokens", "max_completion_tokens", "temperature", "seed", "top_logprobs", "logprobs", "structured_outputs")


@pytest.mark.parametrize("make", refusals("seed"))
async def test_every_make_of_server_says_what_it_does_not_take(make):
    for fields in (["seed"], ["temperature"], ["logprobs"], ["max_tokens"], ["seed", "temperature"], [*ALL]):
        server = Refusing(make, *fields)
        call = replace(CALL, choices=("1", "2"))
        async with serving(server) as url:
            client = HttpClient(url, model="m", structured="structured_outputs")
            assert [(await client.complete(call)).text for _ in range(3)] == ["4"] * 3
            await client.close()
        assert len(server.taken) == 3
        assert len(server.asked) <= 3 + len(ALL)
        assert all(not set(fields) & body.keys() for body in server.taken)
        assert fields == [*ALL] or server.taken[0].keys() >= {"model", "messages"} | (
            {"temperature", "seed"} - set(fields)
        )


async def test_a_newer_name_is_tried_before_the_room_is_left_to_the_server():
    server = Refusing("Ollama", "max_tokens")
    await asked(server)
    assert server.taken[0]["max_completion_tokens"] == 4


SYSTEM = {
    "vLLM": (400, {"message": "System role not supported"}),
    "OpenAI": openai(
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "messages[0].role",
        "unsupported_value",
    ),
    "Gemma": (400, {"message": "Conversation roles must alternate user/assistant/user/assistant/..."}),
    "llama.cpp": (500, {"error": {"message": "Jinja Exception: System role not supported"}}),
    "Anthropic": (
        400,
        {"error": {"message": 'messages: Unexpected role "system". Use the top-level `system` parameter'}},
    ),
    "plain text": (400, "this model does not support system messages"),
}


@pytest.mark.parametrize("make", [*SYSTEM, "a recipe"])
async def test_a_model_without_a_system_role_is_told_everything_by_the_user(make):
    seen = []

    async def server(request: web.Request) -> web.Response:
        body = await request.json()
        if any(m["role"] == "system" for m in body["messages"]):
            status, said = SYSTEM[make]
            return web.Response(status=status, text=said if isinstance(said, str) else json.dumps(said))
        seen.append(body)
        return web.json_response(chat("4"))

    messages = (
        Message("system", "Be strict."),
        Message("user", "this"),
        Message("assistant", "so"),
        Message("user", "now"),
    )
    async with serving(server) as url:
        client = HttpClient(url, model="m", omit=("system",) if make == "a recipe" else ())
        await client.complete(replace(CALL, messages=messages))
        await client.close()
    assert [m["role"] for m in seen[0]["messages"]] == ["user", "assistant", "user"]
    assert seen[0]["messages"][0]["content"] == "Be strict.\n\nthis"
    assert {"seed", "temperature", "max_tokens", "logprobs"} <= seen[0].keys()


@pytest.mark.parametrize("make", refusals("seed"))
async def test_a_server_that_refuses_everything_says_so_once_and_is_no_dialect(make):
    server = Refusing(make, *ALL, "messages")
    with pytest.raises((JudgeRejected, JudgeServerError)) as caught:
        await asked(server)
    assert len(str(caught.value)) < 1500
    taken = len(server.asked)
    assert taken <= 1 + len(ALL)
    async with serving(server) as url:
        client = HttpClient(url, model="m")
        for _ in range(2):
            server.fields = (*ALL, "messages")
            with pytest.raises((JudgeRejected, JudgeServerError)):
                await client.complete(CALL)
        server.fields = ()
        await client.complete(CALL)
        await client.close()
    assert server.taken[-1].keys() >= {"seed", "temperature", "max_tokens", "logprobs"}, "nothing was learnt for good"


async def test_an_error_that_echoes_the_request_teaches_nothing():
    async def echo(request: web.Request) -> web.Response:
        return web.Response(status=400, text="the prompt is empty: " + await request.text())

    with pytest.raises(JudgeRejected, match="the prompt is empty"):
        await asked(echo)


async def test_a_field_that_the_recipe_asks_for_is_never_left_out():
    server = Refusing("OpenAI", "response_format")
    with pytest.raises(JudgeRejected, match="response_format"):
        await asked(server, body={"response_format": {"type": "json_object"}})
    assert len(server.asked) == 1
    server = Refusing("OpenAI", "seed")
    with pytest.raises(JudgeRejected, match="seed"):
        await asked(server, body={"seed": 1})


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


THINKING = {
    "pointwise": ("label", "4"),
    "pairwise": ("label", "A"),
    "rubric": ("label", "2"),
    "listwise": ("text", "Scores: 4, 4"),
    "steps": ("text", "Scores: 4, 4"),
    "assessment": ("text", "Score: 40"),
    "checklist": ("text", "1: yes"),
    "pairwise_strength": ("text", "Verdict: -2"),
    "pointwise_reference": ("reason", "4"),
}
OPTIONS = {"rubric": {"title": "t", "levels": {"1": "a", "2": "b"}}, "checklist": {"criteria": ["a"]}}


@pytest.mark.parametrize("kind", THINKING)
@pytest.mark.parametrize("apart", [False, True])
async def test_a_judge_that_thinks_has_room_in_every_mode_and_is_not_shut_out(kind, apart):
    """`apart`: the server keeps the thought out of the content, which is then empty where it is cut."""
    mode, verdict = THINKING[kind]
    room = []

    async def thinking(request: web.Request) -> web.Response:
        body = await request.json()
        room.append(body["max_tokens"])
        cut = body["max_tokens"] < 100
        reasons = mode == "reason" and len(body["messages"]) == 2
        said = "Reasons." if reasons else verdict
        answer = chat((None if apart else "<think>Well.") if cut else said if apart else f"<think>Well.</think>{said}")
        answer["choices"][0]["finish_reason"] = "length" if cut else "stop"
        return web.json_response(answer)

    template = TEMPLATES[kind](**OPTIONS.get(kind, {}))
    n = template.num_responses or 2
    items = [Item(f"question {i}", ("a",) * n, "ref") for i in range(30)]
    async with serving(thinking) as url:
        pool = JudgePool("j", [HttpClient(url, model="m")])
        verdicts = [await pool.ask(Request(template, item, mode, logprobs=False)) for item in items]
        calls = len(room)
        short = await pool.ask(Request(template, Item("other", ("a",) * n, "ref"), mode, logprobs=False, max_tokens=50))
        await pool.close()
    assert all(v.scored for v in verdicts), [v.note for v in verdicts if not v.scored][:1]
    assert calls <= (2 if mode == "reason" else 1) * len(items) + 2, "room is given at once, after the first time"
    assert not short.scored
    assert "needs a larger max_tokens" in short.note
