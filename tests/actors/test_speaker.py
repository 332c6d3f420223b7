"""The policy as a judge: it says which weights spoke, and takes no more of the engine than its share."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer

from actors.chat import Chat
from actors.engine import Sample
from actors.speaker import Speaker
from cluster.config import parse
from cluster.errors import DataError
from cluster.types import Message, VersionSpan
from tests.fakes import FakeEngine
from tests.models import random_llama

ASKED = (Message("user", "is 2+2=4?"),)
HOW = {"max_tokens": 6, "temperature": 0.0, "seed": 3, "top_logprobs": 5}


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> tuple[Chat, str]:
    directory = random_llama(tmp_path_factory.mktemp("model"), tied=True, chat=True)
    return Chat(AutoTokenizer.from_pretrained(directory)), str(directory)


def engine(chat, **options) -> FakeEngine:
    settings = parse({"rollout": {"max_tokens": 8}, "engine": {"max_model_len": 64, "options": options}})
    return FakeEngine(chat[1], settings, stop_tokens=chat[0].stop_tokens, version="2.7")


async def test_an_answer_names_its_weights_and_the_likeliest_tokens(chat):
    answer = await Speaker(engine(chat), chat[0], 4).answer(ASKED, **HOW)
    assert answer.version == "2.7"
    assert answer.text == "".join(t.text for t in answer.tokens)
    assert answer.num_prompt_tokens == len(chat[0].prompt(ASKED))
    for token in answer.tokens:
        assert len(token.top) == 5
        assert token.top[0] == (token.text, pytest.approx(token.logprob)), "greedy: what is written is the likeliest"
        assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)


async def test_what_ends_an_answer_is_no_part_of_it_and_several_versions_are_named(chat):
    stop = chat[0].stop_tokens[0]

    class Ended(FakeEngine):
        async def sample(self, prompt, **how) -> Sample:
            spans = (VersionSpan("2.7", 0, 1), VersionSpan("2.8", 1, 2))
            return Sample(np.array([8, stop], np.int32), np.zeros(2, np.float32), spans, "stop", (((8, 0.0),),) * 2)

    found = Ended(chat[1], parse({}), stop_tokens=[stop], version="2.7")
    answer = await Speaker(found, chat[0], 4).answer(ASKED, **HOW)
    assert (answer.text, len(answer.tokens), answer.num_tokens, answer.version) == ("5", 1, 2, "2.7-2.8")


async def test_an_answer_begins_in_the_thought_that_its_prompt_opened(chat):
    tokenizer = AutoTokenizer.from_pretrained(chat[1])
    tokenizer.chat_template = "{{ messages[0].content }}{% if add_generation_prompt %}<think>{% endif %}"
    answer = await Speaker(engine(chat), Chat(tokenizer), 4).answer(ASKED, **HOW)
    assert answer.text.startswith("<think>")
    assert answer.text == "".join(t.text for t in answer.tokens)
    assert len(answer.tokens) == 1 + answer.num_tokens


async def test_judging_takes_its_share_and_no_more(chat):
    under_way, most = 0, 0

    class Counting(FakeEngine):
        async def sample(self, prompt, **how) -> Sample:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.005)
            under_way -= 1
            return await super().sample(prompt, **how)

    speaker = Speaker(Counting(chat[1], parse({}), stop_tokens=chat[0].stop_tokens, version="0.0"), chat[0], 3)
    await asyncio.gather(*(speaker.answer(ASKED, **HOW) for _ in range(20)))
    assert most == 3


async def test_a_question_without_room_for_an_answer_is_refused(chat):
    long = replace(ASKED[0], content="2" * 64)
    with pytest.raises(DataError, match=r"leaves no room.*max_model_len = 64"):
        await Speaker(engine(chat), chat[0], 1).answer((long,), **HOW)
    room = 64 - len(chat[0].prompt(ASKED))
    answer = await Speaker(engine(chat), chat[0], 1).answer(ASKED, **HOW | {"max_tokens": 500, "temperature": 1.0})
    assert answer.num_tokens <= room
