"""Whatever a judge's server does, it is a failed score with a reason, in time, and nothing is left behind."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
import tracemalloc

import pytest

from cluster.types import FAILED, Message, encode
from rewards.judges import errors
from rewards.judges.backends.http import HttpClient
from rewards.judges.errors import JudgeAbsent, JudgeError
from rewards.judges.pool.circuit_breaker import CircuitBreaker
from rewards.judges.pool.pool import JudgePool
from rewards.judges.templates import TEMPLATES, Item
from rewards.judges.types import Call, Completion, Request
from tests.rewards.judges.hostile_servers import GOOD, Answer, answers, framed, hostile

CALL = Call((Message("system", "judge"), Message("user", "this")), max_tokens=4, top_logprobs=5)
KEY = "sk-very-secret"
HANG_S = 0.4
MARGIN_S = 8.0
"""A machine that is busy with other things."""
MOST_BYTES = 64 << 20


async def outcome(answer: Answer) -> Completion | JudgeError:
    """What the client makes of one answer; nothing of it is left."""
    async with hostile(answer) as (url, server):
        client = HttpClient(url, model="m", key=KEY, timeout_s=HANG_S if answer.end in ("hang", "again") else MARGIN_S)
        begun = time.monotonic()
        try:
            found: Completion | JudgeError = await client.complete(CALL)
        except JudgeError as error:
            found = error
        finally:
            await client.close()
        assert time.monotonic() - begun < HANG_S + MARGIN_S, answer.name
        await asyncio.wait_for(server.idle.wait(), MARGIN_S)
    return found


async def check(answer: Answer) -> None:
    found = await outcome(answer)
    if isinstance(found, Completion):
        encode(found)
        assert len(found.model) + len(found.finish) + len(found.version) < 1000
        assert 0 <= found.prompt_tokens + found.completion_tokens < 1 << 42
    else:
        assert KEY not in str(found), answer.name
        assert 10 < len(str(found)) < 1500, f"{answer.name}: {found}"
        assert type(found).__name__ in vars(errors)
    assert not answer.good or (isinstance(found, Completion) and found.text == "4"), f"{answer.name}: {found}"
    left = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    await asyncio.wait(left, timeout=MARGIN_S) if left else None
    assert all(task.done() for task in left), f"{answer.name} left {left}"


async def check_all(seed: int, tries: int) -> None:
    for answer in answers(seed, tries, HANG_S):
        await check(answer)


async def test_every_answer_of_a_server_is_a_completion_or_a_named_error():
    await check_all(seed=1, tries=10)


@pytest.mark.verify
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 6))
async def test_many_answers_of_a_server_are_completions_or_named_errors(seed):
    await check_all(seed, tries=1500)


@pytest.mark.parametrize(
    "name",
    [
        "an endless body",
        "a bomb",
        "a bomb in a bomb",
        "endless headers",
        "an endless line",
        "the body: a million lists",
    ],
)
async def test_memory_is_bounded(name):
    answer = next(a for a in answers(1, 0, HANG_S) if a.name == name)
    tracemalloc.start()
    try:
        assert isinstance(await outcome(answer), JudgeError)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


async def test_bytes_behind_an_answer_are_not_the_answer_to_the_next_question():
    answer = Answer("two in one", framed(GOOD) + framed(GOOD.replace(b'"4"', b'"5"')), "hang")
    async with hostile(answer) as (url, _):
        client = HttpClient(url, model="m")
        assert [(await client.complete(CALL)).text for _ in range(5)] == ["4"] * 5
        await client.close()


async def test_a_key_is_sent_to_no_other_host_and_cookies_are_not_kept():
    async with hostile(Answer("good", framed(GOOD))) as (elsewhere, other):
        redirect = framed(b"", "307 X", f"Location: {elsewhere}/chat/completions", f"Set-Cookie: a={'x' * 4000}")
        async with hostile(Answer("redirect", redirect)) as (url, server):
            client = HttpClient(url, model="m", key=KEY)
            for _ in range(3):
                with pytest.raises(JudgeError, match="307"):
                    await client.complete(CALL)
            await client.close()
    assert not other.requests
    assert len(server.requests) == 3
    assert not any(b"cookie" in head.lower() for head in server.requests)


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"\0" * 5000, b""]
)
async def test_a_server_that_speaks_no_tls_is_named(said):
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    listening = await asyncio.start_server(plain, "127.0.0.1", 0)
    client = HttpClient(f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", model="m", timeout_s=MARGIN_S)
    with pytest.raises(JudgeAbsent, match="ConnectError"):
        await client.complete(CALL)
    await client.close()
    listening.close()


SPREAD = 9


async def check_pool(seed: int, tries: int, every: int) -> None:
    chosen = [a for i, a in enumerate(answers(seed, tries, HANG_S)) if i % every == seed % every]
    for answer in chosen:
        async with hostile(answer) as (url, server):
            client = HttpClient(url, model="m", timeout_s=HANG_S)
            pool = JudgePool(
                "j",
                [client],
                deadline_s=2 * HANG_S,
                in_flight_ttl_s=2 * HANG_S,
                breaker=lambda: CircuitBreaker(pause_s=0.05),
            )
            requests = [Request(TEMPLATES["pointwise"](), Item(str(i), ("a",)), logprobs=False) for i in range(3)]
            begun = time.monotonic()
            verdicts = await asyncio.gather(*map(pool.ask, requests))
            assert time.monotonic() - begun < 2 * HANG_S + MARGIN_S, answer.name
            values = pool.snapshot()
            await pool.close()
            await asyncio.wait_for(server.idle.wait(), MARGIN_S)
        failed = [v for v in verdicts if not v.scored]
        assert all(v.values == (4.0,) for v in verdicts if v.scored), answer.name
        assert all(v.state == FAILED and math.isnan(v.values[0]) for v in failed), answer.name
        assert all(v.note.partition(":")[0] in vars(errors) for v in failed), failed
        count = {key.removeprefix("judge/j_num_"): value for key, value in values.items() if "_num_" in key}
        assert count["asked"] == 3
        assert count["failed"] == len(failed) == sum(v for k, v in count.items() if k.startswith("failed_"))
        assert count["asked"] == count["answered"] + count["failed"] + count["cancelled"] + count["in_flight"]
        assert count["in_flight"] == 0


async def test_a_pool_gives_failed_scores_with_a_reason_and_its_counts_agree():
    await check_pool(seed=1, tries=0, every=SPREAD)


@pytest.mark.verify
@pytest.mark.timeout(3600)
async def test_a_pool_survives_every_server():
    for seed in itertools.islice(itertools.count(2), 3):
        await check_pool(seed, tries=60, every=1)
