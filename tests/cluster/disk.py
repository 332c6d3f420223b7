"""A disk that is slow or full for servers started on it, and a server's sudden death."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.buffer.server import Store


@contextmanager
def disk(shim: Path, **how: object) -> Iterator[None]:
    """Whatever server is started inside has this disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(shim))
        for name, value in how.items():
            patch.setenv(name, str(value))
        yield


def kill(store: Store) -> None:
    watch = os.pidfd_open(store.pid)
    os.kill(store.pid, signal.SIGKILL)
    assert select.select([watch], [], [], 5)[0]
    os.close(watch)
    while store.alive():
        time.sleep(0.01)
