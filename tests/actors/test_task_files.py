"""Tasks from files: read as others write them, faults named by file and row, and nothing read before it is wanted."""

import json
import tracemalloc

import pytest

from actors.tasks import TASKS, files, tables
from cluster.errors import ConfigError, DataError
from cluster.plugins import build
from cluster.types import Message, Task, decode, encode

VERL = {
    "data_source": "gsm8k",
    "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"split": "train", "index": 0},
}


def source(use="jsonl", **options):
    return build(TASKS, use, options, "tasks")


def jsonl(tmp_path, *lines):
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in lines) + "\n", "utf-8")
    return str(file)


def parquet(tmp_path, *records, row_group_size=None):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(list(records))
    pyarrow.parquet.write_table(table, tmp_path / "tasks.parquet", row_group_size=row_group_size)
    return str(tmp_path / "tasks.parquet")


def saved(tmp_path, *records):
    import datasets

    datasets.Dataset.from_list(list(records)).save_to_disk(tmp_path / "tasks")
    return str(tmp_path / "tasks")


def test_a_jsonl_file_gives_a_task_per_line(tmp_path):
    path = jsonl(tmp_path, {"prompt": "1+1?", "answer": 2}, "", {"prompt": "Näh?"}, {"prompt": "x", "answer": [1, 2]})
    tasks = source(path=path).train()
    assert [(t.id, t.prompt, t.answer) for t in tasks] == [
        ("tasks/1", "1+1?", "2"),
        ("tasks/3", "Näh?", None),
        ("tasks/4", "x", "[1, 2]"),
    ]


def test_other_keys_and_a_system_message(tmp_path):
    path = jsonl(tmp_path, {"q": {"text": "1+1?"}, "gold": "2"})
    task = source(path=path, prompt_key="q.text", answer_key="gold", system="Be brief.").train()[0]
    assert task.variants["orig"] == (Message("system", "Be brief."), Message("user", "1+1?"))
    assert task.answer == "2"


@pytest.mark.parametrize("write", [jsonl, parquet, saved])
def test_files_made_for_verl_are_read_as_they_are_in_every_format(tmp_path, write):
    records = [{**VERL, "extra_info": {"split": "train", "index": i}} for i in range(5)]
    tasks = source(path=write(tmp_path, *records)).train()
    assert len(tasks) == 5
    for i, task in enumerate(tasks):
        assert task.id == f"tasks/{i + 1}"
        assert task.variants["orig"] == (Message("system", "s"), Message("user", "u"))
        assert (task.answer, task.source) == ("72", "gsm8k")
        assert task.meta["extra_info"] == {"split": "train", "index": i}
        assert decode(encode(task), Task) == task


def test_row_groups_of_a_parquet_file_are_read_in_any_order(tmp_path):
    path = parquet(tmp_path, *({"prompt": str(i)} for i in range(23)), row_group_size=4)
    tasks = source("parquet", path=path).train()
    for i in (22, 0, 4, 3, 19, 7, 8, 0, 20):
        assert tasks[i].prompt == str(i)


def test_a_data_set_of_several_shards_and_splits(tmp_path):
    import datasets

    part = datasets.Dataset.from_list([{"question": f"q{i}", "answer": str(i)} for i in range(10)])
    shuffled = part.shuffle(seed=1)
    both = datasets.DatasetDict({"train": shuffled, "test": part.select(range(3))})
    both.save_to_disk(tmp_path / "both", num_shards={"train": 3, "test": 1})
    path = str(tmp_path / "both")
    found = source("dataset", path=path, evaluation_path=path, prompt_key="question")
    assert [t.prompt for t in found.train()] == shuffled["question"][:]
    assert [t.prompt for t in found.evaluation()] == ["q0", "q1", "q2"]
    with pytest.raises(ConfigError, match=r"no split 'trian'\. Did you mean 'train'"):
        source("dataset", path=path, split="trian").train()
    with pytest.raises(ConfigError, match="not a data set on disk"):
        source("dataset", path=str(tmp_path)).train()


def test_held_out_lines_are_not_trained_on(tmp_path):
    path = jsonl(tmp_path, *({"prompt": str(i)} for i in range(5)))
    part = source(path=path, num_evaluation=2)
    assert [t.prompt for t in part.train()] == ["0", "1", "2"]
    assert [t.prompt for t in part.evaluation()] == ["3", "4"]
    assert [t.prompt for t in part.evaluation()[:1]] == ["3"]
    assert not source(path=path).evaluation()
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        source(path=path, num_evaluation=5).train()


FAULTS = [
    ("{", "tasks.jsonl:3: not JSON"),
    ("[1]", r"tasks.jsonl:3: \[1\] is not an object"),
    ('{"promt": "?"}', r"tasks.jsonl:3: no column 'prompt'. Did you mean 'promt'.*tasks.options.prompt_key"),
    ('{"prompt": ""}', "tasks.jsonl:3: 'prompt' is ''"),
    ('{"prompt": null}', "tasks.jsonl:3: 'prompt' is None"),
    ('{"prompt": [{"role": "user"}]}', "tasks.jsonl:3: message 1 of 'prompt' has the content None"),
    (
        '{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}',
        "tasks.jsonl:3: .* part 1 is of type 'image'",
    ),
    ('{"prompt": "x", "extra_info": {"n": 99999999999999999999999}}', "tasks.jsonl:3: task .*tasks/3 cannot be stored"),
    (b"\xff\xfe{}", "tasks.jsonl:3: not JSON"),
]


@pytest.mark.parametrize(("line", "message"), FAULTS)
def test_a_faulty_row_is_named_when_it_is_read_and_found_before_a_run(tmp_path, line, message):
    path = jsonl(tmp_path, {"prompt": "fine"}, "", "LINE", {"prompt": "fine too"})
    raw = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "tasks.jsonl").write_bytes((tmp_path / "tasks.jsonl").read_bytes().replace(b"LINE", raw))
    (tmp_path / "whole").mkdir()
    whole = jsonl(tmp_path / "whole", {"prompt": "x"})
    found = source(path=path)
    tasks = found.train()
    assert (tasks[0].prompt, tasks[2].prompt) == ("fine", "fine too")
    with pytest.raises(DataError, match=message):
        tasks[1]
    with pytest.raises(DataError, match=message):
        list(found.head())
    with pytest.raises(DataError, match=message):
        list(source(path=whole, evaluation_path=path).head())


def test_an_answer_column_that_is_named_must_be_there(tmp_path):
    path = jsonl(tmp_path, {"prompt": "x", "gold": "1"})
    assert source(path=path).train()[0].answer is None
    with pytest.raises(DataError, match=r"no column 'golden'. Did you mean 'gold'.*tasks.options.answer_key"):
        source(path=path, answer_key="golden").train()[0]


def test_so_many_rows_are_looked_at_before_a_run_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHECKED_ROWS", 3)
    path = jsonl(tmp_path, *[{"prompt": "fine"}] * 3, "{")
    found = source(path=path)
    assert len(list(found.head())) == 3
    with pytest.raises(DataError, match=r"tasks.jsonl:4"):
        found.train()[3]
    monkeypatch.setattr(files, "CHECKED_ROWS", 4)
    with pytest.raises(DataError, match=r"tasks.jsonl:4"):
        list(found.head())


def test_a_file_costs_an_index_and_not_its_size(tmp_path):
    file = tmp_path / "large.jsonl"
    line = json.dumps({"prompt": "x" * 10_000}) + "\n"
    with file.open("w") as out:
        for _ in range(200):
            out.write(line * 100)  # 200 MB
    tracemalloc.start()
    tasks = source(path=str(file)).train()
    assert len(tasks) == 20_000
    assert tasks[19_999].prompt == "x" * 10_000
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 5e6


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path):
    import pyarrow.parquet

    path = parquet(tmp_path, *({"prompt": f"{i} " + "y" * 500} for i in range(40)), row_group_size=10)
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray((tmp_path / "tasks.parquet").read_bytes())
    begin = group.dictionary_page_offset or group.data_page_offset
    data[begin : begin + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    (tmp_path / "tasks.parquet").write_bytes(data)
    tasks = source("parquet", path=path).train()
    assert tasks[0].prompt.startswith("0 ")
    assert tasks[39].prompt.startswith("39 ")
    with pytest.raises(DataError, match=r"tasks.parquet:22: cannot be read"):
        tasks[21]


def test_a_missing_an_empty_and_a_foreign_file(tmp_path):
    jsonl(tmp_path, {"prompt": "x"})
    with pytest.raises(ConfigError, match=r"does not exist. Did you mean 'tasks.jsonl'"):
        source(path=str(tmp_path / "task.jsonl")).train()
    with pytest.raises(ConfigError, match="is empty"):
        source(path=jsonl(tmp_path, "")).train()
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match="not a Parquet file"):
        source("parquet", path=str(tmp_path / "x.parquet")).train()


def test_few_row_groups_are_kept_decoded(tmp_path):
    path = parquet(tmp_path, *({"prompt": str(i)} for i in range(40)), row_group_size=1)
    found = tables.ParquetRows([tmp_path / "tasks.parquet"])
    for i in range(40):
        found.read(i)
    assert found.group.cache_info().currsize == tables.ROW_GROUPS, path
