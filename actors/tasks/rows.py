"""Rows of files, one at a time: JSONL by an index of its lines, Parquet by row groups, data sets on disk by memory map.

Nothing here holds a whole file's rows, so ten gigabytes cost an index. What is wrong with a file as a whole is a
ConfigError when it is opened; what is wrong with a row is a DataError when it is read.
"""

from __future__ import annotations

import json
import threading
from array import array
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from cluster.errors import ConfigError, DataError, nearest, one_line

Row = dict[str, Any]
ROW_GROUPS = 4
"""Row groups of a Parquet file that are kept decoded."""


class Rows(Protocol):
    def __len__(self) -> int: ...

    def number(self, index: int) -> int:
        """Of the line or row in its file, from 1."""
        ...

    def read(self, index: int) -> Row:
        """Raises DataError, without saying where."""
        ...


def open_rows(path: str, split: str, option: str = "path") -> Rows:
    """The rows of a file, or of a directory that `datasets` saved. `option` names it. Raises ConfigError."""
    place = Path(path).expanduser()
    if place.is_dir():
        return ArrowRows(_part(place, split))
    if not place.is_file():
        near = sorted(p.name for p in place.parent.iterdir()) if place.parent.is_dir() else []
        raise ConfigError(
            f"tasks.options.{option} = '{path}' does not exist. {nearest(place.name, near)}"
            f"Relative paths start at '{Path.cwd()}'."
        )
    return ParquetRows(place) if place.suffix == ".parquet" else JsonRows(place)


class JsonRows:
    """One JSON object a line; blank lines do not count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets, self._numbers = array("q"), array("q")
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    self._offsets.append(offset)
                    self._numbers.append(number)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def number(self, index: int) -> int:
        return self._numbers[index]

    def read(self, index: int) -> Row:
        with self._path.open("rb") as file:
            file.seek(self._offsets[index])
            line = file.readline()
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}. One object per line is expected.") from error
        if not isinstance(row, dict):
            raise DataError(f"{row!r:.40} is not an object with keys. One object per line is expected.")
        return row


class ParquetRows:
    """A row costs the decoding of its row group, unless that is one of the last few."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigError(
                f"{path}: not a Parquet file: {one_line(error)} Write it anew, or name a .jsonl file."
            ) from error
        metadata = self._file.metadata
        self._ends = list(accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))
        self._lock = threading.Lock()
        self._group = lru_cache(ROW_GROUPS)(self._file.read_row_group)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def number(self, index: int) -> int:
        return index + 1

    def read(self, index: int) -> Row:
        import pyarrow

        group = bisect_right(self._ends, index)
        begin = self._ends[group - 1] if group else 0
        try:
            with self._lock:  # one reader at a time: that is all a ParquetFile promises
                table = self._group(group)
            return table.slice(index - begin, 1).to_pylist()[0]
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"cannot be read: {one_line(error)}") from error


class ArrowRows:
    """A data set as `datasets` saves it: `state.json` names its files, Arrow streams that are mapped, not read."""

    def __init__(self, directory: Path) -> None:
        import pyarrow

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

    def number(self, index: int) -> int:
        return index + 1

    def read(self, index: int) -> Row:
        import pyarrow

        try:
            return self._table.slice(index, 1).to_pylist()[0]
        except (pyarrow.ArrowException, ValueError) as error:
            raise DataError(f"cannot be read: {one_line(error)}") from error


def _part(directory: Path, split: str) -> Path:
    """The directory of one split, where there are several."""
    if not (directory / "dataset_dict.json").is_file():
        return directory
    splits = sorted(p.name for p in directory.iterdir() if (p / "state.json").is_file())
    if split not in splits:
        raise ConfigError(
            f"{directory} has no split '{split}'. {nearest(split, splits)}It has: {', '.join(splits) or 'none'}. "
            "Set tasks.options.split or tasks.options.heldout_split."
        )
    return directory / split
