"""On-policy distillation: a token's reward is the teacher's log-prob less the policy's (arXiv:2306.13649)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.config import parse
from cluster.driver.preflight_plugins import plugins
from cluster.errors import ConfigError
from cluster.types import ABSTAINED
from rewards.base import Services
from rewards.builtin.teacher import Teacher, teacher_ratio
from rewards.scorers.pool import LogprobScorer
from rewards.scorers.types import ScorerUnavailable
from tests.rewards.groups import group
from tests.rewards.scoring.stand_in import Given, of_logprobs


async def teachers(**logprobs: tuple[float, ...]) -> Services:
    scorers = {}
    for name, values in logprobs.items():
        scorers[name] = LogprobScorer(name, deadline_s=0.05)
        read = Given(
            lambda passage, values=values, name=name: of_logprobs(values[: len(passage.tokens)], f"runs/{name}@7")
        )
        scorers[name].set({f"scorer:{name}-0": read} if values else {})
    return Services(scorers=scorers)


def written(*logprobs: float, temperature: float = 1.0):
    """A group of one rollout whose tokens, behind a prompt of two, were sampled with these log-probs."""
    made = group("x" * len(logprobs))
    behaviour = np.array([0, 0, *logprobs], np.float32)
    return replace(made, rollouts=(replace(made.rollouts[0], logprobs=behaviour, temperature=temperature),))


def test_several_teachers_are_a_weighted_mean_of_log_ratios():
    policy, found = np.array([-1.0, -2.0]), {"a": np.array([-0.5, -1.0]), "b": np.array([-3.0, -2.5])}
    assert teacher_ratio(found, policy, {"a": 3.0, "b": 1.0}) == pytest.approx([(3 * 0.5 - 2) / 4, (3 * 1 - 0.5) / 4])


async def test_each_token_that_the_policy_chose_has_its_own_reward_and_the_rollout_their_sum():
    made = written(-1.0, -2.0, -0.5)
    rollout = replace(made.rollouts[0], loss_mask=np.array([False, False, True, False, True]))
    scores = await Teacher().score(replace(made, rollouts=(rollout,)), await teachers(teacher=(-0.25, -9.0, -1.5)))
    assert scores.tokens is not None
    assert scores.tokens[0].tolist() == [0, 0, 0.75, 0, -1.0]
    assert scores.values.tolist() == [-0.25]
    assert scores.provenance[0].model == "runs/teacher@7"


async def test_log_ratios_can_be_bounded():
    scores = await Teacher(bound=2.0).score(written(-1.0, -1.0), await teachers(teacher=(-30.0, -0.5)))
    assert scores.values.tolist() == [-1.5]


async def test_teachers_are_asked_about_the_sources_that_they_weigh():
    services = await teachers(adder=(-0.5,), writer=(-3.0,))
    reward = Teacher(scorer=("adder", "writer"), weights={"adder": {"sums": 1.0}, "writer": {"poems": 1.0}})
    assert (await reward.score(written(-1.0), services)).values.tolist() == [0.5]
    other = replace(written(-1.0), task=replace(written(-1.0).task, source="code"))
    unscored = await reward.score(other, services)
    assert unscored.state.tolist() == [ABSTAINED]
    assert "source 'code'" in unscored.provenance[0].note


async def test_at_another_temperature_a_scorer_reads_the_policy():
    services, warm = await teachers(teacher=(-0.5,), live=(-0.75,)), written(-1.0, temperature=0.7)
    with pytest.raises(ValueError, match=r"sampled at temperature 0\.7"):
        await Teacher().score(warm, services)
    assert (await Teacher(student="live").score(warm, services)).values.tolist() == [0.25]


async def test_a_teacher_that_is_away_leaves_the_score_unknown():
    """The reward worker makes `failed` of what is raised (`rewards.asking`)."""
    from rewards.asking import ask

    services = await teachers(teacher=())
    with pytest.raises(ScorerUnavailable, match="no replica is there"):
        await Teacher().score(written(-1.0), services)
    scores, failure = await ask(Teacher(), written(-1.0), services, 5.0, "teacher")
    assert np.isnan(scores.values).all()
    assert "ScorerUnavailable" in failure
    services.close()


TEACHER = {"rewards": [{"use": "teacher"}], "scorers": {"teacher": {"model": "initial"}}}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (TEACHER | {"rollout": {"temperature": 0.7}}, r"rollout.temperature = 0.7. Set it to 1, or rewards\[0\].opti"),
        ({"rewards": [{"use": "teacher"}]}, r"rewards\[0\] = 'teacher' reads with the scorer 'teacher'.*Add a section"),
        (
            TEACHER | {"rewards": [{"use": "teacher", "options": {"weights": {"techer": {"sums": 1}}}}]},
            r"weights.techer: the teachers are teacher",
        ),
        (
            TEACHER | {"rewards": [{"use": "teacher", "options": {"weights": {"teacher": {"sums": -1}}}}]},
            r"weights.teacher.sums = -1.0 is not a finite number",
        ),
        (
            {"rewards": [{"use": "implicit"}], "scorers": {"scorer": {"model": "policy"}}},
            r"reads with the scorer 'initial'",
        ),
    ],
)
def test_a_recipe_is_refused_before_it_runs(tree, says):
    with pytest.raises(ConfigError, match=says):
        plugins(parse(tree))
