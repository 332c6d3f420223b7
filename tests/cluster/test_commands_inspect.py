"""Stored groups, beside a live run and after one, as they are."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.buffer import Buffer, Limits
from cluster.buffer.connection import Connection
from cluster.buffer.server import Store
from cluster.commands import status
from cluster.types import Scores
from tests.cluster.commands import make_run
from tests.cluster.pipeline import Pipeline, group_of, store_as_version_01
from tests.cluster.runs import group, keep


def fill(url: str, name: str, *, by_version_01: bool = False) -> None:
    """Two groups that are trained, two assembled, two ready, one pending with half its scores, one leased."""
    buffer = Buffer(url, name)
    pipeline = Pipeline(buffer, Limits(groups_per_step=2, max_staleness=2, blocking=("exact", "late")))
    pipeline.iteration()
    pending, _ = pipeline.claim_all()
    buffer.put(group_of(pending))
    buffer.score(pending.id, {"exact": Scores.of([1.0, None])})
    pipeline.assemble()
    if by_version_01:
        store_as_version_01(buffer)
    buffer.close()


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A run that has ended, with its own Redis."""
    run = make_run(tmp_path_factory.mktemp("runs"), "a")
    with Store(run / "redis") as store:
        fill(store.url, "a")
    return run


def keys_of(url: str, name: str) -> dict[bytes, Any]:
    connection = Connection(url, name)
    found = {key: connection.redis.dump(key) for key in connection.redis.scan_iter(f"{connection.prefix}*")}
    connection.close()
    return found


def test_all_groups_of_an_ended_run_are_shown_as_they_are(kanabo, stored):
    rows = kanabo("inspect", stored, "--json").document
    expected = ["trained", "trained", "assembled", "assembled", "ready", "ready", "pending", "leased"]
    assert [row["state"] for row in rows] == expected
    assert [row["step"] for row in rows] == [1, 1, 2, 2, None, None, None, None]
    trained, pending, leased = rows[0], rows[6], rows[7]
    assert (trained["rewards"], trained["reward_mean"]) == ([1.0, 0.0], 0.5)
    assert rows[4]["reward_mean"] is None
    (score,) = pending["scores"]
    assert (score["reward"], score["values"], score["states"]) == ("exact", [1.0, None], ["scored", "failed"])
    assert (pending["prompt"], pending["rollouts"][0]["text"], pending["rollouts"][0]["num_tokens"]) == (
        "2 + 2",
        "4",
        5,
    )
    assert (leased["prompt"], leased["rollouts"], leased["worker"]) == (None, [], "worker")


def test_a_run_that_version_01_stored_is_shown_like_any_other(kanabo, stored, tmp_path):
    run = make_run(tmp_path, "a")
    with Store(run / "redis") as store:
        fill(store.url, "a", by_version_01=True)
    states = [[row["state"] for row in kanabo("inspect", name, "--json").document] for name in (stored, run, run)]
    assert states[0] == states[1] == states[2]


def test_redis_of_an_ended_run_runs_no_longer_than_the_command(kanabo, stored):
    assert kanabo("inspect", stored).code == 0
    assert status.status(stored, status.held_locks()).state != "live"
    pid = int((stored / "redis" / "redis.pid").read_text()) if (stored / "redis" / "redis.pid").exists() else None
    assert pid is None or not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--state", "trained"], 2),
        (["--step", "1"], 2),
        (["--task", "0"], 1),
        (["--min-reward", "0.5"], 4),
        (["--min-reward", "0.6"], 0),
        (["--max-reward", "0.4"], 0),  # unknown is not below
        (["--limit", "3"], 3),
        (["--state", "assembled", "--limit", "1"], 1),
    ],
)
def test_filters(kanabo, stored, arguments, expected):
    assert len(kanabo("inspect", stored, *arguments, "--json").document) == expected


def test_jsonl_and_parquet_hold_the_same(kanabo, stored, tmp_path):
    from pyarrow import parquet

    rows = kanabo("inspect", stored, "--json").document
    for name in ("groups.jsonl", "groups.parquet"):
        told = kanabo("inspect", stored, "--to", tmp_path / name, "--json")
        assert told.document == {"groups": 8, "path": str(tmp_path / name)}
    assert [json.loads(line) for line in (tmp_path / "groups.jsonl").read_text().splitlines()] == rows
    assert parquet.read_table(tmp_path / "groups.parquet").to_pylist() == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["groups.jsonl", "groups.parquet"]


def test_trained_groups_that_redis_no_longer_has_are_shown_with_their_scores(kanabo, tmp_path):
    run = make_run(tmp_path, "ended")
    with Store(run / "redis") as store:
        fill(store.url, "ended")
    keep(run, 7, [group(100), group(101)], (1.0, 0.0))
    keep(run, 8, [group(102)], (0.0, 0.0))
    rows = kanabo("inspect", run, "--json").document
    assert [(row["state"], row["step"]) for row in rows[:3]] == [("trained", 7), ("trained", 7), ("trained", 8)]
    assert len(rows) == 3 + 8
    assert (rows[0]["reward_mean"], rows[0]["scores"][0]["reward"]) == (0.5, "judge")
    assert rows[0]["rollouts"][0]["text"] == "4"
    only = kanabo("inspect", run, "--step", 7, "--state", "trained", "--json").document
    assert [row["id"] for row in only] == [group(100).claim.id, group(101).claim.id]
    assert len(kanabo("inspect", run, "--state", "ready", "--json").document) == 2


def test_a_group_on_disk_and_in_redis_is_shown_once(kanabo, tmp_path):
    run = make_run(tmp_path, "both")
    with Store(run / "redis") as store:
        fill(store.url, "both")
    first = kanabo("inspect", run, "--json").document[0]
    again = group(0)
    keep(run, 1, [replace(again, claim=replace(again.claim, id=first["id"]))], (1.0, 0.0))
    rows = kanabo("inspect", run, "--json").document
    assert [row["id"] for row in rows].count(first["id"]) == 1
    assert len(rows) == 8


def test_every_reward_has_a_column_with_its_mean_score(kanabo, stored, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    head, *lines = [line for line in kanabo("inspect", stored).out.splitlines() if "│" in line or "┃" in line]
    assert "exact" in head
    columns = [cell.strip() for cell in head.strip("┃").split("┃")]
    pending = next(line for line in lines if "pending" in line).strip("│").split("│")
    assert pending[columns.index("exact")].strip() == "1.000", "what failed is no zero"


def test_a_file_without_groups_has_the_same_columns(kanabo, stored, tmp_path):
    from pyarrow import parquet

    kanabo("inspect", stored, "--to", tmp_path / "all.parquet")
    kanabo("inspect", stored, "--step", 99, "--to", tmp_path / "none.parquet")
    full, empty = (parquet.read_table(tmp_path / f"{name}.parquet") for name in ("all", "none"))
    assert (full.num_rows, empty.num_rows) == (8, 0)
    assert full.schema == empty.schema


def test_beside_a_live_run_nothing_is_changed(kanabo, tmp_path):
    run = make_run(tmp_path, "live")
    with Store(run / "redis") as store:
        fill(store.url, "live")
        before = keys_of(store.url, "live")
        assert len(kanabo("inspect", run, "--json").document) == 8
        assert "8 groups" in kanabo("inspect", run).out
        assert store.alive()
        assert keys_of(store.url, "live") == before


def test_a_redis_of_the_users_is_found_by_its_variable(kanabo, tmp_path, redis_url, monkeypatch):
    name = f"named-{os.getpid()}"
    fill(redis_url, name)
    run = make_run(tmp_path, name, url="env:SECRET_URL")
    told = kanabo("inspect", run, "--json")
    assert told.code == 2
    assert "has no SECRET_URL" in told.err
    monkeypatch.setenv("SECRET_URL", redis_url)
    assert len(kanabo("inspect", run, "--json").document) == 8
    # A password that was written into the recipe is not in config.toml.
    other = make_run(tmp_path / "b", name, url=redis_url)
    assert "KANABO_REDIS_URL" in kanabo("inspect", other).err
    monkeypatch.setenv("KANABO_REDIS_URL", redis_url)
    assert len(kanabo("inspect", other, "--json").document) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--state", "done"], "States: leased"),
        (["--to", "groups.csv"], ".jsonl nor .parquet"),
        (["--to", "/nowhere/groups.jsonl"], "is no directory"),
    ],
)
def test_what_cannot_be_done_is_said(kanabo, stored, arguments, message):
    told = kanabo("inspect", stored, *arguments)
    assert (told.code, told.out) == (2, "")
    assert message in told.err


def test_a_run_that_never_stored_anything_gets_no_redis(kanabo, tmp_path):
    run = make_run(tmp_path, "young")
    told = kanabo("inspect", run)
    assert told.code == 2
    assert not (run / "redis").exists()
