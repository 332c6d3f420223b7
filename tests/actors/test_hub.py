"""A hub that refuses, is silent or breaks off: one sentence that says why and what to do, for models and data sets."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from typing import Any

import pytest

from actors.models import prepare
from actors.tasks import TASKS
from cluster.config import ModelSection
from cluster.errors import ConfigError
from cluster.plugins import build

SHA = "0123456789" * 4
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this resource is restricted."}
NOT_FOUND = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
ANSWERS: dict[str, tuple[int, dict[str, str], bool, str]] = {
    "gated, not logged in": (401, GATED, True, "it is gated: accept its licence at .*/me/thing, then log in with `hf"),
    "gated, logged in": (403, GATED, True, "it is gated: accept its licence at .*, then log in"),
    "gated at once": (403, GATED, False, "it is gated: accept its licence"),
    "private, not logged in": (
        401,
        {},
        False,
        "does not exist, or is private: check the name, or log in",
    ),
    "no such name": (404, NOT_FOUND, False, "does not exist, or is private: check the name"),
    "forbidden": (403, {}, False, "refuses it to this account: HfHubHTTPError: .*403.* See http://127.0.0.1"),
    "broken": (500, {}, False, "cannot be downloaded from http://127.0.0.1.*500.*Check the name and the network"),
}
"""Status, headers, whether files alone are refused, and what the user reads."""


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, files_alone, _ = self.server.answer  # type: ignore[attr-defined]
        names = ["config.json", "data.jsonl"]
        if files_alone and "/revision/" in self.path:
            self._answer(200, {"id": "me/thing", "sha": SHA, "siblings": [{"rfilename": name} for name in names]})
        elif files_alone and "/tree/" in self.path:
            self._answer(200, [{"type": "file", "path": name, "size": 2, "oid": SHA} for name in names])
        else:
            self._answer(status, {"error": "no"}, headers)

    do_HEAD = do_GET

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def load(kind: str) -> None:
    if kind == "model":
        prepare(ModelSection(path="me/thing"), 0)
    else:
        build(TASKS, "dataset", {"path": "me/thing"}, "tasks").train()


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_hub_that_refuses_is_quoted_with_the_remedy(hub, kind, name):
    hub.answer = ANSWERS[name]
    with pytest.raises(ConfigError, match=ANSWERS[name][3]) as caught:
        load(kind)
    assert str(caught.value).startswith(("model.path = 'me/thing'", "tasks.options.path = 'me/thing'"))
    assert "\n" not in str(caught.value)


def test_a_user_who_has_a_key_is_told_that_it_does_not_open_the_model(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_some_key")
    hub.answer = ANSWERS["gated, logged in"]
    with pytest.raises(ConfigError, match="the account of this token may not read it yet"):
        load("model")
    hub.answer = (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, False, "")
    with pytest.raises(ConfigError, match="does not accept the token: log in again with `hf auth login`, or"):
        load("dataset")


def test_a_hub_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"cannot be downloaded from http://127.0.0.1:9: .*Check the name"):
        load("model")


def test_a_hub_that_never_answers_is_given_up(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
        with pytest.raises(ConfigError, match=r"cannot be downloaded from .*Timeout.*Check the name and the network"):
            load("model")
