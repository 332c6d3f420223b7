"""What a worker did and when: spans for the trace of a run (`kanabo trace`)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.types.events import Span

MOST = 10_000
"""Spans that wait for the next report; the oldest are lost beyond that."""


class SpanLog:
    """Spans of one worker since it last reported them; thread-safe."""

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()  # the wall clock may be set while a span lasts
        self._spans: deque[Span] = deque(maxlen=MOST)

    def add(self, name: str, start: float, end: float, about: str = "") -> None:
        """Note a span between two readings of `time.monotonic`. `about` is what it is about, such as a group's id:
        spans about one thing nest."""
        self._spans.append(Span(name, start + self._offset_s, end + self._offset_s, about))

    @contextmanager
    def span(self, name: str, about: str = "") -> Iterator[None]:
        """Note how long the body takes, also when it raises."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(name, start, time.monotonic(), about)

    def take(self) -> tuple[Span, ...]:
        """Return and forget what was noted, in the order in which it ended."""
        return tuple(self._spans.popleft() for _ in range(len(self._spans)))
