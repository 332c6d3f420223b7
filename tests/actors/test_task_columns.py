"""What a row's columns become: typed values in `task.meta`, one typed reference, and a prompt in whatever form."""

import datetime
import decimal
import json
import math

import numpy as np
import pytest

from cluster.errors import ConfigError, DataError
from cluster.types import Message, Task, decode, encode
from tests.actors.test_task_files import jsonl, parquet, saved, source


def only(path, **options):
    [task] = source(path=path, **options).train()
    assert decode(encode(task), Task) == task, "it can be stored"
    return task


TYPED = {
    "text": "x",
    "integer": 6,
    "number": 0.5,
    "flag": True,
    "dict": {"target": 6, "numbers": [1, 2, 3], "inner": {"deep": [{"a": 1.5}]}},
    "list": [1, 2],
    "texts": ["a", "b"],
    "none": None,
}


@pytest.mark.parametrize("write", [jsonl, parquet, saved])
def test_every_column_reaches_the_task_with_its_type(tmp_path, write):
    task = only(write(tmp_path, {"prompt": "1+1?", "answer": "2", **TYPED}))
    assert {name: task.meta[name] for name in TYPED} == TYPED
    assert {name: type(task.meta[name]) for name in TYPED} == {name: type(v) for name, v in TYPED.items()}
    assert (task.meta["prompt"], task.meta["answer"]) == ("1+1?", "2")
    assert "reference" not in task.meta, "the reference is a text"


REFERENCES = [
    ("2", "2", "2"),
    (6, "6", 6),
    (72.0, "72", 72.0),
    (0.5, "0.5", 0.5),
    (-3.0, "-3", -3.0),
    (1e-7, "1e-07", 1e-7),
    (True, "True", True),
    ({"target": 6, "numbers": [1, 2]}, '{"target": 6, "numbers": [1, 2]}', {"target": 6, "numbers": [1, 2]}),
    (["ü", "b"], '["ü", "b"]', ["ü", "b"]),
    (None, None, None),
    (math.nan, None, None),
]


@pytest.mark.parametrize("write", [jsonl, parquet])
@pytest.mark.parametrize("column", ["answer", "gold", "reward_model.ground_truth"])
@pytest.mark.parametrize(("value", "text", "typed"), REFERENCES, ids=repr)
def test_a_reference_keeps_its_type_and_has_a_text(tmp_path, write, column, value, text, typed):
    name, _, inner = column.partition(".")
    task = only(
        write(tmp_path, {"prompt": "x", name: {inner: value} if inner else value}),
        **({"answer_key": column} if column == "gold" else {}),
    )
    assert task.answer == text
    found = task.meta.get("reference", task.answer)
    assert found == typed
    assert type(found) is type(typed)


def test_a_reference_is_not_taken_from_a_column_that_only_has_its_name(tmp_path):
    task = only(jsonl(tmp_path, {"prompt": "x", "answer": "2", "reference": "two, because"}))
    assert (task.answer, task.meta["reference"]) == ("2", "2")


def test_dates_and_decimals_of_a_table_become_text(tmp_path):
    row = {
        "prompt": "x",
        "answer": decimal.Decimal("72.50"),
        "at": datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.UTC),
        "day": datetime.date(2024, 5, 1),
        "time": datetime.time(12, 30),
        "took": datetime.timedelta(seconds=90),
        "nested": {"days": [datetime.date(2024, 5, 1)]},
    }
    task = only(parquet(tmp_path, row))
    assert task.answer == "72.50"
    assert task.meta["at"].startswith("2024-05-01T12:30:00")
    assert (task.meta["day"], task.meta["time"], task.meta["took"]) == ("2024-05-01", "12:30:00", "0:01:30")
    assert task.meta["nested"] == {"days": ["2024-05-01"]}


@pytest.mark.parametrize(("column", "name"), [(b"\x89PNG", "'image'"), ({"bytes": b"\x89PNG"}, r"'image\.bytes'")])
def test_binary_columns_are_refused_by_name(tmp_path, column, name):
    with pytest.raises(DataError, match=rf"tasks\.parquet:1: column {name} holds binary data"):
        only(parquet(tmp_path, {"prompt": "x", "image": column}))


def test_numpy_values_become_plain(tmp_path):
    from actors.tasks.columns import plain

    assert plain({"a": np.float32(0.5), "b": np.arange(2), "c": [np.int64(3)], "d": np.bool_(True)}, "x") == {
        "a": 0.5, "b": [0, 1], "c": [3], "d": True,
    }  # fmt: skip


def test_missing_values_and_missing_columns_are_none(tmp_path):
    rows = [{"prompt": "a", "answer": 72.0, "level": 3, "weight": math.nan}, {"prompt": "b", "answer": math.nan}]
    first, second = source(path=jsonl(tmp_path, *rows)).train()
    assert (first.answer, first.meta["level"], first.meta["weight"]) == ("72", 3, None)
    assert (second.answer, second.meta["level"], second.meta["answer"]) == (None, None, None)


def test_a_column_whose_name_has_a_dot_is_found(tmp_path):
    task = only(jsonl(tmp_path, {"the.prompt": "x", "the.answer": 3}), prompt_key="the.prompt", answer_key="the.answer")
    assert (task.prompt, task.answer) == ("x", "3")


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


USER, ANSWER = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}


@pytest.mark.parametrize("write", [jsonl, parquet, saved])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"prompt": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
        {"messages": [{"role": "user", "content": parts("1+", "1?")}, {"role": "assistant", "content": parts("2")}]},
        {"messages": [USER, ANSWER], "answer": None},
        {"messages": [USER, ANSWER], "answer": "2"},
        {"prompt": [USER], "answer": "2"},
    ],
    ids=["messages", "prompt", "sharegpt", "parts", "an empty answer", "an equal answer", "no last answer"],
)
def test_a_conversation_is_read_up_to_the_answer_which_is_the_reference(tmp_path, write, row):
    task = only(write(tmp_path, row))
    assert task.variants["orig"] == (Message("user", "1+1?"),)
    assert task.answer == "2"
    assert task.meta["conversational"] is True


def test_a_text_prompt_is_no_conversation_even_with_a_system_message(tmp_path):
    path = jsonl(tmp_path, {"prompt": "x"})
    assert only(path).meta["conversational"] is False
    assert only(path, system="Be brief.").meta["conversational"] is False


def test_a_conversation_of_several_turns_ends_before_its_last_answer(tmp_path):
    talk = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    task = only(jsonl(tmp_path, {"conversations": [*talk, {"from": "human", "value": "c"}]}))
    assert [m.role for m in task.variants["orig"]] == ["system", "user", "assistant", "user"]
    assert task.answer is None
    task = only(jsonl(tmp_path, {"conversations": talk}))
    assert (task.variants["orig"], task.answer) == ((Message("system", "s"), Message("user", "a")), "b")


IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER, ANSWER], "answer": "3"}, "ends with the assistant's answer '2', and the reference is '3'"),
        ({"messages": [ANSWER]}, "no message in it asks for anything"),
        ({"messages": [USER, ANSWER, ANSWER]}, "two messages of the assistant"),
        ({"messages": [{"role": "user", "content": ""}]}, "no message in it asks"),
        ({"messages": [{"role": "system", "content": "s"}]}, "no message in it asks"),
        ({"messages": []}, r"'messages' is \[\]"),
        ({"messages": ["hello"]}, "entry 1 is 'hello'"),
        ({"messages": [{"content": "x"}]}, "entry 1 is"),
        ({"messages": [{"role": "user", "content": [*parts("see"), IMAGE]}]}, "part 2 is of type 'image_url'"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}, USER]}, "message 2 .* tool_calls"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "message 1 of 'conversations' is from 'alien'"),
        ({"conversations": [{"from": "human"}]}, "message 1 of 'conversations' has the content None"),
    ],
)
def test_a_conversation_that_cannot_be_read_is_refused_with_its_row(tmp_path, row, message):
    path = jsonl(tmp_path, {next(iter(row)): [USER]}, row)
    with pytest.raises(DataError, match=rf"tasks\.jsonl:2: .*{message}"):
        list(source(path=path).train())


def test_a_view_that_ends_in_another_answer_is_refused(tmp_path):
    row = {"prompt": "1+1?", "answer": "2", "other": [USER, {"role": "assistant", "content": "3"}]}
    with pytest.raises(DataError, match=r"tasks\.options\.prompt_variants\.again ends with the assistant's answer '3'"):
        only(jsonl(tmp_path, row), prompt_variants={"again": "other"})


@pytest.mark.parametrize("text", ["bad \ud83d emoji", "ok \ud83d\ude00"])
def test_lone_surrogates_are_replaced_everywhere_and_pairs_joined(tmp_path, text):
    line = json.dumps({"prompt": text, "answer": text, "note": {text: [text]}})
    task = only(jsonl(tmp_path, line))
    right = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert (task.prompt, task.answer, task.meta["note"]) == (right, right, {right: [right]})


@pytest.mark.parametrize("write", [jsonl, parquet, saved])
def test_a_reward_function_is_given_columns_and_reference_with_their_types(tmp_path, write):
    from rewards.conventions import columns_of, conversational, reference_of

    row = {
        "data_source": "sums",
        "prompt": [USER],
        "reward_model": {"style": "rule", "ground_truth": 6},
        "extra_info": {"index": 0},
        "level": 3,
    }
    task = only(write(tmp_path, row))
    assert (task.source, task.answer) == ("sums", "6")
    assert reference_of(task) == 6
    assert type(reference_of(task)) is int
    assert conversational(task)
    columns = columns_of(task)
    assert (columns["extra_info"], columns["level"]) == ({"index": 0}, 3)


COUNTDOWN = {"target": 98, "nums": [44, 19, 35]}
"""A row of the data set of TRL's example of Countdown, which has no column of prompts."""
ASKS = "Using the numbers {nums}, create an equation that equals {target}. Answer as \\boxed{{x}} in {}."


@pytest.mark.parametrize("write", [jsonl, parquet, saved])
def test_a_template_makes_the_prompt_of_columns(tmp_path, write):
    task = only(write(tmp_path, COUNTDOWN), prompt_template=ASKS)
    asked = "Using the numbers [44, 19, 35], create an equation that equals 98. Answer as \\boxed{x} in {}."
    assert task.prompt == asked
    assert (task.meta["target"], task.meta["nums"], task.answer) == (98, [44, 19, 35], None)


@pytest.mark.parametrize(
    ("row", "template", "words"),
    [
        (COUNTDOWN, "Reach {targt}.", "'{targt}' of tasks.options.prompt_template is no column. Did you mean 'target'"),
        ({"target": None, "nums": [1]}, "Reach {target}.", "has no value in this row"),
    ],
)
def test_a_template_that_does_not_fit_the_rows_is_refused(tmp_path, row, template, words):
    with pytest.raises(DataError, match=words):
        only(jsonl(tmp_path, row), prompt_template=template)


def test_a_template_beside_a_column_of_prompts_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="either prompt_key or prompt_template"):
        only(jsonl(tmp_path, COUNTDOWN), prompt_template=ASKS, prompt_key="nums")
