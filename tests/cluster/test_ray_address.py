"""A Ray cluster that is not there is named within seconds, whatever listens in its place."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import pytest
import ray

from cluster.config import parse
from cluster.errors import ConfigError, InfrastructureError
from cluster.placement import ray_address, ray_runtime
from tests.end_to_end.jobs import ROOT

SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def listener(answer: bytes | None):
    """A server that answers so; None accepts and is silent."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        kept = []
        while True:
            try:
                peer = server.accept()[0]
            except OSError:
                return
            kept.append(peer)
            if answer is not None:
                peer.recv(100)
                peer.sendall(answer)
                peer.close()

    threading.Thread(target=serve, daemon=True).start()
    return server


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    "answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown command\r\n", b"\0" * 9]
)
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_what_listens_and_is_no_ray_is_refused(monkeypatch: pytest.MonkeyPatch, answer: bytes | None, form: str):
    monkeypatch.setattr(ray_address, "ANSWER_S", 0.5)
    with listener(answer) as server, pytest.raises(ConfigError, match=r"RAY_ADDRESS = '.*' cannot be joined"):
        ray_address.check_address(form.format(server.getsockname()[1]))


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}", "nowhere.invalid:{}"])
def test_where_nothing_listens_is_refused(form: str):
    with pytest.raises(ConfigError, match=r"cannot be joined: .*unset RAY_ADDRESS"):
        ray_address.check_address(form.format(closed_port()))


def test_what_answers_in_http2_is_asked_further():
    with listener(SETTINGS_FRAME) as server:
        ray_address.check_address(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["local", "somewhere", ""])
def test_other_forms_are_left_to_ray(address: str):
    ray_address.check_address(address)


def test_auto_means_the_cluster_of_this_machine(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    ray_address.check_address("auto")  # none was started: Ray says so at once
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{closed_port()}\n")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS = 'auto' cannot be joined"):
        ray_address.check_address("auto")


@pytest.mark.parametrize(
    "command", [["cluster.commands.status"], ["cluster.run", "deploy/recipes/quickstart.toml", "run.dir={tmp}"]]
)
def test_a_command_ends_within_seconds_with_one_line(tmp_path, command: list[str]):
    begun = time.monotonic()
    arguments = [word.format(tmp=tmp_path) for word in command]
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=os.environ | {"RAY_ADDRESS": f"127.0.0.1:{closed_port()}", "KANABO_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert len(re.findall("cannot be joined", said)) == 1
    assert time.monotonic() - begun < 60  # of which most is Python's own start on a busy machine


def test_a_ray_whose_own_time_out_passes_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch):
    """Ray gives its node 30 seconds, which an overloaded machine may not keep, and raises a bare Exception then."""

    def overloaded(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because the GCS is overloaded.")

    starts = Mock(side_effect=overloaded)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", starts)
    with pytest.raises(InfrastructureError) as failed:
        ray_runtime.start_ray(parse({}))
    assert starts.call_count == ray_runtime.STARTS
    assert str(failed.value).startswith(
        "Ray did not start on this machine: Exception: The current node timed out during startup. Start the run again"
    )
    assert "GiB of memory free" in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_ray_that_is_late_once_is_started_again(monkeypatch: pytest.MonkeyPatch):
    starts = Mock(side_effect=[Exception("The current node timed out during startup."), None])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", starts)
    ray_runtime.start_ray(parse({}))
    assert starts.call_count == 2


@pytest.mark.ray
def test_a_run_whose_ray_does_not_start_ends_in_one_line(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_TMPDIR"] = "/dev/null/below"
    job = [sys.executable, "-m", "cluster.run", "deploy/recipes/quickstart.toml", f"run.dir={tmp_path}"]
    ended = subprocess.run(job, capture_output=True, text=True, timeout=200, env=environment, cwd=ROOT)
    assert ended.returncode == 1, ended.stderr
    shown = [line for line in ended.stdout.splitlines() if line.startswith("failed")]
    assert len(shown) == 1, ended.stdout
    assert shown[0].startswith("failed Ray did not start on this machine: NotADirectoryError: ")
    assert "Traceback" not in ended.stdout + ended.stderr
