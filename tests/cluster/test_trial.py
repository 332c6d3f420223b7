"""Rewards are tried on a made-up rollout of a real task before the run."""

from __future__ import annotations

import pytest

from cluster.config import parse
from cluster.driver.preflight_rewards import made_up, rewards, untried
from cluster.errors import ConfigError
from cluster.types import Task

TASK = Task.of("t-1", "What is 40 + 2?", "42")
FAILING = {
    "a key that is not there": ("def f(prompt, completion):\n    return {}['x']\n", "KeyError"),
    "another dict": ("def f(prompt, completion):\n    return {'reward': 1.0}\n", "score"),
    "a text": ("def f(prompt, completion):\n    return 'good'\n", "good"),
    "an exit": ("import sys\ndef f(prompt, completion):\n    sys.exit(3)\n", "SystemExit"),
    "a list that is too short": ("def f(prompts, completions, **rest):\n    return [1.0]\n", "completions"),
    "a hang": ("import time\ndef f(prompt, completion):\n    time.sleep(60)\n", "no answer within"),
    "an exit of the process": (
        "import os\ndef f(prompt, completion):\n    os._exit(3)\n",
        "ended its process with exit code 3",
    ),
    "a crash": ("import ctypes\ndef f(prompt, completion):\n    ctypes.string_at(0)\n", "with signal SIGSEGV"),
    "a killed process": ("import os\ndef f(prompt, completion):\n    os.kill(0, 9)\n", "with signal SIGKILL"),
    "closed outputs": (
        "import os\ndef f(prompt, completion):\n    os.closerange(0, 99)\n    os._exit(0)\n",
        "ended its process",
    ),
    "the interpreter lock": (
        "import re\ndef f(prompt, completion):\n    re.match('(a+)+$', 'a' * 60 + 'b')\n",
        "holds the interpreter lock",
    ),
    "a blocked loop": ("import time\nasync def f(prompt, completion):\n    time.sleep(60)\n", "no answer within"),
}


def settings(tmp_path, source: str, **reward):
    (tmp_path / "mine.py").write_text(source)
    return parse({"rewards": [{"use": f"{tmp_path}/mine.py:f", "timeout_s": 1.0, **reward}]})


@pytest.mark.parametrize("kind", FAILING)
def test_a_reward_that_fails_on_everything_is_refused_with_its_cause(tmp_path, kind):
    source, cause = FAILING[kind]
    with pytest.raises(ConfigError, match=rf"rewards\[0\][\s\S]*t-1[\s\S]*{cause}"):
        rewards(settings(tmp_path, source), [TASK])


@pytest.mark.parametrize(
    "source",
    [
        "def f(prompt, completion, answer):\n    return float(completion == answer)\n",
        "def f(prompt, completion):\n    return None\n",
        "def f(prompt, completion, answer):\n    return 1 / (len(completion) - len(answer) or 1)\n",
        "def f(prompt, completion, answer):\n    assert 'boxed' in completion\n    return 1.0\n",
        "async def f(completions, **columns):\n    return [0.5] * len(completions)\n",
    ],
)
def test_a_reward_that_scores_abstains_or_fails_on_some_rollouts_is_accepted(tmp_path, source):
    rewards(settings(tmp_path, source), [TASK])
    assert untried(settings(tmp_path, source)) == []


def test_a_reward_that_needs_services_of_the_run_is_not_tried_and_that_is_said():
    config = parse({"rewards": [{"use": "self_certainty"}], "scorers": {"scorer": {}}})
    rewards(config, [TASK])
    assert "was not tried" in untried(config)[0]


def test_the_made_up_group_is_one_that_a_rollout_worker_could_have_made():
    config = parse({"rollout": {"group_size": 4, "max_turns": 3, "prompt_variants": ["orig", "swapped"]}})
    found = made_up(config, TASK)
    assert len(found) == 8
    assert {r.variant for r in found.rollouts} == {"orig", "swapped"}
    assert any("42" in r.text for r in found.rollouts)
    assert all(r.loss_mask.sum() == 6 and len(r.turns) == 3 for r in found.rollouts)
