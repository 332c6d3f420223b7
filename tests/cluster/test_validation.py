"""What foreign code hands over becomes the data model, or a failure with the field's name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from cluster.errors import DataError
from cluster.types import (
    BatchRecord,
    Claim,
    Event,
    Group,
    Message,
    Provenance,
    Rollout,
    Scores,
    Task,
    Turn,
    VersionSpan,
    decode,
    encode,
)
from cluster.types.wire import checked_group, checked_task, clean_text, consistent_scores, fitting_scores


def rollout(**changes: Any) -> Rollout:
    given = Rollout(
        tokens=np.arange(8, dtype=np.int32),
        loss_mask=np.arange(8) > 3,
        logprobs=np.zeros(8, np.float32),
        text="4",
        turns=(Turn("user", 0, 4, "2+2"), Turn("assistant", 4, 8, "4")),
        spans=(VersionSpan("1.0", 4, 8),),
        finish="stop",
        events=(Event("right", 0),),
    )
    return replace(given, **changes)


def group(**changes: Any) -> Group:
    claim = Claim("policy/1/0", "policy", 1, 0, 0, 0, "secret")
    return Group(claim, Task.of("0", "2+2"), (rollout(**changes), rollout()))


class Liar(float):
    def __float__(self):
        raise SystemError("no number")


@pytest.mark.parametrize(
    ("reward", "number"),
    [(True, 1.0), (1, 1.0), (np.float32(0.5), 0.5), (np.int8(2), 2.0), (np.bool_(True), 1.0), (np.array(3.0), 3.0)],
)
def test_numbers_of_any_kind_are_the_numbers_they_are(reward, number):
    found = checked_group(group(reward=reward))
    assert type(found.rollouts[0].reward) is float
    assert decode(encode(found), Group).rollouts[0].reward == number


@pytest.mark.parametrize("reward", [np.ma.masked, np.ma.array(1.0, mask=True)])
def test_a_masked_number_is_unknown(reward):
    assert np.isnan(checked_group(group(reward=reward)).rollouts[0].reward)


@pytest.mark.parametrize("reward", ["1", [1.0], {}, float("inf"), 10**400, 1j, object()])
def test_what_is_no_finite_number_is_refused_by_name(reward):
    with pytest.raises(DataError, match=r"group\.rollouts\[0\]\.reward"):
        checked_group(group(reward=reward))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"tokens": np.arange(7)}, "loss_mask"),
        ({"tokens": np.arange(8) + 0.5}, "tokens"),
        ({"tokens": np.arange(8) - 1}, "tokens"),
        ({"tokens": np.full(8, 2**40)}, "tokens"),
        ({"tokens": np.zeros((2, 4), np.int32)}, "tokens"),
        ({"tokens": "12345678"}, "tokens"),
        ({"loss_mask": np.arange(8)}, "loss_mask"),
        ({"loss_mask": np.ones(9, bool)}, "loss_mask"),
        ({"logprobs": np.zeros(7)}, "logprobs"),
        ({"logprobs": np.full(8, -np.inf)}, "logprobs"),
        ({"logprobs": np.zeros(8, complex)}, "logprobs"),
        ({"turns": (Turn("assistant", 4, 9, ""),)}, "turns"),
        ({"turns": (Turn("assistant", 6, 4, ""),)}, "turns"),
        ({"turns": (Turn("assistant", 4, 8, ""), Turn("user", 0, 4, ""))}, "turns"),
        ({"turns": (Turn("assistant", -1, 8, ""),)}, "turns"),
        ({"turns": (3,)}, "turns"),
        ({"turns": None}, "turns"),
        ({"spans": (VersionSpan("1.0", 4, 9),)}, "spans"),
        ({"spans": (VersionSpan("1.0", 4, 8), VersionSpan("1.0", 3, 8))}, "spans"),
        ({"spans": ((0, 1),)}, "spans"),
        ({"spans": (VersionSpan("7", 4, 8),)}, "spans"),
        ({"spans": (VersionSpan("1.-9", 4, 8),)}, "spans"),
        ({"events": (Event("x", 1),)}, "events"),
        ({"events": (Event("x", 0, reward=float("inf")),)}, "events"),
        ({"reward": float("-inf")}, "reward"),
        ({"events": (Event("x", -1),)}, "events"),
        ({"events": (Event("x", 0, count=2**64),)}, "events"),
        ({"events": (Event(3, 0),)}, "events"),  # type: ignore[arg-type]
        ({"events": "x"}, "events"),
        ({"finish": "abort"}, "finish"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e300}, "temperature"),
        ({"attempt": -1}, "attempt"),
        ({"attempt": 2**64}, "attempt"),
        ({"parent": 2}, "parent"),
        ({"parent": 0}, "parent"),
        ({"parent": -1}, "parent"),
        ({"variant": "other"}, "variant"),
        ({"text": 3}, "text"),
        ({"text": b"4"}, "text"),
        ({"answer": 4}, "answer"),
    ],
)
def test_a_group_that_contradicts_itself_is_refused_by_name(changes, place):
    with pytest.raises(DataError, match=rf"group\.rollouts\[0\]\.{place}"):
        checked_group(group(**changes))
    try:
        data = encode(group(**changes))
    except (TypeError, OverflowError, msgspec.MsgspecError):
        return
    with pytest.raises(msgspec.ValidationError):
        decode(data, Group)


def test_a_group_without_rollouts_is_refused():
    with pytest.raises(DataError, match="rollouts is empty"):
        checked_group(replace(group(), rollouts=()))


def test_a_group_whose_task_has_no_original_view_is_refused():
    other = Task("0", {"other": (Message("user", "2+2"),)})
    given = replace(group(variant="other"), task=other, rollouts=(rollout(variant="other"),))
    with pytest.raises(DataError, match="'orig' is expected"):
        checked_group(given)
    with pytest.raises(msgspec.ValidationError, match="'orig' is expected"):
        decode(encode(given), Group)


def scores(**changes: Any) -> Scores:
    found = Scores.of([1.0, 0.0], Provenance(note="fine"))
    for name, value in changes.items():  # as foreign code can, past the checks of the constructor
        object.__setattr__(found, name, value)
    return found


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"values": np.ones(3), "state": np.zeros(3, np.uint8)}, "values"),
        ({"values": np.array([np.inf, 1.0])}, "values"),
        ({"values": np.array(["1", "0"])}, "values"),
        ({"values": np.array([np.nan, 0.0]), "state": np.array([3, 0])}, "state"),
        ({"state": np.zeros(1, np.uint8)}, "state"),
        ({"values": np.array([np.nan, 0.0]), "state": np.array([-1, 0])}, "state"),
        ({"provenance": (Provenance(),) * 3}, "provenance"),
        ({"tokens": (np.zeros(8),)}, "tokens"),
        ({"tokens": (np.zeros(8), np.zeros(7))}, "tokens"),
        ({"tokens": (np.zeros(8), np.full(8, np.inf))}, "tokens"),
        ({"tokens": (np.zeros((8, 1)), np.zeros(8))}, "tokens"),
        ({"tokens": ([0.0] * 8, ["x"] * 8)}, "tokens"),
    ],
)
def test_scores_that_do_not_fit_their_group_are_refused_by_name(changes, place):
    with pytest.raises(DataError, match=rf"scores.*{place}"):
        fitting_scores(consistent_scores(scores(**changes)), group())


def test_lone_surrogates_become_replacement_characters_and_pairs_join():
    assert clean_text("a\ud800b") == "a\ufffdb"
    assert clean_text("\ud83d\ude00") == "😀"
    found = checked_group(group(text="a\udfffb"))
    assert found.rollouts[0].text == "a\ufffdb"


def test_a_task_is_copied_whole_and_its_meta_made_plain():
    meta = {"number": np.int64(3), "text": "\ud800", "nested": [{"a": (1, 2.5)}], "array": np.arange(2)}
    given = Task("0", {"orig": (Message("user", "2+2"),)}, meta=meta)
    found = checked_task(given)
    meta["nested"][0]["a"] = "changed"
    assert found.meta == {"number": 3, "text": "\ufffd", "nested": [{"a": [1, 2.5]}], "array": [0, 1]}
    assert decode(encode(found), Task) == found


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize("value", [2**64, object(), LOOP, {(1, 2): 3}, lambda: 0, 1j])
def test_meta_that_cannot_be_stored_is_refused_by_name(value):
    with pytest.raises(DataError, match=r"task 0 cannot be stored: task\.meta"):
        checked_task(Task.of("0", "2+2", value=value))


@pytest.mark.parametrize(
    ("name", "value"),
    [("rewards", (np.ones(2),) * 2), ("advantages", ()), ("groups", ("a", "a")), ("pairs", ((),) * 2)],
)
def test_a_record_whose_lists_differ_in_length_is_not_decoded(name, value):
    record = BatchRecord("policy", 0, ("a",), (np.ones(2),), ((np.ones(1, np.float32),) * 2,))
    assert decode(encode(record), BatchRecord).groups == ("a",)
    with pytest.raises(msgspec.ValidationError, match=rf"record\.{name}"):
        decode(encode(replace(record, **{name: value})), BatchRecord)


def test_harmless_values_of_an_earlier_version_are_read():
    assert decode(encode(group(reward=True)), Group).rollouts[0].reward == 1.0
    stored = scores(provenance=(Provenance(note=None),), tokens=([1.0] * 8,) * 2)  # type: ignore[arg-type]
    found = decode(encode(stored), Scores)
    assert found.provenance[0].note == ""
    assert found.tokens is not None
    assert found.tokens[0].tolist() == [1.0] * 8


def test_a_group_that_version_0_1_stored_is_read_under_the_new_names():
    stored = group(variant="orig", agent="1")
    raw = msgspec.msgpack.decode(encode(stored))
    raw["task"]["views"] = raw["task"].pop("variants")
    for rollout in raw["rollouts"]:
        rollout["view"], rollout["role"] = rollout.pop("variant"), rollout.pop("agent")
    found = decode(msgspec.msgpack.encode(raw), Group)
    assert found.task == stored.task
    assert [(r.variant, r.agent) for r in found.rollouts] == [(r.variant, r.agent) for r in stored.rollouts]
