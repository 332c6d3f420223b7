"""Rubrics and task classes of the package verifiers score stored rollouts, in virtual environments of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import RewardSection
from cluster.errors import ConfigError, DataError
from cluster.process.hosted.processes import ForeignError, Host
from cluster.types import FAILED
from rewards.base import Reward, Services
from rewards.builtin.verifiers_objects import CHILD, VerifiersReward
from rewards.registry import build_reward
from tests.environments.test_real import program
from tests.rewards.test_conventions import talk

HERE = Path(__file__).parent
RIGHT, WRONG, PLAIN = "<think>?</think><answer>85</answer>", "<think>no</think><answer>86</answer>", "85"


def reward(environment: str, file: str, name: str, **options: Any) -> Reward:
    given = {"object": f"{HERE / file}:{name}", "python": program(environment, "python"), "processes": 1, **options}
    return build_reward(RewardSection(use="verifiers", options=given), "rewards[0]")


@pytest.fixture
def services():
    made = Services()
    yield made
    made.close()


async def scored(services: Services, made: Reward, *texts: str, **columns: Any) -> Any:
    await made.prepare(services)
    return await made.score(talk(*texts, answer="85", level=3, **columns), services)


async def test_a_rubric_keeps_its_weights_and_its_parser(services):
    found = await scored(services, reward("rubrics", "rubrics_world.py", "WEIGHED"), RIGHT, WRONG, PLAIN)
    assert found.values.tolist() == pytest.approx([2.15, 0.15, 0.15])
    assert found.provenance[0].note == "correct=1.0, level=0.3"
    assert services.metrics() == {
        "reward/logged_correct": pytest.approx(1 / 3),
        "reward/logged_level": pytest.approx(0.3),
    }


async def test_a_group_of_rubrics_has_functions_of_the_whole_group(services):
    made = reward("rubrics", "rubrics_world.py", "GROUP")
    found = await scored(services, made, RIGHT, WRONG, PLAIN)
    assert found.values.tolist() == pytest.approx([2.15, 0.15, 0.25])
    again = await made.score(talk(RIGHT, answer="85", level=3), services)
    assert again.values.tolist() == pytest.approx([2.25])


async def test_an_environment_s_rubric_is_the_reward(services):
    made = reward("rubrics", "rubrics_world.py", "load_environment", object_options={"weight": 3.0})
    assert (await scored(services, made, RIGHT, WRONG)).values.tolist() == [3.0, 0.0]


async def test_a_function_that_raises_fails_its_rollout_and_is_never_0(services):
    made = reward("rubrics", "rubrics_world.py", "FAILS")
    found = await scored(services, made, RIGHT, PLAIN, WRONG)
    assert found.state.tolist() == [found.state[0], FAILED, found.state[0]]
    assert found.values[[0, 2]].tolist() == [1.0, 0.0]
    assert found.provenance[1].note == "raises: KeyError: 'no answer'"
    found = await scored(services, reward("rubrics", "rubrics_world.py", "SHORT"), RIGHT, PLAIN)
    assert found.state.tolist() == [FAILED] * 2
    assert "1 scores for 2 rollouts" in found.provenance[0].note


async def test_a_task_class_scores_by_its_methods_and_one_that_raises_fails_the_rollout(services):
    made = reward("verifiers", "verifiers_tasks.py", "Additions", object_options={"bonus": 0.5})
    found = await scored(services, made, "85", "86", "none")
    assert found.values[:2].tolist() == pytest.approx([2.8, 0.8])
    assert found.provenance[0].note.startswith("correct=1.0, level=0.3, bonus=0.5, length=")
    assert found.state.tolist()[2] == FAILED
    assert "invalid literal for int()" in found.provenance[2].note


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("EMPTY", "the rubric has no reward function"),
        ("NOTHING", "NOTHING' is str: a Rubric of verifiers 0.1.8 to 0.3"),
        ("correct", "missing 3 required positional arguments"),
        ("NoSuchRubric", "has no attribute 'NoSuchRubric'"),
    ],
)
async def test_what_cannot_score_is_refused_before_the_run(services, name, words):
    with pytest.raises(ConfigError, match=rf"the reward 'verifiers' cannot use object = .*{words}"):
        await reward("rubrics", "rubrics_world.py", name).prepare(services)


def test_a_task_class_that_cannot_score_stored_rollouts_is_refused_with_the_remedy():
    host = Host(program("verifiers", "python"), "rubric")
    try:
        for name, words in (
            ("LooksAtFiles", "'wrote' looks into the runtime .* with the environment 'verifiers'"),
            ("Plain", "Plain has no method with @vf.reward and no judge"),
        ):
            made_with = {"path": f"{HERE / 'verifiers_tasks.py'}:{name}", "options": {}}
            host.ask(do="make", object=0, path=CHILD, options=made_with, import_path=[])
            with pytest.raises(ForeignError, match=words):
                host.ask(do="call", object=0, method="names", args=[], options={}, lenient=False)
    finally:
        host.end("the test is over.")


async def test_a_python_without_verifiers_is_refused_with_the_remedy(services):
    made = VerifiersReward(object=f"{HERE / 'rubrics_world.py'}:WEIGHED")
    with pytest.raises(ConfigError, match=r"No module named 'verifiers'.* Name a Python that has verifiers"):
        await made.prepare(services)
    with pytest.raises(ConfigError, match=r"is no file\. Name the interpreter"):
        build_reward(RewardSection(use="verifiers", options={"object": "a:b", "python": "nowhere"}), "rewards[0]")


async def test_a_process_that_dies_costs_its_group(services):
    made = reward("rubrics", "rubrics_world.py", "WEIGHED")
    await scored(services, made, RIGHT)
    made._hosts._hosts[0].end("it was killed.")  # type: ignore[attr-defined]
    assert (await scored(services, made, RIGHT)).values.tolist() == [2.15]
    async with made._hosts.borrow() as hosted:  # type: ignore[attr-defined]
        hosted._place.host.end("it was killed.")
        with pytest.raises(DataError, match="it was killed"):
            await hosted.call("names")
    assert (await scored(services, made, RIGHT)).values.tolist() == [2.15]
