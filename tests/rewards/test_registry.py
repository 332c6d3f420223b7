"""What cannot serve as a reward is refused before a run, with what to do."""

import pytest

from cluster.config import RewardSection
from cluster.errors import ConfigError
from rewards.registry import REWARDS, build_reward

OPTIONS = {"length_penalty": {"max_tokens": 8, "cache_tokens": 4}}


@pytest.mark.parametrize("name", REWARDS)
def test_an_option_nobody_knows_is_refused(name):
    with pytest.raises(ConfigError, match=r"rewards\[0\].*tolerence"):
        build_reward(RewardSection(use=name, options={**OPTIONS.get(name, {}), "tolerence": 1}), "rewards[0]")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'majority'"):
        build_reward(RewardSection(use="majorty"), "rewards[0]")


def test_a_pattern_that_does_not_compile_is_refused():
    with pytest.raises(ConfigError, match="not a regular expression"):
        build_reward(RewardSection(use="format", options={"pattern": "("}), "rewards[0]")


def test_an_object_of_verifiers_is_refused_with_how_to_name_it(tmp_path):
    files = {
        "absent": "import verifiers as vf\nRUBRIC = vf.Rubric()",
        "rubric": "class Rubric:\n    def score_group(self, states): ...\nRUBRIC = Rubric()",
        "task": "class RUBRIC:\n    data_type = config_type = hooks = None",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(
            ConfigError, match=rf"Write use = 'verifiers' with options = {{ object = '.*{name}.py:RUBRIC'"
        ):
            build_reward(RewardSection(use=f"{tmp_path}/{name}.py:RUBRIC"), "rewards[0]")
