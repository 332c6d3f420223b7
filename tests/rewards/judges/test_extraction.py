"""Verdicts read from log-probs and text: the catalogue's figures to the digit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from rewards.judges.errors import Unreadable
from rewards.judges.extraction import check_labels, expected_value, preference, read
from rewards.judges.statistics import (
    agreed,
    averaged,
    brier,
    calibration_error,
    debiased,
    majority,
    rank_scores,
    win_posterior,
    win_rates,
)
from rewards.judges.templates import TEMPLATES, Item
from rewards.judges.types import Completion, Request, Token

LABELS = {str(i): float(i) for i in range(1, 6)}
PROBABILITIES = dict(zip(LABELS, (0.02, 0.08, 0.30, 0.45, 0.10), strict=True))
TOP = tuple((t, math.log(p)) for t, p in PROBABILITIES.items())
close = pytest.approx


def request(mode="label", kind="pointwise", **fields) -> Request:
    responses = ("a", "b") if kind == "pairwise" else ("a",)
    return Request(TEMPLATES[kind](), Item("q", responses), mode, **fields)


def test_expected_value_over_score_tokens():
    estimate = expected_value(TOP, LABELS)
    assert estimate is not None
    assert estimate.mass == close(0.95, abs=1e-6)
    assert estimate.value == close(3.557895, abs=1e-6)
    assert (estimate.value - 1) / 4 == close(0.639474, abs=1e-6)
    assert estimate.variance == close(0.751911, abs=1e-6)


def test_forms_of_one_label_are_added_up_and_other_tokens_ignored():
    split = [("4", math.log(0.2)), (" 4", math.log(0.25)), ("44", math.log(0.05)), ("the", -9.0)]
    estimate = expected_value([*split, ("3", math.log(0.30))], LABELS)
    assert estimate is not None
    assert estimate.mass == close(0.75)
    assert estimate.value == close((4 * 0.45 + 3 * 0.30) / 0.75)
    assert expected_value([("x", -0.1), ("1", -math.inf)], LABELS) is None


def test_preference_from_two_labels():
    assert preference(-0.2, -1.9) == close(0.845535, abs=1e-6)


def test_two_orders_by_probability_and_by_log_odds():
    assert averaged(0.8, 0.7) == close((0.55, 0.25), abs=1e-6)
    log_odds_12, log_odds_21 = -0.2 - -1.9, -0.6 - -0.9
    assert debiased(log_odds_12, log_odds_21) == close((0.731059, 0.7), abs=1e-6)


def test_hard_labels_win_only_if_both_orders_agree():
    # Verdicts of order 1 are r1, r1, r2, r1 and of order 2 r1, r2, r2, r2; order 2 shows r2 first.
    first, second = [1, 1, 0, 1], [0, 1, 1, 1]
    assert [agreed(a, b) for a, b in zip(first, second, strict=True)] == [1.0, 0.5, 0.0, 0.5]
    assert math.isnan(agreed(math.nan, 1.0))


def test_an_unknown_value_stays_unknown_after_unswapping():
    assert all(math.isnan(x) for x in averaged(math.nan, 0.7))
    assert all(math.isnan(x) for x in averaged(0.7, math.nan))
    assert all(math.isnan(x) for x in debiased(0.7, math.nan))


def test_posterior_of_votes():
    assert [win_posterior(*v) for v in [(3, 0), (5, 0), (2, 1), (0, 0)]] == [0.9375, 0.984375, 0.6875, 0.5]
    assert [majority(v) for v in ([1, 1, 0], [1, 0], [0.5, 0.2])] == [1.0, 0.5, 0.0]


def test_brier_and_calibration_error():
    confidences, correct = [0.95, 0.9, 0.6, 0.55], [True, False, True, False]
    assert brier(confidences, correct) == close(0.31875, abs=1e-6)
    assert calibration_error(confidences, correct, [0.75]) == close(0.25, abs=1e-6)


def test_a_cycle_is_not_broken():
    # A beats B beats C beats A, and all three beat D.
    beats = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], float)
    assert win_rates(beats) == close([2 / 3, 2 / 3, 2 / 3, 0])
    with_itself = beats + 0.5 * np.eye(4)
    assert win_rates(with_itself) == close([2 / 3, 2 / 3, 2 / 3, 0])


def test_unknown_opponents_are_left_out():
    table = np.full((3, 3), np.nan)
    table[0, 1], table[1, 0] = 0.8, 0.2
    rates = win_rates(table)
    assert rates[:2] == close([0.8, 0.2])
    assert np.isnan(rates[2])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_win_rates_of_consistent_preferences_average_a_half(strengths):
    r = np.array(strengths)
    assert win_rates(0.5 + (r[:, None] - r) / 2).mean() == close(0.5)


def test_ranks_count_those_who_are_worse():
    assert rank_scores([9, 1, 3, 3]) == close([1, 0, 0.5, 0.5])
    assert rank_scores([9, math.nan, 3])[[0, 2]] == close([1, 0])
    assert np.isnan(rank_scores([9, math.nan, 3])[1])


def completion(text: str, *tokens: Token, finish: str = "stop") -> Completion:
    return Completion(text, finish, "m", tokens)


def test_the_label_is_read_where_it_stands_and_not_in_the_reasons():
    reasons = Token("Not a 5.\nVerdict", -0.1, (("5", 0.0),))
    answer = completion("Not a 5.\nVerdict: 4", reasons, Token(":", 0.0, ((":", 0.0),)), Token(" 4", -0.8, TOP))
    reading = read(request("text"), [answer])
    assert reading.values == close((3.557895,), abs=1e-6)
    assert reading.mass == close(0.95)


def test_with_too_little_mass_the_text_counts():
    thin = (("4", math.log(0.5)), ("5", math.log(0.29)))
    assert read(request(), [completion("4", Token("4", -0.7, thin))]).values == (4.0,)
    assert read(request(min_mass=0.75), [completion("4", Token("4", -0.7, thin))]).values != (4.0,)
    assert read(request(logprobs=False), [completion("4", Token("4", -0.7, TOP))]).values == (4.0,)
    with pytest.raises(Unreadable):
        read(request(), [completion("The", Token("The", -0.7, thin))])


def test_an_unlucky_draw_does_not_hide_a_clear_distribution():
    assert read(request(), [completion("The", Token("The", -3.2, TOP))]).values == close((3.557895,), abs=1e-6)


def test_tokens_that_do_not_spell_the_text_are_not_trusted():
    assert read(request("text"), [completion("Verdict: 4", Token("Other: 5", -1, TOP))]).values == (4.0,)


def test_an_answer_cut_at_its_length_is_unreadable():
    for mode, answers in {"text": [completion("x\nVerdict: 4", finish="length")], "reason": []}.items():
        if mode == "reason":
            answers = [completion("and so", finish="length"), completion("4")]
        with pytest.raises(Unreadable, match="length"):
            read(request(mode), answers)
    assert read(request(), [completion("4", finish="length")]).values == (4.0,)


def test_a_pair_keeps_its_log_odds():
    reading = read(request(kind="pairwise"), [completion("A", Token("A", -0.2, (("A", -0.2), ("B", -1.9))))])
    assert reading.values == close((0.845535,), abs=1e-6)
    assert reading.log_odds == close(1.7)


async def test_a_label_of_several_tokens_is_refused_with_what_it_splits_into():
    async def characters(text):
        return list(text)

    assert await check_labels(LABELS, characters, "judges.x")
    with pytest.raises(ConfigError, match=r"'10' is 2 tokens for this judge: '1' '0'"):
        await check_labels(["9", "10"], characters, "judges.x")

    async def sentencepiece(text):  # bare '10' splits, ' 10' is one token
        return ["1", "0"] if text == "10" else [text]

    assert await check_labels(["10"], sentencepiece, "judges.x")

    async def lower_case_only(text):
        return ["[UNK]"] if text.isupper() else list(text)

    with pytest.raises(ConfigError, match=r"'A' becomes '\[UNK\]'"):
        await check_labels(["A"], lower_case_only, "judges.x")

    async def unknown(text):
        return None

    assert not await check_labels(["10"], unknown, "judges.x")
