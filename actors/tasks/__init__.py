"""Where tasks come from, and the seeded endless order in which they are claimed.

A source is a plug-in with `train()` and `heldout()`; `TASKS` at the end names them. A claim carries a position in an
endless sequence, and `order` turns it into a pass and a place in the source, so that a run can resume anywhere in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from actors.tasks.base import TaskSource
from actors.tasks.calculator import SumsOfThree
from actors.tasks.nethack import NetHackGames
from cluster.errors import ConfigError, nearest
from cluster.types import Message, Task, encode


def order(seed: int, size: int, shuffle: bool) -> Callable[[int], tuple[int, int]]:
    """Position in the endless sequence → (pass, index of the task).

    Every pass visits every task once, with `shuffle` in an order of its own that depends on seed and pass only. A
    resumed run may ask for any position; the permutations of the last passes asked for are kept.
    """
    if size < 1:
        raise ConfigError("tasks: the source gives no training task.")

    @lru_cache(maxsize=2)
    def permutation(number: int) -> np.ndarray:
        return np.random.default_rng((seed, number)).permutation(size)

    def place(position: int) -> tuple[int, int]:
        number, index = divmod(position, size)
        return number, int(permutation(number)[index]) if shuffle else index

    return place


ADDITION_SPLIT_SEED = 0
ADDITION_HELDOUT = 1000
ADDITION_WARM_START = 2000

Problem = tuple[int, int]


@cache
def addition_problems() -> tuple[tuple[Problem, ...], tuple[Problem, ...], tuple[Problem, ...]]:
    """All sums of two two-digit numbers as (warm start, training, held out), about 2,000, 5,100 and 1,000 of 8,100.

    The split is one for all runs, so a cached model never saw what a run holds out. `47+38` and `38+47` are always in
    the same set: none is solved by swapping operands.
    """
    unordered = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    warm: list[Problem] = []
    train: list[Problem] = []
    heldout: list[Problem] = []
    for i in np.random.default_rng(ADDITION_SPLIT_SEED).permutation(len(unordered)):
        a, b = unordered[i]
        if len(heldout) < ADDITION_HELDOUT:
            chosen = heldout
        elif len(warm) < ADDITION_WARM_START:
            chosen = warm
        else:
            chosen = train
        chosen += [(a, b), (b, a)] if a != b else [(a, b)]
    return tuple(warm), tuple(train), tuple(heldout)


class Addition(TaskSource):
    """`47+38=` → `85`: sums of two two-digit numbers, which the model `tiny:addition` half knows."""

    num_heldout: PositiveInt = Field(ADDITION_HELDOUT, le=ADDITION_HELDOUT)

    def train(self) -> Sequence[Task]:
        return [self._task(p) for p in addition_problems()[1]]

    def heldout(self) -> Sequence[Task]:
        return [self._task(p) for p in addition_problems()[2][: self.num_heldout]]

    @staticmethod
    def _task(problem: Problem) -> Task:
        a, b = problem
        return Task.of(f"addition/{a}+{b}", f"{a}+{b}=", str(a + b), source="addition")


class _Entries(Sequence[Task]):
    """Entries of a reasoning_gym dataset as tasks, generated when asked for."""

    def __init__(self, dataset: Any, recipe: dict[str, Any], indices: Sequence[int]) -> None:
        self._dataset, self._recipe, self._indices = dataset, recipe, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> Task: ...
    @overload
    def __getitem__(self, place: slice) -> _Entries: ...
    def __getitem__(self, place: int | slice) -> Task | _Entries:
        if isinstance(place, slice):
            return _Entries(self._dataset, self._recipe, self._indices[place])
        index = self._indices[place]
        entry = self._dataset[index]
        name = self._recipe["name"]
        answer = None if entry["answer"] is None else str(entry["answer"])
        return Task.of(
            f"{name}/{index}", entry["question"], answer, source=name, reasoning_gym={**self._recipe, "index": index}
        )


class ReasoningGym(TaskSource):
    """Tasks of one reasoning_gym generator.

    `meta["reasoning_gym"]` names generator, options, seed and index instead of holding the entry: its metadata has
    tuples, sets and dates that no wire format keeps, and the reward `reasoning_gym` makes the same entry again.
    """

    name: str
    size: PositiveInt = 10_000
    num_heldout: NonNegativeInt = 500
    """Held-out entries, generated after the training ones; a question that occurs in both is not held out."""
    seed: NonNegativeInt = 0
    config: dict[str, Any] = {}
    """Options of the generator."""

    def train(self) -> Sequence[Task]:
        return _Entries(self._dataset(), self._recipe(), range(self.size))

    def heldout(self) -> Sequence[Task]:
        if not self.num_heldout:
            return ()
        dataset = self._dataset()
        trained = {dataset[i]["question"] for i in range(self.size)}
        indices = [i for i in range(self.size, self._total) if dataset[i]["question"] not in trained]
        return _Entries(dataset, self._recipe(), indices)

    @property
    def _total(self) -> int:
        return self.size + self.num_heldout

    def _recipe(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed, "size": self._total, "config": self.config}

    def _dataset(self) -> Any:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS

        if self.name not in DATASETS:
            raise ConfigError(
                f"tasks.options.name = '{self.name}' is no generator of reasoning_gym. {nearest(self.name, DATASETS)}"
                f"Known: {', '.join(sorted(DATASETS))}."
            )
        try:
            return create_dataset(self.name, seed=self.seed, size=self._total, **self.config)
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"tasks.options.config = {self.config} does not fit '{self.name}': {error}") from error


class Lines(TaskSource):
    """Tasks from a JSONL or Parquet file: a prompt (text or messages) and perhaps an answer per line.

    Keys may be dotted. Files made for verl are read as they are: `prompt`, `reward_model.ground_truth`,
    `data_source`, `extra_info`.
    """

    path: str
    heldout_path: str | None = None
    num_heldout: NonNegativeInt = 0
    """Without `heldout_path`: so many lines at the end of `path` are held out."""
    prompt: str = "prompt"
    answer: str = "answer"
    system: str = ""
    """A system message before every prompt."""

    def train(self) -> Sequence[Task]:
        tasks = self._read(self.path)
        if self.heldout_path is not None or not self.num_heldout:
            return tasks
        if self.num_heldout >= len(tasks):
            raise ConfigError(
                f"tasks.options.num_heldout = {self.num_heldout}, but '{self.path}' has {len(tasks)} lines; "
                "nothing is left to train on."
            )
        return tasks[: -self.num_heldout]

    def heldout(self) -> Sequence[Task]:
        if self.heldout_path is not None:
            return self._read(self.heldout_path)
        return self._read(self.path)[-self.num_heldout :] if self.num_heldout else ()

    def _read(self, path: str) -> list[Task]:
        file = Path(path)
        if not file.is_file():
            raise ConfigError(f"tasks: '{path}' is not a file. Relative paths start at '{Path.cwd()}'.")
        rows = _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file)
        tasks = [self._task(f"{path}:{number}", f"{file.stem}/{number}", row) for number, row in rows]
        if not tasks:
            raise ConfigError(f"tasks: '{path}' is empty.")
        return tasks

    def _task(self, where: str, id: str, row: dict[str, Any]) -> Task:
        messages = _messages(where, self.prompt, _find(row, self.prompt))
        if self.system:
            messages = (Message("system", self.system), *messages)
        answer = _find(row, self.answer)
        if answer is None and self.answer == "answer":
            answer = _find(row, "reward_model.ground_truth")
        if isinstance(answer, list | dict):
            answer = json.dumps(answer, ensure_ascii=False)
        extra = row.get("extra_info")
        task = Task(
            id,
            {"orig": messages},
            None if answer is None else str(answer),
            str(row.get("data_source") or Path(where).stem),
            {"extra_info": extra} if extra else {},
        )
        try:
            encode(task)
        except (TypeError, ValueError, OverflowError, NotImplementedError) as error:
            raise ConfigError(f"{where}: this line cannot be stored: {error}.") from error
        return task


def _json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}:{number}: not JSON: {error}. One object per line is expected.") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{file}:{number}: a {type(row).__name__}, not an object with keys.")
        yield number, row


def _parquet_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{file}: not a Parquet file: {error}.") from error
    yield from enumerate(table.to_pylist(), 1)


def _find(row: Any, dotted: str) -> Any:
    """The value at `a.b.c`, None where there is nothing."""
    for key in dotted.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _messages(where: str, name: str, prompt: Any) -> tuple[Message, ...]:
    """A text is one user message. Raises ConfigError for anything but text and lists of role and content."""
    if isinstance(prompt, str) and prompt:
        return (Message("user", prompt),)
    if isinstance(prompt, list) and prompt:
        texts = [m.get(key) if isinstance(m, dict) else None for m in prompt for key in ("role", "content")]
        if all(isinstance(t, str) for t in texts):
            return tuple(Message(m["role"], m["content"]) for m in prompt)
    raise ConfigError(
        f"{where}: '{name}' is {prompt!r:.80}. A text or a list of {{role, content}} is expected; "
        "set tasks.options.prompt if the key has another name."
    )


TASKS: dict[str, type[TaskSource]] = {
    "addition": Addition,
    "reasoning_gym": ReasoningGym,
    "calculator": SumsOfThree,
    "nethack": NetHackGames,
    "jsonl": Lines,
    "parquet": Lines,
}
