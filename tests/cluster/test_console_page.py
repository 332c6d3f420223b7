"""The console's server and page: who may see them, and what a browser makes of them."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess

import numpy as np
import pytest

from cluster.config import ConsoleSection
from cluster.console import server
from cluster.console.server import Console
from cluster.console.source import Source
from cluster.errors import ConfigError
from tests.cluster.runs import client, group, keep, write_run

HOSTILE = "<img src=x onerror=alert(1)> 2 + 2"
PATHS = ("/", "/app.js", "/api/status", "/api/groups", "/api/groups/policy/1/1", "/api/metrics", "/api/recipe")


def test_with_a_token_nothing_is_answered_without_it(tmp_path):
    site = client(write_run(tmp_path), token="s3cret")
    for path in PATHS:
        assert site.get(path).status_code == 401, path
        assert site.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401, path
        assert site.get(f"{path}?token=wrong").status_code == 401, path
    assert site.get("/api/status", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    assert site.get("/api/status", headers={"Authorization": "s3cret"}).status_code == 401
    entered = site.get("/?view=groups&token=s3cret", follow_redirects=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/?view=groups")
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert site.get("/api/status").status_code == 200, "the cookie"


def test_loopback_is_open_under_loopback_names_only(tmp_path):
    site = client(write_run(tmp_path))
    assert site.get("/api/status").status_code == 200
    assert site.get("/api/status", headers={"Host": "evil.example"}).status_code == 400, "DNS rebinding"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("a.example", False)],
)  # fmt: skip
def test_only_loopback_addresses_are_open(host, loopback):
    assert server.is_loopback(host) == loopback


def test_any_other_address_demands_a_token(tmp_path, monkeypatch):
    for given in (None, "from the environment"):
        monkeypatch.delenv(server.TOKEN_VARIABLE, raising=False)
        if given:
            monkeypatch.setenv(server.TOKEN_VARIABLE, given)
        console = Console(Source(write_run(tmp_path)), ConsoleSection(host="0.0.0.0", port=free_port()))
        try:
            made_up = console.address.partition("?token=")[2]
            assert bool(made_up) == (given is None), "one that the user knows is not printed"
            port = int(console.address.split(":")[2].partition("/")[0])
            assert answer(port, "/api/status")[0] == 401
            assert answer(port, "/api/status", {"Authorization": f"Bearer {given or made_up}"})[0] == 200
        finally:
            console.close()


def test_no_path_leads_out_of_the_page(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "secret.txt").write_text("secret")
    console = Console(Source(tmp_path / "run"), ConsoleSection(port=free_port()))
    port = int(console.address.split(":")[2].strip("/"))
    try:
        for up in ("..", "%2e%2e", "..%2f..", "static/../.."):
            for target in ("server.py", "config.toml", "secret.txt"):
                for before in ("", "/vendor", "/api/groups"):
                    status, text = answer(port, f"{before}/{up}/{target}")
                    assert status == 404, (before, up, target, status)
                    assert "import" not in text
        assert answer(port, f"/{tmp_path}/secret.txt")[0] == 404
        assert answer(port, f"/api/groups/{tmp_path}/secret.txt")[0] == 404
    finally:
        console.close()


def test_a_taken_port_is_passed_over_and_a_foreign_address_refused(tmp_path):
    source = Source(write_run(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        console = Console(source, ConsoleSection(port=port))
        try:
            assert console.address != f"http://127.0.0.1:{port}/"
            assert answer(int(console.address.split(":")[2].strip("/")), "/api/status")[0] == 200
        finally:
            console.close()
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1.*Give an address of this machine"):
        Console(source, ConsoleSection(host="192.0.2.1"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """As it is on the wire: no client tidies the path up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers or {})
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────────

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine: apt-get install chromium")
def test_the_page_in_a_browser(tmp_path):
    rows = [{"step": s, "reward/mean": s / 10, "reward/exact_mean": s / 10, "learner/step_s": 2.0} for s in range(1, 9)]
    rows.append(
        {"step": 8, "judge/tutor_queue_depth": 3.0, "judge/tutor_hit_frac": 0.91, "judge/tutor_canary_frac": 0.4}
    )
    run = write_run(tmp_path / "run", *rows)
    said = {"monitor": "collapse", "step": 7, "signal": "heldout/accuracy", "message": "it fell.", "good": 4}
    (run / "alarms.jsonl").write_text(json.dumps(said) + "\n")
    keep(run, 1, [group(1, HOSTILE), group(2, "what is 40 + 2?")], (1.0, np.nan))
    console = Console(Source(run), ConsoleSection(port=free_port()))

    def dom(query: str) -> str:
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=4000", "--dump-dom",
            console.address + query,
        ]  # fmt: skip
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        assert '<p id="problem" class="problem" role="alert" hidden="">' in page, "the page reports a problem"
        return page

    try:
        lap = dom("")
        for verb in ("claim", "sample", "put", "score", "cut", "step", "publish", "release"):
            assert f"<h3>{verb}" in lap
        assert "step 8 of 100" in lap
        judges = dom("?view=judges")
        assert "tutor" in judges
        assert "91 %" in judges
        assert '<td class="number failed">40 %' in judges, "what is amiss stands out"
        assert "it fell." in dom("?view=alarms")
        curves = dom("?view=curves")
        assert curves.count("<canvas") == 2, "reward and the learner's time"
        assert "exact" in curves
        listed = dom("?view=groups&text=40")
        assert "what is 40 + 2?" in listed
        assert "onerror" not in listed, "the filter is in the address"
        opened = dom("?view=groups&group=policy/1/1&colour=version")
        assert "&lt;img src=x onerror" in opened, "text stays text"
        assert "<img" not in opened
        assert all(text in opened for text in ("judge-7b", "rubric-3", "1.5 s", "failed", "no answer", "Well done."))
        assert "log-prob" in opened
        apart = dom("?view=groups&group=policy/1/1&colour=difference")
        assert "+0.25 nats more likely" in apart
        assert apart.count("var(--above) 70%") == 10, "each token the policy chose is as far off as the furthest"
        assert "groups_per_step" in dom("?view=recipe")
        assert "Workers are there while a run is under way" in dom("?view=workers")
    finally:
        console.close()
