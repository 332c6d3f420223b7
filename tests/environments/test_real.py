"""Environments of other people in virtual environments of their own, which `make env-tests` makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from actors.environments.gymnasium_text import GymnasiumText
from actors.environments.mcp import Mcp
from tests.actors.test_hosted import episode as played
from tests.actors.test_wires import called

ENVIRONMENTS = Path(__file__).parents[2] / ".environments"


def program(environment: str, name: str) -> str:
    path = ENVIRONMENTS / environment / "bin" / name
    if not path.exists():
        pytest.skip(f"{path} is not there: make env-tests")
    return str(path)


async def test_gem_s_guessing_game():
    environment = GymnasiumText(
        env="gem.envs.game_env.guess_the_number:GuessTheNumberEnv",
        env_options={"max_number": 3},
        python=program("gem", "python"),
        processes=1,
    )
    environment.check()
    texts = iter((r"\boxed{1}", r"\boxed{2}", r"\boxed{3}"))
    rollout = await played(environment, lambda _: next(texts), timeout_s=60.0)
    assert "Guess The Number" in rollout.turns[0].text
    assert rollout.reward > 0


async def test_the_time_server():
    environment = Mcp(command=(program("mcp", "mcp-server-time"), "--local-timezone", "UTC"))
    rollout = await called(environment, "get_current_time()", "nothing()")
    environment._all[0].close()
    shown = [turn.text for turn in rollout.turns if turn.role == "tool"]
    assert "'timezone' is a required property" in shown[0]
    assert "Tools: get_current_time, convert_time" in shown[1]


def test_the_git_server_s_tools(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    command = (program("mcp", "mcp-server-git"), "--repository", str(tmp_path))
    Mcp(command=command, tools=("git_status", "git_log")).check()
