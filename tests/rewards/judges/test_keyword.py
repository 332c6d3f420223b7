"""The judge that counts words labels captions and spoils solutions too, repeatably, as wrongly as it is told to."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cluster.types import Message
from rewards.distilled.asking import Asking
from rewards.distilled.captions import SOLUTION, SPOIL, CaptionJudge
from rewards.judges.keyword import KeywordJudge
from rewards.judges.mistakes import MISTAKES, mistaken
from rewards.judges.pool import JudgePool
from rewards.judges.types import Call
from rewards.labels import pair

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


async def spoilt(*solutions: str) -> list[str]:
    judge = KeywordJudge()
    calls = [Call((Message("system", SPOIL), Message("user", f"Question:\n?{SOLUTION}{s}")), 9) for s in solutions]
    return [(await judge.complete(call)).text for call in calls]


async def test_a_solution_that_is_a_number_is_spoilt_in_one_of_many_ways_and_always_the_same():
    rights = [str(right) for right in range(10, 1000)]
    wrong = await spoilt(*rights)
    assert wrong == await spoilt(*rights)
    assert all(w.isdigit() and w[0] != "0" and w != r for w, r in zip(wrong, rights, strict=True))
    off = Counter(int(w) - int(r) for w, r in zip(wrong, rights, strict=True))
    assert min(off[by] for by in (-10, -1, 1, 10)) > 20
    assert len(off) > 200
    assert {-1, 0, 1} == {len(w) - len(r) for w, r in zip(wrong, rights, strict=True)}


async def test_any_other_solution_is_spoilt_in_all_its_digits():
    assert await spoilt("3 + 4 = 7", "07", "none") == ["8 + 9 = 2", "52", "none"]


def test_a_number_is_mistaken_in_every_way():
    rng = np.random.default_rng(0)
    made = {kind: {make("85", rng) for _ in range(200)} for kind, make in MISTAKES.items()}
    assert made["one off"] == {"84", "86"}
    assert made["a carry too many or too few"] == {"75", "95"}
    assert made["digits swapped"] == {"58"}
    assert made["a digit dropped"] == {"8", "5"}
    assert all(len(text) == 3 and "85" in (text[1:], text[:2], text[0] + text[2]) for text in made["a digit added"])
    assert all((text[0] == "8") != (text[1] == "5") for text in made["a digit"])
    assert any(text[0] != "8" and text[1] != "5" for text in made["two digits"])
    assert all(1 < abs(int(text) - 85) < 30 for text in made["a little off"])
    spoilt = {mistaken("85", rng) for _ in range(1000)}
    assert all(texts & spoilt for texts in made.values())
