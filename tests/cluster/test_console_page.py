"""The console's server and page: who may see them, and what a browser makes of them."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from cluster.buffer import Limits, ReplicaCounts
from cluster.config import ConsoleSection
from cluster.errors import ConfigError
from cluster.observability.console import server
from cluster.observability.console.server import Console
from cluster.observability.console.source import Alive, Source
from tests.cluster.browser import NARROW, WIDE, browser, needs_browser
from tests.cluster.pipeline import Pipeline, run_of
from tests.cluster.runs import client, group, keep, write_run

HOSTILE = "<img src=x onerror=alert(1)> 2 + 2"
PATHS = ("/", "/app.js", "/api/status", "/api/groups", "/api/groups/policy/1/1", "/api/metrics", "/api/recipe")


def test_with_a_token_nothing_is_answered_without_it(tmp_path):
    context = client(write_run(tmp_path), token="s3cret")
    for path in PATHS:
        assert context.get(path).status_code == 401, path
        assert context.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401, path
        assert context.get(f"{path}?token=wrong").status_code == 401, path
    assert context.get("/api/status", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    assert context.get("/api/status", headers={"Authorization": "s3cret"}).status_code == 401
    entered = context.get("/?view=groups&token=s3cret", follow_redirects=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/?view=groups")
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert context.get("/api/status").status_code == 200, "the cookie"


def test_loopback_is_open_under_loopback_names_only(tmp_path):
    context = client(write_run(tmp_path))
    assert context.get("/api/status").status_code == 200
    assert context.get("/api/status", headers={"Host": "evil.example"}).status_code == 400, "DNS rebinding"


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


@pytest.fixture
def context(tmp_path) -> Iterator[str]:
    """Where the console of a run that has ended is."""
    rows = [{"step": s, "reward/mean": s / 10, "reward/exact_mean": s / 10, "learner/step_s": 2.0} for s in range(1, 9)]
    rows.append(
        {"step": 8, "judge/tutor_queue_depth": 3.0, "judge/tutor_hit_frac": 0.91, "judge/tutor_canary_frac": 0.4}
    )
    run = write_run(tmp_path / "run", *rows)
    said = {"monitor": "collapse", "step": 7, "metric": "eval/accuracy", "message": "it fell.", "good": 4}
    (run / "alarms.jsonl").write_text(json.dumps(said) + "\n")
    keep(run, 1, [group(1, HOSTILE), group(2, "what is 40 + 2?")], (1.0, np.nan))
    console = Console(Source(run), ConsoleSection(port=free_port()))
    yield console.address
    console.close()


@needs_browser
async def test_the_page_in_a_browser(tmp_path, context):
    async with browser(tmp_path / "browser") as page:

        async def html(query: str, *texts: str) -> str:
            await page.open(context + query)
            return await page.sees("step 8 of 100", *texts)

        verbs = ("claim", "sample", "put", "score", "assemble", "step", "publish", "release")
        await html("", *(f"<h3>{verb}" for verb in verbs))
        amiss = '<td class="number failed">40 %'
        await html("?view=judges", "tutor", "91 %", amiss)
        await html("?view=alarms", "it fell.")
        assert (await html("?view=curves", "exact", "<canvas")).count("<canvas") == 2, "reward and the learner's time"
        listed = await html("?view=groups&text=40", "what is 40 + 2?")
        assert "onerror" not in listed, "the filter is in the address"
        opened = await html("?view=groups&group=policy/1/1&colour=version", "&lt;img src=x onerror", "log-prob")
        assert "<img" not in opened, "text stays text"
        assert all(text in opened for text in ("judge-7b", "rubric-3", "1.5 s", "failed", "no answer", "Well done."))
        apart = await html("?view=groups&group=policy/1/1&colour=difference", "+0.25 nats more likely")
        assert apart.count("var(--above) 70%") == 10, "each token the policy chose is as far off as the furthest"
        await html("?view=recipe", "groups_per_step")
        await html("?view=workers", "Workers are there while a run is under way")
        assert page.errors == []


@needs_browser
async def test_no_view_is_wider_than_its_window_and_the_reader_s_setting_makes_it_dark(tmp_path, context):
    views = {
        "": "<h3>claim", "?view=curves&all=1": "<canvas", "?view=groups": "what is 40", "?view=judges": "tutor",
        "?view=groups&group=policy/1/2": "Well done.", "?view=alarms": "it fell.", "?view=recipe": "groups_per_step",
    }  # fmt: skip
    async with browser(tmp_path / "browser") as page:
        shades = []
        for width, dark in ((WIDE, False), (NARROW, True)):
            for query, text in views.items():
                await page.open(context + query, width=width, dark=dark)
                await page.sees(text)
                assert await page.run("document.documentElement.scrollWidth - innerWidth") <= 0, (width, query)
            shades.append(await page.run("getComputedStyle(document.body).backgroundColor"))
        assert page.errors == []
    light, dark = (sum(map(int, re.findall(r"\d+", shade))) for shade in shades)
    assert light > 600 > 150 > dark, "sums of red, green and blue"


@needs_browser
async def test_what_is_typed_stands_in_the_address_and_a_click_wishes_for_a_worker(tmp_path, buffer, redis_url):
    run, wishes = (
        write_run(tmp_path / "run", {"step": 1, "reward/mean": 0.5}),
        ReplicaCounts(redis_url, run_of(buffer)),
    )
    keep(run, 1, [group(1, "what is 1 + 1?"), group(2, "what is 40 + 2?")], (1.0, 0.0))
    wishes.staff({"rollout": 1, "judge:tutor": 1})
    actors = [
        {"name": f"{role}-0", "says": "works", "answered_s": 1.0}
        for role in ("rollout", "judge:tutor", "learner:critic")
    ]
    standing = {"waiting": "Nothing", "actors": actors, "failures": 0, "allowed_failures": 8}
    Pipeline(buffer, Limits(groups_per_step=2, max_staleness=1))
    source = Source(run, Alive(buffer, lambda: standing, tmp_path / "model", wishes))
    console = Console(source, ConsoleSection(port=free_port()))
    try:
        async with browser(tmp_path / "browser") as page:
            await page.open(f"{console.address}?view=groups")
            await page.sees("1 + 1", "40 + 2")
            await page.type("input[name=text]", "40 +")
            await page.sees("1 to 1 of 1 groups")
            assert await page.address() == "?view=groups&text=40+%2B"
            await page.open(f"{console.address}?view=workers")
            await page.sees("judge:tutor-0", "Judge · tutor", "learner:critic-0", "Reward workers")
            await page.click('button[title="let one more of judge:tutor join"]')
            await page.sees("1 up, 2 wished for")
            assert wishes.wished() == {"judge:tutor": 2}
            assert page.errors == []
    finally:
        console.close()
        wishes.close()
