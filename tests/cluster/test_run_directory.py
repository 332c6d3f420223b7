"""A run's directory has one owner, with a Redis of the run's own or of somebody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from cluster import run
from cluster.own import own

RECIPE = Path(__file__).parents[2] / "deploy" / "recipes" / "quickstart.toml"


@pytest.mark.parametrize("whose", ["embedded", "buffer.url"])
def test_a_second_run_in_a_live_runs_directory_is_refused_before_it_writes_anything(
    tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str], whose: str
):
    overrides = [f"run.dir={tmp_path}", "run.name=first"] + (
        [f"buffer.url={redis_url}"] if whose == "buffer.url" else []
    )
    with own(tmp_path / "first"):
        with pytest.raises(typer.Exit) as refused:
            run.main(str(RECIPE), overrides)
        assert refused.value.exit_code == 2
        assert [file.name for file in (tmp_path / "first").iterdir()] == ["owner.lock"]
    said = "".join(capsys.readouterr().out.split())
    assert f"{tmp_path / 'first'}isinusebyprocess{os.getpid()}" in said
    with own(tmp_path / "first"):  # free again
        pass
