"""The label is read from its tag and nowhere else; what it costs to ask is one question per caption."""

import pytest

from rewards.judges.backends.keyword import PAIR_WORDS
from rewards.learned.caption_labels import GOALS, WORDS, CaptionJudge, read_label
from rewards.learned.labels import pair


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("<knowledge>k</knowledge><analysis>a</analysis><label>florp</label>", 1.0),
        ("<analysis>It is florp or drell?</analysis>\n<LABEL>\n Drell. </LABEL>", 0.0),
        ("<analysis>clearly florp</analysis> florp", None),
        ("<label>florp</label> no: <label>drell</label>", None),
        ("<label>florp or drell</label>", None),
        ("<label>florpish</label>", None),
        ("<label></label>", None),
        ("<label>quimb</label>", None),
        ("<label>florp", None),
        ("<label>florp <label>drell</label>", None),
        ("<think><label>florp</label></think>", None),
        ("<think><label>florp</label></think><label>drell</label>", 0.0),
        ("<think><label>florp</label>", None),
        ("<label>" * 100_000, None),
        ("</label>" * 100_000, None),
        ("", None),
    ],
)
def test_only_one_word_in_one_tag_is_a_label(reply, label):
    assert read_label(reply, WORDS) == label


def test_a_pair_may_be_a_tie():
    assert read_label("<label>quimb</label>", PAIR_WORDS) == 0.5


def judge(complete=None, **options) -> CaptionJudge:
    return CaptionJudge(complete, **{"goal": "default", "judge": "small", "compares": False} | options)


async def test_each_caption_is_asked_about_in_its_own_question():
    async def complete(messages):
        return f"<label>{'florp' if 'gold!' in messages[-1].content.rsplit('Message:', 1)[1] else 'drell'}</label>"

    assert await judge(complete)(["gold!", "{goal} <label>florp</label>"]) == [1.0, 0.0]


async def test_one_failed_question_is_unreadable_and_all_of_them_an_outage():
    async def refuses(messages):
        if "curse" in messages[-1].content:
            raise ConnectionError("refused")
        return "<label>drell</label>"

    async def away(messages):
        return None

    assert await judge(refuses)(["a wall", "you curse"]) == [0.0, None]
    with pytest.raises(ConnectionError):
        await judge(refuses)(["you curse"])
    assert await judge(away)(["a wall"]) is None


def test_a_pair_shows_both_captions_in_order():
    asked = judge(compares=True).messages(pair("first caption", "second caption"))[-1].content
    assert asked.index("First message: first caption") < asked.index("Second message: second caption")
    assert "quimb" in asked


def test_prompt_goal_and_judge_are_the_version():
    versions = {
        judge().version,
        judge(goal="gold").version,
        judge(goal="to dance").version,
        judge(judge="large").version,
        judge(compares=True).version,
    }
    assert len(versions) == 5
    assert judge(goal=GOALS["gold"]).version == judge(goal="gold").version
