"""How other trainers call a reward function, and what fills its parameters.

    ours       f(prompt, completion, …) -> float                              one rollout a call
    verl       f(data_source, solution_str, ground_truth, extra_info)         one rollout a call
    TRL        f(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns) -> list
    OpenRLHF   f(queries, prompts, labels) -> list
    verl       f(data_sources, solution_strs, ground_truths, extra_infos) -> list
    verifiers  f(prompt, completion, answer, state, info, task) -> float              one rollout a call

Every column of the data set fills the parameter of its name, with its type: once where a call is of one rollout, as a
list where it is of a group. In TRL's convention prompts and completions are lists of messages where the data set's
prompts are, else texts. A function of verifiers' rubrics is known by `state`, or by a `completion` that is annotated
as messages (`list[dict]`, `Messages`); its prompt and completion are lists of messages. Sources: TRL's `GRPOTrainer`
documentation, verl's reward functions, OpenRLHF's README, verifiers' documentation of rubrics.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.thoughts import whole_text
from cluster.types import Group, Rollout, Task
from rewards.parsing.answers import answer_of

Style = Literal["rollout", "trl", "openrlhf", "verl_batch", "verifiers"]

WRITTEN = ("completion", "response", "output", "text", "solution_str", "model_output", "predict_str", "prediction")
REFERENCE = ("answer", "reference", "ground_truth", "solution", "label", "target", "gold")
ONE: dict[str, Callable[[Task, Rollout], Any]] = {
    "prompt": lambda task, rollout: task.prompt,
    "data_source": lambda task, rollout: task.source,
    "extra_info": lambda task, rollout: task.meta.get("extra_info", task.meta),
    "task": lambda task, rollout: task,
    "rollout": lambda task, rollout: rollout,
}
"""Beside the text and the reference, for one rollout."""
GROUP: dict[Style, tuple[str, ...]] = {
    "trl": ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"),
    "openrlhf": ("queries", "prompts", "labels"),
    "verl_batch": ("data_sources", "solution_strs", "ground_truths", "extra_infos"),
}
MARKS: dict[str, Style] = {
    "completions": "trl",
    "completion_ids": "trl",
    "queries": "openrlhf",
    "solution_strs": "verl_batch",
    "state": "verifiers",
}
"""A parameter that gives a convention away."""


RUBRIC = ("prompt", "completion", "answer", "state", "info", "task")
"""Parameters of a function of verifiers' rubrics."""
MESSAGES = re.compile(r"\b(list|List|Sequence|Messages)\b")
"""In the annotation of a completion that is a list of messages."""


def style_of(parameters: Mapping[str, inspect.Parameter]) -> Style:
    """Which convention a function's parameters follow."""
    found: list[Style] = [style for mark, style in MARKS.items() if mark in parameters]
    if found:
        return found[0]
    written = parameters.get("completion")
    return "verifiers" if written is not None and MESSAGES.search(str(written.annotation)) else "rollout"


def one_a_call(style: Style) -> bool:
    return style in ("rollout", "verifiers")


def always_filled(style: Style) -> set[str]:
    """Parameters that need no column of the data set."""
    if style == "rollout":
        return {*WRITTEN, *REFERENCE, *ONE}
    if style == "verifiers":
        return set(RUBRIC)
    return {*GROUP[style], *REFERENCE, *(("data_source", "extra_info") if style == "trl" else ())}


def columns_of(task: Task) -> dict[str, Any]:
    """The columns of a task's row with their types; NaN is a missing value, None."""
    return {name: _known(value) for name, value in task.meta.items()}


def reference_of(task: Task) -> Any:
    """The reference with its type where that is no text (an integer, a dict), else its text; None if it is missing."""
    return _known(task.meta.get("reference", task.answer))


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def for_rollout(style: Style, names: Iterable[str], task: Task, rollout: Rollout, open_ended: bool) -> dict[str, Any]:
    """Arguments of a function that is called for each rollout; each call gets copies of its own."""
    names = set(names)
    columns = copy.deepcopy(columns_of(task))
    if style == "verifiers":
        told: dict[str, Any] = {
            "prompt": prompt_messages(task), "completion": spoken_messages(rollout), "answer": reference_of(task),
            "info": columns.get("info", columns), "task": task.source,
        }  # fmt: skip
        every = columns | told | {"state": {**told, "turn": sum(m["role"] == "assistant" for m in told["completion"])}}
        return {name: value for name, value in every.items() if open_ended or name in names}
    arguments = {name: value for name, value in columns.items() if name in names or open_ended}
    asked = names | ({"data_source", "extra_info"} if open_ended else set())
    arguments |= {n: copy.deepcopy(make(task, rollout)) for n, make in ONE.items() if n in asked}
    arguments |= {n: copy.deepcopy(reference_of(task)) for n in REFERENCE if n in names and n not in columns}
    arguments |= {n: whole_text(rollout) for n in WRITTEN if n in names}
    if "answer" in names and not {*WRITTEN, "rollout"} & names:
        arguments["answer"] = answer_of(rollout)  # (prompt, answer): the only thing to judge
    return arguments


@dataclass
class Logged:
    """What a function reports beside its rewards, by TRL's two callbacks."""

    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(str(name), []).append(float(value))

    def log_extra(self, column: str, values: list[Any]) -> None:
        self.extra[str(column)] = list(values)


@dataclass(frozen=True)
class TrainerState:
    """The part of transformers' `TrainerState` that a reward worker knows."""

    global_step: int
    """Optimizer steps of the weights that sampled the group."""
    epoch: float = 0.0
    max_steps: int = 0
    log_history: tuple[()] = ()


def for_group(style: Style, names: Iterable[str], group: Group, open_ended: bool, logged: Logged) -> dict[str, Any]:
    """Arguments of a function that is called for a whole group."""
    task, texts, reference = group.task, [whole_text(r) for r in group.rollouts], reference_of(group.task)
    each: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    if style == "verl_batch":
        each = {
            "data_sources": task.source,
            "ground_truths": reference,
            "extra_infos": task.meta.get("extra_info", task.meta),
        }
        whole = {"solution_strs": texts}
    elif style == "openrlhf":
        each = {"prompts": task.prompt, "labels": reference}
        whole = {"queries": [task.prompt + text for text in texts]}
    else:
        each = dict.fromkeys(REFERENCE, reference)
        each |= {"data_source": task.source, "extra_info": task.meta.get("extra_info", {})}
        talks = conversational(task)
        each["prompts"] = prompt_messages(task) if talks else task.prompt
        whole = {
            "completions": [spoken_messages(r) for r in group.rollouts] if talks else texts,
            "completion_ids": [r.tokens[r.loss_mask].tolist() for r in group.rollouts],
            "trainer_state": TrainerState(group.version),
            "log_extra": logged.log_extra,
            "log_metric": logged.log_metric,
        }
    columns = {n: v for n, v in columns_of(task).items() if n not in (*GROUP[style], "prompt")}
    repeated = {name: [copy.deepcopy(value) for _ in texts] for name, value in (each | columns).items()}
    wanted = set(names)
    return {name: value for name, value in (repeated | whole).items() if open_ended or name in wanted}


def conversational(task: Task) -> bool:
    """Whether the data set's prompt is a list of messages."""
    if isinstance(task.meta.get("conversational"), bool):
        return task.meta["conversational"]
    messages = list(task.variants["orig"])
    columns = (task.meta.get(name) for name in ("prompt", "messages", "conversations"))
    return len(messages) > 1 or messages[0].role != "user" or any(isinstance(c, list) for c in columns)


def prompt_messages(task: Task) -> list[dict[str, str]]:
    """Return a task's prompt as messages."""
    return [{"role": m.role, "content": m.content} for m in task.variants["orig"]]


def spoken_messages(rollout: Rollout) -> list[dict[str, str]]:
    """Return what stands behind a rollout's prompt as messages: the policy's turns and what came between them."""
    behind = itertools.dropwhile(lambda turn: turn.role != "assistant", rollout.turns)
    turns = [{"role": turn.role, "content": turn.opened + turn.text} for turn in behind]
    return turns or [{"role": "assistant", "content": whole_text(rollout)}]
