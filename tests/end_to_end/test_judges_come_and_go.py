"""Judges that join and leave a running job: by a wish, and by the age of their queue. No question is lost by it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.storage import group_archive
from cluster.types import SCORED
from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE
from tests.end_to_end.test_own_judges import archived, judged, newest, recipe, until
from tests.end_to_end.test_scale import scale
from tests.models import random_llama
from tests.verify.keep import keep

pytestmark = [pytest.mark.job, pytest.mark.verify]
AUTOSCALING = "[autoscaling.judges.own]\nmax_replicas = 2\ngrow_above_s = 2.0\nshrink_below_s = 1.0\ntimes = 2\n"


def section(model: Path) -> str:
    return (
        f'[judges.own]\nkind = "vllm"\nmodel = "{model}"\nmax_in_flight = 4\ndeadline_s = 110.0\n'
        "options = { max_model_len = 512, enforce_eager = true, kv_cache_memory_bytes = 67108864, max_num_seqs = 8 }\n"
    )


def asked(run: Path) -> set[str]:
    """Replicas that have answered, by address."""
    return {record.replica for record in archived(run)}


def servers(process: subprocess.Popen) -> list[psutil.Process]:
    return [p for p in jobs.tree(process) if "vllm.entrypoints.openai.api_server" in _command(p)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def trained(run: Path) -> Iterator[group_archive.ArchivedGroup]:
    for path in group_archive.files(run / "groups"):
        yield from (group_archive.read(path, entry) for entry in group_archive.index(path))


@contextmanager
def running(tmp_path: Path, more: str = "") -> Iterator[tuple[subprocess.Popen, Path, Path, Path]]:
    """A run whose groups wait for their verdicts, and sample slowly while the last of these files is there.

    In the end every group that was trained on has all of them: nothing that a judge was asked was lost.
    """
    slow = tmp_path / "slow"
    slow.touch()
    model = random_llama(tmp_path / "model", tied=False, chat=True)
    path = recipe(tmp_path, section(model), more, blocking=True, own="")
    options = [
        *FAKE, "engine.use=tests.fakes:MoodyEngine", f"engine.options.while_there={slow}", "rewards.1.timeout_s=120",
        "reward_workers.deadline_s=120", "rollout.concurrent_groups=1", "evaluation.max_tasks=1",
    ]  # fmt: skip
    with judged(tmp_path, path, *options) as (process, log, run):
        jobs.wait_for_step(run, 2, process, log, timeout_s=300)
        yield process, log, run, slow
    found = [scores for group in trained(run) for name, scores in group.scores.items() if name == "own"]
    assert len(found) > 20
    assert all((scores.state == SCORED).all() for scores in found), "a verdict was lost"
    assert not any(r.get("judge/own_invalid_frac", 0) for r in jobs.rows(run)), "a question was"
    assert max(r.get("workers/num_judge:own", 0) for r in jobs.rows(run)) <= 2
    said = log.read_text()
    assert [said.count(what) for what in ("judge:own: one more joins", "judge:own-1 leaves", "died")] == [1, 1, 0]


@pytest.mark.timeout(900)
def test_a_judge_joins_is_asked_and_leaves_by_a_wish(tmp_path):
    with running(tmp_path) as (process, log, run, _):
        assert len(asked(run)) == 1
        begun = time.monotonic()
        scale(run, "judge:own=2", wait_s=240)
        until(lambda: len(asked(run)) == 2, process, log, 30)
        joined_s = time.monotonic() - begun
        scale(run, "judge:own=1", wait_s=60)
        until(lambda: len(servers(process)) == 1, process, log, 60)
        alone_at = newest(run)
        until(lambda: newest(run) > alone_at + 2, process, log, 60)
    keep("judge_join", {"seconds_from_wish_to_first_answer": joined_s})


@pytest.mark.timeout(900)
def test_a_judge_joins_and_leaves_by_the_age_of_its_queue(tmp_path):
    with running(tmp_path, AUTOSCALING) as (process, log, run, slow):
        slow.unlink()  # questions come faster than one replica answers
        until(lambda: "judge:own: one more joins" in log.read_text(), process, log, 100)
        slow.touch()
        until(lambda: len(asked(run)) == 2, process, log, 300)
        until(lambda: len(servers(process)) == 1, process, log, 100)
    assert "judge:own: 2 are wanted for this load" in log.read_text()
