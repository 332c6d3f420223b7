"""A full disk: a file that the disk does not take is written again until there is room, or until the run is to stop."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

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


def alone(flag: bool) -> bool:
    """What a process agrees on that writes by itself."""
    return flag


def until_written(
    write: Callable[[], T],
    what: str,
    told: Callable[[str], None],
    stopped: Callable[[], bool],
    agree: Callable[[bool], bool] = alone,
) -> T:
    """Return what `write` gives; call it again while the disk is full, and tell that.

    Where several ranks write together, all of them call this, and `agree` returns whether any of them says so: all
    write again if the disk of one is full. A `write` whose own calls are collective makes them all before it raises.
    Raises Stalled when the run is to stop meanwhile, and what else `write` raises.
    """
    while True:
        result: Any = None
        last: Exception | None = None
        try:
            result = write()
        except Exception as error:
            if not is_full(error):
                raise
            last = error
        if not agree(last is not None):
            return result
        why = one_line(last) if last is not None else "another rank has no room on its disk."
        said = f"{what} cannot be written: {why} Free space; nothing is lost."
        if last is not None:
            log.warning("%s Trying again every %.0f s, within run.progress_timeout_s.", said, RETRY_S)
        told(f"waits for room on the disk: {said}")
        for _ in range(round(RETRY_S / LOOK_S)):
            if agree(stopped()):
                raise Stalled(
                    f"asked to stop while {said} The next start goes on from the checkpoint before."
                ) from last
            time.sleep(LOOK_S)


Written = Callable[..., Any]
"""`until_written` of a process, which knows whom to tell and when to stop: (write, what, agree=alone) → the result."""


def written_at_once(write: Callable[[], T], what: str, agree: Callable[[bool], bool] = alone) -> T:
    """Return what `write` gives, or raise what it raises: `Written` where nothing waits for room."""
    return write()
