"""What the tests of the buffer and its server share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`disk.c` as a library to preload."""
    library = tmp_path_factory.mktemp("shim") / "disk.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
    assert compiler, "no C compiler here; the README asks for one"
    source = Path(__file__).with_name("disk.c")
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library
