"""Self-Certainty and Borda voting (arXiv:2502.18581): the acceptance numbers, and what a rollout's own tokens are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.errors import ConfigError
from cluster.types import ABSTAINED, SCORED, GroupReward, Scores
from rewards.aggregation.selectors import SELECTORS
from rewards.aggregation.selectors.votes import Borda, borda_votes, borda_winner, weighted_winner
from rewards.base import UNVERSIONED, Services
from rewards.builtin.self_certainty import SelfCertainty, certainty
from tests.rewards.groups import group
from tests.rewards.scoring.stand_in import reading_of, services_with

UNIFORM, SURE = [0.25] * 4, [0.7, 0.1, 0.1, 0.1]


def test_the_divergence_from_a_blind_guess():
    sums = np.log([UNIFORM, SURE]).sum(1)
    assert certainty(sums, 4) == pytest.approx([0, 0.429813], abs=1e-6)
    assert certainty(sums, 4).mean() == pytest.approx(0.214907, abs=1e-6)


@pytest.mark.parametrize(("shift", "expected"), [("own", 0.214907), ("released", 0.429813)])
async def test_a_rollout_is_worth_the_mean_over_the_tokens_it_chose(shift, expected):
    services, replica = await services_with(lambda p: reading_of([UNIFORM, SURE, SURE], p.tokens % 4))
    scores = await SelfCertainty(shift=shift).score(group("ab"), services)
    assert scores.values == pytest.approx([expected], abs=1e-6)
    assert scores.version == UNVERSIONED, "a live policy's next step does not have stored groups read again"
    assert (scores.provenance[0].model, scores.provenance[0].judge) == ("policy@1.3", "scorer:scorer")
    (asked,) = replica.asked[0]
    assert (asked.prompt.tolist(), asked.tokens.tolist()) == ([0, 1], [2, 3])


async def test_what_an_environment_said_in_between_does_not_count():
    made = group("abc")
    mask = np.array([False, False, True, False, True])
    made = replace(made, rollouts=(replace(made.rollouts[0], loss_mask=mask),))
    services, _ = await services_with(lambda p: reading_of([SURE, UNIFORM, SURE, UNIFORM], p.tokens % 4))
    assert (await SelfCertainty().score(made, services)).values == pytest.approx([0.429813], abs=1e-6)


async def test_without_an_answer_or_a_token_it_abstains():
    made = group("so <answer>1</answer>", "line\nline", "")
    services, _ = await services_with(lambda p: reading_of([SURE] * (len(p.tokens) + 1), p.tokens % 4))
    scores = await SelfCertainty(answered=True, extract="tag").score(made, services)
    assert scores.state.tolist() == [SCORED, ABSTAINED, ABSTAINED]
    open_to_all = await SelfCertainty().score(made, services)
    assert open_to_all.state.tolist() == [SCORED, SCORED, ABSTAINED]


async def test_a_scorer_that_is_not_there_is_an_error_of_the_recipe():
    with pytest.raises(ConfigError, match=r"no scorer 'scorer'.*\[scorers\.scorer\]"):
        await SelfCertainty().prepare(Services())


def test_borda_votes_between_majority_and_the_surest():
    values, answers = np.array([0.9, 0.8, 0.7, 0.6]), ["A", "B", "B", "C"]
    assert borda_votes(values, answers, 0) == {"A": 1, "B": 2, "C": 1}
    assert borda_votes(values, answers, 1) == {"A": 4, "B": 5, "C": 1}
    assert borda_votes(values, answers, 2) == {"A": 16, "B": 13, "C": 1}
    assert [borda_winner(values, answers, p) for p in (0, 1, 2)] == [1, 1, 0]


def test_no_answer_takes_its_rank_and_has_no_vote_and_an_unknown_value_has_neither():
    values = np.array([0.1, np.nan, 0.9, 0.5])
    assert borda_votes(values, ["A", "A", None, "B"], 1) == {"A": 1, "B": 2}
    assert borda_winner(values, [None, "A", None, None], 1) is None
    assert borda_winner(np.array([np.nan, 0.5]), ["A", "A"], 1) == 1


def test_the_selector_keeps_the_first_of_the_winning_answer():
    made = group("A", "B", "B", "C")
    assert SELECTORS["borda"] is Borda
    scores = {"sure": Scores.of([0.9, 0.8, 0.7, 0.6])}
    for power, kept in ((0, 1), (2, 0)):
        rewards = Borda(reward="sure", power=power).select(made, scores, GroupReward(np.arange(4.0))).rewards
        assert np.flatnonzero(np.isfinite(rewards)).tolist() == [kept]
        assert rewards[kept] == kept
    left_out = Borda(reward="sure", power=0).select(made, scores, GroupReward(np.array([0, np.nan, 2, 3])))
    assert np.flatnonzero(np.isfinite(left_out.rewards)).tolist() == [0], "a tie of three: the first answer"
    unknown = Borda(reward="sure").select(made, {}, GroupReward(np.arange(4.0)))
    assert np.isnan(unknown.rewards).all()


def test_a_weighted_vote_counts_values_between_0_and_1():
    answers = ["A", "B", "B", None, "C"]
    assert weighted_winner(np.array([0.9, 0.3, 0.5, 9.0, 0.1]), answers) == 0
    assert weighted_winner(np.array([0.7, 0.3, 0.5, 9.0, 0.1]), answers) == 1
    assert weighted_winner(np.array([5.0, 0.6, 0.6, 9.0, 0.1]), answers) == 1, "a value above 1 counts as 1"
    assert weighted_winner(np.array([np.nan, -1.0, 0.0, 1.0, np.nan]), answers) is None
    assert weighted_winner(np.array([np.nan, -1.0, 0.2, 1.0, np.nan]), answers) == 2
