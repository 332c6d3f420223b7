"""Rubrics and tasks of the package verifiers, as they are, in a Python that has it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveInt, PrivateAttr, field_validator

from cluster.errors import ConfigError, DataError
from cluster.process.hosted.processes import Hosts
from cluster.types import FAILED, SCORED, Group, Rollout, Scores, Task
from cluster.types.wire import brief
from rewards.base import Reward, Services
from rewards.conventions import columns_of, prompt_messages, reference_of, spoken_messages
from rewards.verdicts import scores

CHILD = f"{Path(__file__).with_name('verifiers_child.py')}:Scorer"


class VerifiersReward(Reward):
    """The reward that a rubric of verifiers 0.1.8 to 0.3 computes, or a task class of verifiers 0.4.

    A rubric keeps its weights, its parser, its functions of a whole group, and the rubrics of a `RubricGroup`. Of a
    task class, a subclass of `vf.Task`, all methods with `@vf.reward` score, and the judges of its configuration. What
    each function gave is in the note of the score, and its mean in `reward/logged_NAME`. A function that raises, which
    a rubric would count as 0, fails the rollout; so does a reward that is not scored or is no finite number.
    """

    services: ClassVar = ("log",)

    object: str = Field(pattern=r"^([A-Za-z_][\w.]*|.+\.py):[A-Za-z_][\w.]*$")
    """`module:name`, or `file.py:name`, of the rubric, of a function that makes one or an environment with one, or of
    the task class."""
    object_options: dict[str, Any] = {}
    """Arguments of the function; for a task class, fields of its configuration."""
    python: str = ""
    """The Python that has verifiers, such as `envs/verifiers/bin/python`; by default Kanabo's own."""
    processes: PositiveInt = 1
    """Child processes of each reward worker; each scores one group at a time. The first starts with the worker."""

    _hosts: Hosts = PrivateAttr()

    @field_validator("python")
    @classmethod
    def _there(cls, python: str) -> str:
        if python and not Path(python).is_file():
            raise ValueError(f"python = '{python}' is no file. Name the interpreter of verifiers' own venv")
        return python

    def model_post_init(self, _: Any) -> None:
        options = {"path": self.object, "options": self.object_options}
        self._hosts = Hosts(self.python, CHILD, options, self.processes, 1, "rubric")

    async def prepare(self, services: Services) -> None:
        """Make the object, in the process that will score. Raises ConfigError if it cannot score stored rollouts."""
        try:
            async with self._hosts.borrow() as hosted:
                await hosted.call("names")
        except DataError as error:
            lacks = "No module named 'verifiers" in str(error)
            remedy = " Name a Python that has verifiers with options.python." if lacks else ""
            raise ConfigError(f"the reward 'verifiers' cannot use object = '{self.object}': {error}{remedy}") from error

    async def score(self, group: Group, services: Services) -> Scores:
        rollouts = [_told(rollout) for rollout in group.rollouts]
        async with self._hosts.borrow() as hosted:
            found = await hosted.call("score", _row(group.task), rollouts)
        if not isinstance(found, list) or len(found) != len(group):
            raise DataError(f"the object '{self.object}' gave {brief(found)} for {len(group)} rollouts.")
        for one in found:
            for name, value in one["scores"].items():
                if isinstance(value, int | float) and math.isfinite(value):
                    services.log(name, float(value))
        return scores([_verdict(one) for one in found])


def _row(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "prompt": prompt_messages(task),
        "answer": reference_of(task),
        "source": task.source,
        "columns": columns_of(task),
    }


def _told(rollout: Rollout) -> dict[str, Any]:
    return {"completion": spoken_messages(rollout), "truncated": rollout.finish == "length"}


def _verdict(found: dict[str, Any]) -> tuple[float, int, str]:
    """Value, state and note of one rollout."""
    reward, said = found["reward"], ", ".join(f"{name}={brief(value)}" for name, value in found["scores"].items())
    if found["error"]:
        return math.nan, FAILED, f"{found['error']:.300}"
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        return math.nan, FAILED, f"the reward is {brief(reward)}; a finite number is expected. {said}".strip()
    return float(reward), SCORED, said
