"""A judge as a reward on groups: levels, win rates, ranks, and what becomes of a failure."""

from __future__ import annotations

import asyncio
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from aiohttp import web

from cluster.config import RewardSection, dump, parse
from cluster.errors import ConfigError
from cluster.types import ABSTAINED, FAILED, SCORED, Message
from rewards.base import Services
from rewards.judges.backends.http import HttpClient
from rewards.judges.backends.keyword import KeywordJudge
from rewards.judges.factory import open_judges
from rewards.judges.pool.archive import MemoryArchive
from rewards.judges.pool.circuit_breaker import CircuitBreaker
from rewards.judges.pool.pool import JudgePool
from rewards.judges.types import Call
from rewards.registry import build_reward
from rewards.worker import RewardWorker
from tests.rewards.groups import group
from tests.rewards.judges.servers import chat, serving


def reward(**options):
    return build_reward(RewardSection(use="judge", options=options), "rewards[0]")


def services(*transports, name="judge", **options) -> Services:
    return Services(judges={name: JudgePool(name, transports, **options)})


async def score(group, *transports, pool=None, **options):
    made = services(*transports, **(pool or {}))
    try:
        return await reward(**options).score(group, made)
    finally:
        await made.close_judges()
        made.close()


async def test_levels_are_shares_of_the_scale():
    scores = await score(group("bad", "good", "good good good good"), KeywordJudge(sharpness_nats=20.0))
    assert scores.values == pytest.approx([0, 0.25, 1.0], abs=1e-6)
    (first, *_) = scores.provenance
    assert (first.judge, first.model, first.attempt) == ("judge", "keyword@1", 1)
    assert first.prompt_hash == scores.version
    assert first.cost_tokens > 0
    assert first.note == "1"
    raw = await score(group("good good"), KeywordJudge(sharpness_nats=20.0), normalise=False)
    assert raw.values == pytest.approx([3.0], abs=1e-6)


async def test_equal_responses_are_judged_once():
    judge = KeywordJudge()
    scores = await score(group("good", "good", "bad", "good"), judge, cached=False)
    assert judge.num_calls == 2
    assert scores.values[0] == scores.values[1] == scores.values[3] > scores.values[2]


@pytest.mark.parametrize(("swap", "calls"), [(True, 2), (False, 1)])
async def test_a_group_of_two_equal_and_one_other_is_one_pair(swap, calls):
    judge = KeywordJudge(sharpness_nats=50.0)
    scores = await score(group("good", "good", "bad"), judge, template="pairwise", swap=swap)
    assert judge.num_calls == calls
    assert scores.values == pytest.approx([0.75, 0.75, 0.0])


async def test_win_rates_keep_a_cycle():
    """SPO (arXiv:2401.04056): A beats B beats C beats A, all beat D."""
    wins = {("A1", "B1"), ("B1", "C1"), ("C1", "A1"), ("A1", "D1"), ("B1", "D1"), ("C1", "D1")}

    async def cyclic(request: web.Request) -> web.Response:
        lines = (await request.json())["messages"][1]["content"].splitlines()
        first, second = (lines[lines.index(f"<<<RESPONSE {x}>>>") + 1] for x in "AB")
        return web.json_response(chat("A" if (first, second) in wins else "B"))

    async with serving(cyclic) as url:
        scores = await score(group("A1", "B1", "C1", "D1"), HttpClient(url), template="pairwise")
    assert scores.values == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])
    assert scores.provenance[0].note == "3 of 3 opponents"


async def test_a_failed_pair_leaves_the_other_opponents():
    async def not_about_c(request: web.Request) -> web.Response:
        user = (await request.json())["messages"][1]["content"]
        if "\nthird" in user and "\nfirst" in user:
            return web.json_response(chat("?"))
        return web.json_response(chat("A" if user.find("\nfirst") >= 0 or user.find("\nsecond") < 0 else "B"))

    async with serving(not_about_c) as url:
        pool = {"breaker": lambda: CircuitBreaker(pause_s=0.0)}
        scores = await score(group("first", "second", "third"), HttpClient(url), template="pairwise", pool=pool)
    assert np.isfinite(scores.values).all()
    assert scores.provenance[0].note == "1 of 2 opponents"


async def test_with_the_judge_down_nobody_gets_a_number():
    for template in ("pointwise", "pairwise", "listwise"):
        judge = KeywordJudge(error_rate=1.0)
        scores = await score(group("good", "good", "bad"), judge, template=template)
        assert np.isnan(scores.values).all()
        assert (scores.state == FAILED).all()
        assert "JudgeServerError" in scores.provenance[0].note or "JudgeUnavailable" in scores.provenance[0].note


def test_a_keyword_judge_is_as_slow_as_it_is_told():
    calls = [Call((Message("user", str(i)),), max_tokens=8) for i in range(4000)]
    seconds = [KeywordJudge(latency_s=0.5, latency_p99_s=5.0).latency(call) for call in calls]
    assert np.quantile(seconds, [0.5, 0.99]) == pytest.approx([0.5, 5.0], rel=0.2)
    assert KeywordJudge(latency_s=0.5).latency(calls[0]) == 0.5


async def test_all_equal_is_a_tie_without_a_call():
    judge = KeywordJudge()
    scores = await score(group("good", "good"), judge, template="pairwise")
    assert (judge.num_calls, list(scores.values)) == (0, [0.5, 0.5])


async def test_ranks_and_means_of_a_list():
    judged = group("good", "bad", "good good", "good")
    ranks = await score(judged, KeywordJudge(), template="listwise")
    assert ranks.values == pytest.approx([0.5, 0, 1, 0.5])
    means = await score(judged, KeywordJudge(), template="listwise", listwise="mean", votes=3)
    assert means.values == pytest.approx([1 / 9, 0, 2 / 9, 1 / 9])
    assert len(means.provenance) == 1


async def test_what_cannot_be_judged_abstains():
    nothing = await score(group("a", "b", answer=None), KeywordJudge(), template="pointwise_reference")
    assert (nothing.state == ABSTAINED).all()
    assert (await score(group("a"), KeywordJudge(), template="pairwise")).state[0] == ABSTAINED

    async def declines(request: web.Request) -> web.Response:
        return web.json_response(chat("Verdict: none"))

    async with serving(declines) as url:
        scores = await score(group("a", "b"), HttpClient(url), mode="text")
    assert (scores.state == ABSTAINED).all()
    assert scores.provenance[0].note.startswith("the judge declines")


class Prompts(KeywordJudge):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    async def complete(self, call: Call):
        self.seen.append(call.messages[1].content)
        return await super().complete(call)


async def test_the_judge_sees_what_was_spoken_and_that_it_was_cut_off():
    judge = Prompts()
    judged = group("<think>secret</think>good")
    cut = replace(judged, rollouts=(replace(judged.rollouts[0], finish="length"),))
    await score(cut, judge, template="pointwise_reference")
    assert "secret" not in judge.seen[0]
    assert "limit of length" in judge.seen[0]
    assert "<<<REFERENCE>>>\n85" in judge.seen[0]
    await score(judged, judge, thoughts=True)
    assert "secret" in judge.seen[1]
    assert "limit of length" not in judge.seen[1]


async def test_several_judges_are_averaged():
    made = Services(judges={n: JudgePool(n, [KeywordJudge([n], sharpness_nats=20.0)]) for n in ("good", "bad")})
    scores = await reward(judge=("good", "bad")).score(group("good good bad bad bad bad"), made)
    made.close()
    assert scores.values == pytest.approx([0.75], abs=1e-6)
    assert scores.provenance[0].judge == "good+bad"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"template": "pontwise"}, "Did you mean 'pointwise'"),
        ({"template_options": {"body": "{question} {respnse}"}}, "unknown field '{respnse}'"),
        ({"template": "checklist", "template_options": {"criteria": ["a"]}, "mode": "label"}, "mode 'label'"),
        ({"votes": 3}, "the same answer 3 times"),
    ],
)
def test_options_that_cannot_work_are_refused(options, problem):
    with pytest.raises(ConfigError, match=problem.replace("{", r"\{")):
        reward(**options)


def recipe(**judge):
    return {"rewards": [{"use": "judge", "options": {"judge": "j"}}], "judges": {"j": judge}}


def test_a_recipe_names_its_judges():
    config = parse(recipe(kind="keyword", order="oldest", options={"keywords": ["fine"]}))
    pool = open_judges(config.judges, MemoryArchive())["j"]
    assert pool.name == "j"
    assert parse(tomllib.loads(dump(config))) == config


@pytest.mark.parametrize(
    ("judge", "problem"),
    [
        ({"kind": "url"}, "needs urls"),
        ({"kind": "vllm"}, "needs a model"),
        ({"kind": "keyword", "max_inflight": 3}, "Did you mean 'max_in_flight'"),
        ({"kind": "keyword", "order": "random"}, "order"),
    ],
)
def test_a_judge_that_cannot_serve_is_refused(judge, problem):
    with pytest.raises(ConfigError, match=problem):
        parse(recipe(**judge))


def test_a_reward_needs_its_judge():
    with pytest.raises(ConfigError, match=r"asks the judge 'k'.*\[judges\.k\]"):
        parse({**recipe(kind="keyword"), "rewards": [{"use": "judge", "options": {"judge": "k"}}]})


@pytest.mark.parametrize(
    ("judge", "problem"),
    [
        ({"kind": "keyword", "options": {"colour": 1}}, "colour"),
        ({"urls": ["http://x/v1"], "key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
        ({"kind": "keyword", "canaries": "/nowhere.jsonl"}, "cannot be read"),
    ],
)
def test_opening_says_what_is_missing(judge, problem):
    with pytest.raises(ConfigError, match=problem):
        open_judges(parse(recipe(**judge)).judges, MemoryArchive())


def test_the_key_is_not_in_the_dumped_recipe(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    config = parse(recipe(urls=["http://x/v1"], key_env="JUDGE_KEY"))
    open_judges(config.judges, MemoryArchive())
    assert "sk-very-secret" not in dump(config) + repr(config)
    assert "JUDGE_KEY" in dump(config)


def test_canaries_are_read_from_a_file(tmp_path):
    path = tmp_path / "known.jsonl"
    path.write_text('{"question": "q", "responses": ["a"], "low": 0.5, "high": 1}\n')
    open_judges(parse(recipe(kind="keyword", canaries=str(path))).judges, MemoryArchive())
    path.write_text('{"question": "q"}\n')
    with pytest.raises(ConfigError, match="line 1"):
        open_judges(parse(recipe(kind="keyword", canaries=str(path))).judges, MemoryArchive())


async def test_a_worker_scores_with_a_judge_and_refuses_labels_that_are_no_tokens(buffer):
    options = {"judge": "j", "template_options": {"levels": {"5": "half", "10": "all"}}}
    config = parse(recipe(kind="keyword") | {"rewards": [{"use": "judge", "options": options}]})
    made = Services(judges=open_judges(config.judges, MemoryArchive()))
    worker = RewardWorker("w", buffer=buffer, config=config, services=made)
    with pytest.raises(ConfigError, match="'10' is 2 tokens"):
        await asyncio.wait_for(worker.run(), 5)

    config = parse(recipe(kind="keyword"))
    made = Services(judges=open_judges(config.judges, MemoryArchive()))
    worker = RewardWorker("w", buffer=buffer, config=config, services=made)
    (scores,) = (await worker.score(group("good", "bad"))).values()
    assert (scores.state == SCORED).all()
    assert (scores.provenance[0].judge, scores.provenance[0].prompt_hash) == ("j", scores.version)
    assert made.metrics()["judge/j_num_calls"] == 2
    made.close()
