"""From a path to rows: a file, a directory or a glob of shards, or a data set that `datasets` saved."""

from __future__ import annotations

import logging
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence, Set
from contextlib import suppress
from glob import glob, has_magic
from itertools import accumulate
from pathlib import Path

from actors.hub import Unavailable, download
from actors.tasks.rows import Bytes, CsvRows, JsonRows, Row, Rows, json_rows
from actors.tasks.tables import ArrowRows, ParquetRows
from cluster.errors import ConfigError, nearest

log = logging.getLogger(__name__)

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz")
LIKE_JSONL = (".ndjson", ".jsonlines", ".ndjson.gz", ".jsonlines.gz")
PACKED = (".zst", ".bz2", ".xz", ".zip", ".tar", ".tgz", ".7z", ".lz4", ".parquet.gz")
OF_DATASETS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files about a data set, which hold none of its rows."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""The id of a data set of Hugging Face."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split → words that name it in a file's or folder's name, such as `train-00000-of-00002.parquet`."""


class Shards:
    """The rows of several files, one file after the other."""

    def __init__(self, name: str, parts: Sequence[Rows], labels: dict[Path, str]) -> None:
        """`name` is the source of rows that name none; `labels` are the first part of their ids."""
        self.name = name
        self.labels = labels
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> tuple[Path, int]:
        part, inner = self._within(index)
        return part.place(inner)

    def read(self, index: int) -> Row:
        part, inner = self._within(index)
        return part.read(inner)

    def _within(self, index: int) -> tuple[Rows, int]:
        part = bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part - 1] if part else 0)


def open_rows(path: str, split: str, option: str = "path", texts: Set[str] = frozenset()) -> Shards:
    """The rows that `path` names; in a `.csv` file the columns `texts` are of text, whatever they hold.

    `option` names the path in errors. Raises ConfigError.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        if (place / "dataset_dict.json").is_file():
            part = _part(place, split)
            return Shards(place.name, [ArrowRows(part)], {part: place.name})
        if (place / "state.json").is_file():
            return Shards(place.name, [ArrowRows(place)], {place: place.name})
        return _opened(_in_directory(place, split), place, texts)
    if place.is_file():
        return _opened([place], place, texts)
    if has_magic(str(place)):
        return _opened(_matching(place, option), place.parent, texts)
    if HUB_ID.fullmatch(path) and not path.endswith((*FORMATS, *LIKE_JSONL, *PACKED)):
        snapshot = _from_hub(path, option)
        rows = _opened(_in_directory(snapshot, split), snapshot, texts)
        rows.name = path
        return rows
    near = sorted(p.name for p in place.parent.iterdir()) if place.parent.is_dir() else []
    raise ConfigError(
        f"tasks.options.{option} = '{path}' does not exist. {nearest(place.name, near)}"
        f"Relative paths start at '{Path.cwd()}'."
    )


def _from_hub(path: str, option: str) -> Path:
    """Return the snapshot of a data set of Hugging Face, from the cache or downloaded. Raises ConfigError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [f"*{suffix}" for suffix in (*FORMATS, *LIKE_JSONL)]
    with suppress(LocalEntryNotFoundError):
        return Path(snapshot_download(path, repo_type="dataset", allow_patterns=patterns, local_files_only=True))
    log.info("downloading the data set %s from Hugging Face", path)
    try:
        return download(path, patterns, "dataset")
    except Unavailable as error:
        raise ConfigError(
            f"tasks.options.{option} = '{path}' does not exist (relative paths start at '{Path.cwd()}'), and as a data "
            f"set of Hugging Face {error}"
        ) from error


def _opened(files: Sequence[Path], place: Path, texts: Set[str]) -> Shards:
    tables = [file for file in files if file.suffix == ".parquet"]
    if tables and len(tables) == len(files):
        parts: list[Rows] = [ParquetRows(tables)]  # of all files together few row groups are kept
    else:
        parts = [_file(file, texts) for file in files]
    named = len(files) > 1 and place.name and not has_magic(place.name)
    name = place.name if named else stem(files[0])
    return Shards(name, parts, _labels(files))


def _file(path: Path, texts: Set[str]) -> Rows:
    suffix = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    if path.name.endswith(PACKED):
        raise ConfigError(f"'{path}' is packed. Unpack it, or pack it as .jsonl.gz. Read are {', '.join(FORMATS)}.")
    if suffix == ".parquet":
        return ParquetRows([path])
    if suffix in (".csv", ".tsv", ".csv.gz", ".tsv.gz"):
        return CsvRows(Bytes(path), texts)
    return json_rows(Bytes(path)) if suffix in (".json", ".json.gz") else JsonRows(Bytes(path))


def stem(path: Path) -> str:
    """Name of a data file without the suffixes of its format."""
    return next((path.name.removesuffix(s) for s in (*FORMATS, *LIKE_JSONL) if path.name.endswith(s)), path.stem)


def _labels(files: Sequence[Path]) -> dict[Path, str]:
    """A name for each file, of which no two are equal."""
    if len(files) == 1:
        return {files[0]: stem(files[0])}
    root = Path(os.path.commonpath([file.parent for file in files]))
    labels = {file: str(file.relative_to(root).with_name(stem(file))) for file in files}
    count = Counter(labels.values())
    return {f: label if count[label] == 1 else str(f.relative_to(root)) for f, label in labels.items()}


def _in_directory(directory: Path, split: str) -> list[Path]:
    """Data files of a directory, sorted; those of `split` where their names tell splits apart. Raises ConfigError."""
    inside = sorted(p for p in directory.rglob("*") if p.is_file() and p.name not in OF_DATASETS)
    visible = [p for p in inside if not any(n.startswith((".", "_")) for n in p.relative_to(directory).parts)]
    files = [p for p in visible if p.name.endswith((*FORMATS, *LIKE_JSONL))]
    if not files:
        raise ConfigError(
            f"{directory}: not a data set on disk, and no directory of data files: none of {', '.join(FORMATS)} is in "
            "it. A directory written by datasets' save_to_disk is expected, or one of such files."
        )
    of_split = {file: _split_of(file.relative_to(directory)) for file in files}
    splits = sorted({name for name in of_split.values() if name})
    if splits:
        if bare := [file for file, name in of_split.items() if not name]:
            raise ConfigError(
                f"{directory} has files of the splits {', '.join(splits)}, and '{bare[0].relative_to(directory)}', "
                f"whose name says no split. Name the files by a glob, such as '{directory}/*{bare[0].suffix}'."
            )
        wanted = next((name for name, words in SPLITS.items() if split in words), split)
        if wanted not in splits:
            raise ConfigError(
                f"{directory} has no split '{split}'. {nearest(split, splits)}It has: {', '.join(splits)}. "
                "Set tasks.options.split or tasks.options.evaluation_split."
            )
        files = [file for file in files if of_split[file] == wanted]
    return _of_one_format(files, directory)


def _matching(pattern: Path, option: str) -> list[Path]:
    files = sorted(Path(name) for name in glob(str(pattern), recursive=True) if Path(name).is_file())
    if not files:
        raise ConfigError(
            f"tasks.options.{option} = '{pattern}' matches no file. Relative paths start at '{Path.cwd()}'."
        )
    return _of_one_format(files, pattern)


def _of_one_format(files: list[Path], place: Path) -> list[Path]:
    kinds = {}
    for file in files:
        kinds.setdefault(file.name.removesuffix(".gz").rpartition(".")[2], file)
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise ConfigError(
            f"{place}: '{one.name}' and '{other.name}' are of different formats, so rows may be there twice. "
            f"Name those of one format by a glob, such as '*.{next(iter(kinds))}'."
        )
    return files


def _split_of(path: Path) -> str:
    """The split that a file's name or one of its folders names; empty where none does."""
    for part in (stem(path), *reversed(path.parts[:-1])):
        words = re.split(r"[^a-z]+", part.lower())
        for name, aliases in SPLITS.items():
            if set(words) & set(aliases):
                return name
    return ""


def _part(directory: Path, split: str) -> Path:
    """The directory of one split of a `DatasetDict`. Raises ConfigError."""
    splits = sorted(p.name for p in directory.iterdir() if (p / "state.json").is_file())
    if split not in splits:
        raise ConfigError(
            f"{directory} has no split '{split}'. {nearest(split, splits)}It has: {', '.join(splits) or 'none'}. "
            "Set tasks.options.split or tasks.options.evaluation_split."
        )
    return directory / split
