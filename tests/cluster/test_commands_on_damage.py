"""Commands about a run whose directory is damaged end with words and an exit code."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from cluster.commands import app
from tests.cluster.test_leftovers import spoil, whole

__all__ = ["whole"]
COMMANDS = (
    ("status", "RUN"), ("status", "RUN", "--json"), ("inspect", "RUN"), ("inspect", "RUN", "--json"),
    ("inspect", "RUN", "--step", "1"), ("export", "RUN", "--to", "OUT"),
    ("export", "RUN", "--step", "1", "--to", "OUT"), ("replay", "RUN", "--step", "1"), ("scale", "RUN", "rollout=2"),
)  # fmt: skip


def ask(whole: Path, directory: Path, seed: int, count: int) -> None:
    """Run `count` commands on directories with files that were changed at random."""
    draw = random.Random(seed)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    for number in range(count):
        here = directory / str(number)
        run = Path(shutil.copytree(whole, here / "quickstart"))
        for file in draw.sample(files, draw.choice((0, 1, 2, 4))):
            spoil(draw, run / file)
        names = {"RUN": str(run), "OUT": str(here / "out")}
        with pytest.raises(SystemExit) as ended:
            app.main([names.get(word, word) for word in draw.choice(COMMANDS)])
        assert ended.value.code in (0, 1, 2)
        shutil.rmtree(here)


def test_commands_on_damaged_runs_end_in_words(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ask(whole, tmp_path, 0, 60)


@pytest.mark.verify
@pytest.mark.timeout(3600)
def test_many_commands_on_damaged_runs_end_in_words(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ask(whole, tmp_path, 1, 3000)
