"""What foreign code this process runs now, where another process can read it while the interpreter stands still.

this process                                      file                        another process
a thread counts up while it gets the interpreter  count                       does the count stand still?
before each step of foreign code, and after it    slot: thread, mark          whose step has not ended?
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

SLOTS, SLOT_BYTES, HEAD_BYTES = 256, 512, 8
"""Steps that are marked at a time; bytes of a slot, its head included."""
BEAT_S = 0.25
_COUNT, _HEAD = Struct("<Q"), Struct("<II")


class Marks:
    """The writing side: a mapped file of one count, and of slots that hold a thread's id and its mark."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            file.truncate(HEAD_BYTES + SLOTS * SLOT_BYTES)
            self._map = mmap.mmap(file.fileno(), 0)
        self._free = list(range(HEAD_BYTES, len(self._map), SLOT_BYTES))
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="marks", daemon=True).start()

    @contextmanager
    def during(self, mark: bytes) -> Iterator[None]:
        """Name what this thread runs now. Longer marks are cut; beyond `SLOTS` at a time there is none."""
        try:
            place = self._free.pop()
        except IndexError:
            yield
            return
        mark = mark[: SLOT_BYTES - _HEAD.size]
        begin = place + _HEAD.size
        self._map[begin : begin + len(mark)] = mark
        _HEAD.pack_into(self._map, place, threading.get_native_id(), len(mark))
        try:
            yield
        finally:
            _HEAD.pack_into(self._map, place, 0, 0)
            self._free.append(place)

    def close(self) -> None:
        """Stop counting: what reads the file takes the process for one that stands still, with nothing marked."""
        self._ended.set()

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(BEAT_S):
            count += 1
            _COUNT.pack_into(self._map, 0, count)


def read(path: Path) -> tuple[int, dict[int, bytes]]:
    """Return the count, and the mark of each thread that is inside a step, by the thread's id."""
    data = path.read_bytes()
    marks: dict[int, bytes] = {}
    for place in range(HEAD_BYTES, len(data), SLOT_BYTES):
        thread, length = _HEAD.unpack_from(data, place)
        if length:
            marks[thread] = data[place + _HEAD.size : place + _HEAD.size + length]
    return _COUNT.unpack_from(data, 0)[0], marks
