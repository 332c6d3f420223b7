"""Golden cases for the parsers, hostile ones included."""

import time

import pytest

from rewards.answers import final_answer
from rewards.signals.numeric import number

GOLDEN = [
    ("85", "85"),
    ("  85 \n", "85"),
    ("The answer is 85.", "85."),
    ("I think the answer is 12.\nNo: the answer is 85", "85"),
    ("Final answer: 85", "85"),
    ("\\boxed{84}, no, \\boxed{85}", "85"),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("\\boxed{\\{1\\}}", "\\{1\\}"),
    ("\\boxed{85", "\\boxed{85"),
    ("\\boxed{85} \\boxed{86", "85"),
    ("<answer> 85 </answer>", "85"),
    ("<answer>84</answer> hm <ANSWER>85</ANSWER>", "85"),
    ("<answer></answer>", None),
    ("so\n#### 85\n", "85"),
    ("first #### 84 in a line\n#### 85", "85"),
    ("<think>the answer is \\boxed{84}</think> 85", "85"),
    ("<think>\\boxed{85}", None),
    ("<think>a</think><think>\\boxed{85}", None),
    ("think</think>85", "85"),
    ("a line\nanother line", None),
    ("", None),
    ("\n\n", None),
]


@pytest.mark.parametrize(("text", "expected"), GOLDEN)
def test_final_answer_of(text, expected):
    assert final_answer(text) == expected


def test_reading_answers_takes_linear_time_on_hostile_text():
    start = time.monotonic()
    for text in ("\\boxed{" * 20_000, "<answer>" * 20_000, "answer is " * 20_000, "#### " * 20_000, "<think>" * 20_000):
        final_answer(text)
        number(text)
    for text in ("1," * 50_000, "9" * 100_000, "-" * 100_000, "." * 100_000, " " * 100_000):
        final_answer(text)
        number(text)
    assert time.monotonic() - start < 5


NUMBERS = [
    ("85", 85.0),
    ("-3.5", -3.5),
    ("\u22123", -3.0),
    ("1,234,567.5", 1234567.5),
    ("$85.", 85.0),
    ("75%", 0.75),
    ("3/4", 0.75),
    ("3/0", None),
    ("1e3", 1000.0),
    ("1e999", None),
    ("9" * 5000, None),
    ("inf", None),
    ("nan", None),
    ("85 apples", 85.0),
    ("between 84 and 85", 85.0),
    ("x85y", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_number_of(text, expected):
    assert number(text) == (pytest.approx(expected) if expected is not None else None)
