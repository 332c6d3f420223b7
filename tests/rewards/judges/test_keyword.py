"""The judge that counts words labels captions too, repeatably, and as wrongly as it is told to."""

from __future__ import annotations

import re

import pytest

from rewards.judges.backends.keyword import KeywordJudge
from rewards.judges.backends.mistakes import miscalculated
from rewards.judges.pool.pool import JudgePool
from rewards.judges.templates import Item
from rewards.judges.templates.strength import PairwiseStrength
from rewards.judges.types import Request
from rewards.learned.caption_labels import CaptionJudge
from rewards.learned.labeler import Asking
from rewards.learned.labels import pair

CAPTIONS = [f"You see here {'an apple' if i % 3 == 0 else 'a rock'} of size {i}." for i in range(300)]
RIGHT = [float(i % 3 == 0) for i in range(300)]


async def labels_of(keys, *, compares=False, **options):
    pool = JudgePool("words", [KeywordJudge(["apple"], **options)])
    judge = CaptionJudge(Asking(pool, 8), goal="default", judge="words", compares=compares)
    found = await judge(keys)
    await pool.close()
    assert found is not None
    return found


async def test_captions_are_labelled_by_their_own_words_and_not_by_the_prompt_s():
    assert await labels_of(CAPTIONS) == RIGHT
    assert await labels_of(["You kill the newt!", "$ - 23 gold pieces."]) == [0.0, 0.0], "these are the examples"


async def test_pairs_are_compared_and_may_be_ties():
    apple, rock = "You see here an apple.", "You see here a rock."
    keys = [pair(apple, rock), pair(rock, apple), pair(rock, "It is dark."), pair(apple, "The apple is gone.")]
    assert await labels_of(keys, compares=True) == [1.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize("share", [0.1, 0.3])
async def test_that_share_of_labels_is_wrong_and_always_the_same(share):
    found = await labels_of(CAPTIONS, noise_rate=share)
    wrong = sum(a != b for a, b in zip(found, RIGHT, strict=True))
    assert wrong / 300 == pytest.approx(share, abs=0.06)
    assert found == await labels_of(CAPTIONS, noise_rate=share)


async def test_that_share_of_captions_is_never_labelled_and_the_others_are_right():
    found = await labels_of(CAPTIONS, unreadable_rate=0.9)
    read = [(a, b) for a, b in zip(found, RIGHT, strict=True) if a is not None]
    assert len(read) / 300 == pytest.approx(0.1, abs=0.05)
    assert all(a == b for a, b in read)
    both = await labels_of(CAPTIONS, unreadable_rate=0.5, noise_rate=0.3)
    read = [(a, b) for a, b in zip(both, RIGHT, strict=True) if a is not None]
    assert sum(a != b for a, b in read) / len(read) == pytest.approx(0.3, abs=0.1), "noise among what is read"


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ("good good", "bad", 5 / 6),
        ("bad", "good good", 1 / 6),
        ("good", "bad", 2 / 3),
        ("bad", "good good good good", 0.0),
    ],
)
async def test_strengths_are_by_words_and_not_by_position(first, second, value):
    pool = JudgePool("words", [KeywordJudge()])
    verdict = await pool.ask(Request(PairwiseStrength(), Item("Say it.", (first, second), None), "text"))
    await pool.close()
    assert verdict.values == (pytest.approx(value),)


async def test_strengths_of_equals_do_not_depend_on_their_order():
    pool = JudgePool("words", [KeywordJudge()])
    asked = [
        Request(PairwiseStrength(), Item("Say it.", pair, None), "text") for pair in (("one", "two"), ("two", "one"))
    ]
    values = [(await pool.ask(request)).values[0] for request in asked]
    await pool.close()
    assert sum(values) == pytest.approx(1.0)


@pytest.mark.parametrize("right", ["85", "The sum is 120.", "7", "x = 0", "12.5", "0.5 of 3"])
def test_a_spoilt_solution_has_another_number_at_its_end_and_the_same_words(right: str):
    spoilt = {miscalculated(right, seed) for seed in range(200)}
    assert right not in spoilt
    assert len(spoilt) > 5
    assert {re.sub(r"[\d.]+", "", text) for text in spoilt} == {re.sub(r"[\d.]+", "", right)}


def test_a_solution_without_a_number_is_left_as_it_is():
    assert miscalculated("none", 1) == "none"
