"""Plain functions as rewards: ours, TRL's and verl's, told apart by the names of their parameters.

    ours   (prompt, completion, …) -> float           one rollout a call; `None` abstains
    TRL    (prompts, completions, **kwargs) -> list[float]
    verl   (data_source, solution_str, ground_truth, extra_info) -> float, or a dict with "score"

A function may be `async`; another runs in a thread. What it raises for one rollout leaves the others scored.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import PrivateAttr

from cluster.config import RewardSection
from cluster.errors import ConfigError
from cluster.types import ABSTAINED, FAILED, SCORED, Group, Rollout, Scores, Task
from rewards.answers import answer_of
from rewards.base import Services, Signal
from rewards.signals._states import scores

WRITTEN = ("completion", "response", "output", "text", "solution_str")
REFERENCE = ("answer", "reference", "ground_truth", "solution", "label")
OTHERS: dict[str, Callable[[Task, Rollout], Any]] = {
    "prompt": lambda task, rollout: task.prompt,
    "data_source": lambda task, rollout: task.source,
    "extra_info": lambda task, rollout: task.meta.get("extra_info", task.meta),
    "task": lambda task, rollout: task,
    "rollout": lambda task, rollout: rollout,
}


class FunctionSignal(Signal):
    """A function as reward. Its options are passed on by name."""

    services: ClassVar = ("thread",)
    use: str
    options: dict[str, Any] = {}
    _function: Callable[..., Any] = PrivateAttr()
    _where: str = PrivateAttr(default="rewards")

    @staticmethod
    def of(function: Callable[..., Any], use: str, options: dict[str, Any], where: str) -> FunctionSignal:
        """Raises ConfigError for options it does not take and parameters that nothing fills."""
        signal = FunctionSignal(use=use, options=options)
        signal._function, signal._where = function, where
        parameters = inspect.signature(function).parameters.values()
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        unknown = [o for o in options if o not in names and not open_ended]
        if unknown:
            raise ConfigError(f"{where}.options: {use} takes no '{unknown[0]}'. Its parameters: {', '.join(names)}.")
        if signal._is_batched:
            return signal
        filled = {*WRITTEN, *REFERENCE, *OTHERS, *options}
        unfilled = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in filled]
        if unfilled:
            raise ConfigError(
                f"{where}.use = '{use}': nothing fills its parameter '{unfilled[0]}'. Known: "
                f"{', '.join(sorted({*WRITTEN, *REFERENCE, *OTHERS}))}; others are set in options."
            )
        if not {*WRITTEN, "answer", "rollout"} & set(names):
            raise ConfigError(f"{where}.use = '{use}' does not look at the rollout: give it a parameter 'completion'.")
        return signal

    def __reduce__(self) -> tuple[Any, ...]:
        # By name: a function of a file has no module that another process could import it from.
        return _again, (self.use, self.options, self._where)

    @property
    def _names(self) -> list[str]:
        return list(inspect.signature(self._function).parameters)

    @property
    def _is_batched(self) -> bool:
        return "completions" in self._names

    async def score(self, group: Group, services: Services) -> Scores:
        if self._is_batched:
            values = await self._call(services, **self._columns(group))
            if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or len(values) != len(group):
                raise ValueError(f"{self.use} returned {values!r:.80} for {len(group)} completions; a list is expected")
            return scores([_verdict(self.use, v) for v in values])
        return scores(await asyncio.gather(*(self._one(group.task, r, services) for r in group.rollouts)))

    async def _one(self, task: Task, rollout: Rollout, services: Services) -> tuple[float, int, str]:
        try:
            return _verdict(self.use, await self._call(services, **self._arguments(task, rollout)))
        except Exception as error:  # foreign code; its failure is this rollout's, named and counted
            return float("nan"), FAILED, f"{self.use}: {type(error).__name__}: {error}"

    async def _call(self, services: Services, **arguments: Any) -> Any:
        arguments |= self.options
        if inspect.iscoroutinefunction(self._function):
            return await self._function(**arguments)
        result = await services.thread(lambda: self._function(**arguments))
        return await result if inspect.isawaitable(result) else result

    def _arguments(self, task: Task, rollout: Rollout) -> dict[str, Any]:
        names = self._names
        arguments = {n: make(task, rollout) for n, make in OTHERS.items() if n in names}
        arguments |= {n: task.answer for n in REFERENCE if n in names}
        arguments |= {n: rollout.text for n in WRITTEN if n in names}
        if "answer" in names and not {*WRITTEN, "rollout"} & set(names):
            arguments["answer"] = answer_of(rollout)  # (prompt, answer): the only thing to judge
        return arguments

    def _columns(self, group: Group) -> dict[str, Any]:
        """TRL's calling convention: every column of the data set as a list, repeated for the completions."""
        task = group.task
        columns: dict[str, Any] = dict.fromkeys(REFERENCE, task.answer)
        columns |= {"prompts": task.prompt, "data_source": task.source, "extra_info": task.meta.get("extra_info", {})}
        repeated = {name: [value] * len(group) for name, value in columns.items()}
        repeated["completions"] = [r.text for r in group.rollouts]
        repeated["completion_ids"] = [r.tokens[r.loss_mask].tolist() for r in group.rollouts]
        names = self._names
        if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(self._function).parameters.values()):
            return repeated
        return {name: value for name, value in repeated.items() if name in names}


def _again(use: str, options: dict[str, Any], where: str) -> Signal:
    from rewards.zoo import build_signal

    return build_signal(RewardSection(use=use, options=options), where)


def _verdict(use: str, value: Any) -> tuple[float, int, str]:
    if isinstance(value, dict):
        value = value.get("score")
    if value is None:
        return float("nan"), ABSTAINED, f"{use} returned None"
    try:
        number = float(value) if not isinstance(value, str | bytes) else None
    except (TypeError, ValueError):
        number = None
    if number is None or not np.isfinite(number):
        return float("nan"), FAILED, f"{use} returned {value!r:.80}, not a finite number"
    return number, SCORED, ""


def from_file(use: str, where: str) -> Any:
    """The object that `path/to/file.py:name` names. Raises ConfigError."""
    path, _, name = use.rpartition(":")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"{where}.use = '{use}': there is no file '{file}'.")
    spec = importlib.util.spec_from_file_location(f"kanabo_reward_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, name)
    except Exception as error:  # foreign code, named
        raise ConfigError(f"{where}.use = '{use}' cannot be loaded: {type(error).__name__}: {error}.") from error
