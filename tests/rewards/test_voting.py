"""How one of several samples is chosen, and what the figures say of it: the numbers of arXiv:2505.11227's check."""

from __future__ import annotations

import math

import pytest

from rewards.aggregation.voting import GradedSample, Voting, accuracy, self_prm_winner, verdicts, voted

NAN = math.nan


def samples(*rows: tuple[float, str | None, float], task: str = "t") -> list[GradedSample]:
    return [GradedSample(task, reward, answer, value) for reward, answer, value in rows]


def test_self_prm_takes_what_its_solver_thinks_most_of_where_a_majority_takes_the_most_common():
    rows = samples((0, "A", 0.2), (0, "A", 0.3), (1, "B", 0.9))
    assert Voting("self_prm", "judge").winner(["A", "A", "B"], [0.2, 0.3, 0.9]) == 2
    assert Voting("majority").winner(["A", "A", "B"], [0.2, 0.3, 0.9]) == 0
    assert voted(Voting("self_prm", "judge"), rows) == {"vote_accuracy": 1.0, "num_without_vote": 0.0}
    assert voted(Voting("majority"), rows) == {"vote_accuracy": 0.0, "num_without_vote": 0.0}


@pytest.mark.parametrize(
    ("values", "answers", "winner"),
    [
        ([0.5, 0.5, 0.5], ["A", "B", "B"], 1),  # the larger group of answers
        ([0.5, 0.5], ["A", "B"], 0),  # the first
        ([NAN, 0.1], ["A", "B"], 1),
        ([0.5, 0.5, 0.2], [None, "B", None], 1),  # samples without an answer are no group
        ([NAN, NAN], ["A", "A"], None),
        ([], [], None),
    ],
)
def test_self_prm_breaks_ties_and_skips_unknown_values(values, answers, winner):
    assert self_prm_winner(values, answers) == winner


def test_verdicts_have_the_precision_and_recall_of_the_catalogue():
    found = verdicts(samples((1, "A", 1), (0, "A", 1), (0, "A", 0), (0, "A", 1)))
    assert found["verdict_precision"] == pytest.approx(1 / 3, abs=1e-12)
    assert found["verdict_recall"] == 1.0
    assert found["verdict_precision_hard"] == pytest.approx(1 / 3, abs=1e-12)


def test_f1_is_the_harmonic_mean_of_both_accuracies():
    """Half of the wrong solutions are called wrong, all right ones right."""
    found = verdicts(samples((0, "A", 0), (0, "A", 1), (1, "A", 1), (1, "A", 1)))
    assert found["verdict_f1"] == pytest.approx(0.666667, abs=1e-6)


def test_precision_on_hard_tasks_leaves_the_easy_ones_out():
    easy = samples((1, "A", 1), (1, "A", 1), (0, "B", 0), task="easy")
    hard = samples((0, "A", 1), (0, "A", 1), (1, "B", 1), task="hard")
    found = verdicts(easy + hard)
    assert found["verdict_precision"] == pytest.approx(3 / 5)
    assert found["verdict_precision_hard"] == pytest.approx(1 / 3)
    assert math.isnan(verdicts(easy)["verdict_precision_hard"])


def test_unknown_values_and_rewards_are_in_no_figure():
    rows = samples((1, "A", NAN), (NAN, "A", 1), (1, "A", 1))
    assert verdicts(rows)["verdict_precision"] == 1.0
    assert accuracy(rows) == {"accuracy": 1.0, "pass_at_k": 1.0}
    assert voted(Voting("self_prm", "judge"), samples((0, "A", NAN), (1, "A", NAN))) == {
        "vote_accuracy": 0.0,
        "num_without_vote": 1.0,
    }
    assert math.isnan(verdicts(samples((0, "A", NAN)))["verdict_f1"])


def test_accuracy_is_a_mean_over_tasks():
    rows = samples((1, "A", 0), (0, "B", 0), task="a") + samples((0, "A", 0), task="b")
    assert accuracy(rows) == {"accuracy": 0.25, "pass_at_k": 0.5}


def test_equal_answers_vote_together_however_they_are_written():
    rows = samples((0, "7", 0.0), (1, "0.5", 0.0), (1, "1/2", 0.0))
    assert voted(Voting("majority"), rows)["vote_accuracy"] == 1.0
