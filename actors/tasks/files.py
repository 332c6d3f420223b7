"""Tasks from files: which columns are the prompt and the answer, and what else goes along.

{ "question": "1 + 1?", "answer": "2" }                                     with prompt_key = "question"
{ "prompt": [{"role": "user", "content": "1 + 1?"}], "data_source": "sums", as verl's files are
  "reward_model": {"ground_truth": "2"}, "extra_info": {} }
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from actors.tasks.base import Lazy, TaskSource, checked
from actors.tasks.rows import Row, Rows, open_rows
from cluster.errors import ConfigError, DataError, nearest
from cluster.types import Message, Task

CHECKED_ROWS = 10_000
"""Rows of each file that are read before a run starts; a fault in a later one is a counted data failure."""
GROUND_TRUTH = "reward_model.ground_truth"


class Files(TaskSource):
    """Tasks from a JSONL or Parquet file, or a Hugging Face data set on disk: a prompt and perhaps an answer per row.

    Keys may be dotted. Files made for verl are read as they are: `prompt`, `reward_model.ground_truth`,
    `data_source`, `extra_info`.
    """

    path: str
    """`.jsonl`, `.parquet`, or a directory written by `datasets`' save_to_disk."""
    split: str = "train"
    """Of a data set on disk that has several."""
    heldout_path: str | None = None
    """Tasks to evaluate on, in any of the formats of `path`."""
    heldout_split: str = "test"
    """Split of `heldout_path`."""
    num_heldout: NonNegativeInt = 0
    """Without `heldout_path`: so many rows at the end of `path` are held out."""
    prompt_key: str = "prompt"
    """Column of the prompt: a text, which becomes a user's message, or a list of {role, content}."""
    answer_key: str | None = None
    """Column of the reference answer. By default `answer` or `reward_model.ground_truth`, if there is one."""
    system: str = ""
    """A system message before every prompt."""
    views: dict[str, str] = {}
    """Further views of a task: name → column of the prompt, such as { paraphrase = "rewritten" }."""

    def train(self) -> Sequence[Task]:
        rows = self._train_rows
        if self.heldout_path is not None or not self.num_heldout:
            return self._tasks(self.path, rows, range(len(rows)))
        if self.num_heldout >= len(rows):
            raise ConfigError(
                f"tasks.options.num_heldout = {self.num_heldout}, but '{self.path}' has {len(rows)} rows; "
                "nothing is left to train on."
            )
        return self._tasks(self.path, rows, range(len(rows) - self.num_heldout))

    def heldout(self) -> Sequence[Task]:
        if self.heldout_path is not None:
            rows = _opened(self.heldout_path, self.heldout_split, "heldout_path")
            return self._tasks(self.heldout_path, rows, range(len(rows)))
        rows = self._train_rows
        return self._tasks(self.path, rows, range(len(rows) - self.num_heldout, len(rows)))

    def head(self) -> Iterator[Task]:
        for tasks in (self.train(), self.heldout()):
            yield from islice(tasks, CHECKED_ROWS)

    @cached_property
    def _train_rows(self) -> Rows:
        return _opened(self.path, self.split)

    def _tasks(self, path: str, rows: Rows, indices: Sequence[int]) -> Lazy:
        return Lazy(partial(self._task, path, rows), indices)

    def _task(self, path: str, rows: Rows, index: int) -> Task:
        number = rows.number(index)
        try:
            return checked(self._from_row(f"{Path(path).stem}/{number}", Path(path).stem, rows.read(index)))
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error.__cause__

    def _from_row(self, id: str, stem: str, row: Row) -> Task:
        views = {"orig": self._prompt(row, self.prompt_key, "prompt_key")}
        views |= {name: self._prompt(row, column, f"views.{name}") for name, column in self.views.items()}
        extra = row.get("extra_info")
        meta = {"extra_info": extra} if extra else {}
        return Task(id, views, self._answer(row), str(row.get("data_source") or stem), meta)

    def _prompt(self, row: Row, column: str, option: str) -> tuple[Message, ...]:
        messages = _messages(column, _value(row, column, option))
        return (Message("system", self.system), *messages) if self.system else messages

    def _answer(self, row: Row) -> str | None:
        if self.answer_key is not None:
            answer = _value(row, self.answer_key, "answer_key")
        else:
            answer = next((a for a in (_find(row, "answer"), _find(row, GROUND_TRUTH)) if a is not None), None)
        if isinstance(answer, list | dict):
            return json.dumps(answer, ensure_ascii=False)
        return None if answer is None else str(answer)


def _opened(path: str, split: str, option: str = "path") -> Rows:
    rows = open_rows(path, split, option)
    if not len(rows):
        raise ConfigError(f"tasks: '{path}' is empty. One task per row is expected.")
    return rows


def _find(row: Any, dotted: str) -> Any:
    """The value at `a.b.c`, None where there is nothing."""
    for key in dotted.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _value(row: Row, dotted: str, option: str) -> Any:
    """What a row must have. Raises DataError with the nearest name it has instead."""
    value = _find(row, dotted)
    if value is None and dotted.partition(".")[0] not in row:
        raise DataError(
            f"no column '{dotted}'. {nearest(dotted, row)}It has: {', '.join(sorted(map(str, row))) or 'none'}. "
            f"Set tasks.options.{option} to the right one."
        )
    return value


def _messages(name: str, prompt: Any) -> tuple[Message, ...]:
    """A text is one user message. Raises DataError for anything but text and lists of role and content."""
    if isinstance(prompt, str) and prompt.strip():
        return (Message("user", prompt),)
    if isinstance(prompt, list) and prompt:
        texts = [m.get(key) if isinstance(m, dict) else None for m in prompt for key in ("role", "content")]
        if all(isinstance(t, str) for t in texts):
            return tuple(Message(m["role"], m["content"]) for m in prompt)
    raise DataError(
        f"'{name}' is {prompt!r:.80}. A text or a list of {{role, content}} is expected; "
        "set tasks.options.prompt_key if another column holds it."
    )
