"""Judges are asked one question before the run: by the run's own client, of a real server."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from aiohttp import web

from cluster.config import parse
from cluster.driver.preflight_judges import judges, unasked
from cluster.errors import ConfigError
from cluster.types import Task
from tests.cluster.test_check import command  # noqa: F401 - a fixture
from tests.rewards.judges.servers import chat, half, says, serving

TASK = Task.of("t-1", "What is 40 + 2?", "42")


def settings(url: str | list[str], *rewards: dict, **judge):
    urls = [url] if isinstance(url, str) else url
    asked = [{"use": "judge", "options": {"judge": "helpful"}, **more} for more in rewards or ({},)]
    return parse({"rewards": [*asked, {"use": "exact"}], "judges": {"helpful": {"urls": urls, **judge}}})


async def tried(config, task: Task = TASK) -> list[str]:
    return await asyncio.to_thread(judges, config, task)


async def refusal(config) -> str:
    with pytest.raises(ConfigError) as refused:
        await tried(config)
    return str(refused.value)


def dead_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


class Server:
    """Keeps what it was asked; `answers` are given in turn, the last one from then on."""

    def __init__(self, *answers) -> None:
        self.answers, self.bodies = list(answers), []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


async def test_a_judge_that_answers_is_asked_once_with_the_parameters_of_the_reward():
    server = Server(says(chat("4")))
    async with serving(server) as url:
        reward = {"options": {"judge": "helpful", "mode": "text", "max_tokens": 77, "temperature": 0.5}}
        server.answers = [says(chat("Good.\nVerdict: 4"))]
        assert await tried(settings(url, reward, model="mine", options={"top_k": 3})) == []
    (body,) = server.bodies
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_k"]) == ("mine", 77, 0.5, 3)
    assert "What is 40 + 2?" in body["messages"][1]["content"]


@pytest.mark.parametrize("more", [{"blocking": False}, {"weight": 0.0}, {"missing": 0.0}, {}])
async def test_a_dead_address_is_refused_within_seconds_whatever_the_reward_is_for(more):
    url, begun = dead_url(), time.monotonic()
    said = await refusal(settings(url, more))
    assert time.monotonic() - begun < 10
    assert url in said
    assert "judges.helpful.urls" in said


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (says({"error": "no"}, 401), ["401", "judges.helpful.key_env"]),
        (says({"error": "no"}, 403), ["403", "judges.helpful.key_env"]),
        (says({"error": {"message": "The model `mine` does not exist."}}, 404), ["`mine`", "judges.helpful.model"]),
        (says({"detail": "Not Found"}, 404), ["404", "judges.helpful.urls"]),
        (says("", 307, Location="http://127.0.0.1:1/"), ["307", "judges.helpful.urls"]),
        (says("", 405), ["405", "judges.helpful.urls"]),
        (says({"error": "'stream_options' is missing"}, 400), ["stream_options", "judges.helpful.omit"]),
        (says({"error": "invalid request"}, 422), ["422", "judges.helpful.options"]),
        (says({"error": "max_tokens exceeds the context length"}, 400), ["max_tokens", "reward's options"]),
        (says("<html>a web page</html>"), ["web page", "judges.helpful.urls"]),
        (says({"choices": []}), ["no chat completion", "judges.helpful.urls"]),
        (says("quota", 429), ["429", "judges.helpful.key_env"]),
        (says("oops", 500), ["500", "server's own log"]),
        (half, ["judges.helpful.urls"]),
    ],
)
async def test_an_endpoint_that_refuses_is_refused_with_its_cause_and_the_key_to_change(answer, words):
    begun = time.monotonic()
    async with serving(answer) as url:
        said = await refusal(settings(url, model="mine"))
    assert time.monotonic() - begun < 12
    for word in ["rewards[0] = 'judge'", *words]:
        assert word in said
    assert "\n" not in said


async def test_a_server_that_never_answers_costs_its_deadline():
    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async with serving(hang) as url:
        said = await refusal(settings(url, deadline_s=1.0, model="mine"))
    assert "judges.helpful.deadline_s" in said


async def test_what_passes_after_a_moment_is_no_refusal():
    async with serving(Server(says("busy", 429), says("oops", 503), says(chat("4")))) as url:
        assert await tried(settings(url)) == []


async def test_a_field_that_the_server_does_not_know_is_left_out_as_in_the_run():
    server = Server(says({"error": "unknown field 'seed'"}, 400), says(chat("4")))
    async with serving(server) as url:
        assert await tried(settings(url)) == []
    assert ["seed" in body for body in server.bodies] == [True, False]


async def test_an_unreadable_first_answer_is_a_warning():
    async with serving(Server(*[says(chat("banana"))] * 2, says(chat("4")))) as url:
        (said,) = await tried(settings(url))
    assert "banana" in said
    assert "judges.helpful.model" in said
    async with serving(Server(says(chat("banana")), says(chat("4")))) as url:
        assert await tried(settings(url)) == [], "the second attempt at the first question counts, as in the run"


async def test_a_judge_whose_answers_are_all_unreadable_is_refused():
    async with serving(says(chat("banana"))) as url:
        said = await refusal(settings(url))
    for word in ("banana", "rewards[0]", "judges.helpful.model", "rewards[0].options"):
        assert word in said


async def test_one_of_two_servers_that_is_away_is_a_warning_and_one_that_refuses_is_not():
    dead = dead_url()
    async with serving(says(chat("4"))) as url, serving(says("no", 401)) as closed:
        (said,) = await tried(settings([dead, url]))
        assert dead in said
        assert "401" in await refusal(settings([url, closed]))


@pytest.mark.parametrize(
    "template", ["pairwise", "listwise", "rubric", "checklist", "assessment", "pointwise_reference"]
)
async def test_every_template_is_asked_in_its_own_words(template):
    server = Server(says(chat("no verdict at all")))
    async with serving(server) as url:
        await refusal(settings(url, {"options": {"judge": "helpful", "template": template}}))
    assert all("What is 40 + 2?" in body["messages"][1]["content"] for body in server.bodies)


@pytest.mark.parametrize(
    "reward",
    [
        {"use": "step_scores", "options": {"judge": "helpful"}},
        {"use": "thoughts", "weight": 0.0, "options": {"judge": "helpful"}},
        {"use": "ssr_zero", "options": {"judge": "helpful"}},
    ],
)
async def test_every_reward_that_asks_a_judge_has_its_own_questions_tried(reward):
    server = Server(says(chat("Fine.")))
    async with serving(server) as url:
        said = await refusal(settings(url, reward))
    assert f"rewards[0] = '{reward['use']}' can read" in said
    assert any("40 + 2" in body["messages"][1]["content"] for body in server.bodies)


async def test_a_judge_that_no_reward_asks_is_asked_all_the_same():
    config = parse({"rewards": [{"use": "exact"}], "judges": {"helpful": {"urls": [dead_url()]}}})
    assert "[judges.helpful]" in await refusal(config)
    server = Server(says(chat("Yes.")))
    async with serving(server) as url:
        assert await tried(parse({"rewards": [{"use": "exact"}], "judges": {"helpful": {"urls": [url]}}})) == []
    assert len(server.bodies) == 1


async def test_labels_that_the_judge_splits_are_refused():
    async def tokenize(request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"token_strs": list(body["prompt"])})

    async with serving(says(chat("10", top={"10": -0.1})), tokenize=tokenize) as url:
        levels = {"5": "poor", "10": "good"}
        said = await refusal(settings(url, {"options": {"judge": "helpful", "template_options": {"levels": levels}}}))
    assert "'10' is 2 tokens" in said


def test_judges_that_the_run_places_are_not_asked_and_that_is_said():
    config = parse(
        {
            "rewards": [{"use": "judge", "options": {"judge": "own"}}],
            "judges": {"own": {"kind": "vllm", "model": "m"}, "self": {"kind": "policy"}, "words": {"kind": "keyword"}},
        }
    )
    assert judges(config, TASK) == []
    said = unasked(config)
    assert [line.partition(" ")[0] for line in said] == ["judges.own", "judges.self"]
    assert all("was not asked" in line for line in said)


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_the_command_ends_with_exit_2_and_nothing_begun(mode, command, tmp_path):  # noqa: F811
    url, begun = dead_url(), time.monotonic()
    code, said = command(*mode, f'judges.helpful={{urls=["{url}"]}}')
    assert code == 2
    assert time.monotonic() - begun < 60
    (refused,) = [line for line in said.splitlines() if line.startswith("error ")]
    assert "judges.helpful.urls" in refused
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_which_judges_it_did_not_ask(command):  # noqa: F811
    code, said = command("--dry-run", 'judges.self={kind="policy"}')
    assert code == 0, said
    assert "judges.self (kind = 'policy') was not asked: it is the policy in training." in said
