"""A judge as a whole: whatever goes wrong is a counted failure, never a score; equal questions are asked once."""

from __future__ import annotations

import asyncio
import math
import socket
from dataclasses import replace
from uuid import uuid4

import pytest
import redis
from aiohttp import web

from cluster.errors import BufferUnavailable, ConfigError
from cluster.types import ABSTAINED, FAILED, SCORED
from rewards.judges.backends.http import HttpClient
from rewards.judges.backends.keyword import KeywordJudge
from rewards.judges.canaries import Canary, red_team
from rewards.judges.ensembles import Cached, Ensemble, Shuffled, Swap, Vote
from rewards.judges.errors import JudgeProtocolError
from rewards.judges.pool.archive import MemoryArchive, RedisArchive
from rewards.judges.pool.circuit_breaker import CircuitBreaker
from rewards.judges.pool.pool import JudgePool
from rewards.judges.protocol import verdict_from
from rewards.judges.templates import TEMPLATES, Item
from rewards.judges.types import Call, Completion, Request
from rewards.learned.caption_labels import WORDS, CaptionJudge, read_label
from rewards.learned.labeler import Asking
from tests.metrics_page import unexplained
from tests.rewards.judges.servers import chat, half, says, serving


def pointwise(response: str = "good", **fields) -> Request:
    return Request(TEMPLATES["pointwise"](), Item("Say good.", (response,)), **fields)


def pairwise(first: str, second: str, **fields) -> Request:
    return Request(TEMPLATES["pairwise"](**fields), Item("Say good.", (first, second)))


def hasty() -> CircuitBreaker:
    return CircuitBreaker(pause_s=0.05)


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in TEMPLATES for mode in TEMPLATES[kind].modes])
async def test_the_keyword_judge_answers_every_template_in_every_mode(kind, mode):
    options = {"rubric": {"title": "t", "levels": {"1": "a", "2": "b"}}, "checklist": {"criteria": ["a", "b"]}}
    template = TEMPLATES[kind](**options.get(kind.removesuffix("_reference"), {}))
    responses = ("good", "bad") if template.num_responses == 2 else ("good",) * (template.num_responses or 3)
    pool = JudgePool("k", [KeywordJudge()])
    verdict = await pool.ask(Request(template, Item("q", responses, "ref"), mode))
    assert verdict.state == SCORED, verdict.note
    assert len(verdict.values) == (3 if template.num_responses is None else 1)
    assert verdict.prompt_hash == template.hash
    assert (verdict.judge, verdict.model, verdict.attempt) == ("k", "keyword@1", 1)
    assert verdict.cost_tokens > 0
    if template.labels:
        assert verdict.mass == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (says("no", 401), "JudgeUnauthorised"),
        (says("slow", 429), "JudgeBusy"),
        (says("oops", 500), "JudgeServerError"),
        (half, "JudgeUnreachable"),
        (says(chat("4" * (10 << 20))), "JudgeAnswerTooLong"),
        (says("{"), "JudgeProtocolError"),
        (says("[" * 100_000), "JudgeProtocolError"),
        (says({"choices": [{"message": {"content": 4}}]}), "JudgeProtocolError"),
        (says(chat("I would say 4")), "Unreadable"),
        (says(chat(None)), "Unreadable"),
        (says(chat("")), "Unreadable"),
        (says(chat("x", top={"4": float("nan")})), "Unreadable"),
        (says(chat("x", top={"4": 900.0})), "Unreadable"),
    ],
)
async def test_every_bad_answer_is_a_counted_failure_and_no_score(answer, error):
    async with serving(answer) as url:
        pool = JudgePool("http", [HttpClient(url)])
        verdict = await pool.ask(pointwise())
        await pool.close()
    assert verdict.state == FAILED
    assert all(math.isnan(v) for v in verdict.values)
    assert verdict.note.startswith(f"{error}: judge 'http'")
    assert pool.metrics.failures == {error: 1}
    hopeless = error in ("JudgeUnauthorised", "JudgeAnswerTooLong")  # asking again would change nothing
    assert pool.metrics.calls == (1 if hopeless else 2 if error == "Unreadable" else 3)
    assert pool.snapshot()["judge/http_invalid_frac"] == 1.0


async def test_a_judge_that_is_down_is_a_counted_failure():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    pool = JudgePool("down", [HttpClient(url, model="m")], deadline_s=0.3, breaker=lambda: CircuitBreaker(pause_s=0.01))
    verdicts = await asyncio.gather(*(pool.ask(pointwise(f"good {i}")) for i in range(6)))
    await pool.close()
    assert {v.state for v in verdicts} == {FAILED}
    assert all(math.isnan(v.values[0]) for v in verdicts)
    assert all(v.note.startswith("JudgeUnavailable: judge 'down': no verdict within 0.3 s") for v in verdicts)
    assert "ConnectError" in verdicts[0].note, "it says why"
    assert url.rpartition("/")[0] in pool.trouble()


async def test_a_slow_judge_is_a_time_out_and_its_answer_is_kept_all_the_same():
    archive, judge = MemoryArchive(), KeywordJudge(latency_s=0.2)
    pool = JudgePool("slow", [judge], archive=archive, deadline_s=0.05)
    verdict = await pool.ask(pointwise())
    assert verdict.note.startswith("JudgeTimeout: judge 'slow': no verdict within 0.05 s")
    await asyncio.sleep(0.3)
    late = await Cached(pool).ask(pointwise())
    assert (late.state, late.cached, judge.num_calls) == (SCORED, True, 1)


async def test_an_unreadable_answer_is_asked_once_more_with_another_seed():
    seen = []

    async def second_time_right(request: web.Request) -> web.Response:
        body = await request.json()
        seen.append((body["seed"], body["temperature"]))
        return web.json_response(chat("4" if len(seen) == 2 else "Hm."))

    async with serving(second_time_right) as url:
        pool = JudgePool("http", [HttpClient(url)])
        verdict = await pool.ask(pointwise())
        await pool.close()
    assert (verdict.values, verdict.attempt) == ((4.0,), 2)
    assert verdict.cost_tokens == 2 * 14
    assert len({seed for seed, _ in seen}) == 2
    assert [t > 0 for _, t in seen] == [False, True]


async def test_who_declines_abstains():
    async with serving(says(chat("The question is missing.\nVerdict: none"))) as url:
        pool = JudgePool("http", [HttpClient(url)])
        verdict = await pool.ask(pointwise(mode="text"))
        await pool.close()
    assert (verdict.state, pool.metrics.abstained) == (ABSTAINED, 1)
    assert math.isnan(verdict.values[0])


async def test_a_thousand_requests_with_a_hundred_keys_make_a_hundred_calls():
    judge = KeywordJudge(latency_s=0.005)
    pool = JudgePool("k", [judge], max_in_flight=16)
    cached = Cached(pool)
    requests = [pointwise(f"good {i % 100}") for i in range(1000)]
    verdicts = await asyncio.gather(*map(cached.ask, requests))
    assert judge.num_calls == 100
    assert all(v.scored for v in verdicts)
    again = await asyncio.gather(*map(cached.ask, requests))
    assert judge.num_calls == 100
    assert [v.values for v in again] == [v.values for v in verdicts]
    snapshot = pool.snapshot()
    assert snapshot["judge/k_hit_frac"] == pytest.approx(1900 / 2000)
    assert snapshot["judge/k_num_calls"] == 100
    assert snapshot["judge/k_latency_p95_s"] >= snapshot["judge/k_latency_p50_s"] > 0


async def test_k_votes_make_k_calls_and_k_entries():
    archive, judge = MemoryArchive(), KeywordJudge()
    pool = JudgePool("k", [judge], archive=archive)
    votes = Vote(Cached(pool), 3)
    verdict = await votes.ask(pointwise())
    assert (judge.num_calls, len(archive.records)) == (3, 3)
    assert (await votes.ask(pointwise())).values == verdict.values
    assert judge.num_calls == 3


def test_the_key_holds_all_that_an_answer_depends_on():
    base = pointwise()
    other = [
        pointwise("goods"),
        pointwise(mode="text"),
        pointwise(sample=1),
        pointwise(temperature=0.5),
        pointwise(max_tokens=5),
        replace(base, template=TEMPLATES["pointwise"](levels={"1": "a", "2": "b"})),
        pairwise("a", "b"),
        pairwise("b", "a"),
    ]
    keys = [r.key("j@1") for r in (base, *other)] + [base.key("j@2")]
    assert len(set(keys)) == len(keys)
    assert pointwise(min_mass=0.1).key("j@1") == base.key("j@1")


async def test_votes_are_averaged_and_failed_ones_left_out():
    pool = JudgePool("k", [KeywordJudge(unreadable_rate=0.7)], breaker=lambda: CircuitBreaker(pause_s=0))
    verdicts = [await pool.ask(pointwise(sample=i)) for i in range(20)]
    assert {v.state for v in verdicts} == {SCORED, FAILED}
    vote = await Vote(pool, 20).ask(pointwise())
    assert vote.scored
    assert vote.values[0] == pytest.approx(next(v for v in verdicts if v.scored).values[0])
    nothing = JudgePool("k", [KeywordJudge(unreadable_rate=1.0)])
    assert (await Vote(nothing, 2).ask(pointwise())).state == FAILED


async def test_votes_stop_when_the_winner_is_clear():
    judge = KeywordJudge()
    vote = Vote(JudgePool("k", [judge]), 9, confidence=0.95)
    assert (await vote.ask(pairwise("good", "bad"))).values[0] > 0.9
    assert judge.num_calls == 4  # 3-0 gives 0.9375, 4-0 gives 0.96875


async def test_both_orders_cancel_a_position_bias():
    biased = JudgePool("k", [KeywordJudge(first_bias_nats=3.0, sharpness_nats=2.0)])
    same = pairwise("one good", "good two")
    assert (await biased.ask(same)).values[0] > 0.9
    for combine in ("probability", "log_odds", "winner"):
        assert (await Swap(biased, combine).ask(same)).values[0] == pytest.approx(0.5)
    better = pairwise("good good", "good")
    verdict = await Swap(biased, "log_odds").ask(better)
    assert verdict.values[0] == pytest.approx(1 / (1 + math.exp(-2.0)))
    snapshot = biased.snapshot()
    assert snapshot["judge/k_first_position_frac"] == 1.0
    assert snapshot["judge/k_consistency_frac"] == 0.0
    for _ in range(50):
        biased.metrics.orders(0.9, 0.9)
    assert len(biased.metrics.alarms()) == 2


async def test_the_catalogue_s_figures_of_position_bias():
    pool = JudgePool("k", [])
    for p_12, p_21 in zip([1, 1, 0, 1], [0, 1, 1, 1], strict=True):
        pool.metrics.orders(p_12, p_21)
    assert pool.snapshot()["judge/k_consistency_frac"] == 0.5
    assert pool.snapshot()["judge/k_first_position_frac"] == 0.75


async def test_a_pair_of_which_one_order_failed_has_no_value():
    async def only_one_order(request: web.Request) -> web.Response:
        user = (await request.json())["messages"][1]["content"]
        return web.json_response(chat("A" if user.index("better") < user.index("worse") else "???"))

    async with serving(only_one_order) as url:
        pool = JudgePool("http", [HttpClient(url)])
        verdict = await Swap(pool).ask(pairwise("better", "worse"))
        assert (await pool.ask(pairwise("better", "worse"))).values == (1.0,)
        await pool.close()
    assert verdict.state == FAILED
    assert math.isnan(verdict.values[0])


async def test_a_shuffled_list_comes_back_in_its_own_order():
    responses = tuple("good " * i for i in range(1, 6))
    pool = JudgePool("k", [KeywordJudge()])
    for sample in range(5):
        request = Request(TEMPLATES["listwise"](), Item("q", responses), "text", sample)
        assert (await Shuffled(pool).ask(request)).values == (2, 3, 4, 5, 6)
    shown = {next(iter(r)).messages[1].content for r in pool.archive.records.values()}  # pyright: ignore
    assert len(shown) == 5
    biased = JudgePool("b", [KeywordJudge(first_bias_nats=1.0)])
    pairs = [replace(pairwise("good", "good"), sample=i) for i in range(30)]
    ps = [(await Shuffled(biased).ask(r)).values[0] for r in pairs]
    assert {round(p, 3) for p in ps} == {round(1 / (1 + math.exp(-1)), 3), round(1 / (1 + math.exp(1)), 3)}


async def test_spct_sums_become_means():
    """Samples [1,5], [5,6], [4,8], [7,6] sum to [17, 25] (arXiv:2504.02495)."""
    answers = iter(["1, 5", "5, 6", "4, 8", "7, 6"])

    async def next_one(request: web.Request) -> web.Response:
        return web.json_response(chat(f"Scores: {next(answers)}"))

    async with serving(next_one) as url:
        pool = JudgePool("http", [HttpClient(url)])
        verdict = await Vote(pool, 4).ask(Request(TEMPLATES["listwise"](), Item("q", ("a", "b")), "text"))
        await pool.close()
    assert verdict.values == (17 / 4, 25 / 4)


async def test_an_ensemble_needs_its_members():
    good, bad = (JudgePool(n, [KeywordJudge([n])]) for n in ("good", "bad"))
    verdict = await Ensemble("both", [good, bad]).ask(pointwise("good good good bad"))
    values = [(await p.ask(pointwise("good good good bad"))).values[0] for p in (good, bad)]
    assert verdict.values[0] == pytest.approx(sum(values) / 2)
    assert verdict.judge == "good+bad"
    dead = JudgePool("dead", [])
    ensemble = Ensemble("both", [good, dead])
    assert (await ensemble.ask(pointwise())).state == FAILED
    assert (await Ensemble("one", [good, dead], min_valid=1).ask(pointwise())).state == SCORED
    disagreeing = Ensemble("both", [good, bad])
    await disagreeing.ask(pointwise("good good good good"))
    assert disagreeing.metrics.snapshot()["judge/both_agreement_frac"] == 0.0


async def test_wrappers_compose():
    judge = KeywordJudge(first_bias_nats=1.0)
    composed = Vote(Swap(Cached(JudgePool("k", [judge]))), 3)
    verdict = await composed.ask(pairwise("good", "bad"))
    assert verdict.scored
    assert judge.num_calls == 6


async def test_another_replica_answers_when_one_fails_and_is_left_alone_when_it_goes_on():
    bad, good = KeywordJudge(error_rate=1.0, name="bad"), KeywordJudge(name="good")
    pool = JudgePool("k", [bad, good], breaker=lambda: CircuitBreaker(pause_s=600))
    verdicts = [await pool.ask(pointwise(f"good {i}")) for i in range(40)]
    assert all(v.scored for v in verdicts)
    assert bad.num_calls == 5
    assert pool.snapshot()["judge/k_open_circuits"] == 1
    pool.replicas.remove(good)
    verdict = await pool.ask(pointwise("other"))
    assert verdict.note.startswith("JudgeUnavailable")
    assert "bad" in verdict.note
    assert bad.num_calls == 5


async def test_a_replica_that_recovers_is_used_again():
    judge = KeywordJudge(error_rate=1.0)
    pool = JudgePool("k", [judge], breaker=hasty)
    for i in range(3):
        await pool.ask(pointwise(f"good {i}"))
    judge.error_rate = 0.0
    await asyncio.sleep(0.15)
    assert (await pool.ask(pointwise())).scored


async def test_a_busy_judge_is_waited_for():
    answers = iter([429, 429])

    async def busy_twice(request: web.Request) -> web.Response:
        return web.Response(status=next(answers, 200), text='{"choices": [{"message": {"content": "4"}}]}')

    async with serving(busy_twice) as url:
        pool = JudgePool("http", [HttpClient(url)])
        verdict = await pool.ask(pointwise())
        await pool.close()
    assert verdict.values == (4.0,)


async def test_labels_that_are_not_tokens_are_refused():
    tens = TEMPLATES["pointwise"](levels={"5": "half", "10": "all"})
    pool = JudgePool("k", [KeywordJudge()])
    with pytest.raises(ConfigError, match=r"judges\.k: the label '10' is 2 tokens for this judge: '1' '0'"):
        await pool.ask(replace(pointwise(), template=tens))
    assert (await pool.ask(replace(pointwise(), template=tens, logprobs=False))).scored


async def test_every_raw_answer_is_kept_and_can_be_read_by_another_rule(redis_url):
    run = f"judged-{uuid4().hex[:8]}"
    archive = RedisArchive(redis_url, run, 100)
    pool = JudgePool("k", [KeywordJudge(sharpness_nats=0.5)], archive=archive)
    request = pointwise("good")
    verdict = await pool.ask(request)
    await archive.close()
    again = RedisArchive(redis_url, run, 100)
    (record,) = await again.get(request.key(pool.identity))
    assert (record.judge, record.template, record.prompt_hash) == ("k:@", "pointwise", request.template.hash)
    assert "Say good." in record.messages[1].content
    assert verdict_from(request, record.completions).values == verdict.values
    assert verdict_from(replace(request, logprobs=False), record.completions).values == (2.0,)
    assert verdict.values != (2.0,)
    other = JudgePool("k", [], archive=again)
    hit = await Cached(other).ask(request)
    assert (hit.values, hit.cached) == (verdict.values, True)
    await again.append(record)
    assert len(await again.get(record.key)) == 1
    await again.close()


async def test_many_questions_at_once_wait_for_the_archive_and_none_fails_for_it(redis_url):
    archive = RedisArchive(redis_url, f"judged-{uuid4().hex[:8]}", 1000)
    judge = Cached(JudgePool("k", [KeywordJudge()], archive=archive, max_in_flight=500, max_queue=500))
    verdicts = await asyncio.gather(*(judge.ask(pointwise(f"good {i}")) for i in range(400)))
    assert all(v.scored for v in verdicts), next(v.note for v in verdicts if not v.scored)
    await archive.close()


async def test_the_oldest_answers_leave_the_archive(redis_url):
    run = f"judged-{uuid4().hex[:8]}"
    archive = RedisArchive(redis_url, run, 10)
    pool = JudgePool("k", [KeywordJudge()], archive=archive)
    requests = [pointwise(f"good {i}") for i in range(25)]
    for request in requests:
        await pool.ask(request)
    kept = [len(await archive.get(request.key(pool.identity))) for request in requests]
    assert kept == [0] * 15 + [1] * 10
    assert len(redis.Redis.from_url(redis_url).keys(f"kanabo:{{{run}}}:*")) == 11
    await archive.close()


async def test_unreadable_answers_are_kept_too():
    archive = MemoryArchive()
    pool = JudgePool("k", [KeywordJudge(unreadable_rate=1.0)], archive=archive)
    await pool.ask(pointwise())
    (records,) = archive.records.values()
    assert [(r.attempt, r.completions[0].text) for r in records] == [(i, "I would rather not say.") for i in (1, 2)]


async def test_a_labeller_s_answers_are_kept_too():
    archive = MemoryArchive()
    pool = JudgePool("k", [KeywordJudge(["apple"])], archive=archive)
    judge = CaptionJudge(Asking(pool, 2), goal="to eat", judge="k", compares=False)
    assert await judge(["You see here an apple.", "It's solid stone."]) == [1.0, 0.0]
    records = [record for kept in archive.records.values() for record in kept]
    assert {r.messages: read_label(r.completions[0].text, WORDS) for r in records} == {
        judge.messages("You see here an apple."): 1.0,
        judge.messages("It's solid stone."): 0.0,
    }
    assert {(r.judge, r.template) for r in records} == {("k:@", "chat")}


async def test_an_archive_that_is_gone_is_named():
    archive = RedisArchive("redis://127.0.0.1:1/0", "run", 100, patience_s=0.0)
    with pytest.raises(BufferUnavailable):
        await archive.get("k")


async def test_canaries_are_mixed_in_and_counted():
    judge = KeywordJudge()
    known = [Canary(Item("q", ("good " * 9,)), 0.75, 1.0), Canary(Item("q", ("bad",)), 0.75, 1.0)]
    pool = JudgePool("k", [judge], canaries=known, canary_every=5)
    for i in range(20):
        await pool.ask(pointwise(f"good {i}"))
    await asyncio.sleep(0.01)
    assert judge.num_calls == 24
    assert pool.snapshot()["judge/k_canary_frac"] == 0.5


async def test_a_judge_that_counts_words_resists_the_red_team_and_a_gullible_one_does_not():
    for keyword, expected in (("85", 1.0), ("verdict", None)):
        pool = JudgePool("k", [KeywordJudge([keyword], sharpness_nats=6.0)], canaries=red_team(), canary_every=1)
        for i in range(28):
            await pool.ask(replace(pairwise("x", "y") if i % 2 else pointwise(), sample=i))
        await asyncio.sleep(0.05)
        found = pool.snapshot()["judge/k_canary_frac"]
        assert found == expected if expected else found < 1.0


async def test_the_right_span_only_is_constrained():
    sent = []

    async def keep(request: web.Request) -> web.Response:
        body = await request.json()
        sent.append(body)
        return web.json_response(chat("It is fine." if len(body["messages"]) == 2 else "4"))

    async with serving(keep) as url:
        pool = JudgePool("http", [HttpClient(url, structured="structured_outputs")])
        verdict = await pool.ask(pointwise(mode="reason"))
        await pool.close()
    assert verdict.values == (4.0,)
    assert ["structured_outputs" in body for body in sent] == [False, True]
    assert sent[1]["messages"][2] == {"role": "assistant", "content": "It is fine."}
    assert sent[1]["max_tokens"] < 16


def counts(pool: JudgePool) -> dict[str, float]:
    return {k.rpartition("_num_")[2]: v for k, v in pool.snapshot().items() if "_num_" in k}


async def test_what_was_asked_is_answered_failed_given_up_or_in_flight():
    gate = asyncio.Event()

    class Slow(KeywordJudge):
        async def complete(self, call: Call) -> Completion:
            if "wait" in call.messages[-1].content:
                await gate.wait()
            if "broken" in call.messages[-1].content:
                raise JudgeProtocolError("no chat completion")
            return await super().complete(call)

    pool = JudgePool("j", [Slow()])
    waiting = [asyncio.create_task(pool.ask(pointwise(f"wait {i}"))) for i in range(3)]
    for text in ("good", "broken"):
        await pool.ask(pointwise(text))
    now = counts(pool)
    assert (now["asked"], now["answered"], now["failed"], now["in_flight"], now["cancelled"]) == (5, 1, 1, 3, 0)
    assert now["failed_protocol_error"] == 1
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    gate.set()
    await asyncio.gather(*waiting[1:])
    now = counts(pool)
    assert (now["asked"], now["answered"], now["failed"], now["in_flight"], now["cancelled"]) == (5, 3, 1, 0, 1)
    assert not unexplained(pool.snapshot())
    await pool.close()
