"""A run's data set before the start: rows twice, mixed columns, rows too long, and whether it is the run's own.

The driver reads all rows once. In the run's directory stay an eight-byte digest of each row's content and the places of
the rows that are left out, so that a resumed run and every worker count tasks alike.

    dataset/rows.json            counts, digests of the whole, rows left out
    dataset/train.digests        8 bytes a row, of at most MAX_ROWS rows
    dataset/evaluation.digests
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cluster.config import RunConfig
from cluster.driver.preflight_plugins import build_kind
from cluster.errors import ConfigError, DataError
from cluster.plugins import build
from cluster.types import Message, SkippedTasks, Task

MAX_ROWS = 1_000_000
"""Rows that are looked at, of training and evaluation rows each; a warning says that there are more."""
MAX_MADE_ROWS, MADE_ROWS_S = 20_000, 10.0
"""Tasks of a source without files that are looked at, and seconds for making them, of both kinds each."""
MEASURE_S = 120.0
"""Processor time for tokenising prompts that may be too long; shorter ones then pass for fitting."""
CHARACTERS_PER_TOKEN = 64
"""No token has more, so a longer prompt is too long without being tokenised."""
SHOWN = 3
PARTS = ("train", "evaluation")
KINDS = {bool: "booleans", int: "numbers", float: "numbers", str: "texts", list: "lists", dict: "objects"}
PATHS = ("tasks.options.path", "tasks.options.evaluation_path")
"""Keys that name where rows lie: a moved file with the same rows is the same data set."""


@dataclass
class Part:
    """What was read of the training tasks, or of those held out."""

    places: Callable[[int], str]
    """File and line of a row."""
    tasks: Sequence[Task]
    digests: np.ndarray
    """[N] uint64: of each row's content; 0 for a row that no task can be made of."""
    prompts: np.ndarray
    """[N] uint64: of each prompt up to white space; 0 as above."""
    sizes: np.ndarray
    """[N] int64: bytes of each row's longest variant."""
    messages: np.ndarray
    """[N] int64: messages of that variant, to each of which a template adds something."""
    kinds: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Column → kind of value → how many rows have it, and the first of them."""

    @property
    def whole(self) -> str:
        """Digest of all rows in their order."""
        return blake2b(self.digests.tobytes() + str(len(self.tasks)).encode(), digest_size=8).hexdigest()


@dataclass
class Rows:
    """The rows of a run's data set."""

    train: Part
    evaluation: Part
    measured: dict[tuple[Any, ...], tuple[SkippedTasks, list[str]]] = field(default_factory=dict)
    """What `measure` found, by models and length."""
    filed: bool = True
    """Whether rows lie in files, so that a later start compares them and repeated prompts are remarkable."""

    def part(self, name: str) -> Part:
        return self.train if name == "train" else self.evaluation


def read(settings: RunConfig) -> Rows | None:
    """Return all rows of the recipe's data files, or the first tasks of a source that makes them.

    None where the environment shows no task as it is. Raises ConfigError.
    """
    from actors.tasks import TASKS
    from actors.tasks.files import Files

    source = build_kind(TASKS, settings.tasks, "tasks", "train")
    variants = settings.rollout.prompt_variants
    if not isinstance(source, Files):
        return _made(source, variants) if _shows_task(settings) else None
    key = (settings.tasks.model_dump_json(), *variants, *source.stamps())
    if key not in _last:  # a start reads them twice: before anything is written, and when models are there
        _last.clear()
        train = _read(source.train(), partial(source.located, evaluation=False), variants)
        _last[key] = Rows(train, _read(source.evaluation(), partial(source.located, evaluation=True), variants))
    return _last[key]


_last: dict[tuple[str, ...], Rows] = {}


def _made(source: Any, variants: Sequence[str]) -> Rows:
    """Return the first tasks of a source without files."""
    train, evaluation = (
        _read(tasks, f"{kind} task {{}}".format, variants, MAX_MADE_ROWS, MADE_ROWS_S)
        for kind, tasks in (("training", source.train()), ("evaluation", source.evaluation()))
    )
    return Rows(train, evaluation, filed=False)


def _shows_task(settings: RunConfig) -> bool:
    """Whether an episode begins with the task's prompt as it is."""
    from actors.environments import ENVIRONMENTS

    section = settings.rollout.environment
    return getattr(build(ENVIRONMENTS, section.use, section.options, "rollout.environment"), "shows_task", True)


def _read(
    tasks: Sequence[Task],
    places: Callable[[int], str],
    variants: Sequence[str],
    most: int = MAX_ROWS,
    most_s: float = float("inf"),
) -> Part:
    """Return what `most` tasks hold, or as many as are made within `most_s` seconds."""
    from actors.tasks import checked

    count, until = min(len(tasks), most), time.monotonic() + most_s
    digests, prompts, sizes = np.zeros(count, np.uint64), np.zeros(count, np.uint64), np.zeros(count, np.int64)
    part = Part(places, tasks, digests, prompts, sizes, np.zeros(count, np.int64))
    for i in range(count):
        if time.monotonic() > until:
            break
        try:
            task = checked(tasks[i])
        except Exception:  # named where the task is asked for
            continue
        digests[i], prompts[i] = _content(task), _prompt(task)
        shown = [task.variants[variant] for variant in variants if variant in task.variants]
        sizes[i] = max((sum(len(m.content.encode(errors="replace")) for m in ms) for ms in shown), default=0)
        part.messages[i] = max(map(len, shown), default=0)
        for column, value in task.meta.items():
            if value is not None and column != "conversational":
                seen = part.kinds.setdefault(column, {}).setdefault(KINDS.get(type(value), "others"), [0, i])
                seen[0] += 1
    return part


def _content(task: Task) -> int:
    """Digest of what a row says, wherever it lies; columns that are missing do not count."""
    variants = [[name, [[m.role, m.content] for m in messages]] for name, messages in task.variants.items()]
    meta = {name: value for name, value in task.meta.items() if value is not None}
    return _digest(msgspec.msgpack.encode([variants, task.answer, meta], order="deterministic"))


def _prompt(task: Task) -> int:
    words = "\n".join(f"{m.role} {' '.join(m.content.split())}" for m in task.variants["orig"])
    return _digest(words.encode(errors="replace"))


def _digest(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") or 1


def warnings(rows: Rows) -> list[str]:
    """Sentences about rows that are there twice, columns of mixed types, and rows that were not looked at."""
    if not rows.filed:
        return []
    return [*_twice(rows.train), *_leaked(rows), *_mixed(rows.train), *_unread(rows)]


def _twice(part: Part) -> Iterator[str]:
    known = np.flatnonzero(part.prompts)
    _, first, count = np.unique(part.prompts[known], return_index=True, return_counts=True)
    if extra := int((count - 1).sum()):
        original = int(known[first[count > 1].min()])
        again = int(known[part.prompts[known] == part.prompts[original]][1])
        yield (
            f"tasks: {extra} of {len(part.tasks)} training rows have the prompt of an earlier row, such as "
            f"{part.places(original)} and {part.places(again)}: {_shown(part, again)}. Each is a task of its own."
        )


def _leaked(rows: Rows) -> Iterator[str]:
    held, train = rows.evaluation.prompts, rows.train.prompts
    both = np.flatnonzero(np.isin(held, train[train != 0]))
    if len(both):
        place = int(both[0])
        same = int(np.flatnonzero(train == held[place])[0])
        yield (
            f"tasks: {len(both)} of {len(held)} evaluation rows have the prompt of a training row, such as "
            f"{rows.evaluation.places(place)} and {rows.train.places(same)}: {_shown(rows.evaluation, place)}. "
            "Held-out results then tell less than they seem to. Remove these rows from one of the two."
        )


def _shown(part: Part, place: int) -> str:
    text = " ".join(part.tasks[place].prompt.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _mixed(part: Part) -> Iterator[str]:
    for column, kinds in part.kinds.items():
        if len(kinds) > 1:
            ordered = sorted(kinds.items(), key=lambda kind: -kind[1][0])
            parts = [f"{name} in {n} rows (first {part.places(first)})" for name, (n, first) in ordered]
            yield (
                f"tasks: the column '{column}' has {', '.join(parts)}. Each value keeps its type: a reward must take "
                "them all, or write the column alike in all rows."
            )


def _unread(rows: Rows) -> Iterator[str]:
    for name in PARTS:
        part = rows.part(name)
        if len(part.tasks) > len(part.digests):
            yield (
                f"tasks: the first {len(part.digests)} of {len(part.tasks)} {name} rows were looked at for equal "
                "prompts, mixed columns and length."
            )


def measure(settings: RunConfig, rows: Rows, tokenizers: Mapping[str, Any]) -> tuple[SkippedTasks, list[str]]:
    """Rows whose prompt fills the whole context of a policy, and sentences about them.

    `tokenizers` are the policies', by name. Raises ConfigError where no training row fits.
    """
    if not _shows_task(settings):
        return SkippedTasks(), []
    own = {name: settings.of_policy(name) for name in tokenizers}
    key = tuple((name, s.model.path, s.engine.max_model_len) for name, s in own.items())
    if key not in rows.measured:
        rows.measured[key] = _measured(own, rows, tokenizers)
    return rows.measured[key]


def _measured(
    own: Mapping[str, RunConfig], rows: Rows, tokenizers: Mapping[str, Any]
) -> tuple[SkippedTasks, list[str]]:
    deadline = time.process_time() + MEASURE_S
    left: dict[str, tuple[int, ...]] = {}
    said: list[str] = []
    for name in PARTS:
        part, lengths, missed = rows.part(name), {}, 0
        for policy, settings in own.items():
            found, rest = _too_long(settings, part, tokenizers[policy], deadline)
            lengths, missed = found | lengths, missed + rest
        left[name] = tuple(sorted(lengths))
        kind = "training" if name == "train" else "evaluation"
        length = min(s.engine.max_model_len for s in own.values())
        which = f"longer than the context (engine.max_model_len = {length} tokens)"
        listed = _listed([f"{part.places(i)} ({lengths[i]})" for i in left[name][:SHOWN]], len(lengths))
        if lengths and len(lengths) == len(part.tasks) and name == "train":
            raise ConfigError(
                f"tasks: all {len(lengths)} training rows are {which}: {listed}. Raise engine.max_model_len, or "
                "shorten the prompts."
            )
        if lengths:
            said.append(f"tasks: {len(lengths)} of {len(part.tasks)} {kind} rows are {which} and left out: {listed}.")
        if missed:
            said.append(
                f"tasks: {missed} of the shorter {kind} rows were not tokenised within {MEASURE_S:g} s of "
                "processor time and are taken to fit into the context."
            )
    return SkippedTasks(left["train"], left["evaluation"]), said


def _too_long(settings: RunConfig, part: Part, tokenizer: Any, deadline: float) -> tuple[dict[int, str], int]:
    """Rows that leave no room for an answer with their lengths in words, and how many rows were not tokenised."""
    from actors.chat import Chat

    chat, most = Chat(tokenizer, stop=settings.rollout.stop), settings.engine.max_model_len
    frame = len(chat.prompt([Message("user", ".")])) + 16
    found: dict[int, str] = {}
    # A token stands for one byte or more, so that most rows are known to fit without being tokenised.
    longest_first = np.argsort(-part.sizes, kind="stable")
    doubtful = longest_first[(part.sizes + frame * part.messages)[longest_first] >= most].tolist()
    for number, i in enumerate(doubtful):
        if time.process_time() > deadline:
            return found, len(doubtful) - number
        if part.sizes[i] > 4 * CHARACTERS_PER_TOKEN * most:
            found[i] = f"{part.sizes[i]} bytes"
            continue
        try:
            length = max(
                len(chat.prompt(part.tasks[i].variants[variant])) for variant in settings.rollout.prompt_variants
            )
        except (DataError, KeyError):  # named when the row's task is sampled
            continue
        if length >= most:
            found[i] = f"{length} tokens"
    return found, 0


def _listed(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


def save(directory: Path, settings: RunConfig, rows: Rows, left_out: SkippedTasks) -> None:
    """Write what a later start compares. The JSON file comes last, so that it stands for whole files."""
    place = directory / "dataset"
    place.mkdir(parents=True, exist_ok=True)
    tree: dict[str, Any] = {"max_model_len": settings.engine.max_model_len}
    for name in PARTS:
        part = rows.part(name)
        digest = part.whole if rows.filed else None
        if rows.filed:
            (place / f"{name}.digests").write_bytes(part.digests.astype("<u8").tobytes())
        tree[name] = {"rows": len(part.tasks), "digest": digest, "left_out": list(getattr(left_out, name))}
    temporary = place / "rows.json.tmp"
    temporary.write_text(json.dumps(tree))
    temporary.replace(place / "rows.json")


def stored(directory: Path) -> dict[str, Any] | None:
    """What a start of this run wrote; None where there is none."""
    try:
        tree = json.loads((directory / "dataset" / "rows.json").read_text())
    except FileNotFoundError:
        return None
    if "heldout" in tree:  # a run of version 0.1
        tree["evaluation"] = tree.pop("heldout")
    return tree


def _digests(directory: Path, name: str) -> Path:
    """Return the file of a part's digests, under the name that version 0.1 gave it if that is what there is."""
    path = directory / "dataset" / f"{name}.digests"
    return path if path.exists() or name == "train" else path.with_name("heldout.digests")


def left_out(tree: Mapping[str, Any]) -> SkippedTasks:
    """The rows that a run has left out since its start."""
    return SkippedTasks(tuple(tree["train"]["left_out"]), tuple(tree["evaluation"]["left_out"]))


def check_same(directory: Path, settings: RunConfig, rows: Rows) -> list[str]:
    """Sentences about a data set that this run has known from its start. Raises ConfigError for other rows."""
    tree = stored(directory)
    if tree is None:
        return []
    for name in PARTS:
        part = rows.part(name)
        if rows.filed and tree[name]["digest"] not in (None, part.whole):
            before = np.frombuffer((directory / "dataset" / f"{name}.digests").read_bytes(), "<u8")
            kind = "training" if name == "train" else "evaluation"
            raise ConfigError(
                f"'{directory}' holds the run of another data set: of the {kind} rows, {tree[name]['rows']} then and "
                f"{len(part.tasks)} now, {differences(before, part.digests, part.places)}. Tasks are counted by their "
                "rows: choose another run.name, or give the rows of then to continue that run."
            )
    count = len(tree["train"]["left_out"])
    if tree["max_model_len"] != settings.engine.max_model_len:
        return [
            f"engine.max_model_len was {tree['max_model_len']} when the run began and is "
            f"{settings.engine.max_model_len}: the {count} training rows that were left out then are left out still."
        ]
    return [f"{count} training rows that are longer than the context stay left out."] if count else []


def differences(before: np.ndarray, now: np.ndarray, places: Callable[[int], str]) -> str:
    """What became of rows, by digests [N] and [M] of their contents, in words."""
    gone, new = _surplus(before, now), _surplus(now, before)
    if not gone and not new:
        return "the same rows are in another order" if len(before) == len(now) else "later ones differ"
    ahead = set(new)
    behind = {len(now) - i for i in new}
    changed = [i for i in gone if i in ahead]
    rest = [i for i in gone if i not in ahead and len(before) - i in behind]
    moved = {i + len(now) - len(before) for i in rest} - set(changed)
    rest = [i for i in rest if i + len(now) - len(before) in moved]
    added = [i for i in new if i not in changed and i not in moved]
    removed = [i for i in gone if i not in changed and i not in rest]
    altered = sorted([*changed, *moved])
    said = [
        _some(altered, "changed", places),
        _some(added, "added", places),
        _some(removed, "removed", lambda i: f"row {i + 1} of then"),
    ]
    return ", ".join(filter(None, said))


def _surplus(one: np.ndarray, other: np.ndarray) -> list[int]:
    """Places of those that `one` has more often than `other`, the last of equals."""
    count = Counter(other.tolist())
    places = []
    for i, digest in enumerate(one.tolist()):
        if count[digest]:
            count[digest] -= 1
        else:
            places.append(i)
    return places


def _some(rows: Sequence[int], what: str, places: Callable[[int], str]) -> str:
    listed = _listed([places(i) for i in rows[:SHOWN]], len(rows))
    return f"{len(rows)} {'is' if len(rows) == 1 else 'are'} {what} ({listed})" if rows else ""
