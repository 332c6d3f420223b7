"""Rules for judges in training: the texts and numbers of RM-R1, Think-RM and SPCT."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.errors import ConfigError
from rewards.base import Services
from rewards.builtin.verdict import VerdictReward, ranks_best
from tests.rewards.groups import group

A, B = "<answer>[[A]]</answer>", "<answer>[[B]]</answer>"


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (f"Because. {A}", 1),
        (f"Because. {B}", -1),
        (f"{A} or {B}", -1),
        (f"{A}{'x' * 80}", -1),
        ("", -1),
        (f"{B}{'x' * 80}{A}", 1),  # what stands further up does not count
        (f"{A}{'x' * (80 - len(A))}", 1),
        (f"{A}{'x' * (81 - len(A))}", -1),
    ],
)
def test_rm_r1_looks_at_the_last_80_characters(text, reward):
    """arXiv:2505.02387."""
    assert VerdictReward().of(text, "A") == reward
    assert VerdictReward(rule="binary").of(text, "A") == (reward + 1) / 2


@pytest.mark.parametrize("label", ["C", "", None, "a"])
def test_another_label_is_an_error_and_no_reward(label):
    with pytest.raises(ValueError, match="neither 'A' nor 'B'"):
        VerdictReward().of(A, label)
    task = replace(group("x").task, answer=label)
    with pytest.raises(ConfigError, match="neither 'A' nor 'B'"):
        VerdictReward().check(task)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<answer>3</answer>", 0.5),
        ("<answer>-2</answer>", 0.0),
        ("<answer>2</answer>", 1.0),
        ("<answer> +2 </answer>", 1.0),
        ("<answer>4</answer>", 0.0),
        ("<answer>0</answer>", 0.0),
        ("<answer>2</answer><answer>2</answer>", 0.0),
        ("2", 0.0),
    ],
)
def test_think_rm_gives_half_for_the_sign(text, reward):
    """arXiv:2505.16265, with gold 2."""
    assert VerdictReward(rule="strength").of(text, "2") == reward
    with pytest.raises(ValueError, match="none of"):
        VerdictReward(rule="strength").of(text, "0")


@pytest.mark.parametrize(
    ("labels", "text", "reward"),
    [
        ("0,1", r"\boxed{6, 6}", -1),
        ("0,1", r"\boxed{5, 6}", 1),
        ("1", r"\boxed{1}", 1),
        ("1", r"\boxed{0}", -1),
        ("0,1", r"\boxed{5}", -1),
        ("0,1", r"\boxed{5, six}", -1),
        ("0,1", "5, 6", -1),
        ("0,3,1", r"First \boxed{9, 1, 1}, no: \boxed{2, 9, 8}", 1),
    ],
)
def test_spct_wants_the_best_strictly_first(labels, text, reward):
    """arXiv:2504.02495."""
    assert VerdictReward(rule="list").of(text, labels) == reward


def test_labels_without_a_best_are_refused():
    with pytest.raises(ValueError, match="no single best"):
        VerdictReward(rule="list").of(r"\boxed{1, 2}", "1,1")
    with pytest.raises(ValueError, match="no list of numbers"):
        VerdictReward(rule="list").of(r"\boxed{1, 2}", "A")
    assert not ranks_best([], [1.0])


async def test_a_group_is_scored_by_its_label():
    made = group(f"so {B}", f"so {A}", "nothing", answer="B")
    scores = await VerdictReward().score(made, Services())
    assert scores.values.tolist() == [1, -1, -1]


def test_tags_that_hold_each_other_are_refused():
    with pytest.raises(ValueError, match="one holds the other"):
        VerdictReward(tags=("1", "11"))
