"""A real `vllm serve` on a CPU, with a random model: what it answers is nonsense, that it is read is not."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
import uvicorn.config

from cluster.errors import ConfigError, InfrastructureError, StartFailed
from cluster.process.http_limits import MAX_HEADER_BYTES
from cluster.types import FAILED, SCORED
from cluster.workers.judge import kv_cache_bytes
from rewards.judges.backends import serve
from rewards.judges.backends.http import HttpClient
from rewards.judges.backends.vllm_server import VllmServer
from rewards.judges.ensembles import Swap
from rewards.judges.errors import JudgeUnauthorised
from rewards.judges.pool.pool import JudgePool
from rewards.judges.templates import TEMPLATES, Item
from rewards.judges.types import Request
from tests.models import random_llama

TINY = {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 8}
SHORT = {"instructions": "judge", "body": "{question}{response}", "levels": {"1": "no", "2": "so", "3": "yes"}}


def request(**template) -> Request:
    return Request(TEMPLATES["pointwise"](**SHORT | template), Item("say good", ("good",)), min_mass=1e-6)


@pytest.mark.engine
@pytest.mark.verify
async def test_a_real_server_judges(tmp_path):
    model = random_llama(tmp_path / "model", tied=False, chat=True)
    server = VllmServer(model, tmp_path / "logs", options=TINY)
    await server.start(300)
    try:
        pool = JudgePool("own", [server.client()])
        assert await pool.replicas[0].transport.tokens("10") == ["1", "0"]
        verdict = await pool.ask(request())
        assert verdict.state == SCORED, verdict.note
        assert 1 <= verdict.values[0] <= 3
        assert verdict.mass > 0
        assert verdict.model.startswith("judge")
        assert verdict.cost_tokens > 50
        assert (await pool.ask(request())).values == pytest.approx(verdict.values, abs=1e-4)

        with pytest.raises(ConfigError, match="'10' is 2 tokens for this judge: '1' '0'"):
            await pool.ask(request(levels={"1": "no", "10": "yes"}))

        constrained = await pool.ask(
            Request(TEMPLATES["pointwise"](**SHORT), Item("say good", ("good",)), logprobs=False)
        )
        assert constrained.values[0] in (1.0, 2.0, 3.0), constrained.note  # the verdict alone is held to the labels
        pair = TEMPLATES["pairwise"](instructions="judge", body="{question}{first}{second}")
        with pytest.raises(ConfigError, match=r"'[AB]' becomes"):  # its alphabet has no capitals
            await Swap(pool).ask(Request(pair, Item("q", ("good", "bad"))))

        too_long = await pool.ask(Request(TEMPLATES["pointwise"](), Item("q", ("x" * 2000,))))
        assert (too_long.state, too_long.note.split(":")[0]) == (FAILED, "JudgeRejected")
        await pool.close()

        stranger = JudgePool("stranger", [_without_key(server)])
        assert JudgeUnauthorised.__name__ in (await stranger.ask(request())).note
        async with httpx.AsyncClient(base_url=server.url.removesuffix("/v1")) as client:
            paths = ("/metrics", "/version", "/v1/models", "/openapi.json")
            codes = [(await client.get(path)).status_code for path in paths]
            codes += [(await client.post(path, json={})).status_code for path in ("/invocations", "/tokenize")]
            assert codes == [401] * 6, "vLLM itself asks for the key under /v1 only"
        listening = {c.laddr.ip for p in _family(server.pid) for c in p.net_connections() if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        await stranger.close()
    finally:
        await server.stop()
    assert not server.alive()
    assert server._key not in server.log_path.read_text()
    assert server._key not in " ".join(server.command())


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _without_key(server: VllmServer):
    return HttpClient(server.url, model=server.served_name)


async def test_a_server_that_ends_at_once_says_why(tmp_path):
    (tmp_path / "empty").mkdir()
    server = VllmServer(tmp_path / "empty", tmp_path / "logs", options={"no_such_option": 1})
    server.command = lambda: [sys.executable, "-c", "import sys; sys.exit('no such option')"]  # pyright: ignore
    with pytest.raises(InfrastructureError, match=r"ended with 1 .*no such option"):
        await server.start(60)
    assert not server.alive()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("ValueError: head_dim 16 is not supported", StartFailed),
        ("OSError: tokenizer.json is missing", StartFailed),
        ("torch.OutOfMemoryError: CUDA out of memory", InfrastructureError),
    ],
)
async def test_a_start_that_would_fail_again_is_told_from_one_that_may_not(tmp_path, said, kind):
    (tmp_path / "empty").mkdir()
    server = VllmServer(tmp_path / "empty", tmp_path / "logs")
    script = f"import sys; sys.exit({said!r} + chr(10) + 'RuntimeError: Engine core failed. See root cause above.')"
    server.command = lambda: [sys.executable, "-c", script]  # pyright: ignore
    with pytest.raises(kind, match=re.escape(said)) as failed:
        await server.start(60)
    assert type(failed.value) is kind
    assert "\n" not in str(failed.value)
    assert said in server.last_words()
    assert "\n" not in server.last_words()


def test_a_judge_on_cpus_leaves_most_of_the_memory_to_others():
    assert kv_cache_bytes(8 * 2**30) == 2 * 2**30
    assert kv_cache_bytes(512 * 2**30) == 4 * 2**30


async def test_a_server_that_never_answers_is_ended(tmp_path):
    (tmp_path / "empty").mkdir()
    server = VllmServer(tmp_path / "empty", tmp_path / "logs")
    server.command = lambda: [sys.executable, "-c", "import time; print('loading'); time.sleep(60)"]  # pyright: ignore
    with pytest.raises(InfrastructureError, match=r"within 0\.5 s"):
        await server.start(0.5)
    assert not server.alive()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


async def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        await VllmServer(tmp_path / "nowhere", tmp_path).start()


def test_options_become_flags(tmp_path):
    command = VllmServer("m", tmp_path, options={"max_model_len": 8, "enforce_eager": True, "x_y": False}).command()
    assert command[-4:] == ["--max-model-len", "8", "--enforce-eager", "--no-x-y"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent-death signal")
def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "model").mkdir()
    script = textwrap.dedent(f"""
        import asyncio, sys
        from rewards.judges.backends.vllm_server import VllmServer
        async def main():
            server = VllmServer("{tmp_path}/model", "{tmp_path}")
            server.command = lambda: [sys.executable, "-c", "import time; time.sleep(600)"]
            starting = asyncio.create_task(server.start(600))
            while not server.alive():
                await asyncio.sleep(0.05)
            print(server.pid, flush=True)
            await starting
        asyncio.run(main())
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 20
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(child)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
async def test_what_a_killed_server_had_started_ends_with_it(tmp_path):
    (tmp_path / "model").mkdir()
    started = tmp_path / "child"
    script = (
        "import pathlib, subprocess, time; child = subprocess.Popen(['sleep', '600']); "
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    server = VllmServer(tmp_path / "model", tmp_path / "logs")
    server.command = lambda: [sys.executable, "-c", script]  # pyright: ignore
    starting = asyncio.create_task(server.start(60))
    await _until(lambda: started.exists() and started.read_text())
    child = int(started.read_text())
    assert _runs(child)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(InfrastructureError, match="ended with -9"):
        await starting
    await server.ended()
    await _until(lambda: not _runs(child))


async def _until(condition) -> None:
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0.05)


def _runs(pid: int) -> bool:
    """A zombie that nobody reaps has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Limited:
    """The replica's web server around an application of two lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(serve.KEY, "secret")
        monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", {**uvicorn.config.HTTP_PROTOCOLS})
        serve.limit()
        config = uvicorn.Config(serve.KeyGate(self.answer), lifespan="off", log_level="critical")  # pyright: ignore
        config.h11_max_incomplete_event_size = MAX_HEADER_BYTES
        self.server, self.socket, self.read = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0)), 0

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            self.read += len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"yes"})

    async def __aenter__(self) -> Limited:
        self._task = asyncio.create_task(self.server.serve([self.socket]))
        return self

    async def __aexit__(self, *error: object) -> None:
        self.server.should_exit = True
        await self._task

    async def says(self, request: bytes) -> str:
        """The status line that a raw request is answered with, empty where the server closes without one."""
        reader, writer = await asyncio.open_connection(*self.socket.getsockname())
        writer.write(request)
        async with asyncio.timeout(20):
            line = await reader.readline()
        writer.close()
        return line.decode().strip()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", "200"),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "401"),
        (b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000000\r\n\r\n", "401"),
        (b"POST /tokenize HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer wrong\r\nContent-Length: 2\r\n\r\n{}", "401"),
        (b"OPTIONS /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", "401"),
        (b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n", "413"),
        (b"POST /v1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Length: 2\r\n\r\n{}", "200"),
        (b"POST /v1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Length: 90000000\r\n\r\n", "413"),
        (b"POST /v1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nTransfer-Encoding: chunked\r\n\r\n", "411"),
        (b"GET /" + b"a" * 2 * MAX_HEADER_BYTES, "400"),
    ],
)
async def test_a_replica_answers_its_run_alone_and_reads_no_more_than_it_needs(monkeypatch, request_, status):
    async with Limited(monkeypatch) as limited:
        assert f" {status} " in f"{await limited.says(request_)} "
        assert limited.read <= 2


async def test_a_replica_closes_what_never_begins_a_request(monkeypatch):
    monkeypatch.setattr(serve.JudgeProtocol, "max_connections", 8)
    monkeypatch.setattr("cluster.process.http_limits.REQUEST_S", 0.5)
    async with Limited(monkeypatch) as limited:
        opened = [await asyncio.open_connection(*limited.socket.getsockname()) for _ in range(20)]
        async with asyncio.timeout(10):
            assert [await reader.read() for reader, _ in opened] == [b""] * 20
