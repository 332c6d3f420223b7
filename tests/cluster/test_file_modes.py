"""Exports and checkpoints have the modes that the user's umask leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster import config
from cluster.commands.export import export
from cluster.commands.group_rows import writer
from cluster.process.lock import readable

RECIPE = Path(__file__).parents[2] / "deploy" / "recipes" / "quickstart.toml"


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def mask(request: pytest.FixtureRequest):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(directory: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in directory.rglob("*") if path.is_file()}


def checkpoint_of(run: Path) -> Path:
    """A checkpoint of a run that has its recipe and no figures."""
    source = weights(run / "checkpoints" / "global_step_3")
    (source / "manifest.json").write_text("{}")
    (run / "config.toml").write_text(config.dump(config.load(RECIPE)))
    return source


def weights(directory: Path) -> Path:
    directory.mkdir(parents=True)
    save_file({"w": torch.zeros(2)}, directory / "model.safetensors")
    (directory / "model.safetensors").chmod(0o600)  # as some versions of the library write it
    (directory / "config.json").write_text("{}")
    return directory


def test_what_a_library_wrote_privately_becomes_as_readable_as_any_file(tmp_path: Path, mask: int):
    readable(weights(tmp_path / "step" / "learner").parent)
    assert modes(tmp_path / "step") == {0o666 & ~mask}
    assert (tmp_path / "step").stat().st_mode & 0o777 == 0o777 & ~mask


def test_an_export_is_as_readable_as_any_file(tmp_path: Path, mask: int):
    source = checkpoint_of(tmp_path / "runs" / "mine")
    export(source, tmp_path / "out" / "model")
    assert modes(tmp_path / "out" / "model") == {0o666 & ~mask}
    assert (tmp_path / "out" / "model").stat().st_mode & 0o777 == 0o777 & ~mask


def test_an_export_leaves_what_lies_beside_its_target(tmp_path: Path):
    source = checkpoint_of(tmp_path / "runs" / "mine")
    mine = tmp_path / "out" / ".model.draft"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    export(source, tmp_path / "out" / "model")
    assert (mine / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".model.draft", "model"]


def test_a_written_table_leaves_what_lies_beside_it(tmp_path: Path):
    (tmp_path / ".rows.jsonl.draft").write_text("mine")
    with writer(tmp_path / "rows.jsonl") as write:
        write({"a": 1})
    assert (tmp_path / ".rows.jsonl.draft").read_text() == "mine"
    assert (tmp_path / "rows.jsonl").read_text() == '{"a": 1}\n'
