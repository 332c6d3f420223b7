"""A full disk: a file that the disk does not take is written again until there is room, or until the run is to stop."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

from cluster.errors import Stalled, one_line

log = logging.getLogger(__name__)
T = TypeVar("T")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for a file."""
RETRY_S, LOOK_S = 10.0, 0.5
"""Between two attempts, and between two looks whether the run is to stop."""


def is_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that there is no room; safetensors tells the system's words alone."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if any(os.strerror(number) in str(seen) for number in FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def until_written(write: Callable[[], T], what: str, told: Callable[[str], None], stopped: Callable[[], bool]) -> T:
    """Return what `write` gives; call it again while the disk is full, and tell that.

    Raises Stalled when the run is to stop meanwhile, and what else `write` raises.
    """
    while True:
        try:
            return write()
        except Exception as error:
            if not is_full(error):
                raise
            said = f"{what} cannot be written: {one_line(error)} Free space; nothing is lost."
            last = error
        log.warning("%s Trying again every %.0f s, within run.progress_timeout_s.", said, RETRY_S)
        told(f"waits for room on the disk: {said}")
        until = time.monotonic() + RETRY_S
        while time.monotonic() < until:
            if stopped():
                raise Stalled(
                    f"asked to stop while {said} The next start goes on from the checkpoint before."
                ) from last
            time.sleep(LOOK_S)
