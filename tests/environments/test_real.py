"""Environments of other people in virtual environments of their own, which `make env-tests` makes."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.environments.gymnasium_text import GymnasiumText
from actors.environments.mcp import Mcp
from actors.environments.openenv import OpenEnv
from actors.environments.verifiers import Verifiers
from cluster.errors import DataError
from cluster.types import Task
from tests.actors.agents import Scripted, merging
from tests.actors.agents import played as run_agent
from tests.actors.test_endpoint import check_sampled
from tests.actors.test_endpoint_tools import LONG, TEMPLATE, Reads
from tests.actors.test_hosted import episode as played
from tests.actors.test_wires import called

ENVIRONMENTS = Path(__file__).parents[2] / ".environments"


def scripted(texts: Sequence[str]) -> Callable[[Any], str]:
    left = iter(texts)
    return lambda _: next(left)


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


def tokenizer() -> Any:
    """A tokenizer of a model that knows tools, as verifiers' parsers of calls want it."""
    made = merging(TEMPLATE)
    made.add_special_tokens({"eos_token": "<|im_end|>", "extra_special_tokens": ["<tool_call>", "</tool_call>"]})
    return made


@asynccontextmanager
async def served(environment: str, *arguments: str, home: Path) -> AsyncIterator[str]:
    """Run a script of this folder in an environment of its own; yield the first line that it prints."""
    script = Path(__file__).with_name(f"{environment}_world.py")
    process = await asyncio.create_subprocess_exec(
        program(environment, "python"),
        str(script),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HOME": str(home)},
    )
    try:
        assert process.stdout is not None
        yield (await asyncio.wait_for(process.stdout.readline(), 120)).decode().strip()
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def verifiers_server(world: str, tmp_path: Path) -> AsyncIterator[Verifiers]:
    """A server of the world's, and what speaks to it; the policy's tokenizer is `Scripted`'s."""
    tokenizer().save_pretrained(tmp_path)
    async with served("verifiers", world, home=tmp_path) as address:
        yield Verifiers(url=address, tokenizer=str(tmp_path), renderer={"name": "default", "tool_parser": "qwen3"})


async def test_a_card_game_of_two_seats_of_a_verifiers_server(tmp_path):
    engine = Scripted(Reads(tokenizer()), lambda prompt: "bet" if "card: 9" in prompt else "fold")
    async with verifiers_server("cards", tmp_path) as environment:
        task = Task.of("t", "", task_data={"cards": [9, 4]})
        rollouts = await run_agent(engine, environment, task=task)
    check_sampled(rollouts, engine)
    assert sorted((r.agent, r.reward) for r in rollouts) == [("first", 1.0), ("second", -1.0)]
    for rollout in rollouts:
        assert [turn.role for turn in rollout.turns] == ["user", "assistant"] * 2
    assert sum(r.num_tokens for r in rollouts) == sum(len(tokens) for _, tokens, _ in engine.record)
    assert "They say fold." in engine.chat.text(rollouts[0].tokens.tolist())


async def test_a_tool_environment_of_a_verifiers_server(tmp_path):
    texts = iter((("<tool_call>", '{"name": "add", "arguments": {"a": 1, "b": 3}}', "</tool_call>"), "4"))
    engine = Scripted(Reads(tokenizer()), lambda prompt: next(texts))  # type: ignore[arg-type]
    async with verifiers_server("sums", tmp_path) as environment:
        rollouts = await run_agent(engine, environment, LONG, Task.of("t", "2+2?", "4"))
    check_sampled(rollouts, engine)
    # The renderer writes the call in the template's spelling, not in the policy's: that is another conversation.
    assert [(r.agent, r.reward) for r in rollouts] == [("", 1.0)] * 2
    assert "<|im_start|>tool\n4" in engine.chat.text(rollouts[1].tokens.tolist())
    assert sum(r.num_tokens for r in rollouts) == sum(len(tokens) for _, tokens, _ in engine.record)


async def test_a_maze_of_an_openenv_server(tmp_path):
    async with served("openenv", "1", home=tmp_path) as port:
        environment = OpenEnv(url=f"ws://127.0.0.1:{port}/ws", action="way", observation="text")
        rollout = await played(environment, scripted(("north", "east")), timeout_s=60.0)
        assert [turn.text for turn in rollout.turns if turn.role == "user"][1:] == [
            "You are at (0, 1), the goal is at (1, 1)."
        ]
        assert (rollout.reward, rollout.finish) == (pytest.approx(0.9), "stop")
        with pytest.raises(DataError, match="north-east"):
            await played(environment, lambda _: "north-east", timeout_s=60.0)
        both = [
            played(environment, way, timeout_s=60.0) for way in map(scripted, (("east", "north"), ("north", "east")))
        ]
        assert [r.reward for r in await asyncio.gather(*both)] == [pytest.approx(0.9)] * 2, "one waits for the place"


async def test_skyrl_s_multi_turn_environment(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    environment = GymnasiumText(env="skyrl_world:Gsm8k", python=program("skyrl", "python"), processes=1)
    rollout = await played(environment, scripted(("seven", "#### 7", "#### 8")), timeout_s=60.0)
    shown = [turn.text for turn in rollout.turns if turn.role == "user"]
    assert "Ann has 7 apples" in shown[0]
    assert "step-by-step" in shown[1]
    assert "only the final numeric answer" in shown[2]
    assert rollout.reward == pytest.approx(0.2 / 3 + 1.0)


LIVING = (
    "open door to greenhouse; go to greenhouse; open door to outside; go to outside; look around; focus on blue jay; "
    "pick up blue jay; open door to kitchen; go to kitchen; open door to bathroom; go to bathroom; "
    "move egg blue jay egg in inventory to green box"
)


@pytest.mark.skipif(shutil.which("java") is None, reason="ScienceWorld runs on Java")
async def test_scienceworld_s_task_of_finding_a_living_thing(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    environment = GymnasiumText(
        env="scienceworld_world:ScienceWorld", python=program("scienceworld", "python"), processes=1
    )
    rollout = await played(environment, scripted(LIVING.split("; ")), timeout_s=120.0, turns=16)
    assert "find a(n) living thing" in rollout.turns[0].text
    assert [round(event.reward, 2) for event in rollout.events] == [0.09, 0.5, 0.08, 0.08, 0.17]
    assert rollout.reward == pytest.approx(0.92)
