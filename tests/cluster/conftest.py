"""What tests here share: `kanabo` called in this process, and a disk that can be made slow or full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.commands import app
from tests.cluster.commands import Said


@pytest.fixture
def kanabo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Calls a command with its arguments."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def call(*arguments: object) -> Said:
        with pytest.raises(SystemExit) as ended:
            app.main([str(word) for word in arguments])
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`disk.c` as a library to preload."""
    library = tmp_path_factory.mktemp("shim") / "disk.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
    assert compiler, "no C compiler here; the README asks for one"
    source = Path(__file__).with_name("disk.c")
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library
