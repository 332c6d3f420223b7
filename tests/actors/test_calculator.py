"""The calculator answers what it is asked; the model made for it half knows how to ask."""

from __future__ import annotations

import json
import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.chat import Chat
from actors.environments import ENVIRONMENTS, End, Observation
from actors.models import prepare
from actors.tasks import TASKS
from actors.tasks.calculator import sums_of_three
from actors.tiny.calculator import demonstration, worked_out
from actors.tiny.caller import CallerModel
from actors.tiny.character import EOS, PAD, dialogues
from cluster.config import ModelSection
from cluster.plugins import build
from cluster.types import Message, Task
from deploy.recipes.data.agent import TOOL

TASK = Task.of("t", "12+34+56=", "102")


async def told(answers, **options):
    game = build(ENVIRONMENTS, "calculator", options, "rollout.environment").play(TASK, "orig")
    said = [await anext(game)]
    for answer in answers:
        said.append(await game.asend(answer))
    await game.aclose()
    return said


async def test_two_calls_and_an_answer():
    question, first, second, end = await told(["[12+34]", "[46+56]", "102"])
    assert question.messages == TASK.variants["orig"]
    assert [first.messages[0].content, second.messages[0].content] == ["=46;", "=102;"]
    assert [(e.turn, e.count) for step in (first, second) for e in step.events] == [(0, 1), (1, 2)]
    assert isinstance(end, End)
    assert end.answer == "102"


@pytest.mark.parametrize(("call", "result"), [("[7-9]", "=-2;"), ("so [ -3 * 4 ]\n", "=-12;"), ("[1+1][2+2]", "=4;")])
async def test_a_turn_that_ends_in_a_call_is_one(call, result):
    assert (await told([call]))[1].messages[0].content == result


@pytest.mark.parametrize(
    "text", ["46", "[12+34", "[12+34]=46", "[12/3]", "[1+2+3]", "", "[+]", "[9999999999999+1]", "[²+1]"]
)
async def test_any_other_turn_is_the_answer(text):
    end = (await told([text]))[1]
    assert isinstance(end, End)
    assert end.answer == text


async def test_one_call_too_many_ends_without_an_answer():
    *_, last, end = await told(["[1+1]"] * 3, max_calls=2)
    assert isinstance(last, Observation)
    assert isinstance(end, End)
    assert end.answer == ""
    assert end.events[0].count == 3


@given(st.text())
async def test_no_text_crashes_it(text):
    assert isinstance((await told([text]))[1], End | Observation)


def test_no_sum_is_in_two_sets_in_any_order():
    sets = [{tuple(sorted(s)) for s in part} for part in sums_of_three()]
    assert [len(s) for s in sets] == [8000, 20_000, 1000]
    assert not any(sets[i] & sets[j] for i, j in product(range(3), repeat=2) if i < j)


def test_tasks_have_the_answer_that_arithmetic_gives():
    source = build(TASKS, "calculator", {"num_evaluation": 7}, "tasks")
    assert len(source.evaluation()) == 7
    for task in source.train()[:100]:
        assert int(task.answer or "") == sum(map(int, re.findall(r"\d+", task.prompt)))


def test_a_demonstration_ends_in_a_right_answer_more_often_for_large_sums():
    rng = np.random.default_rng(0)

    def right(first: int) -> float:
        said = [demonstration((first, 34, 56), rng)[-1][0] for _ in range(500)]
        return float(np.mean([s == str(first + 90) for s in said]))

    assert right(10) < 0.1 < 0.4 < right(99) < 0.6


def test_a_dialogue_marks_what_the_policy_says():
    tokens, chosen = dialogues([worked_out((12, 34, 56)), worked_out((99, 99, 99))])
    assert tokens.shape == chosen.shape
    # what is chosen, in the first row: two calls and an answer, each with its end of sequence
    assert int(chosen[0].sum()) == len("[12+34][46+56]102") + 3
    assert int((tokens[0][chosen[0]] == EOS).sum()) == 3
    assert not (tokens[0][~chosen[0]] == EOS).any()


async def test_the_warm_start_solves_a_part_of_what_it_has_not_seen():
    """Played as a run plays it, greedily: token by token, the calculator in between."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = prepare(ModelSection(path="tiny:calculator"), seed=0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    tasks = build(TASKS, "calculator", {"num_evaluation": 200}, "tasks").evaluation()
    environment = build(ENVIRONMENTS, "calculator", {}, "rollout.environment")
    games = [environment.play(task, "orig") for task in tasks]
    steps = [await anext(game) for game in games]
    texts: list[list[int]] = [[] for _ in tasks]
    while playing := [i for i, step in enumerate(steps) if isinstance(step, Observation)]:
        for i in playing:
            texts[i] += tokenizer.encode(steps[i].messages[0].content)
        width = max(len(texts[i]) for i in playing)
        rows = torch.tensor([[PAD] * (width - len(texts[i])) + texts[i] for i in playing])
        with torch.no_grad():
            out = model.generate(rows, attention_mask=(rows != PAD).long(), max_new_tokens=10, do_sample=False)
        for i, spoken in zip(playing, out[:, width:].tolist(), strict=True):
            texts[i] += spoken[: spoken.index(EOS) + 1] if EOS in spoken else spoken
            steps[i] = await games[i].asend(tokenizer.decode(spoken, skip_special_tokens=True))
    accuracy = np.mean([step.answer == task.answer for step, task in zip(steps, tasks, strict=True)])
    assert 0.15 <= accuracy <= 0.6


def test_the_model_that_calls_tools_sees_what_its_chat_template_writes():
    tiny = CallerModel()
    tokenizer = tiny.tokenizer()
    chat = Chat(tokenizer)
    tools = [TOOL]
    question, call, result, *_ = tiny.seen(worked_out((12, 34, 56)))
    tokens, chosen = dialogues([[question, call, result]], tiny.words)
    prompt = chat.prompt([Message("user", "12+34+56=")], tools)
    assert tokens[0][: len(prompt)].tolist() == prompt
    said = tokens[0][chosen[0]].tolist()
    assert said[:-1] == tokenizer.encode(call[0])
    assert len(said) == len("[12+34]") + 1, "a call takes as many tokens as one in brackets, and an end"
    after = chat.observation([Message("tool", "46")], after=said[-1], tools=tools)
    assert [*prompt, *said, *after] == tokens[0].tolist()
    assert json.loads(call[0].removeprefix("<tool_call>").removesuffix("</tool_call>"))["name"] == "calculate"
