"""Rows of files as sequences that a learner imitates: which tokens are trained on, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.chat import Chat
from actors.demonstrations import Demonstrations
from cluster.config import DataSection, DemonstrationsSection
from cluster.errors import ConfigError
from tests.models import CHAT_TEMPLATE, character_tokenizer

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


def chat(template: str | None = CHAT_TEMPLATE) -> Chat:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer)


def talk(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def read(
    tmp_path: Path, row: dict[str, Any], *, pairs: bool = False, template: str | None = CHAT_TEMPLATE, **keys: Any
):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    section = DataSection(path=str(path), batch_size=1, **keys)
    return Demonstrations(section, chat(template), 0, pairs=pairs, where="data").batch(0)


def shown(rollout) -> str:
    """The rollout's text, with braces around what is trained on; an end of turn is $."""
    tokenizer, text, before = character_tokenizer(), "", False
    for token, trained in zip(rollout.tokens, rollout.loss_mask, strict=True):
        text += ("{" if trained and not before else "}" if before and not trained else "") + (
            "$" if token == tokenizer.eos_token_id else tokenizer.decode([int(token)])
        )
        before = trained
    return text + "}" * bool(before)


TWO_TURNS = talk((USER, "a?"), (ASSISTANT, "b"), (USER, "c?"), (ASSISTANT, "d"))


@pytest.mark.parametrize(
    ("row", "keys", "expected"),
    [
        ({"messages": TWO_TURNS}, {}, "<user>a?$\n<assistant>{b$}\n<user>c?$\n<assistant>{d$}"),
        ({"messages": TWO_TURNS}, {"train_on": "last"}, "<user>a?$\n<assistant>b$\n<user>c?$\n<assistant>{d$}"),
        ({"prompt": "a?", "completion": "b"}, {}, "<user>a?$\n<assistant>{b$}"),
        ({"prompt": "a?", "completion": "b"}, {"system": "s"}, "<system>s$\n<user>a?$\n<assistant>{b$}"),
        ({"prompt": talk((USER, "a?")), "completion": talk((ASSISTANT, "b"))}, {}, "<user>a?$\n<assistant>{b$}"),
        ({"prompt": TWO_TURNS[:3], "completion": "d"}, {}, "<user>a?$\n<assistant>b$\n<user>c?$\n<assistant>{d$}"),
        ({"q": "a?", "r": "b"}, {"prompt_key": "q", "completion_key": "r"}, "<user>a?$\n<assistant>{b$}"),
        (
            {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]},
            {},
            "<user>a?$\n<assistant>{b$}",
        ),
        ({"messages": json.dumps(TWO_TURNS[:2])}, {}, "<user>a?$\n<assistant>{b$}"),
    ],
)
def test_the_assistants_turns_are_trained_on_with_their_end(tmp_path, row, keys, expected):
    (group,), left_out = read(tmp_path, row, **keys)
    assert shown(group.rollouts[0]) == expected
    assert left_out == []


def test_without_a_chat_template_texts_are_joined(tmp_path):
    (group,), _ = read(tmp_path, {"prompt": "a?", "completion": "b"}, template=None)
    assert shown(group.rollouts[0]) == "a?{b$}"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a?", "chosen": "b", "rejected": "c"},
        {"prompt": talk((USER, "a?")), "chosen": talk((ASSISTANT, "b")), "rejected": talk((ASSISTANT, "c"))},
        {"chosen": talk((USER, "a?"), (ASSISTANT, "b")), "rejected": talk((USER, "a?"), (ASSISTANT, "c"))},
        {"prompt": "a?", "chosen": talk((USER, "a?"), (ASSISTANT, "b")), "rejected": "c"},
    ],
)
def test_a_pair_has_one_prompt_and_two_completions(tmp_path, row):
    (group,), _ = read(tmp_path, row, pairs=True)
    assert [shown(r) for r in group.rollouts] == ["<user>a?$\n<assistant>{b$}", "<user>a?$\n<assistant>{c$}"]


@pytest.mark.parametrize(
    ("row", "pairs", "said"),
    [
        ({"messages": talk((USER, "a?"))}, False, "no 'completion'"),
        ({"messages": talk((ASSISTANT, "b"))}, False, "answers nothing"),
        ({"messages": talk((USER, "a?"), (ASSISTANT, "b"), (ASSISTANT, "c"))}, False, "two messages in a row"),
        ({"text": "a"}, False, "no 'messages'"),
        ({"prompt": "a?", "completion": ""}, False, "is ''"),
        ({"prompt": "a?", "completion": None}, False, "no 'completion'"),
        ({"prompt": "a?", "completion": talk((USER, "b"))}, False, "not with the assistant's"),
        ({"prompt": 3, "completion": "b"}, False, "a text or a list of messages is expected"),
        ({"prompt": "a?", "chosen": "b", "rejected": "b"}, True, "neither is better"),
        ({"prompt": "a?", "chosen": "b"}, True, "no 'rejected'"),
        ({"chosen": "b", "rejected": "c"}, True, "no message that they share"),
        ({"prompt": "a?" * 2000, "completion": "b"}, False, "data.max_tokens"),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_and_named(tmp_path, row, pairs, said):
    groups, (why,) = read(tmp_path, row, pairs=pairs)
    assert groups == []
    assert "rows.jsonl:1: " in why
    assert said in why


def test_a_prompt_that_opens_a_thought_wants_texts_that_begin_with_it(tmp_path):
    template = CHAT_TEMPLATE.replace("<assistant>{% endif %}", "<assistant><think>\n{% endif %}")
    (group,), _ = read(tmp_path, {"prompt": "a?", "completion": "<think>\nb</think>c"}, template=template)
    assert shown(group.rollouts[0]).endswith("<assistant><think>\n{b</think>c$}")
    _, (why,) = read(tmp_path, {"prompt": "a?", "completion": "c"}, template=template)
    assert "opens '<think>" in why


def test_files_of_which_no_row_can_be_trained_on_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    rows = Demonstrations(DataSection(path=str(path)), chat(), 0, pairs=False)
    with pytest.raises(ConfigError, match="none of the first 2 rows"):
        rows.check()


def test_every_pass_has_every_row_once_in_an_order_of_its_own(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": "b"}) + "\n" for i in range(12)))
    rows = Demonstrations(DataSection(path=str(path), batch_size=4), chat(), 5, pairs=False)
    passes = [[g.task.id for step in range(3 * n, 3 * n + 3) for g in rows.batch(step)[0]] for n in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(f"rows.jsonl:{i + 1}" for i in range(12))
    assert passes[0] != passes[1]


def test_demonstrations_beside_rollouts_have_no_held_out_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a?", "completion": "b"}) + "\n")
    rows = Demonstrations(DemonstrationsSection(path=str(path), batch_size=2), chat(), 0)
    groups, left_out = rows.batch(7)
    assert [shown(group.rollouts[0]) for group in groups] == ["<user>a?$\n<assistant>{b$}"] * 2
    assert (len(rows), left_out, rows.check()) == (1, [], [])
    with pytest.raises(ConfigError, match=r"learner\.demonstrations\.path"):
        Demonstrations(DemonstrationsSection(path=str(tmp_path / "none.jsonl")), chat(), 0)
