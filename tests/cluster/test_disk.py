"""A file that a full disk does not take is written once there is room, or never if the run is to stop."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from cluster.errors import Stalled
from cluster.process import disk
from cluster.process.disk import is_full, until_written


def full(times: int, error: Exception):
    """A write that fails so often."""
    left = iter(range(times))

    def write() -> str:
        if next(left, None) is not None:
            raise error
        return "written"

    return write


def wrapped() -> Exception:
    try:
        raise RuntimeError("cannot be saved") from OSError(errno.EDQUOT, "quota")
    except RuntimeError as error:
        return error


T = TypeVar("T")


class Ranks:
    """Two threads that agree as ranks do: whether any of them says so."""

    def __init__(self) -> None:
        self._barrier, self._said = threading.Barrier(2, timeout=20), [False, False]

    def agree(self, rank: int) -> Callable[[bool], bool]:
        def said(flag: bool) -> bool:
            self._said[rank] = flag
            self._barrier.wait()
            answer = any(self._said)
            self._barrier.wait()
            return answer

        return said


def on_both(call: Callable[[int], T]) -> list[T | Exception]:
    """What the call gives or raises on ranks 0 and 1, which run at once."""

    def run(rank: int) -> T | Exception:
        try:
            return call(rank)
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


LACKS_ROOM = [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    wrapped(),
]


@pytest.mark.parametrize("error", LACKS_ROOM)
def test_a_write_that_lacks_room_is_tried_again_and_said(error: Exception, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk, "RETRY_S", 0.0)
    told: list[str] = []
    assert until_written(full(2, error), "the checkpoint of step 3", told.append, lambda: False) == "written"
    assert len(told) == 2
    assert told[0].startswith("waits for room on the disk: the checkpoint of step 3 cannot be written")


def test_a_run_that_is_to_stop_does_not_wait_for_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk, "LOOK_S", 0.001)
    looks = iter([False, False, True])
    with pytest.raises(Stalled, match=r"asked to stop while the checkpoint of step 3 cannot be written.* Free space"):
        until_written(full(9, LACKS_ROOM[0]), "the checkpoint of step 3", print, lambda: next(looks))


def test_another_failure_is_what_it_is():
    assert not is_full(OSError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        until_written(full(1, PermissionError("no")), "anchors.json", print, lambda: False)


def test_all_ranks_write_again_while_the_disk_of_one_is_full(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk, "RETRY_S", 0.0)
    ranks, told = Ranks(), ([], [])
    writes = [full(0, LACKS_ROOM[0]), full(2, LACKS_ROOM[0])]
    counts = [0, 0]

    def write(rank: int) -> str:
        counts[rank] += 1
        return writes[rank]()

    done = on_both(
        lambda rank: until_written(
            lambda: write(rank), "step 3", told[rank].append, lambda: False, agree=ranks.agree(rank)
        )
    )
    assert done == ["written", "written"]
    assert counts == [3, 3]
    assert all("another rank has no room" in sentence for sentence in told[0])
    assert all("No space left" in sentence for sentence in told[1])


def test_a_stop_that_one_rank_hears_ends_the_wait_of_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk, "LOOK_S", 0.01)
    ranks = Ranks()
    done = on_both(
        lambda rank: until_written(
            full(9, LACKS_ROOM[0]), "step 3", lambda said: None, lambda: rank == 0, agree=ranks.agree(rank)
        )
    )
    assert [type(error) for error in done] == [Stalled, Stalled]
