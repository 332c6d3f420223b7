"""Tasks from files: which columns are the prompt and the answer, and what else goes along.

{ "question": "1 + 1?", "answer": "2" }                                     with prompt_key = "question"
{ "prompt": [{"role": "user", "content": "1 + 1?"}], "data_source": "sums", as verl's files are
  "reward_model": {"ground_truth": "2"}, "extra_info": {} }
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

from pydantic import NonNegativeInt, model_validator

from actors.tasks import prompts
from actors.tasks.base import Lazy, TaskSource, checked
from actors.tasks.columns import find, plain, reference_text
from actors.tasks.rows import Row, Rows
from actors.tasks.shards import Shards, open_rows
from cluster.errors import ConfigError, DataError, nearest
from cluster.types import Message, Task
from cluster.types.wire import brief

CHECKED_ROWS = 10_000
"""Rows of each file that are read before a run starts; a fault in a later one is a counted data failure."""
COLUMN_ROWS = 1_000
"""Rows that are asked for their columns; a row that lacks one of them has None there."""
GROUND_TRUTH = "reward_model.ground_truth"


class Files(TaskSource):
    """Tasks from files, or from a Hugging Face data set on disk: a prompt and perhaps an answer per row.

    All these names read every format. Keys may be dotted. Files made for verl are read as they are: `prompt`,
    `reward_model.ground_truth`, `data_source`, `extra_info`. Every column reaches rewards and environments with its
    type, in `task.meta`; the reference in `task.meta["reference"]` where it is no text.

    Before a run all rows are read, up to a million: equal prompts, columns of mixed types and rows longer than the
    context are told, and the latter are left out for the run's life. A run knows its rows by their content: a moved
    file is the same data set, and with other rows the run is not continued.
    """

    path: str
    """A `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file, all but the last also as `.gz`; a directory or a glob
    (`data/*.jsonl`) of such files, read in the order of their names; a directory written by `datasets`'
    save_to_disk; or the id of a data set of Hugging Face, whose files of these formats are downloaded once."""
    split: str = "train"
    """The split to read, of a saved data set that has several, or of a directory whose files' names tell splits
    apart."""
    evaluation_path: str | None = None
    """Tasks to evaluate on, in any of the formats of `path`."""
    evaluation_split: str = "test"
    """Split of `evaluation_path`."""
    num_evaluation: NonNegativeInt = 0
    """Without `evaluation_path`: so many rows at the end of `path` are held out."""
    prompt_key: str = "prompt"
    """Column of the prompt: a text, which becomes a user's message, or a list of {role, content} or {from, value}.
    While no column is named and there is no `prompt`, `messages` or `conversations` is read. An assistant's answer at
    the end of the list is the reference."""
    prompt_template: str = ""
    """The prompt of rows without a column of it: a text in which `{column}` stands for what the row has there, such as
    "Use the numbers {nums} to reach {target}." A brace that is meant stands twice: `\\boxed{{x}}`."""
    answer_key: str | None = None
    """Column of the reference answer. By default `answer` or `reward_model.ground_truth`, if there is one."""
    system: str = ""
    """A system message before every prompt."""
    prompt_variants: dict[str, str] = {}
    """Further variants of a task: name → column of the prompt, such as { paraphrase = "rewritten" }."""

    @model_validator(mode="after")
    def _one_prompt(self) -> Files:
        if self.prompt_template and "prompt_key" in self.model_fields_set:
            raise ValueError("name the prompt by either prompt_key or prompt_template")
        return self

    def train(self) -> Sequence[Task]:
        rows = self._train_rows
        if self.evaluation_path is not None or not self.num_evaluation:
            return self._tasks(rows, range(len(rows)))
        if self.num_evaluation >= len(rows):
            raise ConfigError(
                f"tasks.options.num_evaluation = {self.num_evaluation}, but '{self.path}' has {len(rows)} rows; "
                "nothing is left to train on."
            )
        return self._tasks(rows, range(len(rows) - self.num_evaluation))

    def evaluation(self) -> Sequence[Task]:
        if self.evaluation_path is not None:
            return self._tasks(self._evaluation_rows, range(len(self._evaluation_rows)))
        rows = self._train_rows
        return self._tasks(rows, range(len(rows) - self.num_evaluation, len(rows)))

    def head(self) -> Iterator[Task]:
        for tasks in (self.train(), self.evaluation()):
            yield from islice(tasks, CHECKED_ROWS)

    def located(self, index: int, *, evaluation: bool) -> str:
        """File and line, or row, of a training task or a held-out one."""
        apart = evaluation and self.evaluation_path is not None
        rows = self._evaluation_rows if apart else self._train_rows
        first = len(rows) - self.num_evaluation if evaluation and not apart else 0
        path, number = rows.place(first + index)
        return f"{path.name}:{number}"

    def stamps(self) -> list[str]:
        """Size and time of each file, which tell whether it is still what was read."""
        paths = [*self._train_rows.labels, *(self._evaluation_rows.labels if self.evaluation_path is not None else ())]
        files = [f for path in paths for f in (sorted(path.iterdir()) if path.is_dir() else [path])]
        return [f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]

    @cached_property
    def _evaluation_rows(self) -> Shards:
        assert self.evaluation_path is not None
        rows = self._opened(self.evaluation_path, self.evaluation_split, "evaluation_path")
        taken = set(self._train_rows.labels.values())
        rows.labels = {p: f"held-out {label}" if label in taken else label for p, label in rows.labels.items()}
        return rows

    @cached_property
    def _train_rows(self) -> Shards:
        return self._opened(self.path, self.split, "path")

    def _opened(self, path: str, split: str, option: str) -> Shards:
        rows = open_rows(path, split, option, {self.prompt_key, *prompts.COLUMNS, *self.prompt_variants.values()})
        if not len(rows):
            raise ConfigError(f"tasks: '{path}' is empty. One task per row is expected.")
        return rows

    def _tasks(self, rows: Shards, indices: Sequence[int]) -> Lazy:
        return Lazy(partial(self._task, rows, _columns(rows)), indices)

    def _task(self, rows: Shards, columns: Sequence[str], index: int) -> Task:
        path, number = rows.place(index)
        try:
            return checked(self._from_row(f"{rows.labels[path]}/{number}", rows.name, rows.read(index), columns))
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error.__cause__

    def _from_row(self, id: str, source: str, row: Row, columns: Sequence[str]) -> Task:
        column = self._prompt_column(row)
        if self.prompt_template:
            prompt = prompts.Prompt((Message("user", prompts.filled(self.prompt_template, row)),))
        else:
            prompt = prompts.read(column, _value(row, column, "prompt_key"))
        read = {"prompt_key": prompt}
        read |= {
            f"prompt_variants.{n}": prompts.read(c, _value(row, c, f"prompt_variants.{n}"))
            for n, c in self.prompt_variants.items()
        }
        reference = self._reference(row)
        if reference is None:
            reference = prompt.answer
        answer = reference_text(reference)
        for option, one in read.items():
            _check_answer(option, one, answer)
        meta = self._meta(row, columns)
        if "reference" in meta or not isinstance(reference, str | None):
            meta["reference"] = reference
        meta["conversational"] = prompt.conversational
        variants = dict(zip(("orig", *self.prompt_variants), map(self._messages, read.values()), strict=True))
        return Task(id, variants, answer, str(meta.get("data_source") or source), meta)

    def _prompt_column(self, row: Row) -> str:
        if "prompt_key" in self.model_fields_set:
            return self.prompt_key
        return next((name for name in prompts.COLUMNS if name in row), self.prompt_key)

    def _messages(self, prompt: prompts.Prompt) -> tuple[Message, ...]:
        return (Message("system", self.system), *prompt.messages) if self.system else prompt.messages

    def _reference(self, row: Row) -> Any:
        """The reference with its type; None where it is missing."""
        if self.answer_key is not None:
            return plain(_value(row, self.answer_key, "answer_key"), self.answer_key)
        values = (plain(find(row, name), name) for name in ("answer", GROUND_TRUTH))
        return next((value for value in values if value is not None), None)

    def _meta(self, row: Row, columns: Sequence[str]) -> dict[str, Any]:
        """Every column with its type; None for those that other rows have and this one has not."""
        meta = dict.fromkeys(columns) | {str(n): plain(value, str(n)) for n, value in row.items()}
        if not meta.get("extra_info"):
            meta.pop("extra_info", None)
        return meta


def _columns(rows: Rows) -> tuple[str, ...]:
    """Names of all columns in the first rows, in the order of their appearance."""
    names: dict[str, None] = {}
    for index in range(min(len(rows), COLUMN_ROWS)):
        try:
            names |= dict.fromkeys(map(str, rows.read(index)))
        except DataError:  # named where the row's task is made
            continue
    return tuple(names)


def _check_answer(option: str, prompt: prompts.Prompt, reference: str | None) -> None:
    """Raises DataError for a conversation that ends in an answer beside another reference."""
    if prompt.answer is not None and prompt.answer.strip() != (reference or "").strip():
        raise DataError(
            f"the column of tasks.options.{option} ends with the assistant's answer {brief(prompt.answer)}, and the "
            f"reference is {brief(reference)}. Remove one of them; the policy writes the answer."
        )


def _value(row: Row, dotted: str, option: str) -> Any:
    """What a row must have. Raises DataError with the nearest name it has instead."""
    value = find(row, dotted)
    if value is None and dotted.partition(".")[0] not in row:
        raise DataError(
            f"no column '{dotted}'. {nearest(dotted, row)}It has: {', '.join(sorted(map(str, row))) or 'none'}. "
            f"Set tasks.options.{option} to the right one."
        )
    return value
