"""Every reward honours the contract, and each says the right thing about known texts."""

import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio

from cluster.config import RewardSection
from cluster.types import ABSTAINED, FAILED, SCORED
from rewards.base import Services
from rewards.judges.backends.keyword import KeywordJudge
from rewards.judges.pool.pool import JudgePool
from rewards.learned.bradley_terry import BradleyTerry
from rewards.learned.client import RewardModelClient
from rewards.learned.labels import MemoryLabels
from rewards.learned.publishing import Announcement, MemoryBoard, write
from rewards.registry import REWARDS, build_reward
from rewards.scorers.pool import LogprobScorer
from tests.rewards.groups import group, rollout
from tests.rewards.scoring.stand_in import Given, reading_of

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one set of child processes for all

OPTIONS = {
    "length_penalty": {"max_tokens": 8, "cache_tokens": 4},
    "events": {"event": "call"},
    "features": {"features": [{"use": "exact"}, {"use": "numeric"}]},
    "heron": {"factors": [{"use": "exact"}]},
    "heron_model": {"factors": [{"use": "exact"}]},
    "teacher": {"scorer": "scorer"},
    "verifiers": {"object": "tests.rewards.rubric_like:RUBRIC"},
}
TEXTS = ("85", "86", "", "<answer>85", "The answer is 85.", "\\boxed{", "\x00\ud800"[:1], "9" * 5000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(tmp_path_factory):
    path, board = tmp_path_factory.mktemp("model") / "1.model", MemoryBoard()
    write(path, BradleyTerry().state(training=False))
    learnt = {}
    for name in ("reward_model", "cooper", "heron", "features", "meta_rm", "polar", "quality_value"):
        board.announce(Announcement(name, "bradley_terry.1", str(path), 1, 0.9))
        learnt[name] = RewardModelClient(name, "bradley_terry", BradleyTerry, labels=MemoryLabels(), board=board)
    scorer = LogprobScorer("scorer", deadline_s=5)
    replica = Given(
        lambda passage: reading_of([[0.5, 0.3, 0.2]] * (len(passage.tokens) + 1), [0] * len(passage.tokens))
    )
    scorer.set({"scorer:scorer-0": replica})
    made = Services(
        judges={"judge": JudgePool("judge", [KeywordJudge()])},
        reward_models=learnt,
        scorers={"scorer": scorer, "initial": scorer},
        encode=lambda messages: ([1], [0] * max(1, len(messages[-1].content))),
        text=lambda tokens: "x" * len(tokens),  # as long as the text, which has a character a token
    )
    yield made
    made.close()


def reward(name, **options):
    return build_reward(RewardSection(use=name, options=options or OPTIONS.get(name, {})), "rewards[0]")


async def values(name, services, *texts, answer: str | None = "85", **options):
    return (await reward(name, **options).score(group(*texts, answer=answer), services)).values.tolist()


@pytest.mark.parametrize("name", REWARDS)
async def test_there_is_one_score_per_rollout_whatever_the_reference(name, services):
    for answer in ("85", None, "no number"):
        scores = await reward(name).score(group(*TEXTS, answer=answer), services)
        assert scores.values.shape == (len(TEXTS),)


@pytest.mark.parametrize("name", REWARDS)
async def test_every_reward_survives_pickling(name, services):
    made = reward(name)
    again = pickle.loads(pickle.dumps(made))
    one, two = group("85", "8"), group("85", "8")
    assert again == made
    assert np.array_equal(
        (await again.score(one, services)).values, (await made.score(two, services)).values, equal_nan=True
    )


@pytest.mark.parametrize("name", ["exact", "numeric", "math"])
async def test_without_a_reference_answer_nothing_is_scored(name, services):
    scores = await reward(name).score(group("85", "86", answer=None), services)
    assert (scores.state == ABSTAINED).all()


async def test_exact_looks_past_spacing_case_and_final_stop(services):
    assert await values("exact", services, "Paris", " paris. ", "Paris, France", "", answer="paris") == [1, 1, 0, 0]
    assert await values("exact", services, "Paris", "paris", answer="paris", ignore_case=False) == [0, 1]


async def test_the_environments_answer_counts_before_the_text(services):
    made = replace(group("x", "85"), rollouts=(rollout("x", answer="85"), rollout("85", answer="x")))
    assert (await reward("exact").score(made, services)).values.tolist() == [1, 0]


async def test_numeric_within_its_tolerance(services):
    assert await values("numeric", services, "85.0000001", "85.4", "86", absolute=0.5) == [1, 1, 0]
    assert await values("numeric", services, "90", "95", absolute=0.0, relative=0.1) == [1, 0]


async def test_math_sees_through_notation(services):
    texts = ("\\boxed{0.5}", "so $\\frac{2}{4}$", "<answer>1/2</answer>", "\\boxed{2} or \\boxed{1/2}", "2", "")
    assert await values("math", services, *texts, answer="\\frac{1}{2}") == [1, 1, 1, 1, 0, 0]


async def test_math_does_not_take_a_thought_for_the_answer(services):
    texts = ("<think>\\boxed{85}</think> \\boxed{84}", "<think>\\boxed{85}", "\\boxed{85} no \\boxed{84}")
    assert await values("math", services, *texts) == [0, 0, 0]


async def test_an_answer_that_hangs_the_checker_is_failed_and_the_others_are_scored(services):
    await values("math", services, "85")  # warm: a started process
    start = time.monotonic()
    made = reward("math", timeout_s=3.0)
    scores = await made.score(group("\\boxed{\\lfloor 9^{9^{9^{9}}} \\rfloor}", "85", "84"), services)
    assert scores.state.tolist() == [FAILED, SCORED, SCORED]
    assert scores.values[1:].tolist() == [1, 0]
    assert "did not end within" in scores.provenance[0].note
    assert time.monotonic() - start < 60


async def test_a_pattern_that_backtracks_forever_ends(services):
    made = reward("format", pattern="(a+)+b", timeout_s=1.0)
    with pytest.raises(TimeoutError, match="did not end"):
        await made.score(group("a" * 60), services)
    assert await values("format", services, "<think>a\nb</think>\n<answer>1</answer>", "<answer>1</answer>") == [1, 0]


async def test_overlong_rollouts_lose_linearly(services):
    scores = await reward("length_penalty", max_tokens=8, cache_tokens=4).score(
        group("1234", "123456", "12345678", "1234567890"), services
    )
    assert scores.values.tolist() == [0, -0.5, -1, -1]


async def test_majority_rewards_the_most_common_answer(services):
    assert await values("majority", services, "85", "85.", "84", "a\nb", answer=None) == [1, 1, 0, 0]


async def test_majority_abstains_below_its_share(services):
    scores = await reward("majority", min_share=0.6).score(group("1", "1", "2", "3"), services)
    assert (scores.state == ABSTAINED).all()


async def test_reasoning_gym_scores_with_its_own_scorer(services):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    recipe = {"name": "leg_counting", "seed": 1, "size": 3, "config": {}}
    entry = reasoning_gym.create_dataset("leg_counting", seed=1, size=3)[2]
    texts = (entry["answer"], f"<answer>{entry['answer']}</answer>", "-1")
    made = group(*texts, answer=None, prompt=entry["question"], reasoning_gym={**recipe, "index": 2})
    scores = await reward("reasoning_gym").score(made, services)
    assert scores.values[:2].tolist() == [1, 1]
    assert scores.values[2] < 1


async def test_reasoning_gym_refuses_an_entry_that_is_another_one(services):
    recipe = {"name": "leg_counting", "seed": 1, "size": 3, "config": {}, "index": 0}
    scores = await reward("reasoning_gym").score(group("1", prompt="something else", reasoning_gym=recipe), services)
    assert scores.state.tolist() == [FAILED]
    assert "versions differ" in scores.provenance[0].note


async def test_the_environments_own_reward_is_unknown_where_it_gave_none(services):
    plain, values = group("a", "b", "c"), (0.5, float("nan"), -1.0)
    rollouts = [replace(r, reward=value) for r, value in zip(plain.rollouts, values, strict=True)]
    scores = await reward("environment").score(replace(plain, rollouts=tuple(rollouts)), services)
    assert scores.state.tolist() == [SCORED, FAILED, SCORED]
    assert scores.values[[0, 2]].tolist() == [0.5, -1.0]


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><think>b</think><answer>1</answer>",
        "<think>a<think>b</think></think><answer>1</answer>",
        "<think>a</think><answer>1</answer><answer>2</answer>",
        "<think>a</think><answer><answer>2</answer></answer>",
        "<think>a</think><answer>1</answer><think>b</think><answer>2</answer>",
    ],
)
async def test_several_or_nested_blocks_are_not_in_the_form(text, services):
    assert await values("format", services, text, "<think>a</think><answer>1</answer>") == [0, 1]
