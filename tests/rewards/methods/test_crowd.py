"""A vote weighed by each policy's consistency, by the numbers of RLCCF (arXiv:2508.12338)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.types import ABSTAINED, Group, Scores
from rewards.base import Services
from rewards.builtin.crowd import (
    Crowd,
    CrowdAgreement,
    CrowdShare,
    consistency,
    largest_share,
    pairwise_agreement,
    weighted_votes,
)
from tests.rewards.groups import group

THREE = {"m1": "aaaa", "m2": "bbbc", "m3": "bbde"}


def crowd(**answers: str) -> Group:
    """A letter an answer, `-` for none."""
    given = [(policy, None if a == "-" else a) for policy, letters in answers.items() for a in letters]
    made = group(*("" for _ in given))
    rollouts = (replace(r, policy=p, answer=a) for r, (p, a) in zip(made.rollouts, given, strict=True))
    return replace(made, rollouts=tuple(rollouts))


async def score(reward: type, **answers: str) -> Scores:
    return await reward().score(crowd(**answers), Services())


def test_votes_of_three_models():
    assert [consistency(list(given)) for given in THREE.values()] == [1.0, 0.75, 0.5]
    votes = weighted_votes({name: list(given) for name, given in THREE.items()})
    assert votes == {"a": 4.0, "b": 3.25, "c": 0.75, "d": 0.5, "e": 0.5}


async def test_the_sure_model_outvotes_the_many():
    rewards = (await score(Crowd, **THREE)).values
    assert rewards.tolist() == [1] * 4 + [0] * 8, "unweighted, b would win with 5 votes to 4"


async def test_one_policy_votes_by_majority_and_ties_go_to_the_first():
    assert (await score(Crowd, m1="bcab")).values.tolist() == [1, 0, 0, 1]
    assert (await score(Crowd, m1="aabb", m2="bbaa")).values.tolist() == [1, 1, 0, 0, 0, 0, 1, 1]


async def test_a_missing_answer_has_no_vote_and_makes_its_policy_less_consistent():
    assert consistency(["a", "a", None, None]) == 0.5
    assert (await score(Crowd, m1="aa--", m2="bb")).values.tolist() == [0, 0, 0, 0, 1, 1]
    scores = await score(Crowd, m1="--", m2="--")
    assert (scores.state == ABSTAINED).all()
    assert np.isnan(scores.values).all()


async def test_who_decides_and_who_agrees():
    lists = {name: list(given) for name, given in THREE.items()}
    assert largest_share(lists) == pytest.approx(4 / 9)
    assert pairwise_agreement(lists) == pytest.approx(1 / 3), "m2 and m3 say b"
    assert (await score(CrowdShare, **THREE)).values == pytest.approx(np.full(12, 4 / 9))
    assert (await score(CrowdAgreement, **THREE)).values == pytest.approx(np.full(12, 1 / 3))
    assert ((await score(CrowdAgreement, m1="aa", m2="--")).state == ABSTAINED).all()
    assert ((await score(CrowdShare, m1="--", m2="--")).state == ABSTAINED).all()
