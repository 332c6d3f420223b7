"""A group of several variants: so many rollouts of each prompt, in one claim."""

from __future__ import annotations

import json

import pytest

from actors.chat import Chat
from actors.environments.single_turn import SingleTurn
from actors.rollout import RolloutWorker
from actors.tasks import TASKS
from cluster.config import parse
from cluster.driver import preflight
from cluster.errors import ConfigError, DataError
from cluster.plugins import build
from cluster.types import Claim, Message, Task
from tests.fakes import FakeEngine
from tests.models import random_llama

RECIPE = {
    "rollout": {"group_size": 2, "max_tokens": 4, "prompt_variants": ["orig", "swapped"]},
    "engine": {"max_model_len": 64},
}
CLAIM = Claim("policy/1/0", "policy", 1, 0, 0, 0, "secret")


def worker(directory) -> RolloutWorker:
    from transformers import AutoTokenizer

    settings, chat = parse(RECIPE), Chat(AutoTokenizer.from_pretrained(directory))
    engine = FakeEngine(directory, settings, stop_tokens=chat.stop_tokens, version="1.0")
    return RolloutWorker(
        "rollout-0", policy="policy", engine=engine, chat=chat, environment=SingleTurn(), task_at=None, buffer=None,
        config=settings, fetch=None,
    )  # fmt: skip


async def test_a_group_has_rollouts_of_every_view_one_view_after_the_other(tmp_path):
    working = worker(random_llama(tmp_path, tied=True))
    [task] = build(TASKS, "addition", {"swapped": True, "num_evaluation": 1}, "tasks").evaluation()
    made = await working._group(CLAIM, task)
    assert [r.variant for r in made.rollouts] == ["orig", "orig", "swapped", "swapped"]
    a, _, b = task.prompt.removesuffix("=").partition("+")
    assert [r.turns[0].text for r in made.rollouts] == [f"{a}+{b}="] * 2 + [f"{b}+{a}="] * 2
    with pytest.raises(DataError, match=r"no variant 'swapped' \(rollout\.prompt_variants\): orig"):
        await working._group(CLAIM, Task.of("1", "1+1="))


def test_files_have_a_column_for_each_view_and_a_source_without_one_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "1+2=", "other": "2+1=", "answer": "3"}) + "\n")
    options = {"path": str(path), "system": "Add.", "prompt_variants": {"swapped": "other"}}
    [task] = build(TASKS, "jsonl", options, "tasks").train()
    assert task.variants["swapped"] == (Message("system", "Add."), Message("user", "2+1="))
    settings = parse(RECIPE | {"tasks": {"use": "jsonl", "options": options}})
    preflight.prompt_variants(settings, preflight.tasks(settings))
    wrong = parse(RECIPE | {"tasks": {"use": "jsonl", "options": options | {"prompt_variants": {"swaped": "other"}}}})
    with pytest.raises(ConfigError, match=r"no variant 'swapped'. Did you mean 'swaped'"):
        preflight.prompt_variants(wrong, preflight.tasks(wrong))
    with pytest.raises(ConfigError, match=r"tasks\.options\.prompt_variants\.swapped"):
        preflight.tasks(
            parse(RECIPE | {"tasks": {"use": "jsonl", "options": options | {"prompt_variants": {"swapped": "othr"}}}})
        )
