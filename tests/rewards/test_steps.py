"""Steps of a rollout: where they end in the text and in the tokens, and what a judge says of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import RewardSection, parse
from cluster.errors import ConfigError
from cluster.types import ABSTAINED, FAILED, SCORED, Group, Rollout, Scores, Turn
from rewards.aggregation.mixer import Mixer
from rewards.base import Services
from rewards.builtin.steps import StepScores, Thoughts, answer_steps
from rewards.judges.backends.keyword import KeywordJudge
from rewards.judges.pool.pool import JudgePool
from rewards.parsing.steps import Step, paragraphs, steps_of, text_ends, token_ends
from rewards.registry import build_reward
from rewards.sandbox.launch import refusal
from tests.rewards.groups import group

PIECES = ["", "a", "b", "ab", "\n", "\n\n", "good", "bad", " ", "</think>", ".", "85", "\n\nb"]


def decode(tokens: Sequence[int]) -> str:
    return "".join(PIECES[t] for t in tokens)


def rollout(*tokens: int) -> Rollout:
    """A prompt of two tokens, then these."""
    n = len(tokens)
    made = group("x" * n).rollouts[0]
    return replace(
        made,
        tokens=np.array([1, 1, *tokens], np.int32),
        text=decode(tokens),
        turns=(Turn("user", 0, 2, "ab"), Turn("assistant", 2, 2 + n, decode(tokens))),
    )


def of(*rollouts: Rollout, answer: str = "85") -> Group:
    return replace(group("x", answer=answer), rollouts=rollouts)


@pytest.mark.parametrize(
    ("text", "ends"),
    [("", []), ("a", [1]), ("a\n\nb", [3, 4]), ("a\n\n\n b\n\n", [5, 8]), ("\n\na", [3]), (" \n\n ", [])],
)
def test_blank_steps_are_no_steps(text, ends):
    assert text_ends(text, paragraphs(text)) == ends


def test_a_step_ends_with_the_token_that_completes_it_and_the_end_of_sequence_is_the_last_ones():
    made = rollout(6, 5, 7, 4, 4, 1, 0)  # good \n\n bad \n \n a, and a token that writes nothing
    assert steps_of(made, decode) == [Step("good\n\n", 2, 4), Step("bad\n\n", 4, 7), Step("a", 7, 9)]
    assert steps_of(rollout(0), decode) == [Step("", 2, 3)]
    within = rollout(1, 12)  # a, then "\n\nb" in one token
    assert steps_of(within, decode) == [Step("a\n\nb", 2, 4)]
    assert steps_of(replace(made, loss_mask=np.zeros(9, bool)), decode) == []
    with pytest.raises(ValueError, match="2 turns"):
        steps_of(replace(made, turns=(*made.turns, made.turns[-1])), decode)


@given(st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=30))
def test_steps_share_out_all_tokens_and_all_text(tokens):
    made = rollout(*tokens)
    steps = steps_of(made, decode)
    assert "".join(step.text for step in steps) == made.text
    assert [step.start for step in steps] == [2, *(step.end for step in steps[:-1])]
    assert steps[-1].end == len(made.tokens)
    assert all(step.start < step.end for step in steps)
    for step in steps[:-1]:
        assert len(decode(made.tokens[2 : step.end].tolist())) >= sum(
            len(s.text) for s in steps if s.end <= step.end
        ), "its tokens write its text"


def test_bytes_of_one_character_count_when_it_is_whole():
    def halves(tokens):
        return "x" * (len(tokens) // 2)

    assert token_ends([1, 2, 3], [0] * 5, halves) == [2, 4, 5]


async def services_with(*keywords: str, **judge: float) -> Services:
    pool = JudgePool("judge", [KeywordJudge(keywords, **judge)], deadline_s=5)
    return Services(judges={"judge": pool}, text=decode)


GOOD_BAD = (6, 5, 7, 5, 6, 0)  # good \n\n bad \n\n good <end>


async def test_a_steps_score_stands_at_its_last_token():
    reward = StepScores(template_options={"highest": 1})
    services = await services_with("good")
    await reward.prepare(services)
    scores = await reward.score(of(rollout(*GOOD_BAD), rollout(7)), services)
    assert scores.tokens is not None
    np.testing.assert_array_equal(scores.tokens[0], [np.nan] * 3 + [1, np.nan, 0, np.nan, 1])
    np.testing.assert_array_equal(scores.tokens[1], [np.nan, np.nan, 0])
    assert scores.values == pytest.approx([2 / 3, 0])
    assert scores.provenance[0].judge == "judge"
    assert scores.version == reward.version() != StepScores().version()


@pytest.mark.skipif(bool(refusal()), reason=refusal())
async def test_a_separator_of_the_users_is_bounded_however_it_backtracks():
    services = await services_with("good")
    try:
        steps = StepScores(template_options={"highest": 1}, separator=r"\n+")
        assert steps.evaluates()
        assert not StepScores().evaluates()
        await steps.prepare(services)
        scores = await steps.score(of(rollout(*GOOD_BAD)), services)
        assert scores.tokens is not None
        np.testing.assert_array_equal(scores.tokens[0], [np.nan] * 3 + [1, np.nan, 0, np.nan, 1])
        endless = StepScores(separator=r"(a|a)+$", separator_timeout_s=1.0)
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match="did not end within 1 s"):
            await endless.score(of(rollout(*[1] * 60, 6)), services)
        assert time.monotonic() - begun < 20
    finally:
        services.close()


async def test_an_unreadable_judge_is_a_failure_and_nothing_written_is_none():
    services = await services_with("good", unreadable_rate=1.0)
    empty = replace(rollout(6), loss_mask=np.zeros(3, bool))
    scores = await StepScores().score(of(rollout(*GOOD_BAD), empty), services)
    assert scores.state.tolist() == [FAILED, ABSTAINED]
    assert all(np.isnan(t).all() for t in scores.tokens or ())


async def test_clip_and_delta_of_a_judges_scores_are_token_rewards():
    shape = {"use": "clip_delta", "options": {"eta": 0.5}}
    sections = [
        RewardSection(use="exact", name="exact"),
        RewardSection(use="step_scores", name="steps", weight=0.1, shape=shape),
    ]
    q = [np.array([np.nan, np.nan, 0.9, np.nan, 0.8, 0.3, 0.95]), np.full(7, np.nan)]
    made = of(rollout(1, 1, 1, 1, 1), rollout(1, 1, 1, 1, 1))
    steps = Scores(np.array([0.7375, np.nan]), np.array([SCORED, FAILED], np.uint8), (), "1", tuple(q))
    scores = {"exact": Scores.of([1.0, 1.0]), "steps": steps}
    mixed = Mixer(sections, ["exact", "steps"], 1)(made, scores)
    assert mixed.tokens is not None
    assert mixed.tokens[0] == pytest.approx([0, 0, 0, 0, 0.02, -0.02, 0])
    assert mixed.rewards[0] == pytest.approx(1.0)
    assert np.isnan(mixed.rewards[1]), "what is unknown leaves the rollout out"
    raw = RewardSection(use="step_scores", name="steps", weight=0.1, shape=shape | {"options": {"clip": False}})
    unclipped = Mixer([sections[0], raw], ["exact", "steps"], 1)(made, scores)
    assert unclipped.rewards[0] == pytest.approx(1 + 0.1 * 0.9)
    with pytest.raises(ConfigError, match=r"'steps' \(ClipDelta\) is of token values"):
        Mixer(sections, ["exact", "steps"], 1)(made, {**scores, "steps": Scores.of([1.0, 1.0])})


async def test_thoughts_that_count_against_the_outcome_are_flagged():
    right = rollout(6, 5, 7, 5, 11, 0)  # good \n\n bad \n\n 85
    wrong = rollout(7, 5, 6, 5, 7, 0)  # bad \n\n good \n\n bad
    reward = Thoughts(verifier_options={"extract": "last_number"})
    services = await services_with("good", "85")
    await reward.prepare(services)
    scores = await reward.score(of(right, wrong), services)
    assert scores.tokens is not None
    assert scores.tokens[0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0], "of the right one what it takes back"
    assert scores.tokens[1].tolist() == [0, 0, 1, 1, 0, 0, 0, 0], "of the wrong one what is unlike its answer, not that"
    assert scores.values == pytest.approx([2 / 6, 2 / 6])


async def test_without_a_verdict_there_are_no_thoughts():
    reward = Thoughts(verifier_options={"extract": "last_number"})
    made = of(rollout(6, 5, 11), answer=None)
    assert reward.declines(made.task)
    scores = await reward.score(made, await services_with("good"))
    assert scores.state.tolist() == [ABSTAINED]
    assert np.isnan(scores.tokens[0]).all()
    failing = await reward.score(of(rollout(6, 5, 11)), await services_with("good", unreadable_rate=1.0))
    assert failing.state.tolist() == [FAILED]
    assert np.isnan(failing.tokens[0]).all()


def test_the_answer_part_is_behind_the_last_thought():
    def steps(*texts):
        return [Step(t, i, i + 1) for i, t in enumerate(texts)]

    assert answer_steps(steps("a", "b</think>", "c", "d")) == 2
    assert answer_steps(steps("a", "b", "c")) == 1
    assert answer_steps(steps("a", "b</think> c")) == 1


def test_what_cannot_serve_is_refused_before_a_run():
    with pytest.raises(ConfigError, match="not a regular expression"):
        build_reward(RewardSection(use="step_scores", options={"separator": "("}), "rewards[0]")
    with pytest.raises(ConfigError, match=r"asks the judge 'judge'.*\[judges\.judge\]"):
        parse({"rewards": [{"use": "exact"}, {"use": "thoughts", "weight": 0.0}]})
    with pytest.raises(ConfigError, match="tokenizer"):
        Services().text([1])
