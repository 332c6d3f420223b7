"""Every format of file, alone, packed, as shards of a directory or a glob; what is wrong is named by file and line."""

import csv
import gzip
import hashlib
import http.server
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from actors.tasks import TASKS
from cluster.errors import ConfigError, DataError
from cluster.plugins import build
from tests.actors.test_task_files import source

ROWS = [{"prompt": f"{i}+{i}?\nü", "answer": 2 * i, "level": i / 2} for i in range(1, 6)]


def write(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = next(s for s in reversed(path.suffixes) if s != ".gz")
    if kind == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if kind in (".csv", ".tsv"):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
    elif kind == ".json":
        data = json.dumps(rows, ensure_ascii=False, indent=1).encode()
    else:
        data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def content(tasks):
    return [(t.prompt, t.answer, t.meta["answer"], t.meta["level"]) for t in tasks]


SAME = [(row["prompt"], str(row["answer"]), row["answer"], row["level"]) for row in ROWS]
KINDS = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "jsonl.gz", "json.gz", "csv.gz", "tsv.gz", "ndjson.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_every_format_gives_the_same_rows(tmp_path, kind):
    tasks = source(path=str(write(tmp_path / f"sums.{kind}"))).train()
    assert content(tasks) == SAME
    assert {type(t.meta["answer"]) for t in tasks} == {int}
    assert {t.source for t in tasks} == {"sums"}
    assert tasks[3].id.startswith("sums/")
    assert content([tasks[3], tasks[0]]) == [SAME[3], SAME[0]], "in any order"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["directory", "glob", "deep glob"])
def test_shards_are_read_in_the_order_of_their_names(tmp_path, kind, how):
    for i, part in ((2, ROWS[3:]), (0, ROWS[:2]), (1, ROWS[2:3])):
        write(tmp_path / "data" / "a" / f"part-{i}.{kind}", part)
    (tmp_path / "data" / ".hidden.jsonl").write_text("{")
    (tmp_path / "data" / "README.md").write_text("about")
    path = {"directory": "data", "glob": f"data/a/part-*.{kind}", "deep glob": f"data/**/*.{kind}"}[how]
    tasks = source(path=str(tmp_path / path)).train()
    assert content(tasks) == SAME
    assert len({t.id for t in tasks}) == len(SAME)
    assert [t.id.rpartition("/")[0].rpartition("/")[2] for t in tasks] == ["part-0"] * 2 + ["part-1"] + ["part-2"] * 2


def test_shards_of_one_name_in_several_folders_have_ids_of_their_own(tmp_path):
    for folder in "ab":
        write(tmp_path / folder / "part.jsonl")
    write(tmp_path / "a" / "part.jsonl.gz")
    tasks = source(path=str(tmp_path / "**" / "part.jsonl*")).train()
    assert len({t.id for t in tasks}) == len(tasks) == 15


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_held_out_rows_of_an_equal_name_have_ids_of_their_own(tmp_path, kind):
    train, test = write(tmp_path / "train" / f"sums.{kind}"), write(tmp_path / "test" / f"sums.{kind}", ROWS[:2])
    found = source(path=str(train), evaluation_path=str(test))
    assert content(found.evaluation()) == SAME[:2]
    assert not {t.id for t in found.train()} & {t.id for t in found.evaluation()}


def test_ids_of_the_data_may_repeat(tmp_path):
    rows = [{"id": "x", "prompt": "a", "answer": "2"}] * 6
    tasks = source(path=str(write(tmp_path / "same.jsonl", rows))).train()
    assert len({t.id for t in tasks}) == 6
    assert {t.meta["id"] for t in tasks} == {"x"}


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),
        ("train/0000.jsonl", "test/0000.jsonl"),
        ("sums_train.jsonl", "sums_test.jsonl"),
        ("train.jsonl", "eval.jsonl"),
    ],
)
def test_names_of_files_tell_splits_apart(tmp_path, names):
    write(tmp_path / "set" / names[0])
    write(tmp_path / "set" / names[1], ROWS[:1])
    (tmp_path / "set" / "dataset_infos.json").write_text("{}")
    path = str(tmp_path / "set")
    found = source(path=path, evaluation_path=path)
    assert content(found.train()) == SAME
    assert content(found.evaluation()) == SAME[:1]
    with pytest.raises(ConfigError, match=r"no split 'validation'.*It has: test, train"):
        source(path=path, split="validation").train()
    write(tmp_path / "set" / "more.jsonl")
    with pytest.raises(ConfigError, match=r"'more\.jsonl', whose name says no split"):
        source(path=path).train()


def test_a_directory_or_glob_that_cannot_be_meant_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no directory of data files"):
        source(path=str(tmp_path / "empty")).train()
    with pytest.raises(ConfigError, match=r"'.*no-\*\.jsonl' matches no file"):
        source(path=str(tmp_path / "no-*.jsonl")).train()
    write(tmp_path / "two" / "a.jsonl")
    write(tmp_path / "two" / "a.csv")
    with pytest.raises(ConfigError, match=r"'a\.csv' and 'a\.jsonl' are of different formats"):
        source(path=str(tmp_path / "two")).train()
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"packed\. Unpack it"):
        source(path=str(tmp_path / "a.jsonl.zst")).train()


def test_an_empty_shard_is_no_fault_and_a_faulty_row_is_named_by_its_shard(tmp_path):
    write(tmp_path / "data" / "a.jsonl", ROWS[:1])
    (tmp_path / "data" / "b.jsonl").write_text("")
    (tmp_path / "data" / "c.jsonl").write_text('\n{"prompt": "x"}\n{"prompt": ')
    tasks = source(path=str(tmp_path / "data")).train()
    assert [t.prompt for t in tasks[:2]] == [ROWS[0]["prompt"], "x"]
    with pytest.raises(DataError, match=r"c\.jsonl:3: not JSON"):
        tasks[2]


TEXTS = {
    "an array on one line": ("x.json", '[{"prompt": "a"}, {"prompt": "b"}]', [1, 1]),
    "an array over lines": ("x.json", '\n[\n{"prompt":\n"a"},\n\n{"prompt": "b"}\n]\n', [3, 6]),
    "an array after a byte order mark": ("x.json", '\ufeff[{"prompt": "a"},\r\n{"prompt": "b"}]', [1, 2]),
    "lines in .json": ("x.json", '{"prompt": "a"}\n{"prompt": "b"}', [1, 2]),
    "an object with rows": ("x.json", '{"version": 1, "data": [{"prompt": "a"}, {"prompt": "b"}]}', [1, 2]),
    "a lone list": ("x.json", '{\n"questions": [{"prompt": "a"},\n{"prompt": "b"}]}', [1, 2]),
    "lines with a byte order mark": ("x.jsonl", '\ufeff{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n', [1, 3]),
    "a mark on a line of its own": ("x.jsonl", '\ufeff\n{"prompt": "a"}\n{"prompt": "b"}', [2, 3]),
    "a mark where files were joined": ("x.jsonl", '{"prompt": "a"}\n\ufeff{"prompt": "b"}', [1, 2]),
    "cells": ("x.csv", "prompt\na\n\nb\n", [2, 4]),
    "cells with a byte order mark": ("x.csv", '\ufeff"prompt","n"\r\na,1\r\nb,2\r\n', [2, 3]),
    "semicolons": ("x.csv", "prompt;n\na;1\nb;2\n", [2, 3]),
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("packed", [False, True])
def test_texts_are_read_as_they_are_written(tmp_path, case, packed):
    name, text, numbers = TEXTS[case]
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    tasks = source(path=str(path)).train()
    assert [(t.prompt, t.id) for t in tasks] == [("a", f"x/{numbers[0]}"), ("b", f"x/{numbers[1]}")]


def test_a_lone_object_is_a_row(tmp_path):
    for text in ('{"prompt": "a", "steps": [{"n": 1}]}', '{\n"prompt": "a",\n"steps": [{"n": 1}]\n}\n'):
        (tmp_path / "x.json").write_text(text)
        [task] = source(path=str(tmp_path / "x.json")).train()
        assert (task.prompt, task.meta["steps"]) == ("a", [{"n": 1}])


WHOLE_FAULTS = {
    "an array without its end": ("x.json", '[{"prompt": "a"},\n{"prompt": "b"}', r"x\.json:2: not JSON: a comma or"),
    "an array with a fault": ("x.json", '[\n{"prompt": "a"},\n{"prompt" "b"}]', r"x\.json:3: not JSON: Expecting ':'"),
    "a comma too many": ("x.json", '[{"prompt": "a"},\n]', r"x\.json:2: not JSON: Expecting value"),
    "text after an array": ("x.json", '[{"prompt": "a"}]\nx', r"x\.json:2: not JSON: text follows"),
    "an empty array": ("x.json", "[]", "is empty"),
    "no UTF-8 in an array": ("x.json", b'[\n{"prompt": "\xff"}]', r"x\.json:2: not UTF-8"),
    "UTF-16": ("x.jsonl", '{"prompt": "a"}'.encode("utf-16"), "is UTF-16. Save it as UTF-8"),
    "UTF-16 cells": ("x.csv", "prompt\na".encode("utf-16"), "is UTF-16"),
    "no gzip": ("x.jsonl.gz", '{"prompt": "a"}', "no gzip file"),
    "a cut gzip": ("x.csv.gz", gzip.compress(b"prompt\n" + bytes(range(32, 120)) * 99)[:-20], "damaged"),
    "an open quote": ("x.csv", 'prompt\n"a\nb\n', r"x\.csv:3: not CSV.*quote left open"),
    "a column twice": ("x.csv", "prompt,prompt\na,b\n", "the column 'prompt' twice"),
    "a header alone": ("x.csv", "prompt,answer\n", "is empty"),
}


@pytest.mark.parametrize("case", WHOLE_FAULTS)
def test_a_file_that_is_no_such_file_is_refused(tmp_path, case):
    name, text, message = WHOLE_FAULTS[case]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        source(path=str(tmp_path / name)).train()


ROW_FAULTS = {
    "an entry that is no object": ("x.json", '[{"prompt": "a"},\n3]', r"x\.json:2: 3 is not an object"),
    "a cell too many": ("x.csv", "prompt,n\na,1\nb,2,3\n", r"x\.csv:3: has 3 cells.*2 columns: prompt, n"),
    "a cell too few": ("x.csv", 'prompt,n\n"a\na",1\nb\n', r"x\.csv:4: has 1 cells"),
    "an empty prompt": ("x.csv", "prompt,n\na,1\n,2\n", r"x\.csv:3: 'prompt' is None"),
    "no UTF-8": ("x.csv", b"prompt,n\na,1\n\xff,2\n", r"x\.csv:3: not UTF-8"),
    "no such column": ("x.csv", "promt,n\na,1\nb,2\n", r"x\.csv:2: no column 'prompt'. Did you mean 'promt'"),
}


@pytest.mark.parametrize("case", ROW_FAULTS)
def test_a_faulty_row_of_every_format_is_named(tmp_path, case):
    name, text, message = ROW_FAULTS[case]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        list(source(path=str(tmp_path / name)).head())


def test_cells_have_the_type_of_their_column(tmp_path):
    header = "prompt,answer,number,mixed,flag,code,gap,big,text"
    cells = ["12,6,0.5,1,True,007,,123456789012345678901234,x", "13,-7,1e-3,2.5,False,010,3,1,NA"]
    (tmp_path / "x.csv").write_text("\n".join([header, *cells]))
    first, second = source(path=str(tmp_path / "x.csv")).train()
    assert (first.prompt, first.answer) == ("12", "6"), "the prompt stays as it is written"
    names = header.split(",")[1:-2]
    assert [first.meta[n] for n in names] == [6, 0.5, 1.0, True, "007", None]
    assert [second.meta[n] for n in names] == [-7, 1e-3, 2.5, False, "010", 3]
    assert (first.meta["big"], second.meta["big"]) == ("123456789012345678901234", "1"), "no number holds it"
    assert (first.meta["text"], second.meta["text"]) == ("x", "NA")


def test_messages_in_a_cell_are_a_conversation(tmp_path):
    rows = [{"messages": json.dumps([{"role": "user", "content": "1+1?"}]), "answer": 2}]
    [task] = source(path=str(write(tmp_path / "x.csv", rows))).train()
    assert (task.prompt, task.answer) == ("1+1?", "2")
    assert task.meta["conversational"]


def test_a_thousand_shards_are_few_open_files(tmp_path):
    for i in range(300):
        write(tmp_path / "set" / f"{i:04}.jsonl.gz", ROWS[:1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    tasks = source(path=str(tmp_path / "set")).train()
    assert content(tasks) == SAME[:1] * 300
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3


# ── data sets of Hugging Face ───────────────────────────────────────────────────────────────────────────────────


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that a download asks."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append(self.path)
        files = {f"/datasets/me/sums/resolve/{SHA}/{name}": text for name, text in server.files.items()}
        if self.path.startswith("/api/datasets/me/sums/revision/main"):
            siblings = [{"rfilename": name} for name in server.files]
            self.answer(200, json.dumps({"id": "me/sums", "sha": SHA, "siblings": siblings}).encode())
        elif self.path.startswith(f"/api/datasets/me/sums/tree/{SHA}"):
            sizes = {name: len(text) for name, text in server.files.items()}
            tree = [{"type": "file", "path": name, "size": size, "oid": SHA} for name, size in sizes.items()]
            self.answer(200, json.dumps(tree).encode())
        elif self.path in files:
            self.answer(200, files[self.path].encode())
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        etag = hashlib.sha1(body).hexdigest()
        for name, value in {"ETag": f'"{etag}"', "X-Repo-Commit": SHA, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


SHA = "0123456789" * 4


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    server.files = {
        "README.md": "# Sums",
        "data/train.jsonl": '{"prompt": "1+1?", "answer": "2"}\n{"prompt": "2+2?", "answer": "4"}\n',
        "data/test.jsonl": '{"prompt": "3+3?", "answer": "6"}\n',
    }
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_data_set_of_hugging_face_is_downloaded_once(hub):
    options = {"path": "me/sums", "evaluation_path": "me/sums", "answer_key": "answer"}
    source = build(TASKS, "dataset", options, "tasks")
    assert [task.prompt for task in source.train()] == ["1+1?", "2+2?"]
    assert [(task.prompt, task.answer) for task in source.evaluation()] == [("3+3?", "6")]
    assert source.train()[0].source == "me/sums"
    assert not any("README" in path for path in hub.asked)
    count = len(hub.asked)
    again = build(TASKS, "dataset", options, "tasks")
    assert len(again.train()) == 2
    assert len(hub.asked) == count, "it comes out of the cache"


def test_a_data_set_that_cannot_be_had_is_refused_with_what_to_do(hub, monkeypatch):
    with pytest.raises(ConfigError, match=r"'me/none' does not exist .* Hugging Face it does not exist.*HF_TOKEN"):
        build(TASKS, "dataset", {"path": "me/none"}, "tasks").train()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ConfigError, match=r"not in the local cache and cannot be downloaded from .*Check the name and the network"
    ):
        build(TASKS, "dataset", {"path": "me/sums"}, "tasks").train()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set: download it where there is a network"):
        build(TASKS, "dataset", {"path": "me/sums"}, "tasks").train()
