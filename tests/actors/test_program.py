"""Programs as agents: what they are given, how they give a reward, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from actors.environments import ENVIRONMENTS
from cluster.errors import ConfigError, DataError
from cluster.plugins import build
from cluster.types import Rollout, Task
from tests.actors.agents import Scripted, chat, played

TASK = Task.of("t", "2+2?", "four", source="sums", level=3)
ASK = """
import http.client, json, os, sys, time
task = json.load(sys.stdin)
def post(path, body):
    host, _, prefix = os.environ["OPENAI_BASE_URL"].removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host)
    key = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    connection.request("POST", f"/{prefix}{path}", json.dumps(body), key)
    answer = json.load(connection.getresponse())
    if "error" in answer:
        sys.exit(answer["error"]["message"])
    return answer
def ask():
    answer = post("/chat/completions", {"model": os.environ["OPENAI_MODEL"], "messages": task["messages"]})
    return answer["choices"][0]["message"]["content"]
"""


async def play(program: str, *, ask: bool = True, **options: Any) -> Rollout:
    made = chat()
    engine = Scripted(made, lambda prompt: "four")
    command = [sys.executable, "-S", "-c", (ASK if ask else "") + textwrap.dedent(program)]
    environment = build(ENVIRONMENTS, "program", {"command": command, **options}, "rollout.environment")
    (rollout,) = await played(engine, environment, task=TASK)
    return rollout


@pytest.mark.parametrize(
    ("gives", "reward", "answer"),
    [
        ("post('/episode/end', {'reward': 0.5, 'answer': said})", 0.5, "four"),
        ("open(os.environ['KANABO_REWARD_FILE'], 'w').write('0.25')", 0.25, None),
        ("json.dump({'reward': 1, 'answer': said}, open(os.environ['KANABO_REWARD_FILE'], 'w'))", 1.0, "four"),
        ("pass", float("nan"), None),
    ],
)
async def test_a_program_gives_its_reward_by_a_call_or_a_file(gives, reward, answer):
    rollout = await play(f"said = ask()\n{gives}")
    assert rollout.reward == pytest.approx(reward, nan_ok=True)
    assert (rollout.answer, rollout.text, rollout.num_tokens) == (answer, "four", 5)


@pytest.mark.parametrize(("code", "reward"), [(0, 1.0), (1, 0.0)])
async def test_an_exit_code_can_be_the_reward(code, reward):
    rollout = await play(f"ask(); sys.exit({code})", reward_from_exit_code=True)
    assert rollout.reward == reward


async def test_a_program_is_given_its_task_its_variables_and_no_secret_of_the_worker(monkeypatch, tmp_path):
    monkeypatch.setenv("KANABO_ENDPOINT_KEY", "secret")
    monkeypatch.setenv("REDIS_URL", "secret")
    rollout = await play(
        """
        ask()
        assert task["id"] == "t" and task["answer"] == "four" and task["meta"] == {"level": 3}, task
        assert task["messages"] == [{"role": "user", "content": "2+2?"}] and task["prompt"] == "2+2?"
        assert "secret" not in os.environ.values() and os.environ["MINE"] == "1"
        assert os.getcwd() == os.environ["WHERE"]
        """,
        env={"MINE": "1", "WHERE": str(tmp_path)},
        cwd=str(tmp_path),
    )
    assert np.isnan(rollout.reward)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("ask(); print('no such tool'); sys.exit(3)", "ended with exit code 3: no such tool"),
        ("ask(); raise KeyError('x')", "exit code 1: KeyError: 'x'"),
        ("ask(); os.kill(os.getpid(), 9)", "signal SIGKILL"),
        ("pass", "without a turn of the policy"),
        ("ask(); open(os.environ['KANABO_REWARD_FILE'], 'w').write('good')", "'good'; a number or an object"),
        ("ask(); open(os.environ['KANABO_REWARD_FILE'], 'w').write('NaN')", "finite"),
        ("ask(); open(os.environ['KANABO_REWARD_FILE'], 'w').write('[1]')", "reward"),
        ("ask(); open(os.environ['KANABO_REWARD_FILE'], 'wb').write(b'\\xff')", "cannot be read"),
        ("os.environ['OPENAI_MODEL'] = 'gpt-9'; ask()", "model 'gpt-9' is not served here"),
        ("post('/chat/completions', {'model': 'policy', 'messages': task['messages'], 'top_p': 0.5})", "top_p = 0.5"),
        ("task['messages'][0]['content'] = 'a' * 10**7; ask()", "endpoint.max_body_mib"),
    ],
)
async def test_a_program_that_fails_is_a_data_failure_with_its_last_words(program, message):
    with pytest.raises(DataError, match=message):
        await play(program)


async def test_a_program_that_closes_in_mid_stream_leaves_its_turn_recorded():
    program = """
    import socket
    host, port = os.environ["OPENAI_BASE_URL"].split("/")[2].split(":")
    body = json.dumps({"model": "policy", "messages": task["messages"], "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\\r\\nHost: {host}:{port}\\r\\nContent-Length: {len(body)}\\r\\n"
    connection = socket.create_connection((host, int(port)))
    connection.sendall(f"{head}Authorization: Bearer {os.environ['OPENAI_API_KEY']}\\r\\n\\r\\n".encode() + body)
    assert connection.recv(20).startswith(b"HTTP/1.1 200")
    connection.close()
    open(os.environ["KANABO_REWARD_FILE"], "w").write("0.5")
    """
    rollout = await play(program)
    assert (rollout.reward, rollout.text, rollout.num_tokens) == (0.5, "four", 5)


async def test_a_program_that_reads_nothing_and_writes_much_is_no_trouble():
    program = """
    import os, sys
    for _ in range(3000):
        print("x" * 1000)
    sys.exit(4)
    """
    with pytest.raises(DataError, match="exit code 4: x"):
        await play(program, ask=False)


CHILDREN = """
import subprocess, time
open(os.environ["PIDS"], "a").write(f"{os.getpid()}\\n")
sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
for how in ({}, {"start_new_session": True}):
    open(os.environ["PIDS"], "a").write(f"{subprocess.Popen(sleeper, **how).pid}\\n")
ask()
"""


@pytest.mark.parametrize("ends", ["sys.exit(0)", "sys.exit(1)", "time.sleep(600)", "os.kill(os.getpid(), 9)"])
async def test_nothing_that_a_program_started_outlives_its_episode(ends, tmp_path):
    pids = tmp_path / "pids"
    began = time.monotonic()
    deadline_s = 3.0 if "sleep" in ends else 60.0
    with contextlib.suppress(DataError):
        await play(CHILDREN + ends, env={"PIDS": str(pids)}, timeout_s=deadline_s)
    assert time.monotonic() - began < 30
    started = list(map(int, pids.read_text().split()))
    assert len(started) == 3
    assert not [pid for pid in started if _runs(pid)]


async def test_an_episode_that_is_given_up_leaves_no_process(tmp_path):
    pids = tmp_path / "pids"
    playing = asyncio.create_task(play(CHILDREN + "time.sleep(600)", env={"PIDS": str(pids)}))
    for _ in range(600):
        if pids.exists() and len(pids.read_text().split()) == 3:
            break
        await asyncio.sleep(0.05)
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    assert not [pid for pid in map(int, pids.read_text().split()) if _runs(pid)]


def test_a_worker_that_is_killed_takes_its_programs_with_it():
    worker = """
    import os, subprocess, time
    from cluster.process.cleanup import end_marked_after_me
    end_marked_after_me("KANABO_EPISODE", "0123")
    for mark in ("0123-1", "4567-1"):
        started = subprocess.Popen(["sleep", "60"], env={**os.environ, "KANABO_EPISODE": mark}, start_new_session=True)
        print(started.pid, flush=True)
    time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(worker)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        its_own, another = (int(process.stdout.readline()) for _ in range(2))
        process.kill()
    try:
        assert _holds(lambda: not _runs(its_own), 20)
        assert _runs(another)
    finally:
        psutil.Process(another).kill()


def _holds(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'command' is missing"),
        ({"command": []}, "command"),
        ({"command": ["no-such-program-here"]}, r"command\[0\] = 'no-such-program-here' is no program"),
        ({"command": ["./run.sh"]}, r"'./run.sh' is no program"),
        ({"command": ["sh"], "cwd": "/nowhere"}, "cwd = '/nowhere' is no directory"),
        ({"command": ["sh"], "env": {"A": 1}}, "env"),
        ({"command": ["sh"], "timeout_s": -1}, "timeout_s"),
        ({"command": ["sh"], "comand": ["sh"]}, "unknown option 'comand'"),
    ],
)
def test_a_program_that_cannot_be_started_is_refused_before_a_run(options, message):
    with pytest.raises(ConfigError, match=message):
        build(ENVIRONMENTS, "program", options, "rollout.environment")


def test_a_program_may_stand_in_its_directory(tmp_path):
    script = Path(tmp_path / "run.sh")
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    build(ENVIRONMENTS, "program", {"command": ["./run.sh"], "cwd": str(tmp_path)}, "rollout.environment")
    assert os.access(script, os.X_OK)
