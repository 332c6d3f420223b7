"""Any OpenAI client as the environment: what it is answered, and which tokens of it are trained on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI

from actors.endpoint import Endpoint, Session
from actors.endpoint.session import checked_outcome
from actors.environments import ENVIRONMENTS
from actors.environments.agent import Outcome
from actors.environments.function import FunctionAgent
from actors.episode import Limits
from cluster.config import EndpointSection
from cluster.errors import ConfigError, DataError, InfrastructureError
from cluster.plugins import build
from cluster.types import Rollout
from cluster.types.wire import consistent_rollout
from tests.actors.agents import LIMITS, TASK, Scripted, chat, played
from tests.actors.test_chat import CHATML, THINKS

USER = [{"role": "user", "content": "2+2?"}]


def plain() -> httpx.AsyncClient:
    """A client without TLS, whose certificates take long to load."""
    return httpx.AsyncClient(verify=False, trust_env=False)


class Agent:
    """A client of one session, and what came of it."""

    def __init__(self, session: Session, client: AsyncOpenAI, engine: Scripted) -> None:
        self.session, self.client, self.engine = session, client, engine

    async def ask(self, messages: list[dict[str, Any]], **how: Any) -> str:
        answer = await self.client.chat.completions.create(model="policy", messages=messages, **how)  # type: ignore
        return answer.choices[0].message.content or ""

    def rollouts(self) -> list[Rollout]:
        found = self.session.rollouts(Outcome(1.0), "orig")
        for rollout in found:
            consistent_rollout(rollout)
        check_sampled(found, self.engine)
        return found


def check_sampled(rollouts: list[Rollout], engine: Scripted) -> None:
    """Each trained token was sampled behind exactly the tokens before it, at its log-prob, and is trained on once."""
    left = Counter(
        (prompt + tokens[:i], token, np.float32(logprob))
        for prompt, tokens, logprobs in engine.record
        for i, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True))
    )
    for rollout in rollouts:
        ids = tuple(rollout.tokens.tolist())
        for place in np.flatnonzero(rollout.loss_mask):
            trained = ids[:place], ids[place], rollout.logprobs[place]
            assert left[trained] > 0, "not sampled, or trained twice"
            left[trained] -= 1


@asynccontextmanager
async def agent(
    write=lambda prompt: "the four is", template=CHATML, limits=LIMITS, made: Any = None, **options: Any
) -> AsyncIterator[Agent]:
    made = made or chat(template)
    engine = Scripted(made, write, **options)
    endpoint = Endpoint(engine, made, EndpointSection(aliases=("gpt-4o",)))  # type: ignore[arg-type]
    try:
        async with (
            endpoint.session(limits, TASK) as (session, access),
            AsyncOpenAI(base_url=access.base_url, api_key=access.api_key, http_client=plain()) as client,
        ):
            yield Agent(session, client, engine)
    finally:
        await endpoint.close()


# ── which tokens are whose ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("template", [CHATML, None, THINKS.replace("<think>\n", "")])
async def test_a_longer_conversation_goes_on_with_the_rollout(template):
    async with agent(template=template) as a:
        said = await a.ask(USER)
        messages = [*USER, {"role": "assistant", "content": said}, {"role": "user", "content": "Sure?"}]
        await a.ask(messages)
        (rollout,) = a.rollouts()
        assert said == "the four is"
        assert [t.role for t in rollout.turns] == ["user", "assistant", "user", "assistant"]
        assert [t.text for t in rollout.turns] == ["2+2?", "the four is", "Sure?", "the four is"]
        # The letters that were sampled, not the longer tokens that the text is made of when it is tokenised again.
        assert rollout.num_tokens == 2 * (len("the four is") + 1)
        assert tuple(rollout.tokens.tolist()) == a.engine.record[1][0] + a.engine.record[1][1]
        assert (rollout.temperature, rollout.reward, rollout.finish) == (0.7, 1.0, "stop")


async def test_a_rewritten_history_opens_the_next_rollout():
    async with agent() as a:
        await a.ask(USER)
        await a.ask([*USER, {"role": "assistant", "content": "no"}, {"role": "user", "content": "Sure?"}])
        await a.ask([{"role": "system", "content": "Be brief."}, *USER])
        first, second, third = a.rollouts()
        assert len(first.turns) == len(second.turns) == len(third.turns) == 2
        assert "no" in second.turns[0].text


async def test_a_turn_that_is_asked_for_again_opens_a_rollout_that_trains_on_no_token_twice():
    async with agent() as a:
        said = await a.ask(USER)
        longer = [*USER, {"role": "assistant", "content": said}, {"role": "user", "content": "Sure?"}]
        await a.ask(longer)
        await a.ask(longer)
        await a.ask(USER)
        first, second, third = a.rollouts()
        assert [r.num_tokens for r in (first, second, third)] == [24, 12, 12]
        # The prompt of the second is the first one's own tokens, as far as they agree.
        assert second.tokens[: len(second.tokens) - 12].tolist() == first.tokens[: len(first.tokens) - 12].tolist()


async def test_parallel_requests_are_rollouts_of_their_own():
    async with agent() as a:
        said = await a.ask(USER)
        longer = [*USER, {"role": "assistant", "content": said}, {"role": "user", "content": "Sure?"}]
        a.engine.gate = asyncio.Event()
        asked = [asyncio.create_task(a.ask(longer)) for _ in range(3)]
        for _ in range(3):
            await a.engine.waiting.acquire()
        a.engine.gate.set()
        await asyncio.gather(*asked)
        assert sorted(r.num_tokens for r in a.rollouts()) == [12, 12, 24]


async def test_choices_are_rollouts_of_their_own_and_any_can_go_on():
    words = iter(["one", "two", "six", "ten"])
    async with agent(lambda prompt: next(words)) as a:
        answer = await a.client.chat.completions.create(model="policy", messages=USER, n=3)  # type: ignore
        assert [c.index for c in answer.choices] == [0, 1, 2]
        second = answer.choices[1].message.content
        await a.ask([*USER, {"role": "assistant", "content": second}, {"role": "user", "content": "Sure?"}])
        assert sorted(r.text for r in a.rollouts()) == sorted(["one", f"{second}\nten", "six"])


@pytest.mark.parametrize("sent", ["  the four ", "the four", "the four\n"])
async def test_space_that_a_client_or_a_template_trims_does_not_end_a_rollout(sent):
    trims = CHATML.replace("m.content }}<|im_end|>", "m.content | trim }}<|im_end|>")
    for template in (CHATML, trims):
        async with agent(lambda prompt: "  the four ", template) as a:
            await a.ask(USER)
            await a.ask([*USER, {"role": "assistant", "content": sent}, {"role": "user", "content": "Sure?"}])
            (rollout,) = a.rollouts()
            assert rollout.num_tokens == 2 * 12


async def test_thoughts_that_a_template_drops_open_the_next_rollout():
    drops = CHATML.replace("m.content }}<|im_end|>", "m.content.split('</think>')[-1] }}<|im_end|>")
    for template, number in ((drops, 2), (CHATML, 1)):
        async with agent(lambda prompt: "<think>hm</think>four", template) as a:
            said = await a.ask(USER)
            assert said == "<think>hm</think>four"
            await a.ask([*USER, {"role": "assistant", "content": said}, {"role": "user", "content": "Sure?"}])
            assert len(a.rollouts()) == number


async def test_a_prompt_that_opens_a_thought_is_shown_with_it():
    async with agent(lambda prompt: "hm</think>four", THINKS) as a:
        said = await a.ask(USER)
        assert said == "<think>\nhm</think>four"
        await a.ask([*USER, {"role": "assistant", "content": said}, {"role": "user", "content": "Sure?"}])
        (rollout,) = a.rollouts()
        assert rollout.opened == "<think>\n"
        assert len(rollout.turns) == 4


async def test_a_stop_string_ends_the_turn_and_the_rollout_goes_on_behind_it():
    async with agent(lambda prompt: "four. STOP and more") as a:
        said = await a.ask(USER, stop=["STOP"])
        assert said == "four. "
        await a.ask([*USER, {"role": "assistant", "content": said}, {"role": "user", "content": "Sure?"}], stop="STOP")
        (rollout,) = a.rollouts()
        assert [t.text for t in rollout.turns if t.role == "assistant"] == ["four. STOP"] * 2


async def test_a_turn_out_of_tokens_is_cut_and_the_rollout_goes_on():
    async with agent() as a:
        answer = await a.client.chat.completions.create(model="policy", messages=USER, max_tokens=5)  # type: ignore
        assert answer.choices[0].finish_reason == "length"
        said = answer.choices[0].message.content
        assert (said, answer.usage.completion_tokens) == ("the f", 5)  # type: ignore
        await a.ask([*USER, {"role": "assistant", "content": said}, {"role": "user", "content": "Sure?"}])
        (rollout,) = a.rollouts()
        assert len(rollout.turns) == 4
        assert "the f<|im_end|>" in a.session._chat._tokenizer.decode(rollout.tokens)


async def test_token_ids_go_on_with_a_rollout_of_messages():
    async with agent() as a:
        await a.ask(USER)
        prompt, tokens, _ = a.engine.record[0]
        async with plain() as http:
            more = [7, 8, 9]
            answer = await http.post(
                str(a.client.base_url).replace("/v1/", "/inference/v1/generate"),
                headers={"Authorization": f"Bearer {a.client.api_key}"},
                json={
                    "model": "policy",
                    "token_ids": [*prompt, *tokens, *more],
                    "sampling_params": {
                        "logprobs": 1,
                        "stop_token_ids": [more[0]],
                        "skip_special_tokens": False,
                        "n": 1,
                    },
                },
            )
        (choice,) = answer.json()["choices"]
        assert tuple(choice["token_ids"]) == a.engine.record[1][1]
        assert [c["logprob"] for c in choice["logprobs"]["content"]] == pytest.approx(a.engine.record[1][2])
        assert choice["finish_reason"] == "stop"
        (rollout,) = a.rollouts()
        assert rollout.num_tokens == 24


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_says_what_the_whole_answer_says():
    async with agent() as a:
        stream = await a.client.chat.completions.create(
            model="gpt-4o",
            messages=USER,
            stream=True,
            stream_options={"include_usage": True},
            n=2,  # type: ignore
        )
        chunks = [chunk async for chunk in stream]
        texts = ["", ""]
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == ["the four is"] * 2
        assert chunks[-1].usage.completion_tokens == 24
        assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop", "stop"]


async def test_log_probs_are_those_of_the_sampled_tokens():
    async with agent() as a:
        answer = await a.client.chat.completions.create(model="policy", messages=USER, logprobs=True)  # type: ignore
        content = answer.choices[0].logprobs.content  # type: ignore
        assert "".join(c.token for c in content) == "the four is<|im_end|>"
        assert [c.logprob for c in content] == pytest.approx(a.engine.record[0][2])


async def test_a_turn_without_text_has_its_log_probs_in_a_stream():
    async with agent(lambda _: "") as a:
        how: Any = {"model": "policy", "messages": USER, "logprobs": True, "stream": True, "n": 2}
        chunks = [chunk async for chunk in await a.client.chat.completions.create(**how)]
        found = [c.choices[0] for c in chunks if c.choices and c.choices[0].logprobs]
        assert [choice.index for choice in found] == [0, 1]
        assert [len(choice.logprobs.content) for choice in found] == [1, 1]  # type: ignore[union-attr]


async def test_models_are_listed_and_a_session_can_stand_in_the_url():
    async with agent() as a:
        assert [m.id async for m in a.client.models.list()] == ["policy", "gpt-4o"]
        url = str(a.client.base_url).replace("/v1/", f"/sessions/{a.client.api_key}/v1/")
        async with AsyncOpenAI(base_url=url, api_key="of-its-own", http_client=plain()) as client:
            await client.chat.completions.create(model="policy", messages=USER)  # type: ignore
        assert len(a.rollouts()) == 1


async def test_an_episode_ends_by_a_call_and_is_over():
    async with agent() as a:
        await a.ask(USER)
        ended = await a.client.post("/episode/end", body={"reward": 0.25, "answer": "four"}, cast_to=dict)
        assert ended == {"ended": True}
        assert a.session.outcome == Outcome(0.25, "four")
        with pytest.raises(openai.PermissionDeniedError, match="the episode has ended"):
            await a.ask(USER)
        with pytest.raises(openai.PermissionDeniedError):
            await a.client.post("/episode/end", body={"reward": 1.0}, cast_to=dict)


async def test_the_endpoints_own_key_is_answered_and_nothing_is_kept():
    made = chat()
    engine = Scripted(made, lambda prompt: "four")
    endpoint = Endpoint(engine, made, EndpointSection())  # type: ignore[arg-type]
    await endpoint.start()
    try:
        async with AsyncOpenAI(base_url=f"{endpoint.address}/v1", api_key=endpoint.key, http_client=plain()) as client:
            answer = await client.chat.completions.create(model="policy", messages=USER, temperature=0)  # type: ignore
            assert answer.choices[0].message.content == "four"
        assert not endpoint._sessions
        assert endpoint.take_counts() == {}
    finally:
        await endpoint.close()


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────

REFUSED: dict[str, tuple[int, dict[str, Any], str]] = {
    "another model": (404, {"model": "polcy"}, "Did you mean 'policy'"),
    "top_p": (400, {"top_p": 0.9}, "top_p = 0.9 changes the distribution"),
    "top_k": (400, {"extra_body": {"top_k": 5}}, "top_k"),
    "min_p": (400, {"extra_body": {"min_p": 0.1}}, "min_p"),
    "a penalty": (400, {"presence_penalty": 1.0}, "presence_penalty"),
    "a bias": (400, {"logit_bias": {"5": 100}}, "logit_bias"),
    "a grammar": (400, {"response_format": {"type": "json_object"}}, "response_format"),
    "top_logprobs": (400, {"logprobs": True, "top_logprobs": 3}, "top_logprobs"),
    "no message": (400, {"messages": []}, "messages"),
    "no role": (400, {"messages": [{"content": "?"}]}, r"messages\[0\].role"),
    "a picture": (400, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
    "a number as text": (400, {"messages": [{"role": "user", "content": 3}]}, r"messages\[0\].content is 3"),
    "no tokens": (400, {"max_tokens": 0}, "max_tokens"),
    "a negative temperature": (400, {"temperature": -1}, "temperature"),
    "too many choices": (400, {"n": 1000}, "n:"),
    "a template of its own": (400, {"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}}, "chat_template"),
    "a long prompt": (400, {"messages": [{"role": "user", "content": "a" * 5000}]}, "engine.max_model_len = 4096"),
    "10 MB": (413, {"messages": [{"role": "user", "content": "a" * 10**7}]}, "endpoint.max_body_mib"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_request_is_refused_once_by_name_and_the_episode_goes_on(name):
    status, how, message = REFUSED[name]
    async with agent() as a:
        with pytest.raises(openai.APIStatusError, match=message) as caught:
            await a.client.chat.completions.create(**{"model": "policy", "messages": USER, **how})  # type: ignore
        assert caught.value.status_code == status
        assert await a.ask(USER) == "the four is"
        assert len(a.rollouts()) == 1


async def test_neutral_values_are_taken_and_what_the_recipe_decides_is_the_recipes():
    async with agent() as a:
        await a.ask(USER, top_p=1, temperature=0.1, seed=3, user="someone", response_format={"type": "text"})
        (rollout,) = a.rollouts()
        assert rollout.temperature == 0.7


@pytest.mark.parametrize("key", ["Bearer", "Bearer nonsense", "Basic x", "Bearer é"])
async def test_another_key_is_refused(key):
    async with agent() as a, plain() as http:
        headers = {"Authorization": key.encode()}
        answer = await http.get(f"{a.client.base_url}models", headers=headers)
        assert answer.status_code == 401
        assert "OPENAI_API_KEY" in answer.json()["error"]["message"]


async def test_an_agent_out_of_turns_is_refused_and_cut_short():
    async with agent(limits=Limits(64, 2, 1.0)) as a:
        for _ in range(2):
            await a.ask(USER)
        with pytest.raises(openai.PermissionDeniedError, match=r"rollout\.max_turns = 2"):
            await a.ask(USER)
        assert [r.finish for r in a.rollouts()] == ["length", "length"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"nonsense", b'{"model": "policy"}', b"\xff\xfe"])
async def test_nonsense_is_answered_as_nonsense(body):
    async with agent() as a, plain() as http:
        url, headers = f"{a.client.base_url}chat/completions", {"Authorization": f"Bearer {a.client.api_key}"}
        answer = await http.post(url, content=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


async def test_a_client_that_hangs_up_leaves_its_turn_recorded():
    async with agent() as a:
        a.engine.gate = asyncio.Event()
        with pytest.raises(openai.APITimeoutError):
            await a.client.with_options(timeout=0.05, max_retries=0).chat.completions.create(
                model="policy",
                messages=USER,
                stream=True,  # type: ignore
            )
        a.engine.gate.set()
        await a.ask(USER)
        assert [r.num_tokens for r in a.rollouts()] == [12, 12]


# ── episodes ────────────────────────────────────────────────────────────────────────────────────────────────────


async def play(name: str, write=lambda prompt: "four", limits: Limits = LIMITS, **options: Any) -> list[Rollout]:
    made = chat()
    engine = Scripted(made, write)
    environment = build(ENVIRONMENTS, "function", {"function": f"tests.actors.agents:{name}", **options}, "environment")
    rollouts = await played(engine, environment, limits)
    check_sampled(rollouts, engine)
    return rollouts


async def test_a_function_that_gets_a_client_is_an_environment():
    (rollout,) = await play("asks_once")
    assert (rollout.reward, rollout.text, rollout.num_tokens) == (1.0, "four", 5)
    (rollout,) = await play("two_turns")
    assert (rollout.reward, rollout.answer, len(rollout.turns)) == (0.5, "four", 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("never_asks", "ended without a turn of the policy"),
        ("raises", "KeyError: 'no such tool'"),
        ("gives_infinity", "reward"),
        ("gives_text", "'1.0'; a finite reward"),
        ("wrong_model", "Did you mean 'policy'"),
        ("sends_10_mb", r"413.*max_body_mib"),
        ("asks_for_top_p", r"top_p = 0.5 changes the distribution"),
        ("exits", "SystemExit: 1"),
    ],
)
async def test_an_agent_that_fails_is_a_data_failure_with_its_cause(name, message):
    with pytest.raises(DataError, match=message):
        await play(name)


async def test_an_agent_that_closes_in_mid_stream_leaves_its_turn_recorded():
    (rollout,) = await play("closes_in_mid_stream")
    assert (rollout.reward, rollout.text, rollout.num_tokens) == (0.5, "four", 5)


async def test_an_agent_past_its_deadline_is_cut_short():
    (rollout,) = await play("hangs", timeout_s=0.5)
    assert rollout.finish == "length"
    assert np.isnan(rollout.reward)
    assert "deadline" in rollout.events[0].text
    (rollout,) = await play("hangs", timeout_s=0.5, reward_when_cut=-1.0)
    assert rollout.reward == -1.0


async def test_an_agent_that_goes_on_for_ever_is_cut_short_by_its_turns():
    rollouts = await play("goes_on_for_ever", limits=Limits(64, 3, 1.0), reward_when_cut=0.0)
    assert [(r.finish, r.reward) for r in rollouts] == [("length", 0.0)] * 3


async def test_a_failure_can_be_worth_a_reward():
    (rollout,) = await play("raises", reward_when_failed=-0.5)
    assert rollout.reward == -0.5
    assert "no such tool" in rollout.events[0].text


async def test_an_engine_that_dies_is_no_failure_of_the_agent():
    made = chat()
    engine = Scripted(made, lambda prompt: "four")
    engine.error = InfrastructureError("the engine stopped")
    environment = FunctionAgent(function="tests.actors.agents:asks_once")
    with pytest.raises(InfrastructureError, match="the engine stopped"):
        await played(engine, environment)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'function' is missing"),
        ({"function": "tests.actors.agents:nowhere"}, "cannot be imported"),
        ({"function": "tests.actors.agents:not_async"}, "an async function of"),
        ({"function": "tests.actors.agents:of_one"}, "cannot be called with"),
        ({"function": "tests.actors.agents:asks_once", "timeout_s": 0}, "timeout_s"),
    ],
)
def test_a_function_that_cannot_be_an_agent_is_refused_before_a_run(options, message):
    with pytest.raises(ConfigError, match=message):
        build(ENVIRONMENTS, "function", options, "rollout.environment")


def test_a_reward_of_another_kind_is_refused():
    assert checked_outcome(1, None) == Outcome(1.0)
    assert np.isnan(checked_outcome(None, "x").reward)
    for reward in ("1", [1], float("inf"), {}):
        with pytest.raises(Exception, match="reward"):
            checked_outcome(reward, None)


def test_json_of_an_error_is_what_clients_read():
    from actors.endpoint.errors import ApiError

    assert json.loads(json.dumps(ApiError(404, "x", code="c").body))["error"]["code"] == "c"
