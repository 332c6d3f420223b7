"""Ratios, spreads and floors of figures, how they are kept, and the lengths that both sides of a comparison draw."""

from __future__ import annotations

import statistics
from itertools import islice

import pytest

from tests.bench.figures import Figure, alternate, alternate_here, merged, rounded, table
from tests.bench.lengths import FIXED, LONGEST, MEDIAN, begins_right, draws, longest

MACHINE = {"commit": "abc", "cores": 2, "load": 0.5}


def row(ours, other, at_least=None, **options):
    return Figure("figure", "tokens/s", ours, other, at_least, **options).row(**MACHINE)


def test_the_ratio_is_the_median_over_pairs_not_the_ratio_of_medians():
    # The machine was three times slower during the last pair, for both.
    found = row([90.0, 96.0, 30.0], [100.0, 100.0, 30.0])
    assert found["ratio"] == 0.96
    assert found["spread"] == [0.9, 1.0]
    assert (found["ours"], found["other"], found["pairs"]) == (90.0, 100.0, 3)
    assert (found["commit"], found["cores"], found["load"]) == ("abc", 2, 0.5)


@pytest.mark.parametrize(("at_least", "holds"), [(0.95, True), (0.96, True), (0.97, False), (None, None)])
def test_a_floor_holds_from_the_ratio_on(at_least, holds):
    assert row([96.0], [100.0], at_least)["holds"] is holds


def test_a_floor_is_not_held_by_rounding():
    found = row([0.949996], [1.0], 0.95)
    assert found["ratio"] == 0.95
    assert found["holds"] is False


@pytest.mark.parametrize(("ours", "other"), [([1.0, 2.0], [1.0]), ([], []), ([1.0], [0.0]), ([-1.0], [1.0])])
def test_what_is_not_pairs_of_rates_is_refused(ours, other):
    with pytest.raises(ValueError, match="figure"):
        Figure("figure", "tokens/s", ours, other)


def recording(name, seen):
    def side():
        seen.append(name)
        return float(len(seen))

    return side


def test_sides_take_turns_and_their_first_run_does_not_count():
    seen: list[str] = []
    ours, other = alternate(recording("ours", seen), recording("other", seen), pairs=3)
    assert seen == ["ours", "other", "ours", "other", "other", "ours", "ours", "other"]
    assert (ours, other) == ([3.0, 6.0, 7.0], [4.0, 5.0, 8.0])


async def test_coroutines_take_turns_too():
    seen: list[str] = []

    def coroutine(name):
        async def side():
            return recording(name, seen)()

        return side

    ours, other = await alternate_here(coroutine("ours"), coroutine("other"))
    assert len(ours) == len(other) == (len(seen) - 2) / 2
    assert seen[:6] == ["ours", "other", "ours", "other", "other", "ours"]


def test_new_rows_take_the_place_of_their_names_and_leave_the_others_alone():
    kept = [{"name": "a", "ratio": 1}, {"name": "b", "ratio": 1}]
    assert merged(kept, [{"name": "c", "ratio": 2}, {"name": "a", "ratio": 2}]) == [
        {"name": "a", "ratio": 2},
        {"name": "b", "ratio": 1},
        {"name": "c", "ratio": 2},
    ]
    assert merged([], kept) == kept
    assert merged(kept, []) == kept


def test_the_table_names_a_missed_floor_and_the_details():
    text = table([row([1.0], [2.0], 0.9, details={"pause_s": 0.123456}), row([1.0], [2.0])])
    assert " NO\n" in text
    assert "0.9" in text
    assert "pause_s 0.1235" in text
    assert text.count("0.500 to 0.500") == 2


def test_rounding_keeps_four_digits():
    assert [rounded(v) for v in (12345.6, 0.00123456, 1.0)] == [12350.0, 0.001235, 1.0]


def test_lengths_are_drawn_alike_in_every_process():
    assert list(islice(draws("lognormal"), 100)) == list(islice(draws("lognormal"), 100))
    assert list(islice(draws("lognormal", 1), 100)) != list(islice(draws("lognormal"), 100))
    assert set(islice(draws("fixed"), 10)) == {FIXED["fixed"]} == {longest("fixed")}
    many = list(islice(draws("lognormal"), 20_000))
    assert min(many) >= 1
    assert max(many) == LONGEST
    assert abs(statistics.median(many) - MEDIAN) <= 1
    assert statistics.mean(many) == pytest.approx(47, abs=1)
    assert sum(n == LONGEST for n in many) / len(many) == pytest.approx(0.01, abs=0.003)


def test_unknown_lengths_are_refused():
    with pytest.raises(ValueError, match="known: fixed, short, lognormal"):
        next(draws("long"))


def test_the_reward_looks_at_the_beginning():
    assert begins_right(["85xyz", "8", "185"], answer=["85"] * 3) == [1.0, 0.0, 0.0]
