"""The queue in front of a judge: order, bounds, and equal questions asked once."""

from __future__ import annotations

import asyncio

import pytest

from rewards.judges.errors import JudgeOverflow, JudgeServerError, JudgeTimeout
from rewards.judges.pool.circuit_breaker import CircuitBreaker
from rewards.judges.pool.request_queue import RequestQueue


class Asked:
    """Jobs that note when they begin and wait until they are let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gate = asyncio.Event()

    def job(self, key: str):
        async def run() -> str:
            self.begun.append(key)
            await self.gate.wait()
            return key

        return run


def broker(order="newest", slots=1, queue=100, ttl_s=5.0) -> RequestQueue[str]:
    return RequestQueue(max_in_flight=slots, max_queue=queue, order=order, ttl_s=ttl_s)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("order", "expected"), [("newest", ["0", "4", "3", "2", "1"]), ("oldest", ["0", "1", "2", "3", "4"])]
)
async def test_waiting_requests_go_out_in_order(order, expected):
    asked, queue = Asked(), broker(order)
    calls = [asyncio.create_task(queue.submit(str(i), asked.job(str(i)))) for i in range(5)]
    await settle()
    assert (queue.in_flight, queue.queue_depth) == (1, 4)
    await asyncio.sleep(0.02)
    assert 0.02 <= queue.queue_age_s < 5
    asked.gate.set()
    assert await asyncio.gather(*calls) == list("01234")
    assert asked.begun == expected
    assert queue.queue_age_s == 0
    assert 0.02 <= queue.longest_wait_s() < 5, "the queue is empty, but somebody has waited"
    assert queue.longest_wait_s() == 0, "nobody since"


async def test_newest_first_in_batches_of_four():
    """ONI's stack (arXiv:2410.23022): 1..10 and then 11, 12 go out as 7..10 and 5, 6, 11, 12."""
    asked, queue = Asked(), broker(slots=4)
    hold = asyncio.Event()

    async def block() -> str:
        await hold.wait()
        return ""

    blockers = [asyncio.create_task(queue.submit(f"block{i}", block)) for i in range(4)]
    await settle()
    calls = [asyncio.create_task(queue.submit(str(i), asked.job(str(i)))) for i in range(1, 11)]
    await settle()
    hold.set()
    await settle()
    assert sorted(map(int, asked.begun)) == [7, 8, 9, 10]
    calls += [asyncio.create_task(queue.submit(str(i), asked.job(str(i)))) for i in (11, 12, 8)]  # 8 is in flight
    await settle()
    asked.begun.clear()
    asked.gate.set()
    await asyncio.gather(*calls, *blockers)
    assert sorted(map(int, asked.begun[:4])) == [5, 6, 11, 12]
    assert queue.num_joined == 1


async def test_a_full_queue_pushes_out_the_oldest_or_refuses_the_newcomer():
    for order, lost in (("newest", "1"), ("oldest", "3")):
        asked, queue = Asked(), broker(order, queue=2)
        calls = {}
        for key in "0123":
            calls[key] = asyncio.create_task(queue.submit(key, asked.job(key)))
            await settle()
        asked.gate.set()
        results = dict(zip(calls, await asyncio.gather(*calls.values(), return_exceptions=True), strict=True))
        assert isinstance(results.pop(lost), JudgeOverflow)
        assert all(key == result for key, result in results.items())
        assert (queue.num_overflowed, lost in asked.begun) == (1, False)


async def test_equal_questions_are_asked_once_while_in_flight():
    asked, queue = Asked(), broker(slots=3)
    calls = [asyncio.create_task(queue.submit("same", asked.job("same"))) for _ in range(10)]
    await settle()
    asked.gate.set()
    assert await asyncio.gather(*calls) == ["same"] * 10
    assert (asked.begun, queue.num_joined) == (["same"], 9)
    assert await queue.submit("same", asked.job("same")) == "same"
    assert len(asked.begun) == 2


async def test_a_failure_reaches_all_who_wait_and_frees_the_key():
    queue = broker()

    async def fail() -> str:
        await asyncio.sleep(0)
        raise JudgeServerError("no")

    results = await asyncio.gather(*(queue.submit("k", fail) for _ in range(3)), return_exceptions=True)
    assert [type(r) for r in results] == [JudgeServerError] * 3
    await settle()
    assert queue.in_flight == 0


async def test_a_job_in_flight_for_too_long_is_given_up_and_may_be_asked_again():
    asked, queue = Asked(), broker(ttl_s=0.05)
    with pytest.raises(JudgeTimeout, match=r"0\.05 s"):
        await queue.submit("k", asked.job("k"))
    asked.gate.set()
    assert await queue.submit("k", asked.job("k")) == "k"


async def test_who_leaves_takes_a_waiting_job_along_but_not_one_that_has_begun():
    asked, queue = Asked(), broker()
    begun, waiting = (asyncio.create_task(queue.submit(k, asked.job(k))) for k in ("begun", "waiting"))
    other = asyncio.create_task(queue.submit("begun", asked.job("begun")))
    await settle()
    begun.cancel()
    waiting.cancel()
    await settle()
    assert (queue.in_flight, queue.queue_depth) == (1, 0)
    asked.gate.set()
    assert await other == "begun"
    assert asked.begun == ["begun"]


async def test_closing_gives_up_everything():
    asked, queue = Asked(), broker()
    calls = [asyncio.create_task(queue.submit(k, asked.job(k))) for k in "ab"]
    await settle()
    await queue.close()
    assert [type(r) for r in await asyncio.gather(*calls, return_exceptions=True)] == [asyncio.CancelledError] * 2
    assert asked.begun == ["a"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def broken(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(pause_s=5, longest_pause_s=15, clock=clock)
    for _ in range(5):
        breaker.begin()
        breaker.failure("500")
    return breaker


def test_a_circuit_opens_with_more_than_a_fifth_of_failures():
    breaker = CircuitBreaker()
    for i in range(1, 41):
        breaker.failure("x") if i % 5 == 0 else breaker.success()  # a fifth, and never more among the last ten or more
    assert not breaker.is_open
    breaker.failure("x")
    breaker.success()
    assert breaker.is_open


def test_a_circuit_opens_after_five_failures_in_a_row():
    breaker = CircuitBreaker()
    for _ in range(4):
        breaker.failure("x")
    assert breaker.ready()
    breaker.failure("x")
    assert not breaker.ready()


def test_an_open_circuit_admits_one_trial_and_closes_on_its_success():
    clock = Clock()
    breaker = broken(clock)
    assert breaker.retry_in_s == 5
    clock.now = 4.9
    assert not breaker.ready()
    clock.now = 5.0
    assert breaker.ready()
    breaker.begin()
    assert not breaker.ready()
    breaker.success()
    assert breaker.ready()
    assert not breaker.is_open
    breaker.failure("one is not many")
    assert breaker.ready()


def test_a_failed_trial_doubles_the_pause_up_to_a_limit():
    clock = Clock()
    breaker, pauses = broken(clock), []
    for _ in range(4):
        clock.now += breaker.retry_in_s
        breaker.begin()
        breaker.failure("still")
        pauses.append(breaker.retry_in_s)
    assert pauses == [10, 15, 15, 15]


def test_answers_of_calls_sent_before_it_opened_do_not_close_it():
    breaker = broken(Clock())
    breaker.success()
    assert breaker.is_open
