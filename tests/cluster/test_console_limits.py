"""The console before it knows its client: bounded memory, connections and time, its own names, no answer of 500."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from cluster.buffer import Limits
from cluster.config import ConsoleSection
from cluster.errors import ConfigError
from cluster.observability.console.server import TOKEN_VARIABLE, Console
from cluster.observability.console.source import Alive, Source
from cluster.process import http_limits as limits
from tests.cluster.pipeline import Pipeline
from tests.cluster.runs import client, group, keep, write_run

MB = 2**20
FLOOD_MB = 48
"""What a client sends, or tries to: far more than the server may grow by."""
MAY_GROW_MB = 16
TOKEN = "s3cret"


@dataclass(frozen=True)
class Served:
    """A console in a process of its own, which demands a token."""

    port: int
    pid: int

    def megabytes(self) -> float:
        """Resident memory now."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / MB

    def answers(self) -> bool:
        """Whether a client with the token is served."""
        return get(self.port, "/api/status", {"Authorization": f"Bearer {TOKEN}"})[0] == 200


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    run = write_run(tmp_path_factory.mktemp("limits") / "run")
    command = [
        sys.executable,
        "-m",
        "cluster.commands.console",
        run,
        "--host",
        "0.0.0.0",
        "--port",
        "18000",
        "--json",
    ]
    environment = {**os.environ, TOKEN_VARIABLE: TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            said = ""
            while not said.rstrip().endswith("}"):
                said += process.stdout.readline() or pytest.fail("the console ended")
            console = Served(int(json.loads(said)["console"].rsplit(":", 1)[1].strip("/")), process.pid)
            assert console.answers()
            yield console
        finally:
            process.terminate()
            process.wait(30)


def get(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def say(port: int, request: bytes) -> bytes:
    """What the server answers to these bytes until it closes the connection or is silent for a second."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(request)
        client.settimeout(2)
        with suppress(TimeoutError, ConnectionError):
            while part := client.recv(2**16):
                answer += part
                if b"\r\n\r\n" in answer and b"connection: close" not in answer.lower():
                    break
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────

ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "request line": (b"GET /", b"a" * 2**16),
    "query": (b"GET /?token=", b"a" * 2**16),
    "one header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"a" * 2**16),
    "headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: aaaaaaaaaaaa\r\n" * 2**12),
    "empty lines": (b"", b"\r\n" * 2**15),
    "body": (b"POST /api/scale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", b"a" * 2**16),
    "body of a GET": (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", b"a" * 2**16),
    "chunks": (
        b"POST /api/scale HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"8000\r\n" + b"a" * 2**15 + b"\r\n",
    ),
    "one chunk's size": (
        b"POST /api/scale HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"0" * 2**16,
    ),
    "pipelined requests": (b"", b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2**10),
    "web socket": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        b"\x02\x7f" + b"\xff" * 2**16,
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_never_ends_takes_bounded_memory_before_the_token_is_asked_for(served, what):
    begin, more = ENDLESS[what]
    before, largest = served.megabytes(), 0.0
    with socket.create_connection(("127.0.0.1", served.port), timeout=1) as stranger:
        sent, until = 0, time.monotonic() + 8
        with suppress(ConnectionError, TimeoutError):
            stranger.sendall(begin)
            while sent < FLOOD_MB * MB and time.monotonic() < until:
                sent += stranger.send(more)
                largest = max(largest, served.megabytes())
        assert served.answers(), "while the stranger is connected"
        largest = max(largest, served.megabytes())
    assert largest - before < MAY_GROW_MB


def test_idle_connections_are_bounded_and_a_client_is_served(served):
    before = served.megabytes()
    with ExitStack() as open_ones:
        for _ in range(1000):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=20))
        assert served.answers()
        files = len(list(Path(f"/proc/{served.pid}/fd").iterdir()))
        assert files < limits.MAX_CONNECTIONS + 50
        assert served.megabytes() - before < MAY_GROW_MB


def test_connections_that_send_a_request_byte_by_byte_give_way(served):
    with ExitStack() as open_ones:
        slow = []
        for _ in range(limits.MAX_CONNECTIONS + 50):
            slow.append(open_ones.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=20)))
            slow[-1].sendall(b"GET / HTTP/1.1\r\nHost: loc")
        for each in slow:
            with suppress(ConnectionError):
                each.sendall(b"a")
        assert served.answers()


@pytest.fixture
def console(tmp_path, monkeypatch) -> Iterator[Callable[..., int]]:
    """Starts a console in this process and returns its port."""
    opened: list[Console] = []

    def start(**section: object) -> int:
        opened.append(Console(Source(write_run(tmp_path / "run")), ConsoleSection(port=18100, **section)))  # type: ignore[arg-type]
        return int(opened[-1].address.split("?")[0].rsplit(":", 1)[1].strip("/"))

    yield start
    for each in opened:
        each.close()


SLOW = {
    "silent": b"",
    "headers not ended": b"GET / HTTP/1.1\r\nHost: localhost\r\n",
    "body not ended": b"POST /api/scale HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 30\r\n\r\n{",
    "between requests": b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("what", SLOW)
def test_a_client_that_stops_is_disconnected(console, monkeypatch, what):
    monkeypatch.setattr(limits, "REQUEST_S", 0.5)
    monkeypatch.setattr(limits, "ANSWER_S", 1.0)
    port = console()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
        stranger.sendall(SLOW[what])
        with suppress(ConnectionError):
            while stranger.recv(2**16):
                pass


def test_a_client_that_drips_bytes_is_disconnected(console, monkeypatch):
    monkeypatch.setattr(limits, "REQUEST_S", 1.0)
    port = console()
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger, suppress(ConnectionError):
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        while time.monotonic() - begun < 10:
            stranger.sendall(b"a")
            stranger.settimeout(0.1)
            with suppress(TimeoutError):
                if not stranger.recv(1):
                    break
    assert time.monotonic() - begun < 8


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────


def host(port: int, name: str, headers: str = "") -> int:
    request = f"GET /api/status HTTP/1.1\r\nHost: {name}\r\n{headers}Connection: close\r\n\r\n"
    return status_of(say(port, request.encode("latin-1")))


OURS = ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "[::1]"]
FOREIGN = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil", "[::2]", "", "local host",
           "@localhost", "localhost:8266@evil.example", "localhost/evil", "evil.example:8266", "é.example",
           "testserver", "*"]  # fmt: skip


def test_a_foreign_page_cannot_read_the_console_through_its_own_name(console):
    port = console()
    for name in OURS:
        assert host(port, name) == host(port, f"{name}:{port}") == 200, name
    for name in FOREIGN:
        assert host(port, name) == 400, name
    assert status_of(say(port, b"GET /api/status HTTP/1.0\r\n\r\n")) == 400, "no name at all"
    assert status_of(say(port, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")) == 400


def test_a_foreign_name_is_refused_with_the_token_too(console, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    port = console(host="0.0.0.0", allowed_hosts=("runs.example", "*.lab.example"))
    entry = f"Authorization: Bearer {TOKEN}\r\n"
    by_name = (socket.gethostname(), "runs.example", "a.lab.example", "a.b.lab.example")
    for name in (*OURS, "10.1.2.3", "[fe80::1]", *by_name):
        assert host(port, name, entry) == 200, name
        assert host(port, name) == 401, name
    for name in ("evil.example", "lab.example", "alab.example", "x.runs.example", "testserver"):
        assert host(port, name, entry) == 400, name


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", ["金棒", "naïve", 'a b; c="d"', "%00&x=1#", "🙂", "'"])
def test_a_token_of_any_letters_opens_the_console(console, monkeypatch, token):
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    port = console(host="0.0.0.0")
    assert get(port, "/api/status")[0] == 401
    bearer = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n" % token.encode()
    assert status_of(say(port, bearer)) == 200
    entered = say(port, f"GET /?token={quote(token)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status_of(entered) == 303
    cookie = entered.lower().split(b"set-cookie: ")[1].split(b";")[0]
    assert status_of(say(port, b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nCookie: %s\r\n\r\n" % cookie)) == 200


@pytest.mark.parametrize("token", ["a\nb", " a", "a ", "\x00".join("ab").replace("\x00", "\x01"), "\udcff", "\u200b"])
def test_a_token_that_no_client_can_send_is_refused_at_the_start(console, monkeypatch, token):
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
        console(host="0.0.0.0")


def test_nonsense_in_place_of_the_token_is_refused(served):
    draw = random.Random(0)
    letters = [bytes([b]) for b in range(1, 256) if b not in b"\r\n"] + [b"%", b"%ff", b"%00", b"=", b";", b"&", b'"']
    for _ in range(300):
        junk = b"".join(draw.choices(letters, k=draw.choice([0, 1, 5, 200])))
        quoted = quote(junk).encode()
        place = draw.choice(["query", "cookie", "header", "cookies", "double query"])
        query, header = {
            "query": (b"?token=" + quoted, b""),
            "double query": (b"?token=%s&token=%s" % (quoted, quoted[::-1].replace(b"%", b"")), b""),
            "cookie": (b"", b"Cookie: kanabo_console=%s\r\n" % junk),
            "cookies": (b"", b"Cookie: %s\r\n" % junk),
            "header": (b"", b"Authorization: Bearer %s\r\n" % junk),
        }[place]
        request = b"GET /api/status%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (query, header)
        assert status_of(say(served.port, request)) in (400, 401), request


# ── parameters ──────────────────────────────────────────────────────────────────────────────────────────────

NUMBERS = ["NaN", "nan", "inf", "-inf", "Infinity", "-1", "0", "1e308", "1e400", "-1e308", "9" * 30, "9" * 5000, "1.5",
           "0x10", "²", "١", "true", "null", "", " ", "[]", "{}", "1,2", "1_000", "--1", "+3"]  # fmt: skip
TEXTS = ["", "\0", "a\0b", "..", "../../../etc/passwd", "/etc/passwd", "%2e%2e%2f", "%", "%zz", "\ud7ff", "🙂",
         "a" * 4096, "policy/1/1", "policy/1/" + "9" * 400, "policy//", "<script>alert(1)</script>", "\r\nX: y",
         "'; --", "$(id)", "{{7*7}}", "\\..\\..", "CON", "nul", "~", "*", "?", "#"]  # fmt: skip
PARAMETERS = ["state", "step", "text", "min_reward", "max_reward", "sort", "ascending", "page", "per_page", "after",
              "view", "token", "unknown"]  # fmt: skip
ROUTES = ["/", "/index.html", "/app.js", "/vendor/", "/api/status", "/api/metrics", "/api/groups", "/api/groups/",
          "/api/workers", "/api/alarms", "/api/recipe", "/api/scale", "/api/", "/api"]  # fmt: skip


@pytest.fixture
def page(tmp_path, buffer):
    """A run under way with a trained group, and another that waits; errors of the application are errors here."""
    run = write_run(tmp_path / "run", {"step": 1, "reward/mean": 0.5})
    keep(run, 1, [group(1)], (1.0, np.nan))
    pipeline = Pipeline(buffer, Limits(groups_per_step=2, max_staleness=1, blocking=("judge",)))
    pipeline.claim()
    (tmp_path / "model").mkdir()

    class NoWishes:
        """A run in which workers of the known roles are up; it forgets what is wished."""

        wishes: dict[str, int] = {}

        def staffed(self) -> dict[str, int]:
            return {"rollout": 1, "reward": 1}

        def wished(self) -> dict[str, int]:
            return {}

        def wish(self, role: str, count: int) -> None:
            self.wishes[role] = count

    wishes = NoWishes()
    wishes.wishes = {}
    alive = Alive(
        pipeline.buffer, lambda: {"waiting": "Nothing", "actors": [], "failures": 0}, tmp_path / "model", wishes
    )  # type: ignore[arg-type]
    context = client(run, alive)
    context.wishes = wishes.wishes  # type: ignore[attr-defined]
    return context


def test_no_route_fails_on_any_parameter(page):
    draw = random.Random(1)
    for _ in range(400):
        pairs = draw.choices(PARAMETERS, k=draw.choice([0, 1, 1, 2, 4]))
        query = "&".join(f"{name}={quote(draw.choice(NUMBERS + TEXTS))}" for name in pairs)
        path = draw.choice(ROUTES) + quote(draw.choice(["", "", "", *TEXTS]))
        method = draw.choice(["GET", "GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
        answer = page.request(method, f"{path}?{query}")
        assert answer.status_code < 500, (method, path, query)
        if answer.status_code >= 400 and method != "HEAD":
            html = answer.headers["content-type"].startswith("text/html")
            assert "Not found" in answer.text if html else answer.json()["error"], (method, path, query)


@pytest.mark.parametrize("name", ["step", "min_reward", "max_reward", "page", "per_page"])
def test_a_number_that_is_none_is_refused_by_name(page, name):
    for value in ("NaN", "inf", "-inf", "", "one", "1e400", "9" * 5000):
        answer = page.get("/api/groups", params={name: value})
        assert answer.status_code == 422, value
        assert name in answer.json()["error"]
        assert "NaN" not in answer.text, "JSON has no word for it"


def test_workers_are_asked_for_in_numbers_only(page):
    """`count` as JSON text: what is no number from 1 on is refused, and nothing is requested."""
    ours = {"X-Kanabo": "console", "Content-Type": "application/json"}
    deep = "[" * 2000 + "]" * 2000
    for count in ("NaN", "Infinity", "-Infinity", "-1", "0", "1e308", "1e999", "9" * 30, "1.5", '"3"', "true", "null",
                  "[]", "{}", deep, '"\\ud800"', ""):  # fmt: skip
        answer = page.post("/api/scale", content=f'{{"role": "rollout", "count": {count}}}'.encode(), headers=ours)
        assert 400 <= answer.status_code < 500, count
        assert answer.json()["error"], count
    for role in ("", "queen", "\\ud800", "\\u0000", "rollout=9\\n", "rollout ", "a" * 3000, "../x"):
        answer = page.post("/api/scale", content=f'{{"role": "{role}", "count": 2}}'.encode(), headers=ours)
        assert 400 <= answer.status_code < 500, role
    assert page.wishes == {}
    assert page.post("/api/scale", content=b'{"role": "rollout", "count": 2}', headers=ours).status_code == 200
    assert page.wishes == {"rollout": 2}


def test_a_body_is_at_most_what_a_request_for_workers_takes(page):
    ours = {"X-Kanabo": "console", "Content-Type": "application/json"}
    large = json.dumps({"role": "a" * limits.MAX_BODY_BYTES, "count": 1})
    assert page.post("/api/scale", content=large, headers=ours).status_code == 413
    assert page.request("GET", "/api/status", content=b"x").status_code == 413
    assert page.request("PUT", "/", content=b"x").status_code == 413
    assert page.post("/api/scale", content=iter([b"{}"]), headers=ours).status_code == 411
