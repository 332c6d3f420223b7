"""Data files whose columns hold at random what a column can hold, and what a text file can say that is no value."""

from __future__ import annotations

import datetime
import decimal
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.tasks.files import Files
from cluster.config import parse
from cluster.driver import preflight_dataset
from cluster.errors import ConfigError, DataError
from cluster.types import Task, decode, encode

COLUMNS = ("prompt", "answer", "messages", "reward_model", "extra_info", "data_source", "id", "other", "a.b", "")
TOKENS = (
    "NaN", "-Infinity", "1e400", "-0.0", "1" * 400, "18446744073709551616", "null", "true", '""', '"x"', "[]", "{}",
    '"\\ud83d"', '"\\u0000"', '[{"role": "user", "content": "x"}]', '[{"role": 3}]', '{"ground_truth": NaN}', "[[[]]]",
    "[" * 200 + "]" * 200, "[" * 100_000 + "]" * 100_000, '{"a": {"a": 1, "a": 2}}', "[null, 1, \"x\", {}]", "nan",
    "'x'", "\x00", "\xff", "", '{"role": "user"}', '[{"from": "human", "value": "x"}]', '{"": {"": ""}}',
)  # fmt: skip
"""What may stand for a value in a line of JSON, some of it no JSON."""
CELLS: tuple[Callable[[random.Random], tuple[Any, pa.DataType | None]], ...] = (
    lambda draw: (draw.choice((b"", b"\xff\xfe", b"text")), pa.binary()),
    lambda draw: (datetime.datetime(1, 1, 1), pa.timestamp("us")),
    lambda draw: (datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), pa.timestamp("ns", "UTC")),
    lambda draw: (datetime.date(9999, 12, 31), pa.date32()),
    lambda draw: (datetime.time(1, 2), pa.time64("us")),
    lambda draw: (datetime.timedelta(days=-3), pa.duration("us")),
    lambda draw: (decimal.Decimal("1.50"), pa.decimal128(38, 10)),
    lambda draw: (decimal.Decimal(10) ** 60, pa.decimal256(76, 2)),
    lambda draw: (draw.choice((2**63 - 1, -(2**63))), pa.int64()),
    lambda draw: (2**64 - 1, pa.uint64()),
    lambda draw: (draw.choice((float("nan"), float("inf"), -0.0, 5e-324)), pa.float64()),
    lambda draw: (1.5, pa.float16()),
    lambda draw: (None, pa.null()),
    lambda draw: (draw.choice(("", "x", "\x00", "x" * 5000)), pa.large_string()),
    lambda draw: (draw.choice(([], [None], [[1], None])), pa.list_(pa.list_(pa.int8()))),
    lambda draw: ([("k", 1), ("k", 2)], pa.map_(pa.string(), pa.int8())),
    lambda draw: ({"role": "user", "content": None}, pa.struct([("role", pa.string()), ("content", pa.string())])),
    lambda draw: ([{"role": "user", "content": "x"}, None], None),
    lambda draw: ([{"role": "user", "content": [{"type": "image"}]}], None),
    lambda draw: ({"ground_truth": draw.choice((None, 1.0, [1, 2], {"a": None}))}, None),
    lambda draw: (draw.choice((True, None)), pa.bool_()),
    lambda draw: (["a", "b"], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
)


def text_file(path: Path, draw: random.Random) -> Path:
    """JSON Lines; at times a list, a CSV, or something cut off."""
    rows = [_row(draw) for _ in range(draw.randint(1, 4))]
    suffix = draw.choice((".jsonl", ".jsonl", ".jsonl", ".json", ".csv", ".tsv"))
    text = "\n".join(rows) if suffix != ".json" else f"[{', '.join(rows)}]"
    data = text.encode("utf-8", "surrogatepass") if draw.random() < 0.9 else text.encode("latin-1", "replace")
    if draw.random() < 0.1:
        data = data[: draw.randrange(len(data) + 1)]
    file = path.with_suffix(suffix)
    file.write_bytes(data)
    return file


def _row(draw: random.Random) -> str:
    fields = {name: draw.choice(TOKENS) for name in draw.sample(COLUMNS, draw.randint(0, 5))}
    if draw.random() < 0.7:
        fields["prompt"] = json.dumps(draw.choice(("1+1?", "", " ", "x" * 3000, ["x"], 3)))
    return f"{{{', '.join(f'{json.dumps(name)}: {value}' for name, value in fields.items())}}}"


def table(path: Path, draw: random.Random) -> Path:
    """A parquet file of a few rows."""
    count = draw.randint(1, 3)
    columns: dict[str, pa.Array] = {}
    for name in draw.sample(COLUMNS, draw.randint(1, 5)):
        value, type_ = draw.choice(CELLS)(draw)
        columns[name] = pa.array([value if draw.random() < 0.9 else None for _ in range(count)], type_)
    if draw.random() < 0.7:
        columns["prompt"] = pa.array(["1+1?"] * count)
    file = path.with_suffix(".parquet")
    pq.write_table(pa.table(columns), file)
    if draw.random() < 0.05:
        file.write_bytes(file.read_bytes()[: draw.randrange(1, file.stat().st_size)])
    return file


def read(directory: Path, seed: int, count: int) -> int:
    """Read `count` odd files as a run's preflight and its workers do; return how many tasks were sound.

    A file is refused by a ConfigError, a row by a DataError, and each task can be stored and read.
    """
    draw, sound = random.Random(seed), 0
    for number in range(count):
        file = draw.choice((text_file, table))(directory / str(number % 8), draw)
        options = {"path": str(file)} | ({"num_evaluation": 1} if draw.random() < 0.2 else {})
        try:
            source = Files(**options)  # type: ignore[arg-type]
            tasks = [*_sound(source.train()), *_sound(source.evaluation())]
            preflight_dataset.read(parse({"tasks": {"use": "jsonl", "options": options}}))
        except ConfigError:
            continue
        finally:
            file.unlink()
        sound += len(tasks)
        for task in tasks:
            assert encode(decode(encode(task), Task)) == encode(task)
    return sound


def _sound(tasks: Any) -> list[Task]:
    found = []
    for index in range(len(tasks)):
        with suppress(DataError):
            found.append(tasks[index])
    return found
