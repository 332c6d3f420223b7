"""Tasks: disjoint sets, an endless order that resumes anywhere, and files read as others write them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.tasks import TASKS, addition_problems, order
from cluster.errors import ConfigError
from cluster.plugins import build
from cluster.types import Message, Task, decode, encode


def source(use, **options):
    return build(TASKS, use, options, "tasks")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 60))
def test_every_pass_visits_every_task_once(seed, size):
    place = order(seed, size, True)
    for number in range(3):
        visited = [place(number * size + i) for i in range(size)]
        assert {p for p, _ in visited} == {number}
        assert sorted(i for _, i in visited) == list(range(size))


def test_passes_and_seeds_differ_in_order():
    def indices(seed, number):
        return [order(seed, 100, True)(number * 100 + i)[1] for i in range(100)]

    assert indices(0, 0) != indices(0, 1)
    assert indices(0, 0) != indices(1, 0)


def test_a_resumed_run_goes_on_in_the_same_order():
    place, again = order(7, 13, True), order(7, 13, True)
    whole = [place(i) for i in range(100)]
    assert [again(i) for i in range(57, 100)] == whole[57:]
    assert [again(i) for i in reversed(range(100))] == whole[::-1]


def test_without_shuffling_the_order_is_the_sources():
    place = order(7, 3, False)
    assert [place(i) for i in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_no_sum_is_in_two_sets_not_even_with_its_operands_swapped():
    sets = [{frozenset(p) for p in problems} for problems in addition_problems()]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert sum(map(len, addition_problems())) == 90 * 90
    assert len(addition_problems()[2]) >= 1000


def test_addition_tasks_have_the_answer_that_arithmetic_gives():
    addition = source("addition")
    for task in (*addition.train(), *addition.heldout()):
        a, b = task.prompt.removesuffix("=").split("+")
        assert task.answer == str(int(a) + int(b))
    assert len(source("addition", num_heldout=10).heldout()) == 10


def test_reasoning_gym_tasks_travel_and_their_heldout_questions_are_new():
    gym = source("reasoning_gym", name="leg_counting", size=20, num_heldout=10, seed=3)
    train, heldout = gym.train(), gym.heldout()
    assert len(train) == 20
    assert 0 < len(heldout) <= 10
    assert not {t.prompt for t in train} & {t.prompt for t in heldout}
    assert train[5] == gym.train()[5] == decode(encode(train[5]), Task)
    assert train[5].meta["reasoning_gym"]["index"] == 5
    assert [t.id for t in heldout[:2]] == [heldout[0].id, heldout[1].id]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "leg_countin"}, "Did you mean 'leg_counting'"),
        ({"name": "leg_counting", "config": {"legs": 3}}, "does not fit 'leg_counting'"),
    ],
)
def test_a_generator_that_does_not_exist_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        source("reasoning_gym", **options).train()


def lines(tmp_path, *rows):
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n", "utf-8")
    return str(file)


def test_a_jsonl_file_gives_a_task_per_line(tmp_path):
    path = lines(tmp_path, {"prompt": "1+1?", "answer": 2}, "", {"prompt": "Näh?"}, {"prompt": "x", "answer": [1, 2]})
    tasks = source("jsonl", path=path).train()
    assert [(t.id, t.prompt, t.answer) for t in tasks] == [
        ("tasks/1", "1+1?", "2"),
        ("tasks/3", "Näh?", None),
        ("tasks/4", "x", "[1, 2]"),
    ]


def test_other_keys_and_a_system_message(tmp_path):
    path = lines(tmp_path, {"q": {"text": "1+1?"}, "gold": "2"})
    task = source("jsonl", path=path, prompt="q.text", answer="gold", system="Be brief.").train()[0]
    assert task.views["orig"] == (Message("system", "Be brief."), Message("user", "1+1?"))
    assert task.answer == "2"


def test_files_made_for_verl_are_read_as_they_are(tmp_path):
    row = {
        "data_source": "gsm8k",
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "reward_model": {"style": "rule", "ground_truth": "72"},
        "extra_info": {"split": "train", "index": 0},
    }
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "tasks.parquet")
    for path in (lines(tmp_path, row), str(tmp_path / "tasks.parquet")):
        task = source("jsonl", path=path).train()[0]
        assert task.views["orig"] == (Message("system", "s"), Message("user", "u"))
        assert (task.answer, task.source) == ("72", "gsm8k")
        assert task.meta["extra_info"] == {"split": "train", "index": 0}
        assert decode(encode(task), Task) == task


def test_held_out_lines_are_not_trained_on(tmp_path):
    path = lines(tmp_path, *({"prompt": str(i)} for i in range(5)))
    part = source("jsonl", path=path, num_heldout=2)
    assert [t.prompt for t in part.train()] == ["0", "1", "2"]
    assert [t.prompt for t in part.heldout()] == ["3", "4"]
    assert not source("jsonl", path=path).heldout()
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        source("jsonl", path=path, num_heldout=5).train()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "tasks.jsonl:2: not JSON"),
        ("[1]", "tasks.jsonl:2: a list, not an object"),
        ('{"question": "?"}', r"tasks.jsonl:2: 'prompt' is None.*tasks.options.prompt"),
        ('{"prompt": ""}', "tasks.jsonl:2: 'prompt' is ''"),
        ('{"prompt": [{"role": "user"}]}', "tasks.jsonl:2: 'prompt' is"),
        ('{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}', "tasks.jsonl:2: 'prompt' is"),
        ('{"prompt": "x", "extra_info": {"n": 99999999999999999999999}}', "tasks.jsonl:2: this line cannot be stored"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        source("jsonl", path=lines(tmp_path, {"prompt": "fine"}, line)).train()


def test_a_missing_an_empty_and_a_foreign_file(tmp_path):
    with pytest.raises(ConfigError, match="is not a file"):
        source("jsonl", path=str(tmp_path / "none.jsonl")).train()
    with pytest.raises(ConfigError, match="is empty"):
        source("jsonl", path=lines(tmp_path, "")).train()
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match="not a Parquet file"):
        source("parquet", path=str(tmp_path / "x.parquet")).train()


def test_an_option_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match=r"tasks\.options of 'addition': digits"):
        source("addition", digits=3)
