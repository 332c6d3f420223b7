"""Whatever a data file holds: a row is a task that can be stored, or it is refused by name."""

from pathlib import Path

import pytest

from tests.actors import hostile_rows


def test_odd_rows_are_tasks_or_are_refused_by_name(tmp_path: Path):
    assert hostile_rows.read(tmp_path, 0, 400) > 100


@pytest.mark.verify
@pytest.mark.timeout(3600)
def test_many_odd_rows_are_tasks_or_are_refused_by_name(tmp_path: Path):
    assert hostile_rows.read(tmp_path, 1, 30_000) > 10_000
