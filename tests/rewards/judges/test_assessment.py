"""How a judge's score from 0 to 100 is read: one score is one, and whatever could be two is none."""

from __future__ import annotations

import pytest

from rewards.judges.errors import Declined, Unreadable
from rewards.judges.templates import TEMPLATES, Item

ITEM = Item("Good morning.", ("Guten Morgen.",))

READ = {
    "Score: 95": 95, "score:95": 95, "SCORE = 95": 95, "**Score: 95**": 95, "**Score:** 95": 95, "Score: **95**": 95,
    "Score: 95.": 95, "Score: 95/100": 95, "Score: 95 / 100": 95, "Score: 95 out of 100": 95, "Score: 95%": 95,
    "Score: 5/100": 5, "Score: 0": 0, "Score: 100": 100, "Score: 100/100": 100, "Score: 0 of 100": 0,
    "Score: 10. It copies 4 words.": 10, "Score: 10, because 4 words are copied.": 10,
    "Score: 10 (it copies 4 words)": 10, "Score: 10; 4 words are copied": 10, "10. It copies 4 words.": 10,
    "10": 10, "10.": 10, "10/100": 10, "10\n": 10, "  10  ": 10, "`10`": 10, "(10)": 10, "10, since 4 are copied": 10,
    "Score: \\boxed{85}": 85, "Score: $85$": 85, "Score: [85]": 85, 'Score: "85"': 85, "Final score: 85": 85,
    "It is good.\n\nScore: 85\n": 85, "Of 3 sentences 2 are right.\nScore: 60": 60,
    "Score: 85\nScore: 85": 85, "I would give it 70.": 70, "70 is my score: 70": 70,
    "<think>Score: 40?</think>Score: 95": 95, "<think>40, 50</think>95": 95, "Score: ９５": 95,
    "It quotes 'Score: 100' and nothing else of use is in this translation, which is why I have to mark it down.\n"
    "Score: 5": 5,
    "It demands 100 of 100; I give\n**Score: 5**": 5,
}  # fmt: skip
UNREADABLE = [
    "Score: 101", "Score: 1000", "Score: -1", "Score: +5", "Score: 0.9", "Score: 7,5", "Score: 7.5", "Score: 1e2",
    "Score: 8/10", "Score: 4 out of 5", "Score: 5 of 10", "Score: 9/ 10", "Score: 70-80", "Score: 70 - 80",
    "Score: 70–80", "Score: 70 to 80", "Score: 70 or 80", "Score: ~", "Score: high", "Score: ninety", "Score:",
    "Score: n/a", "Score: none of 100", "Score: 70\nScore: 80", "Score: 70. No, score: 80", "no number", "",
    "70 80", "70 of 80 words are right, so 90", "4 errors, so 60", "Between 70 and 80.", "1. Good\n2. Short",
    "Score: ٩٥", "Score: ⁹⁵/⁵", "Score: 10^2", "<think>Score: 90</think>", "<think>Score: 90", "Score: <95",
    "Score: 1.000", "Score: 1,000", "Score: 50/0100", "Score: A", "Score: 5/7/100", "Score: 95 / 10",
    "It says 'Score: 100'. Score: 5",
]  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_a_score_is_read_as_it_was_meant(text):
    assert TEMPLATES["assessment"]().parse(text, ITEM, "text").values == (READ[text],)


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_could_be_another_score_is_unreadable(text):
    with pytest.raises(Unreadable):
        TEMPLATES["assessment"]().parse(text, ITEM, "text")


def test_a_judge_may_decline():
    with pytest.raises(Declined):
        TEMPLATES["assessment"]().parse("Verdict: none", ITEM, "text")
