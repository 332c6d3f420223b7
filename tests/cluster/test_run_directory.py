"""A run's directory has one owner, with a Redis of the run's own or of somebody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from cluster import config, run
from cluster.driver import preflight
from cluster.process.lock import acquire_run_lock

RECIPE = Path(__file__).parents[2] / "deploy" / "recipes" / "quickstart.toml"


def test_a_run_lives_where_the_commands_look_for_it(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preflight.run_directory(config.parse({"run": {"name": "a"}})) == tmp_path / "runs" / "a"
    monkeypatch.setenv("KANABO_RUNS", str(tmp_path / "mine"))
    assert preflight.run_directory(config.parse({"run": {"name": "a"}})) == tmp_path / "mine" / "a"
    assert preflight.run_directory(config.parse({"run": {"name": "a", "dir": "here"}})) == tmp_path / "here" / "a"


@pytest.mark.parametrize("whose", ["embedded", "buffer.url"])
def test_a_second_run_in_a_live_runs_directory_is_refused_before_it_writes_anything(
    tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str], whose: str
):
    overrides = [f"run.dir={tmp_path}", "run.name=first"] + (
        [f"buffer.url={redis_url}"] if whose == "buffer.url" else []
    )
    with acquire_run_lock(tmp_path / "first"):
        with pytest.raises(typer.Exit) as refused:
            run.main(str(RECIPE), overrides)
        assert refused.value.exit_code == 2
        assert [file.name for file in (tmp_path / "first").iterdir()] == ["owner.lock"]
    said = "".join(capsys.readouterr().out.split())
    assert f"{tmp_path / 'first'}isinusebyprocess{os.getpid()}" in said
    with acquire_run_lock(tmp_path / "first"):  # free again
        pass


def started(*overrides: str) -> int:
    with pytest.raises(typer.Exit) as ended:
        run.main(str(RECIPE), list(overrides), dry_run=True)
    return ended.value.exit_code


THEIRS = {
    "a configuration": {"config.toml": "[mine]\n"},
    "a recipe of theirs": {"config.toml": RECIPE.read_text()},
    "another project": {".git/HEAD": "ref", "metrics.jsonl": '{"loss": 1}\n', "logs/a": "x", "checkpoints/last": "x"},
    "tables": {"samples.jsonl": "{}\n", "summary.json": "{}"},
    "boards": {"tensorboard/events": "x"},
    "another lock": {"owner.lock": "held by make", "error.txt": "mine"},
    "another id": {"id": "42", "groups/a": "x"},
    "a damaged one": {"id": "\0\0", "replay/a": "x"},
}


@pytest.mark.parametrize("what", THEIRS)
@pytest.mark.parametrize("linked", [False, True], ids=["", "by a link"])
def test_files_of_the_users_are_not_written_over(tmp_path: Path, capsys, what: str, linked: bool):
    folder = tmp_path / ("elsewhere" if linked else "mine")
    for name, text in THEIRS[what].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if linked:
        (tmp_path / "mine").symlink_to(folder)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    overrides = [f"run.dir={tmp_path}", "run.name=mine"]
    assert started(*overrides) == 2
    with pytest.raises(typer.Exit) as refused:
        run.main(str(RECIPE), overrides)
    assert refused.value.exit_code == 2
    assert before == {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    said = " ".join(capsys.readouterr().out.split())
    assert "is not the directory of a run" in said
    assert next(name for name in THEIRS[what] if name not in ("id", "owner.lock", ".git/HEAD")).split("/")[0] in said


def test_a_folder_of_the_users_without_such_names_may_hold_a_run(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert started(f"run.dir={tmp_path}", "run.name=mine") == 0


def test_a_run_that_was_killed_before_it_had_written_anything_may_be_started_again(tmp_path: Path):
    acquire_run_lock(tmp_path / "mine").close()
    (tmp_path / "mine" / "redis").mkdir()
    (tmp_path / "mine" / "config.toml").write_text(RECIPE.read_text())
    assert started(f"run.dir={tmp_path}", "run.name=mine") == 0


@pytest.mark.parametrize("kind", ["a file", "a dangling link", "a link to itself", "under a file"])
def test_a_place_where_no_directory_can_be_made_is_refused(tmp_path: Path, capsys, kind: str):
    runs = tmp_path / "runs"
    if kind == "a dangling link":
        runs.symlink_to(tmp_path / "nowhere")
    elif kind == "a link to itself":
        runs.symlink_to(runs)
    else:
        runs.write_text("mine")
    inner = runs / "deeper" if kind == "under a file" else runs
    assert started(f"run.dir={inner}", "run.name=mine") == 2
    assert f"'{runs}'" in " ".join(capsys.readouterr().out.split())
