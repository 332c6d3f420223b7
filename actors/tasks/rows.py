"""Rows of text files, one at a time: JSON Lines, JSON arrays and CSV, by an index of where each row begins.

Nothing here holds a whole file's rows, so ten gigabytes cost an index. What is wrong with a file as a whole is a
ConfigError when it is opened; what is wrong with a row is a DataError when it is read.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shutil
import threading
import zlib
from array import array
from collections.abc import Iterator, Set
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol

from cluster.errors import ConfigError, DataError, one_line

Row = dict[str, Any]
BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
SPACE = re.compile(r"[ \t\r\n]*")
LINES = "One object per line is expected."
ARRAY = "An array of objects is expected."
HOLDERS = ("data", "rows", "examples", "instances", "items", "train")
"""Keys of a JSON document under which its rows may stand."""
csv.field_size_limit(2**31 - 1)


class Rows(Protocol):
    """The rows of one file or several."""

    def __len__(self) -> int: ...

    def place(self, index: int) -> tuple[Path, int]:
        """File of a row, and its line or row there, from 1."""
        ...

    def read(self, index: int) -> Row:
        """Raises DataError, without saying where."""
        ...


class Bytes:
    """The bytes of a file; those of a `.gz` file lie unpacked in a temporary file that has no name.

    Raises ConfigError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._region = _unpacked.add(path) if path.suffix == ".gz" else None
            if self.read(0, 2) in UTF16:
                raise ConfigError(f"{path} is UTF-16. Save it as UTF-8.")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ConfigError(f"{path}: damaged, or no gzip file: {one_line(error)} Pack it anew.") from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {one_line(error)}") from error

    def lines(self) -> Iterator[bytes]:
        """Every line with its end."""
        with io.BufferedReader(_unpacked.open(*self._region)) if self._region else self.path.open("rb") as file:
            yield from file

    def read(self, offset: int, length: int) -> bytes:
        if self._region:
            return _unpacked.read(self._region[0] + offset, min(length, self._region[1] - offset))
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


class _Unpacked:
    """One temporary file for the contents of all packed files, so that a thousand shards need one descriptor."""

    def __init__(self) -> None:
        self._file: Any = None
        self._lock = threading.Lock()

    def add(self, path: Path) -> tuple[int, int]:
        """Return where the unpacked file begins, and its length."""
        with self._lock, gzip.open(path) as packed:
            self._file = self._file or TemporaryFile(buffering=0)  # noqa: SIM115 (for the process's life)
            begin = self._file.seek(0, os.SEEK_END)
            shutil.copyfileobj(packed, self._file)
            return begin, self._file.seek(0, os.SEEK_END) - begin

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def open(self, begin: int, length: int) -> io.RawIOBase:
        return _Region(self, begin, length)


_unpacked = _Unpacked()


class _Region(io.RawIOBase):
    def __init__(self, unpacked: _Unpacked, begin: int, length: int) -> None:
        self._unpacked, self._place, self._end = unpacked, begin, begin + length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._unpacked.read(self._place, min(len(buffer), self._end - self._place))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


class TextRows:
    """Rows of a text file by their offsets in it."""

    def __init__(self, texts: Bytes) -> None:
        self._bytes = texts
        self._offsets, self._lengths, self._numbers = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._offsets)

    def place(self, index: int) -> tuple[Path, int]:
        return self._bytes.path, self._numbers[index]

    def _add(self, offset: int, length: int, number: int) -> None:
        self._offsets.append(offset)
        self._lengths.append(length)
        self._numbers.append(number)

    def _read(self, index: int) -> bytes:
        try:
            return self._bytes.read(self._offsets[index], self._lengths[index])
        except OSError as error:
            raise DataError(f"cannot be read: {one_line(error)}") from error


class JsonRows(TextRows):
    """One JSON object a line; blank lines do not count."""

    def __init__(self, texts: Bytes) -> None:
        super().__init__(texts)
        offset = 0
        for number, line in enumerate(self._bytes.lines(), 1):
            if line.removeprefix(BOM).strip():
                self._add(offset, len(line), number)
            offset += len(line)

    def read(self, index: int) -> Row:
        return _object(self._read(index), LINES)


class JsonArray(TextRows):
    """The objects of one JSON array, each of which may stand on several lines."""

    def __init__(self, texts: Bytes) -> None:
        super().__init__(texts)
        text = _whole(texts)
        try:
            self._index(text, len(BOM) if texts.read(0, len(BOM)) == BOM else 0)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{texts.path}:{error.lineno}: not JSON: {error.msg}, column {error.colno}. {ARRAY}"
            ) from error
        except RecursionError as error:
            raise ConfigError(f"{texts.path}: not JSON: nested too deep. {ARRAY}") from error

    def _index(self, text: str, offset: int) -> None:
        decoder, number, last = json.JSONDecoder(), 1, 0
        place = _skip(text, _skip(text, 0) + 1)
        more = text[place : place + 1] != "]"
        while more:
            offset, number = offset + len(text[last:place].encode()), number + text.count("\n", last, place)
            _, end = decoder.raw_decode(text, place)
            self._add(offset, len(text[place:end].encode()), number)
            last, place = place, _skip(text, end)
            more = text[place : place + 1] == ","
            if more:
                place = _skip(text, place + 1)
            elif text[place : place + 1] != "]":
                raise json.JSONDecodeError("a comma or the closing ] is missing", text, place)
        rest = _skip(text, place + 1)
        if rest < len(text):
            raise json.JSONDecodeError("text follows the closing ]", text, rest)

    def read(self, index: int) -> Row:
        return _object(self._read(index), ARRAY)


class ListRows:
    """Rows that a JSON document holds within an object, in memory."""

    def __init__(self, path: Path, rows: list[Any]) -> None:
        self._path, self._rows = path, rows

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> tuple[Path, int]:
        return self._path, index + 1

    def read(self, index: int) -> Row:
        return dict(self._rows[index])


def json_rows(texts: Bytes) -> Rows:
    """The rows of a `.json` file: an array, an object that holds one, a lone object, or JSON Lines."""
    lines = (line.removeprefix(BOM).strip() for line in texts.lines())
    first = next((line for line in lines if line), b"")
    if first.startswith(b"["):
        return JsonArray(texts)
    try:
        json.loads(first)
        if any(lines):
            return JsonRows(texts)  # each line is an object
    except (ValueError, RecursionError):
        pass  # one document over several lines, or a damaged line
    try:
        document = json.loads(_whole(texts))
    except (ValueError, RecursionError):
        return JsonRows(texts)
    if not isinstance(document, dict):
        return JsonRows(texts)
    held = next((document[key] for key in HOLDERS if _objects(document.get(key))), None)
    if held is None and len(document) == 1 and _objects(only := next(iter(document.values()))):
        held = only
    return ListRows(texts.path, [document] if held is None else held)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _object(line: bytes, expected: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}. {expected}") from error
    if not isinstance(row, dict):
        raise DataError(f"{row!r:.40} is not an object with keys. {expected}")
    return row


def _whole(texts: Bytes) -> str:
    """The text of a file. Raises ConfigError with the line that is no UTF-8."""
    lines = []
    for number, line in enumerate(texts.lines(), 1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{texts.path}:{number}: not UTF-8: {one_line(error)} Save it as UTF-8.") from error
    return "".join(lines)


def _skip(text: str, place: int) -> int:
    match = SPACE.match(text, place)
    return match.end() if match else place


INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
LONG = re.compile(r"-?\d{19,}")
"""Integers that neither 64 bits nor a float hold: they stay text."""
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class CsvRows(TextRows):
    """A header and a row of cells each; an empty cell is missing.

    A column is of integers, numbers or booleans where all its cells are, else of text, as are the columns `as_text`.
    Cells such as 007 are text.
    """

    def __init__(self, texts: Bytes, as_text: Set[str]) -> None:
        super().__init__(texts)
        self._consumed, self._line = 0, 0
        try:
            kinds = self._index(self._decoded())
        except csv.Error as error:
            raise ConfigError(f"{texts.path}:{self._line}: not CSV: {one_line(error)} Is a quote left open?") from error
        self._kinds = [set() if name in as_text else kind for name, kind in zip(self._header, kinds, strict=True)]

    def _index(self, lines: Iterator[str]) -> list[set[type]]:
        first = next(lines, "")
        tabs = ".tsv" in self._bytes.path.suffixes
        self._delimiter = "\t" if tabs else next((mark for mark in ",\t;" if mark in first), ",")
        reader = csv.reader(chain([first], lines), delimiter=self._delimiter, strict=True)
        self._header = [name.strip() for name in next(reader, [])]
        self._check_header()
        kinds: list[set[type]] = [{int, float, bool} for _ in self._header]
        offset, number = self._consumed, self._line
        for cells in reader:
            if cells:
                self._add(offset, self._consumed - offset, number + 1)
                for kind, cell in zip(kinds, cells, strict=False):
                    _narrow(kind, cell)
            offset, number = self._consumed, self._line
        return kinds

    def _decoded(self) -> Iterator[str]:
        for line in self._bytes.lines():
            self._consumed += len(line)
            self._line += 1
            yield (line.removeprefix(BOM) if self._line == 1 else line).decode("utf-8", "surrogateescape")

    def _check_header(self) -> None:
        twice = next((name for name in self._header if self._header.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"{self._bytes.path}:1: the header names the column '{twice}' twice. Rename one.")

    def read(self, index: int) -> Row:
        try:
            text = io.StringIO(self._read(index).decode(), newline="")
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8: {one_line(error)} Save the file as UTF-8.") from error
        cells = next(csv.reader(text, delimiter=self._delimiter, strict=True))
        if len(cells) != len(self._header):
            raise DataError(
                f"has {len(cells)} cells, and the header names {len(self._header)} columns: "
                f"{', '.join(self._header)}. Quote cells that hold a '{self._delimiter}'."
            )
        return {n: _cell(k, c) for n, k, c in zip(self._header, self._kinds, cells, strict=True)}


def _narrow(kinds: set[type], cell: str) -> None:
    """Leave the types that a column may still have after this cell."""
    if not kinds or not cell:
        return
    if not INTEGER.fullmatch(cell):
        kinds.discard(int)
    if not NUMBER.fullmatch(cell) or LONG.fullmatch(cell):
        kinds.discard(float)
    if cell not in BOOLEANS:
        kinds.discard(bool)


def _cell(kinds: set[type], cell: str) -> Any:
    if not cell:
        return None
    if int in kinds:
        return int(cell)
    if float in kinds:
        return float(cell)
    return BOOLEANS[cell] if bool in kinds else cell
