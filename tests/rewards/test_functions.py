"""Plain functions as rewards: by signature, in threads, and one rollout's failure is its own."""

import pickle

import numpy as np
import pytest

from cluster.config import RewardSection
from cluster.errors import ConfigError
from cluster.types import ABSTAINED, FAILED, SCORED
from rewards.base import Services
from rewards.registry import build_reward
from tests.rewards.groups import group


def length(prompt, completion):
    return len(completion) / len(prompt)


def right(prompt, answer):
    return float(answer == "85")


def scaled(completion, ground_truth, scale=1.0):
    return scale * (completion == ground_truth)


async def slowly(completion):
    return 1.0


def moody(completion):
    if completion == "raise":
        raise KeyError("no such key")
    return {"none": None, "nan": float("nan"), "text": "0.5", "inf": float("inf"), "true": True}[completion]


def trl(prompts, completions, ground_truth, **kwargs):
    assert len(prompts) == len(ground_truth) == len(kwargs["data_source"]) == len(completions)
    return [None if c == "?" else float(c == a) for c, a in zip(completions, ground_truth, strict=True)]


def trl_narrow(completions):
    return [1.0 for _ in completions]


def too_few(prompts, completions, **kwargs):
    return [1.0]


def verl(data_source, solution_str, ground_truth, extra_info):
    return {"score": float(solution_str == ground_truth and extra_info["split"] == "train"), "other": 3}


def blind(prompt):
    return 1.0


def demanding(completion, temperature):
    return temperature


HERE = "tests.rewards.test_functions"


def reward(function, **options):
    return build_reward(RewardSection(use=f"{HERE}:{function}", options=options), "rewards[0]")


@pytest.fixture
def services():
    made = Services()
    yield made
    made.close()


async def test_prompt_and_completion_are_filled_by_name(services):
    assert (await reward("length").score(group("123", "123456"), services)).values.tolist() == [0.5, 1]


async def test_answer_alone_is_the_policys(services):
    assert (await reward("right").score(group("85", "the answer is 85", "86"), services)).values.tolist() == [1, 1, 0]


async def test_options_are_passed_on(services):
    assert (await reward("scaled", scale=2.5).score(group("85", "86"), services)).values.tolist() == [2.5, 0]


async def test_async_functions_are_awaited(services):
    assert (await reward("slowly").score(group("a", "b"), services)).values.tolist() == [1, 1]


async def test_nothing_but_a_finite_number_is_a_score(services):
    scores = await reward("moody").score(group("raise", "none", "nan", "text", "inf", "true"), services)
    assert scores.state.tolist() == [FAILED, ABSTAINED, FAILED, FAILED, FAILED, SCORED]
    assert np.isnan(scores.values[:5]).all()
    assert "KeyError: 'no such key'" in scores.provenance[0].note


async def test_trl_functions_get_columns(services):
    scores = await reward("trl").score(group("85", "86", "?"), services)
    assert scores.values[:2].tolist() == [1, 0]
    assert scores.state[2] == ABSTAINED
    assert (await reward("trl_narrow").score(group("85", "86"), services)).values.tolist() == [1, 1]


async def test_a_list_of_the_wrong_length_is_an_error_that_names_the_function(services):
    with pytest.raises(ValueError, match=r"too_few returned \[1.0\] for 2 completions"):
        await reward("too_few").score(group("85", "86"), services)


async def test_verl_functions_get_their_columns(services):
    made = group("85", "86", extra_info={"split": "train"})
    assert (await reward("verl").score(made, services)).values.tolist() == [1, 0]


async def test_a_function_of_a_file(services, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def short(completion, limit=2):\n    return len(completion) <= limit\n")
    made = build_reward(RewardSection(use=f"{file}:short", options={"limit": 1}), "rewards[0]")
    again = pickle.loads(pickle.dumps(made))
    for one in (made, again):
        assert (await one.score(group("8", "85"), services)).values.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        (f"{HERE}:length", {"scale": 1}, "takes no 'scale'. Its parameters: prompt, completion"),
        (f"{HERE}:blind", {}, "does not look at the rollout"),
        (f"{HERE}:HERE", {}, "A reward is a subclass"),
        (f"{HERE}:nothing", {}, "cannot be imported"),
        ("nowhere/mine.py:f", {}, "there is no file"),
    ],
)
def test_a_function_that_cannot_serve_is_refused_before_the_run(use, options, message):
    with pytest.raises(ConfigError, match=message):
        build_reward(RewardSection(use=use, options=options), "rewards[0]")


def test_a_file_that_does_not_load_is_named(tmp_path):
    (tmp_path / "bad.py").write_text("1/0")
    with pytest.raises(ConfigError, match=r"bad.py:f.*ZeroDivisionError"):
        build_reward(RewardSection(use=f"{tmp_path}/bad.py:f"), "rewards[0]")
