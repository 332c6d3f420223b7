"""Run directories made by hand, for the console."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient

from cluster import config
from cluster.observability.console import server
from cluster.observability.console.source import Alive, Source
from cluster.storage import group_archive
from cluster.types import FAILED, SCORED, BatchRecord, Claim, Group, Provenance, Scores, Task
from tests.cluster.pipeline import group_of

VERDICT = Scores(
    np.array([1.0, np.nan]),
    np.array([SCORED, FAILED], np.uint8),
    (Provenance("tutor", "judge-7b", latency_s=1.5, note="Well done."), Provenance("tutor", note="no answer")),
    "rubric-3",
)


def write_run(directory: Path, *rows: dict) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.toml").write_text(config.dump(config.RunConfig()))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def group(seq: int, prompt: str = "2 + 2") -> Group:
    made = group_of(Claim(f"policy/1/{seq}", "policy", 1, seq, seq, 0, "token"))
    return replace(made, task=Task.of(f"sums/{seq}", prompt, "4"))


def keep(
    directory: Path,
    step: int,
    groups: list[Group],
    rewards: tuple[float, float],
    scores: Scores | dict[str, Scores] = VERDICT,
    **options,
) -> None:
    keeper = group_archive.GroupArchive(
        directory / "groups", options.get("limit", 10**6), done=options.get("done", 10**6)
    )
    n = len(groups)
    credit = (tuple(np.array([r], np.float32) for r in (0.5, -0.5)),) * n
    record = BatchRecord("policy", step - 1, tuple(g.id for g in groups), (np.array(rewards),) * n, credit)
    learners = [tuple(np.where(r.loss_mask, r.logprobs + np.float32(0.25), np.nan) for r in g.rollouts) for g in groups]
    evidence = scores if isinstance(scores, dict) else {"judge": scores}
    keeper.add(step, groups, record, {g.id: evidence for g in groups}, options.get("learners", learners))
    keeper.finish()


def client(directory: Path, alive: Alive | None = None, token: str | None = None) -> TestClient:
    return TestClient(server.app(Source(directory, alive), token), raise_server_exceptions=True)
