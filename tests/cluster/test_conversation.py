"""Before a run, the environment's answers are tried on the model's chat template in a made-up conversation."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.environments import Environment, Observation
from cluster.config import parse
from cluster.driver import preflight
from cluster.errors import ConfigError
from tests.models import random_llama

HERE = "tests.cluster.test_conversation"
TURN = "{{ '<' ~ m.role ~ '>' ~ m.content ~ '</s>' }}"
ALL = "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
NO_TOOLS = ALL.replace(TURN, "{% if m.role != 'tool' %}" + TURN + "{% endif %}")
FIRST_ONLY = ALL.replace(TURN, "{% if loop.index < 3 or m.role == 'assistant' %}" + TURN + "{% endif %}")
NO_TURNS = ALL.replace(TURN, "{% if m.role == 'assistant' %}{{ raise_exception('one turn only') }}{% endif %}" + TURN)
LAST_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}{% if loop.last and messages[0].role == 'system' %}"
    "{{ messages[0].content }}{% endif %}" + TURN + "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Asks(Environment):
    """Answers once, as a user."""

    async def play(self, task, variant):
        yield Observation(task.variants[variant])
        yield Observation.of("Go on.")


class Calls(Environment):
    """Answers once, as a tool."""

    roles = ("tool",)

    async def play(self, task, variant):
        yield Observation(task.variants[variant])
        yield Observation.of("42", role="tool")


class Declared(Asks):
    roles = ("user",)


def tried(tmp_path: Path, template: str, environment: str, *, turns: int = 3, system: str = "") -> list[str]:
    directory = random_llama(tmp_path / "model", tied=True, chat=True)
    (directory / "chat_template.jinja").write_text(template)
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    options = {"path": str(tmp_path / "train.jsonl"), "system": system}
    use = environment if environment.islower() else f"{HERE}:{environment}"
    settings = parse(
        {
            "model": {"path": str(directory)},
            "tasks": {"use": "jsonl", "options": options},
            "rollout": {"environment": {"use": use}, "max_turns": turns, "max_tokens": 8},
            "engine": {"max_model_len": 256},
            "rewards": [{"use": "exact"}],
        }
    )
    return preflight.model(settings, preflight.tasks(settings), online=False)


@pytest.mark.parametrize("environment", ["Asks", "Calls", "Declared", "calculator", "attempts", "single_turn"])
def test_a_template_of_all_roles_is_taken(tmp_path, environment):
    assert tried(tmp_path, ALL, environment) == []


@pytest.mark.parametrize(
    ("template", "environment", "words"),
    [
        (NO_TOOLS, "Calls", "Calls' answers in the role 'tool', and .*leaves out the message of role 'tool'"),
        (FIRST_ONLY, "Asks", "leaves out the message of role 'user'"),
        (FIRST_ONLY, "calculator", "'calculator' answers in the role 'user'"),
        (NO_TURNS, "attempts", "one turn only"),
    ],
)
def test_a_template_that_cannot_write_the_environments_answers_is_refused(tmp_path, template, environment, words):
    with pytest.raises(ConfigError, match=words):
        tried(tmp_path, template, environment)


@pytest.mark.parametrize("template", [FIRST_ONLY, NO_TOOLS, NO_TURNS])
def test_a_single_turn_asks_nothing_of_further_turns(tmp_path, template):
    assert tried(tmp_path, template, "single_turn") == []
    assert tried(tmp_path, template, "Calls", turns=1) == []


def test_roles_that_an_environment_does_not_declare_are_warned_about(tmp_path):
    assert "in the role 'tool'" in tried(tmp_path, NO_TOOLS, "Asks")[0]
    assert tried(tmp_path, NO_TOOLS, "Declared") == []


def test_a_template_that_moves_the_system_message_is_remarked_on(tmp_path):
    assert "writes a conversation anew" in tried(tmp_path, LAST_SYSTEM, "Declared", system="Be brief.")[0]
    assert tried(tmp_path, LAST_SYSTEM, "Declared") == []
