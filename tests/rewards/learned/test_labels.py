"""The backlog never exceeds its bound, holds a caption once and gives the newest first; nobody waits for a judge."""

import asyncio
import math
import threading
import time
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards.learned import labeler as module
from rewards.learned.label_store import RedisLabels
from rewards.learned.labeler import Labeller
from rewards.learned.labels import Label, MemoryLabels, pair, pair_of
from tests.rewards.learned.judges import KeywordJudge, is_good

BOUND, FOREVER_S = 6, 3600.0


@pytest.fixture(params=["memory", "redis"])
def table(request, redis_url):
    """A function that makes a table of its own."""
    made = []

    def make(**options):
        if request.param == "memory":
            return MemoryLabels(**options)
        made.append(RedisLabels(redis_url, f"test-{uuid4().hex[:12]}", "oni", **options))
        return made[-1]

    yield make
    for labels in made:
        labels.close()


def keys(*numbers: int) -> list[str]:
    return [str(n) for n in numbers]


def test_the_newest_are_taken_first_and_a_full_backlog_is_worked_off_backwards(table):
    labels = table()
    assert labels.submit(keys(*range(1, 11))) == 10
    assert list(labels.take(4, 0)) == keys(7, 8, 9, 10)
    labels.submit(keys(11, 12))
    assert list(labels.take(4, 0)) == keys(5, 6, 11, 12)


def test_submitting_what_is_labelled_or_in_flight_does_nothing(table):
    labels = table()
    labels.submit(keys(1, 2, 3))
    labels.take(2, 0)
    labels.add({"3": Label(1.0)})
    assert labels.submit(keys(2, 3)) == 0
    assert list(labels.take(9, 0)) == keys(1)
    assert labels.look_up(keys(3, 4)) == [Label(1.0), None]


def test_what_is_seen_again_while_it_waits_becomes_the_newest(table):
    labels = table()
    labels.submit(keys(1, 2, 3))
    assert labels.submit(keys(1)) == 0
    assert list(labels.take(2, 0)) == keys(3, 1)


def test_the_oldest_leaves_a_full_backlog(table):
    labels = table(max_backlog=3)
    labels.submit(keys(1, 2, 3, 4, 5))
    assert labels.counts().pushed_out == 2
    assert list(labels.take(9, 0)) == keys(3, 4, 5)


def test_what_is_in_flight_for_too_long_waits_again_at_its_old_place(table):
    labels = table(ttl_s=0.05)
    labels.submit(keys(1, 2))
    assert labels.take(9, 0) == {"1": 1, "2": 1}
    labels.submit(keys(2, 3))
    assert list(labels.take(9, 0)) == keys(3)
    begun = time.monotonic()
    assert labels.take(9, 5.0) in ({"1": 2, "2": 2}, {"1": 2, "2": 2, "3": 2})
    assert time.monotonic() - begun < 1, "the time in flight passes, and nobody rings a bell"
    assert labels.counts().expired >= 2


def test_put_back_keeps_the_place_and_counts_the_attempt_or_not(table):
    labels = table()
    labels.submit(keys(1, 2))
    labels.take(2, 0)
    labels.put_back(["1"], counted=True)
    labels.put_back(["2"], counted=False)
    labels.submit(keys(3))
    assert labels.take(9, 0) == {"1": 2, "2": 1, "3": 1}


def test_a_waiting_take_is_woken_by_a_submission(table):
    labels = table()
    threading.Timer(0.1, lambda: labels.submit(keys(1))).start()
    begun = time.monotonic()
    assert list(labels.take(1, 10.0)) == keys(1)
    assert time.monotonic() - begun < 5


def test_the_first_label_of_a_version_stays_and_a_new_version_is_asked_for_again(table):
    labels = table(version="b")
    labels.add({"1": Label(0.0, version="a")})
    labels.add({"1": Label(1.0, version="a")})
    assert labels.look_up(["1"]) == [Label(0.0, version="a")]
    assert labels.submit(["1"]) == 1, "its label is an older judge's"
    labels.take(1, 0)
    labels.add({"1": Label(1.0, "judge", 2, "b")})
    assert labels.look_up(["1"]) == [Label(1.0, "judge", 2, "b")]
    assert labels.submit(["1"]) == 0


def test_coverage_counts_known_labels_and_an_unread_one_is_none(table):
    labels = table()
    assert math.isnan(labels.counts().coverage)
    labels.add({"1": Label(1.0), "2": Label(math.nan, attempt=2)})
    assert [label and label.known for label in labels.look_up(keys(1, 2, 3, 1))] == [True, False, None, True]
    assert labels.counts().coverage == 0.5
    assert labels.submit(["2"]) == 0, "given up under this version"


def test_news_come_once_in_order_from_any_cursor(table):
    labels = table()
    labels.add({"a": Label(1.0)})
    labels.add({"b": Label(0.0), "a": Label(0.0)})
    first, second = labels.news("0", 10, 0)
    assert [(n.key, n.label.value) for n in (first, second)] == [("a", 1.0), ("b", 0.0)]
    assert labels.news(first.cursor, 10, 0) == [second]
    assert labels.news(second.cursor, 10, 0) == []


operation = st.one_of(
    st.tuples(st.just("submit"), st.lists(st.integers(0, 12), max_size=8)),
    st.tuples(st.just("take"), st.integers(1, 5)),
    st.tuples(st.just("add"), st.lists(st.integers(0, 12), max_size=4)),
    st.tuples(st.just("put_back"), st.lists(st.integers(0, 12), max_size=4)),
    st.tuples(st.just("pass"), st.just(None)),
)


class Model:
    """What a backlog promises, in the plainest words: a list of who waits, oldest first."""

    def __init__(self) -> None:
        self.seq, self.number, self.waiting, self.flying, self.done = 0, {}, [], {}, set()

    def trim(self):
        self.waiting = sorted(self.waiting, key=self.number.__getitem__)[-BOUND:]

    def submit(self, keys):
        for key in keys:
            if key not in self.flying and key not in self.done:
                self.seq += 1
                self.number[key] = self.seq
                self.waiting = [k for k in self.waiting if k != key] + [key]
        self.trim()

    def take(self, limit):
        taken, self.waiting = self.waiting[-limit:], self.waiting[:-limit]
        self.flying |= dict.fromkeys(taken)
        return taken

    def add(self, keys):
        self.done |= set(keys)
        self.waiting = [k for k in self.waiting if k not in keys]
        self.flying = {k: None for k in self.flying if k not in keys}

    def put_back(self, keys):
        self.waiting += [k for k in dict.fromkeys(keys) if k in self.flying]
        self.flying = {k: None for k in self.flying if k not in keys}
        self.trim()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(operation, max_size=25))
def test_any_history_agrees_with_the_model(table, operations):
    labels, model = table(max_backlog=BOUND, ttl_s=FOREVER_S), Model()
    for name, argument in operations:
        named = keys(*argument) if isinstance(argument, list) else argument
        if name == "submit":
            labels.submit(named)
            model.submit(named)
        elif name == "take":
            assert list(labels.take(named, 0)) == model.take(named)
        elif name == "add":
            labels.add({key: Label(1.0) for key in named})
            model.add(named)
        elif name == "put_back":
            labels.put_back(named, counted=True)
            model.put_back(named)
        counts = labels.counts()
        assert counts.backlog == len(model.waiting) <= BOUND
        assert counts.in_flight == len(model.flying)
        assert counts.labels == len(model.done)


@settings(max_examples=60, deadline=None)
@given(operations=st.lists(operation, max_size=30))
def test_with_time_passing_a_caption_is_in_one_place_and_the_bound_holds(operations):
    now = [0.0]
    labels = MemoryLabels(max_backlog=BOUND, ttl_s=10.0, clock=lambda: now[0])
    flying: dict[str, float] = {}
    done: set[str] = set()
    for name, argument in operations:
        if name == "pass":
            now[0] += 4.0
            flying = {key: due for key, due in flying.items() if due > now[0]}
        elif name == "submit":
            labels.submit(keys(*argument))
        elif name == "take":
            taken = labels.take(argument, 0)
            assert not set(taken) & (set(flying) | done), "in flight, or labelled"
            flying |= dict.fromkeys(taken, now[0] + 10.0)
        elif name == "add":
            labels.add({key: Label(1.0) for key in keys(*argument)})
            done |= set(keys(*argument))
            flying = {key: due for key, due in flying.items() if key not in done}
        assert labels.counts().backlog <= BOUND


def labeller(labels, judge, **options):
    return Labeller(labels, judge, name="keywords", **options)


async def until(condition, timeout_s: float = 10.0):
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.01)


async def running(one: Labeller):
    return asyncio.create_task(one.run())


async def test_several_requests_are_in_flight_and_no_caption_twice(table):
    labels, judge = table(), KeywordJudge()
    judge.hold.clear()
    one = labeller(labels, judge, batch_size=2, max_in_flight=3)
    labels.submit([f"gold {n}" for n in range(8)])
    task = await running(one)
    await until(lambda: len(judge.open) == 3)
    assert judge.asked[0] == ["gold 6", "gold 7"]
    labels.submit([f"gold {n}" for n in range(8)])
    judge.hold.set()
    await until(lambda: labels.counts().labels == 8)
    await one.stop()
    await task
    assert sum(map(len, judge.asked)) == 8
    assert judge.most_open == 3


async def test_labels_carry_who_gave_them(table):
    labels, judge = table(version="v2"), KeywordJudge(unreadable=["mumble"])
    one = labeller(labels, judge, version="v2", max_attempts=2)
    labels.submit(["you kill it", "a wall", "mumble"])
    task = await running(one)
    await until(lambda: labels.counts().labels == 3)
    await one.stop()
    await task
    kill, wall, mumble = labels.look_up(["you kill it", "a wall", "mumble"])
    assert (kill, wall) == (Label(1.0, "keywords", 1, "v2"), Label(0.0, "keywords", 1, "v2"))
    assert math.isnan(mumble.value)
    assert mumble.attempt == 2
    assert one.num_unreadable == 2


@pytest.mark.parametrize("way", ["none", "raises", "hangs", "short"])
async def test_while_the_judge_is_away_nothing_is_labelled_or_lost(table, way, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    labels, away = table(), [True]

    async def judge(captions):
        if not away[0]:
            return [is_good(c) for c in captions]
        if way == "raises":
            raise ConnectionError("no route to the judge")
        if way == "hangs":
            await asyncio.sleep(60)
        return [1.0] if way == "short" else None

    one = labeller(labels, judge, timeout_s=0.05, max_attempts=1)
    labels.submit(["gold", "wall"])
    task = await running(one)
    await until(lambda: one.num_outages >= 3)
    assert labels.counts().labels == 0
    away[0] = False
    await until(lambda: labels.counts().labels == 2)
    await one.stop()
    await task
    assert [label.value for label in labels.look_up(["gold", "wall"])] == [1.0, 0.0]


async def test_a_table_that_fails_ends_the_labeller():
    class Broken(MemoryLabels):
        def add(self, labels):
            raise OSError("disk full")

    labels = Broken()
    labels.submit(["gold"])
    with pytest.raises(OSError, match="disk full"):
        await asyncio.wait_for(labeller(labels, KeywordJudge()).run(), 10)


def test_a_pair_is_a_key_and_back():
    assert pair_of(pair("you win", "")) == ("you win", "")
    with pytest.raises(ValueError, match="U\\+001F"):
        pair("a\x1fb", "c")


def test_the_oldest_can_be_taken_first(table):
    labels = table(order="oldest")
    labels.submit(keys(*range(1, 8)))
    assert list(labels.take(3, 0)) == keys(1, 2, 3)
    labels.submit(keys(8, 4))  # 4 becomes the newest
    assert list(labels.take(3, 0)) == keys(5, 6, 7)
    labels.put_back(keys(2), counted=False)
    assert list(labels.take(9, 0)) == keys(2, 8, 4)
