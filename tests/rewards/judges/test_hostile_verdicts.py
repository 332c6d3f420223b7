"""A judge's answer is read as what it means, or not at all: no parser ever gives a value that was not meant."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from cluster.errors import DataError
from rewards.judges.errors import Unreadable
from rewards.judges.extraction import read as read_answers
from rewards.judges.types import Completion, Request, Token
from tests.rewards.judges.hostile_answers import KINDS, READ, UNREAD, composed, framed, read

SEED, TRIES = 7, 300


def others(kind, own):
    return [other for other in kind.meant if kind.meant[other] != kind.meant[own]]


@pytest.mark.parametrize("frame", READ)
@pytest.mark.parametrize("name", KINDS)
def test_the_judge_s_own_verdict_is_read(name, frame):
    kind = KINDS[name]
    for own, values in kind.meant.items():
        for other in others(kind, own):
            text = framed(READ[frame], kind, own, other)
            assert kind.template(name).parse(text, kind.item(), "text").values == values, text


@pytest.mark.parametrize("frame", UNREAD)
@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_verdict_of_the_judge_is_unreadable(name, frame):
    kind = KINDS[name]
    for own in kind.meant:
        for other in others(kind, own):
            text = framed(UNREAD[frame], kind, own, other)
            with pytest.raises(Unreadable):
                pytest.fail(f"{text!r} is read as {kind.template(name).parse(text, kind.item(), 'text').values}")


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_value_of_the_scale_is_unreadable(name):
    kind = KINDS[name]
    template, item = kind.template(name), kind.item()
    read_as = {
        text: values
        for value in kind.nonsense
        for text in (kind.say(value), f"The sum is right.\n{kind.say(value)}", f"**{kind.say(value)}**")
        if value not in kind.meant and (values := read(template, text, item)) is not None
    }
    assert not read_as


@pytest.mark.parametrize("name", KINDS)
def test_a_quotation_of_the_response_is_no_verdict(name):
    kind = KINDS[name]
    for own in kind.meant:
        item = kind.item(kind.say(own))
        with pytest.raises(Unreadable):
            kind.template(name).parse(f"I read the text again. It is 85.\n{kind.say(own)}", item, "text")


@pytest.mark.parametrize("name", KINDS)
def test_random_answers_are_read_as_what_is_meant_or_not_at_all(name):
    kind, rng = KINDS[name], random.Random(f"{SEED} {name}")
    template, num_read = kind.template(name), 0
    for _ in range(TRIES):
        text, own = composed(rng, kind)
        values = read(template, text, kind.item())
        assert values in (None, kind.meant[own]), text
        num_read += values is not None
    assert num_read > TRIES / 10, "most of these answers can be read"


LABELLED = {
    "{own}": True, " {own}\n": True, "**{own}**": True, "{own}.": True, "[[{own}]]": True, "\\boxed{{{own}}}": True,
    "`{own}`": True,
    "{own}\n\nBecause of {other}.": True, "<think>{other}\n</think>{own}": True, "{other}</think>\n\n{own}": True,
    '"{own}"': True,
    "{own}\n\nVerdict: {own}": True, "Verdict: {own}": True, "It is clear.\nVerdict: {own}": True, "\n\n{own}": True,
    "{own} or {other}": False, "{own}/{other}": False, "{own} {other}": False, "{own}, {other}": False,
    "not {own}": False, "{own}?": False,
    "{own}\n{other}": False, "{own}\n\nVerdict: {other}": False, "{own}\nWait, {other}": False,
    "{own}\n\nActually, {other} is right.": False,
    "{own}\nis not what I would say": False, "{own} is worse, so {other}": False, "<think>{own}": False,
    "<think>{own}</think>": False,
    "I would say {own}": False, "> {own}": False, "{own}>{other}": False, "<{own}": False, "~~{own}~~": False,
    "{own}\u200b": False,
    "{own}...": False, ".{own}": False, "-{own}-": False, "{own}\n\nVerdict: X": False, "": False, " ": False,
    "```": False,
}  # fmt: skip


@pytest.mark.parametrize("text", LABELLED)
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if "label" in kind.template(name).modes])
@pytest.mark.parametrize("mode", ["label", "reason"])
def test_a_label_alone_is_read_and_a_sentence_is_not(name, text, mode):
    kind = KINDS[name]
    for own, values in kind.meant.items():
        for other in others(kind, own):
            answer = text.format(own=own, other=other)
            try:
                found = kind.template(name).parse(answer, kind.item(), mode).values
            except Unreadable:
                found = None
            assert found == (values if LABELLED[text] else None), answer


SENTENCES = [("pairwise", "A is worse, so B", "A"), ("pairwise", "B", "B"), ("pointwise", "1 mistake, so 4", "1")]


@pytest.mark.parametrize(("name", "text", "first"), SENTENCES)
@pytest.mark.parametrize("mode", ["label", "reason"])
def test_a_sentence_that_begins_as_a_label_is_not_read_by_its_log_probs(name, text, first, mode):
    kind = KINDS[name]
    tokens = (Token(first, -0.01, ((first, -0.01), ("Response", -5.0))), Token(text[len(first) :], -1.0))
    answer = Completion(text, "stop", "m", tokens)
    answers = [answer] if mode == "label" else [Completion("Reasons.", "stop", "m"), answer]
    request = Request(kind.template(name), kind.item(), mode)
    if text == first:
        assert read_answers(request, answers).values == pytest.approx((0.0,))
    else:
        with pytest.raises(Unreadable):
            read_answers(request, answers)


LONG = {
    "blanks": ("", " ", ""),
    "lines": ("", "a\n", ""),
    "blank lines": ("", "\n", "x"),
    "digits": ("Score: ", "9", ""),
    "digits in a list": ("Scores: ", "9", ", 1, 1"),
    "digits before a colon": ("", "9", ": yes"),
    "a digit and blanks": ("Score: 5", " ", "/100"),
    "signs": ("Verdict: ", "-", ""),
    "brackets": ("Verdict: ", "[", ""),
    "braces": ("Score: ", "{", ""),
    "boxes": ("Verdict: ", "\\boxed{", ""),
    "thoughts": ("", "<think>", ""),
    "ends of thoughts": ("", "</think>", "x"),
    "verdicts": ("", "Verdict: 4\n", ""),
    "verdicts in a line": ("", "verdict:", ""),
    "scores": ("", "Score: 4\n", ""),
    "scores in a line": ("", "score=", ""),
    "words before a verdict": ("", "final ", "verdict: 4"),
    "a sentence before a score": ("", "not ", "Score: 4"),
    "words behind a score": ("Score: 4. ", "no ", ""),
    "quotes": ("", '"', "x"),
    "quotation marks of Markdown": ("", "> ", "x"),
    "fences": ("", "```\n", "x"),
    "numbers": ("", "1 ", ""),
    "criteria": ("", "1: yes\n", ""),
    "commas": ("Scores: ", ",", ""),
    "scales": ("Score: 4 ", "out of ", ""),
    "claims": ("", "says ", "\nVerdict: 4"),
    "minus signs": ("Score: ", "−", ""),
    "half surrogates": ("", "\ud83d", "x"),
    "markers": ("", "<", "x"),
    "zero widths": ("", "<\u200b", "x"),
    "JSON": ("", '{"score":', ""),
}
"""Name → beginning, what is repeated, end."""


@pytest.mark.parametrize("long", LONG)
@pytest.mark.parametrize("size", [20_000, *(pytest.param(n, marks=pytest.mark.verify) for n in (200_000, 2_000_000))])
def test_long_answers_are_read_in_linear_time(long, size):
    begin, unit, end = LONG[long]
    text = begin + unit * (size // len(unit)) + end
    for name in ("pointwise", "checklist", "pairwise_strength", "listwise", "assessment"):
        kind, begun = KINDS[name], time.process_time()
        template, item = kind.template(name), kind.item(text)
        for mode in template.modes:
            with contextlib.suppress(DataError):
                template.parse(text, item, mode)
        assert time.process_time() - begun < size / 50_000, f"{name} took {time.process_time() - begun:.1f} s"


@pytest.mark.verify
@pytest.mark.parametrize("name", KINDS)
def test_a_hundred_thousand_random_answers_are_read_as_what_is_meant_or_not_at_all(name):
    kind, rng = KINDS[name], random.Random(f"{SEED} {name} long")
    template = kind.template(name)
    for _ in range(100_000 // len(KINDS)):
        text, own = composed(rng, kind)
        assert read(template, text, kind.item()) in (None, kind.meant[own]), text
