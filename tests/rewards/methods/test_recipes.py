"""Every method's recipe can be run: it is read, its plug-ins are built, and its tasks and model fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import load
from cluster.driver import preflight

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "deploy" / "recipes" / "methods").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_passes_every_check(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    taught = tmp_path / "runs" / "quickstart" / "checkpoints" / "global_step_120"  # the teacher of `teacher`
    taught.mkdir(parents=True)
    for file in ("manifest.json", "config.json"):
        (taught / file).write_text("{}")
    settings = load(recipe, [f"run.dir={tmp_path}/runs"])
    assert settings.run.name == recipe.stem
    assert not preflight.everything(settings, preflight.run_directory(settings), online=False)
    assert recipe.read_text("utf-8").startswith("# ")
