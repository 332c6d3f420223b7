"""Rows of data files before the start: said twice, mixed, too long, or not those that the run knows."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from actors.chat import Chat
from actors.models import load_tokenizer
from actors.tasks import TASKS, TaskSource, order, without
from actors.tasks.base import Lazy
from cluster import config
from cluster.config import ModelSection, RunConfig, parse
from cluster.config.run_config import TasksSection
from cluster.driver import preflight, preflight_dataset
from cluster.errors import ConfigError
from cluster.plugins import build
from cluster.types import Message, SkippedTasks, Task
from tests.cluster.commands import make_run
from tests.models import random_llama

TINY = load_tokenizer(ModelSection(path="tiny:addition"), 0, online=False)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(*numbers: int) -> list[dict]:
    return [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in numbers]


def recipe(path: Path, *, length: int = 64, **options) -> RunConfig:
    tree = {
        "tasks": {"use": "jsonl", "options": {"path": str(path), **options}},
        "model": {"path": "tiny:addition"},
        "rollout": {"max_tokens": 8},
        "engine": {"max_model_len": length},
        "rewards": [{"use": "exact"}],
        "run": {"name": "a", "dir": str(path.parent / "runs")},
    }
    return parse(tree)


def rows_of(settings: RunConfig) -> preflight_dataset.Rows:
    rows = preflight_dataset.read(settings)
    assert rows is not None
    return rows


def told(settings: RunConfig, directory: Path) -> str:
    return "\n".join(preflight.everything(settings, directory, online=False))


def test_held_out_prompts_that_are_trained_on_are_named_with_both_lines(tmp_path):
    train = write(tmp_path / "train.jsonl", sums(1, 2, 3))
    held = write(tmp_path / "held.jsonl", [*sums(9), {"prompt": " 3+1= \n", "answer": "4"}, *sums(1)])
    said = told(recipe(train, evaluation_path=str(held)), tmp_path / "run")
    assert "2 of 3 evaluation rows have the prompt of a training row" in said
    assert "held.jsonl:2" in said
    assert "train.jsonl:3" in said
    assert "'3+1='" in said


def test_held_out_rows_at_the_end_of_the_file_are_compared_too(tmp_path):
    train = write(tmp_path / "train.jsonl", sums(1, 2, 3, 2))
    said = told(recipe(train, num_evaluation=1), tmp_path / "run")
    assert "1 of 1 evaluation rows" in said
    assert "train.jsonl:4 and train.jsonl:2" in said
    assert "earlier row" not in said


def test_training_rows_that_repeat_a_prompt_are_counted(tmp_path):
    train = write(tmp_path / "train.jsonl", [*sums(1, 2), *sums(2, 2), {"prompt": "1+1=", "answer": "7"}])
    said = told(recipe(train), tmp_path / "run")
    assert "3 of 5 training rows have the prompt of an earlier row, such as train.jsonl:1 and train.jsonl:5" in said


def test_rows_of_their_own_are_not_remarked_on(tmp_path):
    train, held = write(tmp_path / "train.jsonl", sums(*range(30))), write(tmp_path / "held.jsonl", sums(40, 41))
    assert not told(recipe(train, evaluation_path=str(held)), tmp_path / "run")


def test_roles_tell_equal_texts_apart(tmp_path):
    rows = [{"prompt": [{"role": r, "content": "1+1="} for r in roles]} for roles in (["user"], ["system", "user"])]
    settings = recipe(write(tmp_path / "train.jsonl", [{**row, "answer": "2"} for row in rows]))
    assert not preflight_dataset.warnings(rows_of(settings))


def test_a_column_of_several_types_is_named_with_the_first_row_of_each(tmp_path):
    rows = [{**row, "level": level} for row, level in zip(sums(1, 2, 3, 4), (1, "hard", None, 2.5), strict=True)]
    said = told(recipe(write(tmp_path / "train.jsonl", rows)), tmp_path / "run")
    assert (
        "the column 'level' has numbers in 2 rows (first train.jsonl:1), texts in 1 rows (first train.jsonl:2)" in said
    )
    assert "answer" not in said


def test_rows_longer_than_the_context_are_named_and_left_out(tmp_path):
    rows = sums(*range(6))
    for i, length in ((1, 64), (2, 63), (4, 500)):
        rows[i]["prompt"] = "1" * length
    settings = recipe(write(tmp_path / "train.jsonl", rows), num_evaluation=1)
    said = told(settings, tmp_path / "run")
    assert "2 of 5 training rows are longer than the context (engine.max_model_len = 64 tokens)" in said
    assert "train.jsonl:5 (500 tokens)" in said
    assert "train.jsonl:2 (64 tokens)" in said
    found, _ = preflight_dataset.measure(settings, rows_of(settings), {"policy": TINY})
    assert (found.train, found.evaluation) == ((1, 4), ())


class Made(TaskSource):
    """Tasks of no file; one is too long, one cannot be made."""

    def train(self):
        return Lazy(self._one, range(5))

    def evaluation(self):
        return Lazy(self._one, range(3, 5))

    def _one(self, i):
        if i == 2:
            raise KeyError("not that one")
        return Task.of(str(i), "1" * (100 if i == 3 else 5), "1")


def test_tasks_of_a_source_without_files_are_measured_too(tmp_path):
    settings = recipe(tmp_path / "none")
    settings = settings.model_copy(update={"tasks": TasksSection(use=f"{__name__}:Made")})
    rows = rows_of(settings)
    found, said = preflight_dataset.measure(settings, rows, {"policy": TINY})
    assert (found.train, found.evaluation) == ((3,), (0,))
    assert "1 of 5 training rows are longer than the context" in said[0]
    assert "training task 3 (100 tokens)" in said[0]
    assert preflight_dataset.warnings(rows) == [], "a source may well repeat itself"


def test_a_run_keeps_the_made_tasks_that_it_has_left_out_and_compares_none(tmp_path):
    settings = recipe(tmp_path / "none")
    settings = settings.model_copy(update={"tasks": TasksSection(use=f"{__name__}:Made")})
    directory, rows = make_run(tmp_path, "a", steps=2), rows_of(settings)
    preflight_dataset.save(directory, settings, rows, SkippedTasks((3,), (0,)))
    tree = preflight_dataset.stored(directory)
    assert tree is not None
    assert preflight_dataset.left_out(tree) == SkippedTasks((3,), (0,))
    rows.train.digests[0] = 7
    assert preflight_dataset.check_same(directory, settings, rows) == [
        "1 training rows that are longer than the context stay left out."
    ]


def test_an_environment_that_shows_no_task_is_asked_for_none(tmp_path):
    settings = recipe(tmp_path / "none")
    tree = {"tasks": {"use": "games"}, "rollout": {"environment": {"use": "games"}}}
    assert preflight_dataset.read(settings.model_copy(update={k: getattr(parse(tree), k) for k in tree})) is None


def test_every_pass_visits_the_rows_that_fit_once(tmp_path):
    rows = sums(*range(7))
    rows[3]["prompt"] = "1" * 100
    settings = recipe(write(tmp_path / "train.jsonl", rows))
    found, _ = preflight_dataset.measure(settings, rows_of(settings), {"policy": TINY})
    tasks = without(build(TASKS, "jsonl", settings.tasks.options, "tasks").train(), found.train)
    place = order(0, len(tasks), True)
    for number in range(3):
        seen = [tasks[place(position)[1]].id for position in range(6 * number, 6 * number + 6)]
        assert sorted(seen) == [f"train/{i}" for i in (1, 2, 3, 5, 6, 7)]


def test_a_data_set_that_is_too_long_as_a_whole_is_refused(tmp_path):
    path = write(tmp_path / "train.jsonl", sums(10**70, 10**80))
    with pytest.raises(ConfigError, match=r"all 2 training rows are longer .* Raise engine.max_model_len"):
        told(recipe(path), tmp_path / "run")


def test_lengths_are_those_of_the_models_own_tokens_and_template(tmp_path):
    directory = random_llama(tmp_path / "model", tied=True, chat=True)
    tokenizer = load_tokenizer(ModelSection(path=str(directory)), 0, online=False)
    draw = random.Random(0)
    texts = ["".join(draw.choice("0123456789+= é日") for _ in range(draw.randrange(1, 90))) for _ in range(60)]
    rows = [{"prompt": [{"role": "user", "content": t or "1"}], "answer": "1"} for t in texts if t.strip()]
    settings = recipe(write(tmp_path / "train.jsonl", rows), length=64)
    lengths = [len(Chat(tokenizer).prompt([Message("user", row["prompt"][0]["content"])])) for row in rows]
    found, _ = preflight_dataset.measure(settings, rows_of(settings), {"policy": tokenizer})
    assert found.train == tuple(i for i, n in enumerate(lengths) if n >= 64)
    assert 0 < len(found.train) < len(rows)


@pytest.fixture
def begun(tmp_path):
    """A run that has begun with ten rows, and how its data set is compared with what a file holds now."""
    path = write(tmp_path / "train.jsonl", sums(*range(10)))
    directory = make_run(tmp_path, "a", steps=2)
    settings = recipe(path)
    preflight_dataset.save(directory, settings, rows_of(settings), SkippedTasks())

    def compare(rows: list[dict], name: str = "train.jsonl", **options) -> str:
        settings = recipe(write(tmp_path / name, rows), **options)
        try:
            return "\n".join(preflight_dataset.check_same(directory, settings, rows_of(settings)))
        except ConfigError as error:
            return f"refused: {error}"

    return directory, compare


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (sums(*range(12)), ["2 are added (train.jsonl:11, train.jsonl:12)"]),
        (sums(99, *range(10)), ["1 is added (train.jsonl:1)"]),
        (sums(*range(4), *range(5, 10)), ["1 is removed (row 5 of then)"]),
        (sums(*range(4), 77, *range(5, 10)), ["1 is changed (train.jsonl:5)"]),
        (sums(0, 1, 77, *range(3, 10), 11), ["1 is changed (train.jsonl:3)", "1 is added (train.jsonl:11)"]),
        (sums(*reversed(range(10))), ["same rows are in another order"]),
        (sums(*range(100, 110)), ["10 are changed (train.jsonl:1, train.jsonl:2, train.jsonl:3 and 7 more)"]),
    ],
)
def test_other_rows_are_refused_with_what_became_of_them(begun, rows, words):
    said = begun[1](rows)
    assert said.startswith("refused: ")
    assert "another data set" in said
    assert all(word in said for word in words), said


def test_a_moved_file_with_the_same_rows_is_the_same_data_set(begun):
    assert begun[1](sums(*range(10)), "elsewhere.jsonl") == ""


def test_a_file_written_anew_in_another_notation_is_the_same_data_set(begun, tmp_path):
    rows = [{"answer": row["answer"], "note": None, "prompt": row["prompt"]} for row in sums(*range(10))]
    (tmp_path / "train.jsonl").write_text("\n\n".join(json.dumps(row, indent=None) for row in rows))
    assert begun[1](rows) == ""


def test_held_out_rows_belong_to_the_data_set(begun, tmp_path):
    held = write(tmp_path / "held.jsonl", sums(50))
    said = begun[1](sums(*range(10)), evaluation_path=str(held))
    assert "of the evaluation rows, 0 then and 1 now, 1 is added (held.jsonl:1)" in said


def test_random_edits_are_counted():
    draw = random.Random(1)
    for _ in range(200):
        before = np.arange(1, 40, dtype=np.uint64)
        after = before.tolist()
        cut, more = draw.randrange(3), draw.randrange(3)
        for place in sorted(draw.sample(range(30), cut), reverse=True):
            del after[place]
        after += [1000 + i for i in range(more)]
        said = preflight_dataset.differences(before, np.array(after, np.uint64), str)
        changed = int(said.split(" ")[0]) if "changed" in said else 0
        count = {"added": 0, "removed": 0}
        for part in said.split("), "):
            for what in count:
                if f" {what} " in part:
                    count[what] = int(part.split(" ")[0])
        if cut or more:
            assert (count["removed"] + changed, count["added"] + changed) == (cut, more), said


def test_a_run_keeps_the_rows_that_it_has_left_out(tmp_path):
    rows = sums(*range(6))
    rows[2]["prompt"] = "1" * 70
    path = write(tmp_path / "train.jsonl", rows)
    directory, settings = make_run(tmp_path, "a", steps=2), recipe(path)
    read = rows_of(settings)
    found, _ = preflight_dataset.measure(settings, read, {"policy": TINY})
    preflight_dataset.save(directory, settings, read, found)
    longer = recipe(path, length=128)
    assert "max_model_len was 64 when the run began and is 128: the 1 training rows" in "\n".join(
        preflight_dataset.check_same(directory, longer, rows_of(longer))
    )
    tree = preflight_dataset.stored(directory)
    assert tree is not None
    assert preflight_dataset.left_out(tree) == found


def test_the_digests_take_eight_bytes_a_row(begun):
    assert (begun[0] / "dataset" / "train.digests").stat().st_size == 80
    assert (begun[0] / "dataset" / "rows.json").stat().st_size < 500


def test_a_used_directory_takes_a_moved_file_and_no_other_rows(tmp_path, begun):
    old = tmp_path / "train.jsonl"
    settings = recipe(old)
    (begun[0] / "config.toml").write_text(config.dump(settings))
    moved = Path(shutil.copy(old, tmp_path / "moved.jsonl"))
    preflight.used_directory(recipe(moved), begun[0])
    assert preflight.data(recipe(moved), begun[0], online=False) == []
    with moved.open("a") as file:
        file.write(json.dumps(sums(70)[0]) + "\n")
    with pytest.raises(ConfigError, match="1 is added"):
        preflight.data(recipe(moved), begun[0], online=False)
