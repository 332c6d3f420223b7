"""A judge replica of the run's own: `vllm serve` as a child process that ends with the process that started it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx

from cluster.buffer.server import _die_with_parent
from cluster.errors import ConfigError, InfrastructureError
from cluster.process.causes import failure, last_error
from cluster.process.http_limits import MAX_HEADER_BYTES
from rewards.judges.backends import serve
from rewards.judges.backends.http import HttpClient

log = logging.getLogger(__name__)

POLL_S = 0.2
STOP_S = 20.0
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Unless set already."""
BEREAVED = "while [ -d /proc/{parent} ] && [ -d /proc/{server} ]; do sleep 1; done; kill -9 -{server} 2>/dev/null"
"""Ends what the server started (it is the leader of their process group) once it or its parent is gone: the kernel
tells the server alone, and vLLM's engine processes may wait for a dead parent for minutes."""


UNDER_WAY = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class VllmServer:
    """`start` … `client()` … `stop`. Its log is `directory/judge-PORT.log`."""

    def __init__(
        self,
        model: str | Path,
        directory: str | Path,
        *,
        served_name: str = "judge",
        host: str = "127.0.0.1",
        port: int = 0,
        options: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`options` are vllm's own, `{"max_model_len": 4096, "enforce_eager": True}`; `environment` may place it
        (`CUDA_VISIBLE_DEVICES`). With `host` 0.0.0.0 other nodes may ask it too; all need its key."""
        self._model, self._directory = str(model), Path(directory)
        self.served_name, self._host, self._wanted_port = served_name, host, port
        self._options, self._environment = dict(options or {}), dict(environment or {})
        self._key = secrets.token_urlsafe(24)
        self._ended = threading.Event()
        self._ended.set()
        self._code: int | None = None
        self.pid = 0
        self.port = 0
        self._log_begin = 0

    @property
    def url(self) -> str:
        host = socket.gethostname() if self._host == "0.0.0.0" else self._host
        return f"http://{host}:{self.port}/v1"

    @property
    def log_path(self) -> Path:
        return self._directory / f"judge-{self.port}.log"

    def alive(self) -> bool:
        """Is its process there?"""
        return not self._ended.is_set()

    @property
    def key(self) -> str:
        """Return the key that callers of the server need. It is new with every start, and in no log or file."""
        return self._key

    def client(self, **options: Any) -> HttpClient:
        """A transport for it."""
        return client_of(self.url, self._key, self.served_name, **options)

    async def drain(self, timeout_s: float) -> None:
        """Returns when nothing is under way, nobody answers any more, or the time is up."""
        until = time.monotonic() + timeout_s
        shown = {"Authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(timeout=5.0) as client:
            while time.monotonic() < until:
                try:
                    said = (await client.get(f"{self.url.removesuffix('/v1')}/metrics", headers=shown)).text
                except httpx.TransportError:
                    return
                if all(float(count) == 0 for count in UNDER_WAY.findall(said)):
                    return
                await asyncio.sleep(POLL_S)

    async def ended(self) -> None:
        """Returns when its process is gone; `last_words` may say why."""
        while not await asyncio.to_thread(self._ended.wait, 1.0):
            pass

    async def start(self, timeout_s: float = 600.0) -> None:
        """Returns when it answers.

        Raises InfrastructureError with the last error of its log if it ends before or takes longer, StartFailed if the
        next start would end in the same way, ConfigError if the model is no directory of ours and no name.
        """
        assert not self.alive(), "it runs already"
        await asyncio.to_thread(self._launch)
        try:
            async with asyncio.timeout(timeout_s):
                await self._healthy()
        except TimeoutError as error:
            await self.stop()
            raise InfrastructureError(
                f"the judge did not answer within {timeout_s:g} s. {self.last_words()}"
            ) from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for it and its children if it does not end in time."""
        if not self.alive():
            return
        for number, group in ((signal.SIGTERM, False), (signal.SIGKILL, True)):
            try:
                os.killpg(self.pid, number) if group else os.kill(self.pid, number)
            except ProcessLookupError:
                return
            if await asyncio.to_thread(self._ended.wait, STOP_S):
                return
        raise InfrastructureError(f"the judge's process {self.pid} does not end, not even by SIGKILL.")

    def _launch(self) -> None:
        if self._model.startswith(("/", ".")) and not Path(self._model).is_dir():
            raise ConfigError(f"the judge's model '{self._model}' is not a directory.")
        self._directory.mkdir(parents=True, exist_ok=True)
        self.port = self._wanted_port or _free_port()
        self._log_begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        launched: Future[int] = Future()
        # The kernel ends a child when the *thread* that started it ends; this one lives as long as the server.
        threading.Thread(target=self._run, args=(launched,), name=f"judge-{self.port}", daemon=True).start()
        try:
            self.pid = launched.result()
        except OSError as error:
            raise InfrastructureError(f"the judge cannot be started: {error}.") from error

    def _run(self, launched: Future[int]) -> None:
        environment = os.environ | {k: os.environ.get(k, v) for k, v in ENVIRONMENT.items()} | self._environment
        # On no command line, where every user of the machine could read it.
        environment[serve.KEY] = self._key
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        try:
            with self.log_path.open("ab") as output:
                process = subprocess.Popen(
                    self.command(),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the run; and `stop` can end its children with it
                    preexec_fn=_die_with_parent(),
                )
        except OSError as error:
            launched.set_exception(error)
            return
        self._code = None
        self._ended.clear()
        launched.set_result(process.pid)
        watch = BEREAVED.format(parent=os.getpid(), server=process.pid)
        nothing = subprocess.DEVNULL
        # In the background of a shell that ends at once: Ray kills the children of a worker, not those of init.
        orphan = ["/bin/sh", "-c", f"({watch}) &"]
        subprocess.run(orphan, process_group=0, stdin=nothing, stdout=nothing, stderr=nothing, check=True)
        self._code = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has left behind
        log.info("judge %d ended with %d", process.pid, self._code)
        self._ended.set()

    def command(self) -> list[str]:
        """The program and its arguments."""
        arguments = [sys.executable, "-m", serve.__name__, "--model", self._model]
        arguments += ["--middleware", f"{serve.__name__}.{serve.KeyGate.__name__}"]
        arguments += ["--h11-max-incomplete-event-size", str(MAX_HEADER_BYTES)]
        arguments += ["--host", self._host, "--port", str(self.port), "--served-model-name", self.served_name]
        for name, value in self._options.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                arguments += [f"--{flag}", str(value)]
        return arguments

    async def _healthy(self) -> None:
        root = self.url.removesuffix("/v1")
        async with httpx.AsyncClient(timeout=5.0) as client:
            while self.alive():
                begun = time.monotonic()
                try:
                    if (await client.get(f"{root}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass  # not listening yet
                await asyncio.sleep(max(0.0, POLL_S - (time.monotonic() - begun)))
        what = f"the judge for '{self.served_name}' ended with {self._code} before it answered ({self.log_path})"
        raise failure(what, None, self._log())

    def last_words(self) -> str:
        """The last error of its log, or else its last line, in one line."""
        log = self._log()
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        return f"{last_error(log) or (lines or ['it said nothing'])[-1]} (the end of {self.log_path})"

    def _log(self) -> str:
        """What this start has logged: a port may have been another judge's before."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(self._log_begin)
                return file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""


def client_of(url: str, key: str, model: str, **options: Any) -> HttpClient:
    """A transport for a server of ours: constrained verdicts, tokens and all."""
    chosen: dict[str, Any] = {"structured": "structured_outputs"} | options
    return HttpClient(url, key=key, model=model, **chosen)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
