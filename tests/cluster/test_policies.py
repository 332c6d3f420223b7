"""Recipes with several policies: what each has of its own, what is common, and what is refused."""

from __future__ import annotations

import tomllib

import pytest

from cluster.config import ConsoleSection, RunConfig, dump, parse
from cluster.driver import preflight
from cluster.driver.dry_run import plan
from cluster.errors import ConfigError
from cluster.placement import resources

BASE = {
    "model": {"path": "tiny:addition", "options": {"steps": 3}},
    "rollout": {"workers": 2},
    "learner": {
        "steps": 7,
        "ranks": 2,
        "schedule": {"lr": 1e-3, "warmup_steps": 5},
        "loss": {"use": "clipped", "options": {"clip_low": 0.1}},
    },
}
BIG = {
    "workers": 1,
    "engine": {"max_num_seqs": 8},
    "model": {"path": "smollm2"},
    "learner": {"ranks": 1, "schedule": {"lr": 2e-3}, "loss": {"kl_coef": 0.1}},
}


def several(**policies: dict) -> RunConfig:
    return parse({**BASE, "policies": policies})


def test_a_policy_has_what_its_section_says_and_the_rest_from_above():
    config = several(big=BIG, like={})
    assert config.policy_names == ("policy", "big", "like")
    big = config.of_policy("big")
    assert (big.learner.schedule.lr, big.learner.schedule.warmup_steps) == (2e-3, 5)
    assert (big.learner.loss.kl_coef, big.learner.loss.options) == (0.1, {"clip_low": 0.1})
    assert (big.learner.steps, big.learner.ranks, big.rollout.workers) == (7, 1, 1)
    assert (big.engine.max_num_seqs, big.engine.max_model_len) == (8, config.engine.max_model_len)
    assert (big.model.path, big.model.options) == ("smollm2", {}), "options are of the model they stand with"
    alone = parse(BASE)
    assert config.of_policy("like") == config.of_policy("policy") == alone
    assert alone.policy_names == ("policy",)


def test_what_a_run_writes_down_says_the_same_when_it_is_read_again():
    config = several(big=BIG, like={"workers": 3})
    again = parse(tomllib.loads(dump(config)))
    for name in config.policy_names:
        assert again.of_policy(name) == config.of_policy(name)


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"big": {"learner": {"steps": 3}}}, "policies.big: learner.steps is the same for all policies"),
        ({"big": {"learner": {"max_staleness": 0}}}, "learner.max_staleness is the same"),
        ({"policy": {}}, "policies.policy: a name has lower-case letters"),
        ({"Big/2": {}}, "policies.Big/2: a name has lower-case letters"),
        ({"big": {"learner": {"lrs": 3}}}, "unknown key 'policies.big.learner.lrs'"),
        (
            {"big": {"learner": {"loss": {"constant_tokens": 4}}}},
            "policies.big.learner.loss: learner.loss.aggregate = 'token' and constant_tokens = 4",
        ),
    ],
)
def test_what_no_run_can_have_is_refused(policies, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        several(**policies)


def test_a_policy_that_goes_together_with_nothing_above_is_refused():
    above = {"learner": {"loss": {"aggregate": "constant", "constant_tokens": 4}}}
    with pytest.raises(ConfigError, match=r"policies\.big: learner\.loss\.aggregate = 'token'"):
        parse({**above, "policies": {"big": {"learner": {"loss": {"aggregate": "token"}}}}})
    with pytest.raises(ConfigError, match="'any' or 'separated'"):
        parse({"placement": {"layout": "colocated"}, "policies": {"big": {}}})
    with pytest.raises(ConfigError, match="selectors"):
        parse({"selectors": [{"use": "best_worst"}], "policies": {"big": {}}})


def test_the_plan_and_the_places_count_every_policy(tmp_path):
    config = several(big=BIG, like={"workers": 3})
    said = plan(config, tmp_path)
    assert "32 tasks × 16 rollouts of each of 3 policies = 1536 samples a step" in said
    assert "big: 1 engine (vllm), 1 learner rank (ZeRO-0, float32), model 'smollm2'." in said
    assert "like: 3 engines (vllm), 2 learner ranks" in said
    engines_and_ranks = (2 + 2) + (1 + 1) + (3 + 2)
    assert resources.needed_cpus(config) == pytest.approx(resources.CPU_SHARE * engines_and_ranks + 0.1)
    assert resources.roles(config) == {"rollout": 2, "reward": 1, "rollout:big": 1, "rollout:like": 3}
    places = resources.places(several(big={"engine": {"tensor_parallel": 2}}), gpu=True)
    assert [p.resources["GPU"] for p in places if p.role == "rollout:big"] == [2, 2]
    assert sum(p.role.startswith("learner") for p in places) == 4
    assert preflight.limits(config).members == ("big", "like")


def test_a_run_goes_on_with_the_same_policies_alone():
    first = preflight.identity(several(big=BIG))
    assert preflight.identity(several(big={**BIG, "engine": {"max_num_seqs": 9}})) == first
    for other in (several(), several(big=BIG, like={}), several(big={**BIG, "model": {"path": "tiny:addition"}})):
        assert preflight.identity(other) != first
    console = parse(BASE).model_copy(update={"console": ConsoleSection(enabled=False)})
    assert preflight.identity(console) == preflight.identity(parse(BASE))
