"""What tests here share: `kanabo` called in this process, and a disk that can be made slow or full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.commands import app
from cluster.observability import live_table
from tests.cluster.commands import Said


@pytest.fixture
def kanabo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Calls a command with its arguments."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(live_table.console, "_width", None)  # else it keeps what COLUMNS was when it was made
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


@pytest.fixture
def drive(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes the driver of a run whose actors are stand-ins."""
    import ray

    from cluster.driver import worker_pool
    from tests.cluster.stand_ins import Driver, StandIn

    def make(store: Any = None, url: str = redis_url, **run: Any) -> Driver:
        sections = {"run": run, "console": {"enabled": False}, "tracking": {"tensorboard": False}}
        driver = Driver(tmp_path, url, sections, store)
        for role in ("rollout", "reward"):
            monkeypatch.setitem(worker_pool.PLACE, role, lambda context, name, role=role: driver.place(role))
        monkeypatch.setattr("cluster.workers.place_learner", lambda context, policy, rank: driver.place("learner"))
        return driver

    monkeypatch.setattr(ray, "kill", StandIn.kill)
    monkeypatch.setattr(ray, "available_resources", dict)
    monkeypatch.setattr(worker_pool, "on_gpu", lambda: False)
    return make
