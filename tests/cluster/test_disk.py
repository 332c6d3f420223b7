"""A file that a full disk does not take is written once there is room, or never if the run is to stop."""

from __future__ import annotations

import errno

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
    monkeypatch.setattr(disk, "LOOK_S", 0.0)
    looks = iter([False, False, True])
    with pytest.raises(Stalled, match=r"asked to stop while the checkpoint of step 3 cannot be written.* Free space"):
        until_written(full(9, LACKS_ROOM[0]), "the checkpoint of step 3", print, lambda: next(looks))


def test_another_failure_is_what_it_is():
    assert not is_full(OSError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        until_written(full(1, PermissionError("no")), "anchors.json", print, lambda: False)
