"""Prompts and turns as token ids: what is opened, kept, added and dropped, with tokenizers made on the spot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from actors.chat import Chat
from cluster.errors import ConfigError, DataError
from cluster.types import Message

SPECIAL = ["<s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<answer>", "</answer>"]
TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML = TURN + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THINKS = TURN + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
NO_TOOLS = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
DOUBLES = "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}" + CHATML


def tokenizer(template=None, *, bos=False, eos_after=False) -> Any:
    """A byte-level tokenizer without merges, with the special tokens of common models."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bare = Tokenizer(models.BPE(vocabulary, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens(SPECIAL)
    if bos or eos_after:
        names = ["<s>"] * bos + ["$A"] + ["<|endoftext|>"] * eos_after
        ids = [(t, bare.token_to_id(t)) for t in ("<s>", "<|endoftext|>")]
        bare.post_processor = processors.TemplateProcessing(single=" ".join(names), special_tokens=ids)
    made = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="<|endoftext|>")
    made.chat_template = template
    return made


def ids(of: Any, *tokens: str) -> list[int]:
    return [of.convert_tokens_to_ids(t) for t in tokens]


@pytest.mark.parametrize(
    ("template", "prompt", "opened"),
    [
        (THINKS, "hi", "<think>\n"),
        (CHATML, "hi", ""),
        (CHATML, "Write <think>", ""),
        (THINKS.replace("<think>", "[THINK]"), "hi", "[THINK]\n"),
        (THINKS.replace("<think>", "◁think▷"), "hi", "◁think▷\n"),
        (THINKS.replace("<think>", "<seed:think>"), "hi", "<seed:think>\n"),
        (THINKS.replace("<think>", "<|begin_of_thought|>"), "hi", "<|begin_of_thought|>\n"),
        (THINKS.replace("<think>\n", "<think>\nOkay, "), "hi", "<think>\nOkay, "),
        (THINKS.replace("<think>\n", "<think>\n\n</think>\n\n"), "hi", ""),
        (THINKS.replace("<think>\n", "<answer>"), "hi", "<answer>"),
        (THINKS, "Use <think> and </think>.", "<think>\n"),
        (None, "Assistant: <think>", "<think>"),
        (None, "Assistant: <reasoning>\n", "<reasoning>\n"),
        (None, "Use <think> and </think>. Assistant:", ""),
    ],
)
def test_a_prompt_knows_what_it_opened(template, prompt, opened):
    assert Chat(tokenizer(template)).opened([Message("user", prompt)]) == opened


def test_a_later_turn_knows_what_it_opened():
    assert Chat(tokenizer(THINKS)).opened([Message("user", "go on")], first=False) == "<think>\n"


def test_only_end_of_turn_tokens_are_left_out_of_a_text():
    made = tokenizer(CHATML)
    text = "<think>a b</think><answer>4 , 5</answer>"
    tokens = made.encode(text + "<|im_end|>", add_special_tokens=False)
    assert Chat(made).text(tokens) == text
    assert Chat(made).text([*tokens[:-1], *ids(made, "<|endoftext|>")]) == text


@pytest.mark.parametrize("eos_after", [False, True])
def test_without_a_template_the_tokenizers_bos_stands_once(eos_after):
    made = tokenizer(bos=True, eos_after=eos_after)
    plain = made.encode("1+1=", add_special_tokens=False)
    chat = Chat(made)
    assert chat.prompt([Message("user", "1+1=")]) == [*ids(made, "<s>"), *plain]
    assert chat.prompt([Message("user", "<s>1+1=")]) == [*ids(made, "<s>"), *plain]
    assert chat.observation([Message("user", "1+1=")], after=3) == plain


def test_a_template_that_writes_bos_has_it_once():
    made = tokenizer("{{ bos_token }}" + CHATML, bos=True)
    assert Chat(made).prompt([Message("user", "x")]).count(made.bos_token_id) == 1


def test_the_token_that_the_template_writes_after_a_turn_ends_it():
    made = tokenizer(CHATML)
    assert Chat(made).stop_tokens == ids(made, "<|endoftext|>", "<|im_end|>")
    plain_end = tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert Chat(plain_end).stop_tokens == ids(plain_end, "<|endoftext|>")


def test_every_eos_of_the_generation_config_ends_a_turn(tmp_path):
    made = tokenizer()
    made.save_pretrained(tmp_path)
    end, turn = ids(made, "<|endoftext|>", "<|im_end|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, turn], "top_k": 1}))
    assert Chat(PreTrainedTokenizerFast.from_pretrained(tmp_path)).stop_tokens == [end, turn]


def test_tokens_that_hold_a_string_are_known_and_none_that_ends_a_turn():
    made = tokenizer(CHATML)
    made.add_tokens([".\n", "\n\n"])
    chat = Chat(made)
    assert {chat.written(i) for i in chat.tokens_with(("\n",))} == {"\n", ".\n", "\n\n"}
    assert chat.tokens_with(()) == ()
    assert {chat.written(i) for i in chat.tokens_with(("<",))} == {"<", *SPECIAL} - {"<|endoftext|>", "<|im_end|>"}


def test_a_recipe_names_further_tokens_and_strings():
    made = tokenizer(CHATML)
    chat = Chat(made, stop=["</answer>", "\nQ:", 7])
    assert set(chat.stop_tokens) >= {*ids(made, "</answer>"), 7}
    tokens = made.encode("4\nQ: 5", add_special_tokens=False)
    assert chat.stopped_at(tokens) == 4
    assert chat.stopped_at(tokens[:3]) is None
    assert chat.text(made.encode("<answer>4</answer>", add_special_tokens=False)) == "<answer>4</answer>"
    with pytest.raises(ConfigError, match=r"rollout\.stop"):
        Chat(made, stop=[10**6])


def test_a_message_that_the_template_leaves_out_is_refused():
    chat = Chat(tokenizer(NO_TOOLS))
    with pytest.raises(DataError, match="leaves out the message of role 'tool'"):
        chat.observation([Message("tool", "result 42")], after=0)
    with pytest.raises(DataError, match="leaves out the message of role 'system'"):
        chat.prompt([Message("system", "Be brief."), Message("user", "x")])


def test_system_messages_are_merged_and_stand_once():
    made = tokenizer(CHATML)
    messages = [Message("system", "Be brief."), Message("system", "Be kind."), Message("user", "x")]
    assert made.decode(Chat(made).prompt(messages)).count("<|im_start|>system") == 1
    assert "Be brief.\n\nBe kind." in made.decode(Chat(made).prompt(messages))
    with pytest.raises(DataError, match="more than once"):
        Chat(tokenizer(DOUBLES)).prompt(messages)


def test_a_passage_ends_before_the_last_messages_text_whatever_its_role():
    chat, made = Chat(tokenizer(CHATML)), tokenizer(CHATML)
    said = [Message("user", "hi"), Message("assistant", "yo"), Message("user", "assistant")]
    before, text = chat.passage(said)
    assert made.decode(before) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n<|im_start|>user\n"
    )
    assert made.decode(text) == "assistant"
    before, text = chat.passage(said[:2])
    assert (before, made.decode(text)) == (chat.prompt(said[:1]), "yo")


def test_a_passage_without_a_template_is_the_text_so_far_and_the_last_one():
    made = tokenizer()
    before, text = Chat(made).passage([Message("user", "1+1="), Message("assistant", "2"), Message("user", "ok")])
    assert (made.decode(before), made.decode(text)) == ("1+1=2", "ok")


def test_a_passage_that_the_template_leaves_out_is_a_data_error():
    with pytest.raises(DataError, match="leaves out the message of role 'tool'"):
        Chat(tokenizer(NO_TOOLS)).passage([Message("user", "hi"), Message("tool", "46")])
