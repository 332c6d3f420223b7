"""Rows of Parquet files, by row groups, and of data sets that `datasets` saved, by memory map."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from actors.tasks.rows import Row
from cluster.errors import ConfigError, DataError, one_line

ROW_GROUPS = 4
"""Row groups that are kept decoded, of all files together."""


class ParquetRows:
    """A row costs the decoding of its row group, unless that is one of the last few."""

    def __init__(self, paths: Sequence[Path]) -> None:
        import pyarrow
        import pyarrow.parquet

        self._groups: list[tuple[Path, int]] = []
        self._metadata: dict[Path, Any] = {}
        self._firsts: dict[Path, int] = {}
        counts: list[int] = []
        for path in paths:
            try:
                metadata = pyarrow.parquet.read_metadata(path)
            except (pyarrow.ArrowException, OSError) as error:
                raise ConfigError(
                    f"{path}: not a Parquet file: {one_line(error)} Write it anew, or name a .jsonl file."
                ) from error
            self._metadata[path], self._firsts[path] = metadata, sum(counts)
            self._groups += [(path, i) for i in range(metadata.num_row_groups)]
            counts += [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = list(accumulate(counts))
        self._lock = threading.Lock()
        self.group = lru_cache(ROW_GROUPS)(self._decoded)

    def _decoded(self, group: int) -> Any:
        import pyarrow.parquet

        path, number = self._groups[group]
        with pyarrow.parquet.ParquetFile(path, memory_map=True, metadata=self._metadata[path]) as file:
            return file.read_row_group(number)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> tuple[Path, int]:
        path, _ = self._groups[bisect_right(self._ends, index)]
        return path, index - self._firsts[path] + 1

    def read(self, index: int) -> Row:
        import pyarrow

        group = bisect_right(self._ends, index)
        begin = self._ends[group - 1] if group else 0
        try:
            with self._lock:  # a group is decoded once, whatever threads ask for it
                table = self.group(group)
            return table.slice(index - begin, 1).to_pylist()[0]
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"cannot be read: {one_line(error)}") from error


class ArrowRows:
    """A data set as `datasets` saves it: `state.json` names its files, Arrow streams that are mapped, not read."""

    def __init__(self, directory: Path) -> None:
        import pyarrow

        self._directory = directory
        try:
            state = json.loads((directory / "state.json").read_text("utf-8"))
            files = [directory / part["filename"] for part in state["_data_files"]]
            tables = [pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all() for file in files]
            self._table = pyarrow.concat_tables(tables) if tables else pyarrow.table({})
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{directory}: not a data set on disk: {one_line(error)} A directory written by "
                "datasets' save_to_disk is expected, or a .jsonl or .parquet file."
            ) from error

    def __len__(self) -> int:
        return self._table.num_rows

    def place(self, index: int) -> tuple[Path, int]:
        return self._directory, index + 1

    def read(self, index: int) -> Row:
        import pyarrow

        try:
            return self._table.slice(index, 1).to_pylist()[0]
        except (pyarrow.ArrowException, ValueError) as error:
            raise DataError(f"cannot be read: {one_line(error)}") from error
