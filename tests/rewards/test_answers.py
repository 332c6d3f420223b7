"""Golden cases for the parsers, hostile ones included."""

import time

import pytest

from rewards.parsing.answers import final_answer
from rewards.parsing.equality import number

GOLDEN = [
    ("85", "85"),
    ("  85 \n", "85"),
    ("The answer is 85.", "85"),
    ("I think the answer is 12.\nNo: the answer is 85", "85"),
    ("Final answer: 85", "85"),
    ("\\boxed{84}, no, \\boxed{85}", "85"),
    ("2+3=5. The answer is 5. I hope this helps, ask me 10 more!", "5"),
    ("The answer is 5, because 2 + 3 = 5", "5"),
    ("The answer is 5 because 2 + 3 = 5", "5"),
    ("The answer is 5 (see above). Next: 7", "5 (see above)"),
    ("The answer is (1, 2). Done", "(1, 2)"),
    ("The answer is 3.14. Done", "3.14"),
    ("The answer is $x = 5$. Here 7 is odd.", "x = 5"),
    ("The answer is $5$, not $6$.", "5"),
    ("The answer is: **42**", "42"),
    ("**Answer:** 42", "42"),
    ("**Final answer**: 42\nThanks", "42"),
    ("Answer:\n42\nThanks", "42"),
    ("The answer to the question is 42. Bye", "42"),
    ("The correct answer is therefore 42.", "42"),
    ("The answer would be 42!", "42"),
    ("the answer is Paris, France.", "Paris, France"),
    ("answer = 42", "42"),
    ("The answer is 1,234. Bye", "1,234"),
    ("The answer is B. Bye", "B"),
    ("<answer>The answer is \\boxed{7}</answer>", "7"),
    ("<answer>#### 7</answer>", "7"),
    ("48+24=72\n#### 72\nNow let me check 3 more things: 48 - 24 = 24", "72"),
    ("48+24=72 #### 72", "72"),
    ("#### Step 1\nAdd.\n#### Step 2\nThe answer is 5.", "5"),
    ("First\nit holds for $x = 5$ alone", "x = 5"),
    ("First\n$5$ or $6$", "$5$ or $6$"),
    ("First 3\n= 12", "= 12"),
    ("\\boxed{}", None),
    ("\\boxed{5} and then \\boxed{}", None),
    (".", None),
    ("<THINK>\\boxed{84}</THINK> 85", "85"),
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
    start = time.process_time()
    for text in ("\\boxed{" * 20_000, "<answer>" * 20_000, "answer is " * 20_000, "#### " * 20_000, "<think>" * 20_000):
        final_answer(text)
        number(text)
    for text in ("1," * 50_000, "9" * 100_000, "-" * 100_000, "." * 100_000, " " * 100_000):
        final_answer(text)
        number(text)
    assert time.process_time() - start < 5


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
    ("between 84 and 85", None),
    ("3\\times 10^8", 3e8),
    ("x^2", None),
    ("1.6e-19", 1.6e-19),
    ("x85y", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_number_of(text, expected):
    assert number(text) == (pytest.approx(expected) if expected is not None else None)
