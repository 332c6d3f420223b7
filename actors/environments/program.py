"""A program as the agent: any process that speaks OpenAI's API, in any language, with any packages of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import psutil
from pydantic import Field, model_validator

from actors.environments.agent import AgentEnvironment, Outcome, PolicyAccess
from actors.environments.function import outcome_of
from cluster.errors import DataError
from cluster.process.cleanup import end_marked_after_me
from cluster.types import Task
from cluster.types.wire import clean_text

MARK = "KANABO_EPISODE"
"""Variable that every process of an episode inherits; by it a process is found that has left its group."""
REWARD_FILE = "KANABO_REWARD_FILE"
PRIVATE = ("KANABO_", "RAY_", "REDIS")
"""Variables of the worker that begin so are not the program's."""
TAIL_BYTES = 4096
"""The end of what a program wrote that is kept, for errors."""
LOCALLY = "127.0.0.1,localhost,::1"


class ProgramAgent(AgentEnvironment):
    """Starts a process for each episode, in a group of its own, and ends it with everything that it started.

    The process finds the policy in `OPENAI_BASE_URL`, `OPENAI_API_KEY` and `OPENAI_MODEL`, and the task as one JSON
    object on standard input: `id`, `messages`, `prompt`, `answer`, `source`, `meta`. It gives its reward by
    `POST $OPENAI_BASE_URL/episode/end`, or by writing a number, or an object with `reward` and `answer`, to the file
    that `KANABO_REWARD_FILE` names. An exit code other than 0 is a failure.
    """

    blocks: ClassVar[bool] = False

    command: tuple[str, ...] = Field(min_length=1)
    """Program and arguments."""
    cwd: str = ""
    """Directory that it is started in; by default the worker's."""
    env: dict[str, str] = {}
    """Further variables."""
    reward_from_exit_code: bool = False
    """1 for the exit code 0 and 0 for any other, where neither a call nor the file says more; no code is a failure
    then."""

    @model_validator(mode="after")
    def _is_there(self) -> ProgramAgent:
        if self.cwd and not Path(self.cwd).is_dir():
            raise ValueError(f"cwd = '{self.cwd}' is no directory of this machine.")
        name = self.command[0]
        path = self.env.get("PATH", os.environ.get("PATH"))
        beside = Path(self.cwd or ".") / name
        if shutil.which(name, path=path) is None and not ("/" in name and os.access(beside, os.X_OK)):
            raise ValueError(
                f"command[0] = '{name}' is no program of this machine. Give its path, or the name of one on PATH."
            )
        return self

    async def run(self, task: Task, variant: str, policy: PolicyAccess) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="kanabo-episode-", ignore_cleanup_errors=True) as directory:
            reward_file, task_file = Path(directory) / "reward.json", Path(directory) / "task.json"
            task_file.write_text(_json(task, variant) + "\n", "utf-8")
            async with self._started(policy, reward_file, task_file) as (process, tail):
                code = await process.wait()
                # Its output ends with it, or with what it started, which may hold the pipe for longer.
                await asyncio.wait({tail}, timeout=1.0)
                last = _last_line(tail)
            given = _read(reward_file)
            if given is not None:
                return given
            if self.reward_from_exit_code:
                return Outcome(float(code == 0))
            if code != 0:
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                raise DataError(f"'{self.command[0]}' ended with {how}{f': {last}' if last else ''}.")
            return Outcome()

    @contextlib.asynccontextmanager
    async def _started(
        self, policy: PolicyAccess, reward_file: Path, task_file: Path
    ) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.Task[bytes]]]:
        """The process and the end of its output; whatever it started is ended with the block."""
        mark = f"{_worker_mark(os.getpid())}{uuid4().hex}"
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(PRIVATE)},
            "no_proxy": LOCALLY,
            "NO_PROXY": LOCALLY,
            **self.env,
            "OPENAI_BASE_URL": policy.base_url,
            "OPENAI_API_KEY": policy.api_key,
            "OPENAI_MODEL": policy.model,
            REWARD_FILE: str(reward_file),
            MARK: mark,
        }
        # A pipe of our own: asyncio would wait for the end of its pipe, which what the program started may hold open.
        read_end, write_end = os.pipe()
        output = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read_end, "rb", 0)
        )
        try:
            with task_file.open("rb") as stdin:
                process = await asyncio.create_subprocess_exec(
                    *self.command,
                    cwd=self.cwd or None,
                    env=environment,
                    stdin=stdin,
                    stdout=write_end,
                    stderr=write_end,
                    process_group=0,
                )
        except (OSError, ValueError) as error:
            transport.close()
            raise DataError(f"'{self.command[0]}' cannot be started: {error}.") from error
        finally:
            os.close(write_end)
        tail = asyncio.create_task(_tail(output))
        try:
            yield process, tail
        finally:
            end_processes(process.pid, mark)
            tail.cancel()
            transport.close()
            await asyncio.gather(process.wait(), tail, return_exceptions=True)


@cache
def _worker_mark(pid: int) -> str:
    """Return how the marks of this process begin; what carries them ends with this process, also by SIGKILL."""
    mark = uuid4().hex
    end_marked_after_me(MARK, mark)
    return mark


def end_processes(group: int, mark: str) -> None:
    """Kill a process group, and every process that has inherited the mark, until none is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    while left := _marked(mark):  # a process may have forked while it was looked for
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)


def _marked(mark: str) -> list[psutil.Process]:
    entry = f"{MARK}={mark}".encode()
    found = []
    for pid in psutil.pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # it has ended, or is another user's
            continue
        if entry in environment.split(b"\0"):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def _json(task: Task, variant: str) -> str:
    """The task as the program reads it."""
    messages = [{"role": m.role, "content": m.content} for m in task.variants[variant]]
    told = {
        "id": task.id,
        "prompt": "\n".join(m["content"] for m in messages),
        "messages": messages,
        "answer": task.answer,
        "source": task.source,
        "meta": task.meta,
    }
    return json.dumps(told, default=str)


async def _tail(stream: asyncio.StreamReader) -> bytes:
    """Read to the end and keep the last bytes."""
    kept = b""
    with contextlib.suppress(asyncio.CancelledError):
        while part := await stream.read(2**16):
            kept = (kept + part)[-TAIL_BYTES:]
    return kept


def _last_line(tail: asyncio.Task[bytes]) -> str:
    written = tail.result() if tail.done() else b""
    lines = clean_text(written.decode("utf-8", "replace")).strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""


def _read(file: Path) -> Outcome | None:
    """Return what the program wrote as its reward; None if it wrote none. Raises DataError for what is none."""
    try:
        text = file.read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file of ${REWARD_FILE} cannot be read: {error}.") from error
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"the file of ${REWARD_FILE} holds {text!r:.80}; a number or an object is expected.") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"the file of ${REWARD_FILE} holds {text!r:.80}; a finite number is expected.")
    return outcome_of(value)
