"""Groups as rows of a file, JSONL or Parquet by its name. Written row by row; the file appears when it is whole."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.commands.app import plain
from cluster.errors import ConfigError
from cluster.types import Rollout

ROWS_AT_ONCE = 256

Write = Callable[[dict[str, Any]], None]


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    return {
        "text": rollout.text,
        "answer": rollout.answer,
        "finish": rollout.finish,
        "variant": rollout.variant,
        "num_tokens": rollout.num_tokens,
        "temperature": rollout.temperature,
        "weights": [span.version for span in rollout.spans],
    }


@contextmanager
def writer(path: Path) -> Iterator[Write]:
    """A function that adds a row. Raises ConfigError for another kind of file, or a folder that does not exist."""
    kinds = {".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in kinds:
        raise ConfigError(f"'{path}' ends in neither {' nor '.join(kinds)}, which says what is written.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"'{path.absolute().parent}' is no directory; make it first.")
    # A name of its own: what lies beside the target is the user's.
    draft = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        with kinds[path.suffix](draft) as write:
            yield write
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _jsonl(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda row: print(json.dumps(plain(row), ensure_ascii=False, allow_nan=False), file=file)


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow
    from pyarrow import parquet

    schema, rows = _schema(pyarrow), []

    with parquet.ParquetWriter(path, schema) as file:

        def write(row: dict[str, Any]) -> None:
            rows.append(row)
            if len(rows) == ROWS_AT_ONCE:
                flush()

        def flush() -> None:
            file.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            rows.clear()

        yield write
        flush()


def _schema(pa: Any) -> Any:
    """Written down, not guessed: a file whose first groups have no score has the same columns as any other."""
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    provenance = pa.struct(
        {
            "judge": text,
            "model": text,
            "prompt_hash": text,
            "attempt": whole,
            "latency_s": real,
            "cost_tokens": whole,
            "note": text,
        }
    )
    score = pa.struct(
        {
            "reward": text,
            "version": text,
            "values": pa.list_(real),
            "states": pa.list_(text),
            "provenance": pa.list_(provenance),
        }
    )
    rollout = pa.struct(
        {
            "text": text,
            "answer": text,
            "finish": text,
            "variant": text,
            "num_tokens": whole,
            "temperature": real,
            "weights": pa.list_(text),
        }
    )
    return pa.schema(
        {
            "id": text,
            "policy": text,
            "state": text,
            "step": whole,
            "version": whole,
            "worker": text,
            "task_position": whole,
            "task": text,
            "source": text,
            "prompt": text,
            "answer": text,
            "reward_mean": real,
            "rewards": pa.list_(real),
            "scores": pa.list_(score),
            "rollouts": pa.list_(rollout),
        }
    )
