"""Plain functions as rewards: ours, TRL's, OpenRLHF's and verl's, told apart by the names of their parameters.

`rewards.conventions` says who calls how. A function may be `async`; another runs in a thread. What it raises for
one rollout leaves the others scored. A function returns a number, `{"score": number}`, or None where it abstains; one
that is called for a group returns a list of those. Anything else is a failure.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from pydantic import PrivateAttr

from cluster.errors import ConfigError, nearest
from cluster.plugins import lookup
from cluster.types import ABSTAINED, FAILED, SCORED, Group, Rollout, Scores, Task
from rewards.accepted import number
from rewards.base import Reward, Services
from rewards.containment import described, readable, shown
from rewards.conventions import (
    MARKS,
    WRITTEN,
    Logged,
    Style,
    always_filled,
    columns_of,
    for_group,
    for_rollout,
    one_a_call,
    style_of,
)
from rewards.sandbox.pool import Target
from rewards.verdicts import scores

CALLS_IN_TIME = 3
"""A call in the sandbox has this part of the reward's `timeout_s`, so that one that hangs leaves time to the others."""
OF_THE_RUN = {"task", "rollout", "trainer_state", "log_extra", "log_metric"}
"""Arguments that JSON does not have: they do not go into the sandbox."""
EXTRA_CHARS = 500
"""Most characters that a function says beside a score, per rollout."""
EXPECTED = 'a number, {"score": number}, or None to abstain'

Verdict = tuple[float, int, str]


class FunctionReward(Reward):
    """A function as reward. Its options are passed on by name."""

    services: ClassVar = ("thread",)
    use: str
    options: dict[str, Any] = {}
    sandbox_s: float | None = None
    """Time of one call in the sandbox; None for a function that is trusted and runs in this process."""
    _function: Callable[..., Any] = PrivateAttr()
    _parameters: dict[str, inspect.Parameter] = PrivateAttr(default_factory=dict)
    _open_ended: bool = PrivateAttr(default=False)
    _where: str = PrivateAttr(default="rewards")
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    """Options that are passed on with each call: not those that the function was made with."""

    @staticmethod
    def of(
        function: Callable[..., Any], use: str, options: dict[str, Any], where: str, sandbox_s: float | None = None
    ) -> FunctionReward:
        """Raises ConfigError for options it does not take, and for a function that does not look at the rollout."""
        reward = FunctionReward(use=use, options=options, sandbox_s=sandbox_s)
        try:
            parameters = inspect.signature(function).parameters
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{where}.use = '{use}' has no readable signature: {described(error)}.") from error
        if sandbox_s is None and _makes_a_reward(parameters, options):
            function = _made(function, use, options, where)
            parameters, options, reward._given = inspect.signature(function).parameters, {}, {}
        else:
            reward._given = options
        reward._function, reward._where = function, where
        reward._open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        reward._parameters = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        names = list(reward._parameters)
        unknown = [o for o in options if o not in names and not reward._open_ended]
        if unknown:
            raise ConfigError(f"{where}.options: {use} takes no '{unknown[0]}'. Its parameters: {', '.join(names)}.")
        if sandbox_s is not None and (whole := OF_THE_RUN & set(names)):
            raise ConfigError(
                f"{where}.untrusted: {use} takes '{min(whole)}', which is not what JSON has and does not go into the "
                "sandbox. Take prompt, completion, answer or columns of the data set."
            )
        if reward.style == "rollout" and not {*WRITTEN, "answer", "rollout"} & set(names):
            raise ConfigError(
                f"{where}.use = '{use}' does not look at the rollout: give it a parameter 'completion' or "
                "'completions' (for a group). A function that makes the reward needs all its parameters as options. "
                "Its parameters: " + (", ".join(names) or "none") + "."
            )
        return reward

    def __reduce__(self) -> tuple[Any, ...]:
        # By name: a function of a file has no module that another process could import it from.
        return _again, (self.use, self.options, self._where, self.sandbox_s)

    def evaluates(self) -> bool:
        return self.sandbox_s is not None

    async def prepare(self, services: Services) -> None:
        if self.sandbox_s is not None:
            await services.sandbox.prepare(self._target)

    @property
    def _target(self) -> Target:
        path, _, name = self.use.rpartition(":")
        if path.endswith(".py"):
            file = Path(path).expanduser().resolve()
            return Target(f"kanabo_reward_{file.stem}", name, str(file))
        return Target(self._function.__module__, self._function.__qualname__)

    @property
    def style(self) -> Style:
        return style_of(self._parameters)

    def check(self, task: Task) -> None:
        """Raises ConfigError for a parameter that neither the run, nor a column of this task, nor an option fills."""
        filled = {*always_filled(self.style), *columns_of(task), *self._given}
        for name, parameter in self._parameters.items():
            if parameter.default is parameter.empty and name not in filled:
                columns = sorted(columns_of(task))
                raise ConfigError(
                    f"{self._where}.use = '{self.use}': nothing fills its parameter '{name}'. {nearest(name, filled)}"
                    f"Columns of the data set: {', '.join(columns) or 'none'}; always there: "
                    f"{', '.join(sorted(always_filled(self.style)))}. Add a column '{name}', rename the parameter, or "
                    f"set {self._where}.options.{name}."
                    + (" use = 'verifiers' runs a whole rubric, with its parser." if self.style == "verifiers" else "")
                )

    async def score(self, group: Group, services: Services) -> Scores:
        self.check(group.task)
        if one_a_call(self.style):
            return scores(await asyncio.gather(*(self._one(group.task, r, services) for r in group.rollouts)))
        logged = Logged()
        arguments = for_group(self.style, self._parameters, group, self._open_ended, logged)
        returned = await self._call(services, arguments)
        values = _listed(returned, self.style)
        if values is None or len(values) != len(group):
            raise ValueError(
                f"{self.use} returned {shown(returned)} for {len(group)} completions; a list of {len(group)} is "
                f"expected, each {EXPECTED}"
            )
        for name, reported in logged.metrics.items():
            for value in reported:
                services.log(name, value)
        return scores([_noted(_verdict(self.use, v), logged, i) for i, v in enumerate(values)])

    async def _one(self, task: Task, rollout: Rollout, services: Services) -> Verdict:
        try:
            arguments = for_rollout(self.style, self._parameters, task, rollout, self._open_ended)
            return _verdict(self.use, await self._call(services, arguments))
        except asyncio.CancelledError as error:
            if (asking := asyncio.current_task()) is not None and asking.cancelling():
                raise  # the time is up
            return float("nan"), FAILED, f"{self.use}: {described(error)}"
        except BaseException as error:  # foreign code; its failure is this rollout's, named and counted
            return float("nan"), FAILED, f"{self.use}: {described(error)}"

    async def _call(self, services: Services, arguments: dict[str, Any]) -> Any:
        arguments |= copy.deepcopy(self._given)
        if self.sandbox_s is not None:
            given = {name: value for name, value in arguments.items() if name not in OF_THE_RUN}
            return await services.sandbox.call(self._target, [], self.sandbox_s, given)
        kinds = self._parameters.items()
        first = [arguments.pop(n) for n, p in kinds if p.kind is p.POSITIONAL_ONLY and n in arguments]
        if inspect.iscoroutinefunction(self._function):
            return await self._function(*first, **arguments)
        result = await services.thread(lambda: self._function(*first, **arguments))
        return await result if inspect.isawaitable(result) else result


def _makes_a_reward(parameters: Mapping[str, inspect.Parameter], options: dict[str, Any]) -> bool:
    """Whether this is a function that makes rewards: it looks at no rollout, and the options are all that it needs."""
    looks = {*WRITTEN, "answer", "rollout", *MARKS} & parameters.keys()
    wanted = {
        n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    return bool(parameters) and not looks and wanted <= options.keys() <= parameters.keys()


def _made(function: Callable[..., Any], use: str, options: dict[str, Any], where: str) -> Callable[..., Any]:
    """The reward that such a function makes of the options. Raises ConfigError."""
    try:
        made = function(**copy.deepcopy(options))
    except BaseException as error:  # foreign code, named
        raise ConfigError(f"{where}.use = '{use}' fails with its options: {described(error)}.") from error
    return made if callable(made) else function


def _again(use: str, options: dict[str, Any], where: str, sandbox_s: float | None) -> Reward:
    return FunctionReward.of(loaded(use, {}, where), use, options, where, sandbox_s)


def _listed(values: Any, style: Style) -> list[Any] | tuple[Any, ...] | None:
    """A list, array or tensor as a list; None for anything else, generators and texts included."""
    if isinstance(values, dict) and style == "openrlhf":
        values = values.get("rewards")
    if callable(as_list := getattr(values, "tolist", None)):  # an array or tensor
        values = as_list()
    return values if isinstance(values, list | tuple) else None


def _verdict(use: str, value: Any) -> Verdict:
    """Value, state and note of one rollout. Unknown is NaN with its reason, never a number."""
    whole, said = value, ""
    if isinstance(value, dict):
        if "score" not in value:
            return float("nan"), FAILED, f"{use} returned {shown(whole)}, which has no 'score'; {EXPECTED} is expected"
        value = value["score"]
        said = _said({key: v for key, v in whole.items() if key != "score"})
    if value is None:
        return float("nan"), ABSTAINED, f"{use} returned None"
    found = number(value)
    if found is None or not np.isfinite(found):
        kind = "not a finite number" if found is not None else f"a {readable(type(value).__name__)}"
        return float("nan"), FAILED, f"{use} returned {shown(whole)}, {kind}; {EXPECTED} is expected"
    return found, SCORED, said


def _noted(verdict: Verdict, logged: Logged, place: int) -> Verdict:
    """With what the function had logged of this rollout."""
    value, state, note = verdict
    extra = _said({name: values[place] for name, values in logged.extra.items() if place < len(values)})
    return value, state, "; ".join(filter(None, (note, extra)))


def _said(extra: dict[Any, Any]) -> str:
    return readable(", ".join(f"{key}={shown(value)}" for key, value in extra.items()), EXTRA_CHARS)


def loaded(use: str, known: Mapping[str, Any], where: str) -> Any:
    """The class or function that `use` names in `known`, in a file or in a module. Raises ConfigError."""
    return from_file(use, where) if ".py:" in use else lookup(known, use, where)


def from_file(use: str, where: str) -> Any:
    """The object that `path/to/file.py:name` names. Raises ConfigError."""
    path, _, name = use.rpartition(":")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"{where}.use = '{use}': there is no file '{file}'.")
    try:
        module = _loaded(file)
        found = getattr(module, name)
    except BaseException as error:  # foreign code, named
        raise ConfigError(f"{where}.use = '{use}' cannot be loaded: {described(error)}.") from error
    if ProcessPoolExecutor in vars(module).values():
        raise ConfigError(
            f"{where}.use = '{use}' starts processes of its own, which cannot import a file by its path. Put the "
            f"file where Python finds it and name it as 'package.module:{name}'."
        )
    return found


def _loaded(file: Path) -> ModuleType:
    """The file's module, whose relative imports find the files beside it; the package's own `__init__` is not run."""
    inside = file.name == "__init__.py"
    folder, stem = (file.parent.parent, file.parent.name) if inside else (file.parent, file.stem)
    package = f"kanabo_rewards_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    parent = sys.modules.setdefault(package, ModuleType(package))
    parent.__path__ = [str(folder)]
    name = f"{package}.{stem}"
    beside = [str(file.parent)] if inside else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=beside)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
