"""Anchors: the part of the evaluation tasks that the initial policy was surest of, and who still answers them so."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rewards.monitors.anchor_tasks import agreement, anchors_of, answers
from tests.rewards.groups import group


@pytest.fixture(autouse=True)
def half(monkeypatch):
    monkeypatch.setattr("rewards.monitors.anchor_tasks.SHARE", 0.5)


def answered(task: str, answer: str | None, logprob: float):
    made = group("x")
    rollout = made.rollouts[0]
    logprobs = np.where(rollout.loss_mask, np.float32(logprob), np.float32(0))
    said = replace(rollout, text="" if answer is None else answer, answer=answer, logprobs=logprobs)
    return replace(made, task=replace(made.task, id=task), rollouts=(said,))


FIRST = [answered("a", "12", -0.1), answered("b", "7", -2.0), answered("c", "9", -0.2), answered("d", "5", -1.0)]


def test_the_surest_half_with_an_answer_are_anchors():
    assert set(anchors_of(answers(FIRST))) == {"a", "c"}
    assert set(anchors_of(answers([*FIRST[1:], answered("a", None, -0.01)]))) == {"c", "d"}


def test_agreement_counts_anchors_alone():
    anchors = anchors_of(answers(FIRST))
    learnt = [answered("a", "12", -3.0), answered("b", "8", 0.0), answered("c", " 9 ", -0.1), answered("d", "6", 0.0)]
    assert agreement(anchors, answers(learnt)) == 1.0
    assert agreement(anchors, answers([answered("a", "0", 0.0), answered("c", "9", 0.0)])) == 0.5
    assert agreement(anchors, answers([answered("a", None, 0.0), answered("c", "0", 0.0)])) == 0.0


def test_what_was_not_asked_is_unknown():
    anchors = anchors_of(answers(FIRST))
    assert agreement(anchors, answers([answered("a", "12", 0.0), answered("b", "0", 0.0)])) == 1.0
    assert math.isnan(agreement(anchors, answers([answered("b", "7", 0.0)])))
    assert math.isnan(agreement({}, answers(FIRST)))


def test_confidence_is_of_the_chosen_tokens_alone():
    assert answers([answered("a", "12", -0.5)])["a"][1] == pytest.approx(-0.5)
