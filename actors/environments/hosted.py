"""What environments of a user's own class have in common: the class, its options, and the processes it runs in."""

from __future__ import annotations

import math
import sys
import threading
import zlib
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveInt, PrivateAttr, field_validator

from actors.environments.base import Environment
from cluster.errors import ConfigError, DataError
from cluster.process.hosted.processes import Host, Hosts, import_path
from cluster.types import Message, Task
from cluster.types.wire import brief

CHECK_S = 300.0
"""How long imports, the constructor and the first questions may take before a run."""


class HostedEnvironment(Environment):
    """Subclasses implement `play` and borrow an object from `hosts`."""

    runs_foreign_code: ClassVar[bool] = True

    env: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
    """`module:Class`, or a function that makes one."""
    env_options: dict[str, Any] = {}
    """Arguments of the class or function."""
    python: str = ""
    """The Python to run it with, such as `envs/gem/bin/python`; by default Kanabo's own."""
    processes: PositiveInt = 4
    """Child processes of each rollout worker; a call that hangs costs the episodes of its process alone."""
    episodes_per_process: PositiveInt = 16
    """Episodes that share a process, whose calls take turns; further episodes wait."""

    _hosts: Hosts = PrivateAttr()

    @field_validator("python")
    @classmethod
    def _there(cls, python: str) -> str:
        if python and not Path(python).is_file():
            raise ValueError(f"python = '{python}' is no file. Name the interpreter of the environment's own venv")
        return python

    def check(self) -> None:
        """Make one object, as an episode would. Raises ConfigError."""
        try:
            host = Host(self.python or sys.executable, "environment")
            late = threading.Timer(CHECK_S, host.end, (f"the environment has not answered for {CHECK_S:g} s.",))
            late.start()
            try:
                host.ask(do="make", object=0, path=self.env, options=self.env_options, import_path=import_path())
                self._try_made(host)
            finally:
                late.cancel()
                host.end("the check is over.")
        except DataError as error:
            raise ConfigError(f"rollout.environment.options.env = '{self.env}': {error}") from error

    def _try_made(self, host: Host) -> None:
        """Ask the object 0 of `host` what can be asked before a run. Raises DataError."""

    def model_post_init(self, _: Any) -> None:
        self._hosts = Hosts(self.python, self.env, self.env_options, self.processes, self.episodes_per_process)


def joined(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """Return a task's messages with what the environment shows first behind the last one of the user.

    Chat templates refuse two messages of a user in a row.
    """
    if not text:
        return messages
    if messages and messages[-1].role == "user":
        content = "\n\n".join(filter(None, (messages[-1].content, text)))
        return (*messages[:-1], Message("user", content))
    return (*messages, Message("user", text))


def seed_of(task: Task) -> int:
    """Return `meta["seed"]`, or a number drawn from the task's id: all episodes of a group begin alike."""
    seed = task.meta.get("seed")
    return seed if isinstance(seed, int) else zlib.crc32(task.id.encode())


def finite(value: Any, where: str) -> float:
    """Return a number that foreign code gave. Raises DataError for NaN, infinity, and what is no number."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    raise DataError(f"{where} is {brief(value)}; a finite number is expected.")
