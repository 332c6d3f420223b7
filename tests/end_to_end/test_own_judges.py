"""Judges that the run places, and judges that die: nobody waits for a non-blocking one, and no failure is a number."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.commands.run_lookup import connected
from cluster.placement.ray_runtime import mapped_shared_memory
from cluster.process.http_limits import is_loopback
from cluster.storage import group_archive
from cluster.types import SCORED, Scores, decode
from rewards.judges.backends import serve
from rewards.judges.pool.archive import Record
from rewards.learned.caption_labels import WORDS, read_label
from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE
from tests.end_to_end.test_scale import scale
from tests.models import random_llama

pytestmark = pytest.mark.job

DIGITS = ", ".join(f'"{d}" = "level"' for d in range(10))
# What a judge in one Python process can follow: it would label nothing in time of 200 rollouts a second.
PACE = [
    "rollout.group_size=4",
    "learner.groups_per_step=4",
    "rollout.concurrent_groups=8",
    "engine.options={delay_s=0.5}",
]
SHORT = f'{{ instructions = "judge", body = "{{question}}{{response}}=", levels = {{ {DIGITS} }} }}'


def recipe(tmp_path: Path, *judges: str, blocking: bool = False, alone: bool = False, **rewards: str) -> str:
    """The quickstart with a reward per judge, by name; `alone`: without its own."""
    weight = "weight = 1.0\n" if alone else "weight = 0.0\n"
    asked = "".join(
        f'[[rewards]]\nuse = "judge"\nname = "{name}"\nblocking = {str(blocking).lower()}\n{weight}{more}\n'
        f'options = {{ judge = "{name}", min_mass = 1e-6, template_options = {SHORT} }}\n\n'
        for name, more in rewards.items()
    )
    text = (jobs.ROOT / "deploy" / "recipes" / "quickstart.toml").read_text()
    if alone:
        before, _, after = text.partition("[[rewards]]")
        text = before + "[learner]" + after.partition("[learner]")[2]
    path = tmp_path / "judged.toml"
    path.write_text(text.replace("[learner]", asked + "\n".join(judges) + "\n[learner]", 1))
    return str(path)


def scores_of(run: Path, name: str) -> Iterator[tuple[int, Scores]]:
    """(step, scores) of trained groups, as far as they had scores when the batch was cut."""
    for path in group_archive.files(run / "groups"):
        groups = []
        with contextlib.suppress(FileNotFoundError):  # trimmed meanwhile: the run goes on
            groups = [group_archive.read(path, entry) for entry in group_archive.index(path)]
        for group in groups:
            if name in group.scores:
                yield group.step, group.scores[name]


def known(run: Path, name: str, *, after: int = 0) -> list[Scores]:
    found = [s for step, s in scores_of(run, name) if step > after and (s.state == SCORED).any()]
    for _, scores in scores_of(run, name):
        assert all(math.isnan(v) for v in scores.values[scores.state != SCORED]), "a failure became a number"
    return found


def models_of(run: Path, name: str) -> list[str]:
    """Who judged, one entry per scored rollout, in the order of the steps."""
    return [
        p.model for s in known(run, name) for p, state in zip(s.provenance, s.state, strict=True) if state == SCORED
    ]


def newest(run: Path) -> int:
    return max((r["step"] for r in jobs.rows(run) if "learner/step_s" in r), default=0)


def rollouts_of(run: Path) -> float:
    """Groups claimed so far."""
    with connected(run) as connection:
        return float(connection.redis.hget(f"{connection.prefix}policy:policy:state", "seq") or 0)


def until(condition: Callable[[], object], process: subprocess.Popen, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"the job ended early with {process.returncode}:\n{jobs.tail(log)}"
        assert time.monotonic() < deadline, f"it did not happen within {timeout_s} s:\n{jobs.tail(log)}"
        time.sleep(0.5)


def archived(run: Path) -> list[Record]:
    with connected(run) as connection:
        keys = connection.redis.keys(f"{connection.prefix}judged:*")
        return [decode(row, Record) for key in keys for row in connection.redis.lrange(key, 0, -1)]


@contextmanager
def judged(tmp_path: Path, path: str, *overrides: str) -> Iterator[tuple[subprocess.Popen, Path, Path]]:
    log, run = tmp_path / "log", tmp_path / "judged"
    options = [*overrides, f"run.dir={tmp_path}", "run.name=judged", "learner.steps=100000", "engine.max_model_len=512"]
    process = jobs.start(options, recipe=path, log=log)
    try:
        yield process, log, run
        process.terminate()
        assert process.wait(90) == 0, jobs.tail(log)
    finally:
        jobs.end(process)
    summary = jobs.summary(run)
    saved = run / "checkpoints" / f"global_step_{summary['steps']}" / "manifest.json"
    assert saved.exists(), "a run that is asked to stop saves the step that it has reached"
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0


def stand_in(port: int) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-m", "tests.end_to_end.stand_in", str(port)], cwd=jobs.ROOT)
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.1)
    raise AssertionError("the stand-in does not listen")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.verify
def test_the_policy_judges_itself_and_says_which_version_did(tmp_path):
    path = recipe(tmp_path, '[judges.self]\nkind = "policy"', blocking=True, self="")
    with judged(tmp_path, path, *FAKE, "engine.use=tests.fakes:Marking") as (process, log, run):
        until(lambda: len(set(models_of(run, "self"))) >= 3, process, log, 240)
        # In this order: the run goes on, and an answer is in the archive before its score is anywhere.
        models = models_of(run, "self")
        records = archived(run)
    assert all(m.startswith("policy@1.") for m in models)
    versions = [int(m.removeprefix("policy@1.").rpartition(".")[2].partition("-")[0]) for m in models]
    assert min(versions) == 0, "the first weights judge what the first step is trained on"
    assert versions[-1] > versions[0], "the version that judges does not advance with the policy"
    assert len({s.version for s in known(run, "self")}) == 1, "a new policy must not have the whole store judged again"
    assert {r.completions[-1].version for r in records if r.completions} >= {m.removeprefix("policy@") for m in models}
    # Rewards that are all equal, as the fast engine earns, have no order to agree with, and no sign to flip.
    shadows = [r["reward/self_sign_flip_frac"] for r in jobs.rows(run) if "reward/self_sign_flip_frac" in r]
    assert shadows
    assert set(shadows) == {0.0}


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_a_run_outlives_its_judge(tmp_path):
    port = free_port()
    section = f'[judges.away]\nurls = ["http://127.0.0.1:{port}/v1"]\nmodel = "stand-in"\ndeadline_s = 8.0'
    server = stand_in(port)
    try:
        path = recipe(tmp_path, section, away="timeout_s = 10.0")
        with judged(tmp_path, path, *FAKE, *PACE) as (process, log, run):
            until(lambda: known(run, "away"), process, log, 120)
            server.kill()
            server.wait()
            time.sleep(10)
            begun, rollouts = newest(run), rollouts_of(run)
            time.sleep(20)
            during = newest(run)
            assert during > begun + 5, "the learner waited for a judge that is away"
            assert rollouts_of(run) > rollouts
            assert not known(run, "away", after=begun + 2), "who judged?"
            server = stand_in(port)
            until(lambda: known(run, "away", after=newest(run) - 3), process, log, 60)
    finally:
        server.kill()
        server.wait()


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_a_run_whose_only_reward_is_a_judge_waits_for_it_and_says_so(tmp_path):
    port = free_port()
    section = f'[judges.away]\nurls = ["http://127.0.0.1:{port}/v1"]\nmodel = "stand-in"\ndeadline_s = 300.0'
    server = stand_in(port)
    try:
        path = recipe(tmp_path, section, blocking=True, alone=True, away="timeout_s = 300.0")
        limits = ["reward_workers.deadline_s=300", "learner.drop_zero_variance=false", "run.progress_timeout_s=45"]
        log, run = tmp_path / "log", tmp_path / "judged"
        overrides = [*FAKE, *limits, f"run.dir={tmp_path}", "run.name=judged", "learner.steps=100000"]
        process = jobs.start(overrides, recipe=path, log=log)
        try:
            jobs.wait_for_step(run, 3, process, log, timeout_s=240)
            server.kill()
            server.wait()
            time.sleep(5)
            paused_at = newest(run)
            time.sleep(20)
            assert newest(run) == paused_at, "it trains on something"
            server = stand_in(port)
            jobs.wait_for_step(run, paused_at + 3, process, log, timeout_s=60)
            server.kill()
            server.wait()
            assert process.wait(120) == 1
        finally:
            jobs.end(process)
        said = jobs.tail(log)
        assert "judge 'away': no replica answers" in said.replace("\n", " ")
    finally:
        server.kill()
        server.wait()


@pytest.mark.verify
@pytest.mark.timeout(1800)
def test_a_server_of_the_run_s_own_judges_and_is_replaced_when_it_dies(tmp_path):
    model = random_llama(tmp_path / "model", tied=False, chat=True)
    section = (
        f'[judges.own]\nkind = "vllm"\nmodel = "{model}"\n'
        "options = { max_model_len = 512, enforce_eager = true, kv_cache_memory_bytes = 67108864, max_num_seqs = 8 }\n"
        '[judges.self]\nkind = "policy"\n'
    )
    path = recipe(tmp_path, section, own="", self="")
    pace = ["learner.drop_zero_variance=false", "rollout.concurrent_groups=2", "learner.groups_per_step=2"]
    with judged(tmp_path, path, *jobs.TINY, *pace) as (process, log, run):
        jobs.wait_for_step(run, 1, process, log, timeout_s=600)
        until(lambda: known(run, "own") and known(run, "self"), process, log, 600)
        scale(run, "judge:own=1", wait_s=60)
        (server,) = (p for p in jobs.tree(process) if serve.__name__ in _command(p))
        children = server.children(recursive=True)
        shared = mapped_shared_memory(server.pid)
        os.kill(server.pid, signal.SIGKILL)
        died_at = newest(run)
        assert jobs.left_after(children, 30) == [], "the dead server's engine lives on"
        until(lambda: known(run, "own", after=died_at + 5), process, log, 600)
        records = archived(run)
    assert shared, "no engine without shared memory"
    assert not [p for p in shared if p.exists()], "a dead server's shared memory is still there"
    own = known(run, "own")
    assert {m.partition("@")[0] for m in models_of(run, "own")} == {str(model)}
    assert all(s.provenance[0].prompt_hash and s.provenance[0].prompt_hash in s.version for s in own)
    assert str(model) in own[0].version
    raw = {c.text for r in records if r.judge.startswith("own:") for c in r.completions}
    assert raw, "no raw answer was archived"
    assert {m.partition("@")[0] for m in models_of(run, "self")} == {"policy"}


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_a_judge_on_cpus_that_is_told_nothing_of_memory_starts_and_no_other_machine_reaches_the_run(tmp_path):
    model = random_llama(tmp_path / "model", tied=False, chat=True)
    section = (
        f'[judges.own]\nkind = "vllm"\nmodel = "{model}"\noptions = {{ max_model_len = 512, enforce_eager = true }}'
    )
    path = recipe(tmp_path, section, own="")
    pace = ["learner.drop_zero_variance=false", "rollout.concurrent_groups=2", "learner.groups_per_step=2"]
    with judged(tmp_path, path, *jobs.TINY, *pace, "learner.ranks=2") as (process, log, run):
        until(lambda: known(run, "own"), process, log, 600)
        listening = set()
        for one in jobs.tree(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                found = [c.laddr.ip for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN]
                listening |= {(one.name(), address) for address in found}
        restarts = jobs.tail(log, 10**6).count("died")
    print("SEEN", sorted(listening))
    assert {"raylet", "gcs_server"} <= {name for name, _ in listening}
    away = {(name, address) for name, address in listening if not is_loopback(address.removeprefix("::ffff:"))}
    assert not away
    assert restarts == 0


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.mark.verify
@pytest.mark.timeout(1800)
def test_a_small_language_model_in_its_own_engine_labels_what_a_game_says(tmp_path):
    """ONI on MiniHack with SmolLM2-135M-Instruct as the judge. Most of its answers are unreadable: no label."""
    pytest.importorskip("minihack")
    serve = "{max_model_len=2048,enforce_eager=true,kv_cache_memory_bytes=268435456,max_num_seqs=8}"
    overrides = [
        f'judges.judge={{kind="vllm",model="smollm2",deadline_s=120.0,options={serve}}}',
        "reward_models.oni.batch_size=4", "reward_models.oni.max_in_flight=2", "rollout.group_size=4",
        "rollout.concurrent_groups=4", "learner.groups_per_step=2", "evaluation.every_steps=0",
        "evaluation.max_tasks=2", "tracking.live_table=false",
    ]  # fmt: skip

    def told(run: Path, name: str) -> list[float]:
        return [r[key] for r in jobs.rows(run) if r.get(key := f"reward_model/oni_{name}") is not None]

    with judged(tmp_path, "oni_minihack.toml", *overrides) as (process, log, run):
        jobs.wait_for_step(run, 3, process, log, timeout_s=600)
        assert max(told(run, "num_labels"), default=0) < 2, "training waited for labels"
        until(lambda: max(told(run, "num_labels"), default=0) >= 2, process, log, 900)
        records = archived(run)
    asked = [r for r in records if r.judge.startswith("judge:")]
    assert asked
    assert {c.model.partition("@")[0] for r in asked for c in r.completions} == {"smollm2"}
    raw = [r.completions[0].text for r in asked]
    assert any(text.strip() for text in raw), "every raw answer is empty"
    readable = sum(read_label(text, WORDS) is not None for text in raw)
    assert told(run, "num_unreadable")[-1] <= len(raw) - readable
    if not readable:
        assert not told(run, "good_frac"), "an unreadable answer became a label"
