"""`kanabo`, called in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster import cli
from tests.cluster.commands import Said


@pytest.fixture
def kanabo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Calls a command with its arguments."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def call(*arguments: object) -> Said:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in arguments])
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return call
