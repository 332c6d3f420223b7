"""A reward that asks a model for text: the judge's deadline, queue and archive hold, and a failure is no text."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import ConfigError
from cluster.types import Message
from rewards.base import Services
from rewards.judges.errors import JudgeRejected
from rewards.judges.pool.archive import MemoryArchive
from rewards.judges.pool.pool import JudgePool
from rewards.judges.types import Call, Completion

ASKED = (Message("user", "Say something."),)


class Writer:
    """A replica whose answers count up; it fails on `Fail`, and never answers `Wait`."""

    name = "writer"

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def complete(self, call: Call) -> Completion:
        self.calls.append(call)
        if call.messages[-1].content == "Fail":
            raise JudgeRejected("no such model")
        if call.messages[-1].content == "Wait":
            await asyncio.Event().wait()
        return Completion(f"text {len(self.calls)}", "stop", "m", (), 5, 2, "1.7")

    async def tokens(self, text: str) -> None: ...

    async def close(self) -> None: ...


def services(**options) -> tuple[Services, Writer, MemoryArchive]:
    writer, archive = Writer(), MemoryArchive()
    return Services(judges={"judge": JudgePool("judge", [writer], archive=archive, **options)}), writer, archive


async def test_samples_differ_in_their_seed_and_say_who_wrote_them():
    made, writer, archive = services()
    answers = await made.complete("judge", ASKED, 3, temperature=0.7, max_tokens=9)
    assert sorted(a.text or "" for a in answers) == ["text 1", "text 2", "text 3"]
    assert len({call.seed for call in writer.calls}) == 3
    assert {(call.max_tokens, call.temperature) for call in writer.calls} == {(9, 0.7)}
    behind = answers[0].provenance
    assert (behind.judge, behind.model, behind.cost_tokens) == ("judge", "m@1.7", 7)
    assert len(archive.records) == 3


async def test_what_was_asked_before_comes_from_the_archive_unless_it_is_to_be_new():
    made, writer, _ = services()
    first = (await made.complete("judge", ASKED, 2, temperature=1.0)), (await made.complete("judge", ASKED))
    again = (await made.complete("judge", ASKED, 2, temperature=1.0)), (await made.complete("judge", ASKED))
    assert [[a.text for a in answers] for answers in first] == [[a.text for a in answers] for answers in again]
    assert len(writer.calls) == 3
    assert again[0][0].provenance.cost_tokens == 0
    await made.complete("judge", ASKED, cached=False)
    assert len(writer.calls) == 4


async def test_a_live_policys_answer_is_good_for_its_weights_only():
    made, writer, _ = services(live=True)
    pool = made.judge("judge")
    await made.complete("judge", ASKED)
    await made.complete("judge", ASKED)
    assert len(writer.calls) == 1
    pool.saw("1.8")
    await made.complete("judge", ASKED)
    assert len(writer.calls) == 2


@pytest.mark.parametrize(("asked", "failure"), [("Fail", "JudgeRejected"), ("Wait", "JudgeTimeout")])
async def test_a_failure_is_an_answer_without_text_that_names_its_cause(asked, failure):
    made, _, archive = services(deadline_s=0.05)
    (answer,) = await made.complete("judge", (Message("user", asked),))
    assert answer.text is None
    assert answer.provenance.note.startswith(f"{failure}: judge 'judge'")
    assert not archive.records
    counts = made.metrics()
    assert counts["judge/judge_num_asked"] == counts["judge/judge_num_failed"] == 1
    await made.close_judges()


async def test_requests_beyond_the_queue_fail_at_once():
    made, _, _ = services(max_in_flight=1, max_queue=1, order="oldest", deadline_s=0.05)
    answers = await made.complete("judge", (Message("user", "Wait"),), 3, temperature=1.0)
    assert ["JudgeOverflow" in a.provenance.note for a in answers] == [False, False, True]
    await made.close_judges()


async def test_samples_that_would_be_one_and_judges_that_are_not_there_are_refused():
    made, _, _ = services()
    with pytest.raises(ValueError, match="one sample 2 times"):
        await made.complete("judge", ASKED, 2)
    with pytest.raises(ConfigError, match="no judge 'juge'"):
        await made.complete("juge", ASKED)


async def test_a_conversation_becomes_a_prompt_and_the_tokens_of_its_last_message():
    made = Services(encode=lambda messages: ([len(messages)], [ord(c) for c in messages[-1].content]))
    (one,) = await made.encode([(*ASKED, Message("assistant", "ab"))])
    assert (one.prompt.tolist(), one.tokens.tolist()) == ([2], [97, 98])  # pyright: ignore
    made.close()
    with pytest.raises(ConfigError, match="only a run has"):
        await Services().encode([ASKED])
