"""Stops asking a replica that fails, and tries it again after a while."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW = 20
MIN_CALLS = 10
MAX_INVALID_FRAC = 0.2
"""Our threshold: with a larger share of invalid answers among the last `WINDOW` the circuit opens …"""
MAX_IN_A_ROW = 5
"""… and at once after so many in a row: nobody is there."""


class CircuitBreaker:
    """closed ─(too many failures)─► open ─(pause)─► one trial ─► closed, or open again, for twice as long
    where somebody answered."""

    def __init__(
        self,
        *,
        pause_s: float = 5.0,
        longest_pause_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_pause_s = self._pause_s = pause_s
        self._longest_pause_s, self._clock = longest_pause_s, clock
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._open_until: float | None = None
        self._trying = False
        self.reason = ""
        """What failed last."""
        self.num_opened = 0

    @property
    def is_open(self) -> bool:
        return self._open_until is not None

    @property
    def failing(self) -> bool:
        """Did the last call fail?"""
        return self.is_open or (len(self._recent) > 0 and not self._recent[-1])

    @property
    def retry_in_s(self) -> float:
        return max(0.0, self._open_until - self._clock()) if self._open_until is not None else 0.0

    def ready(self) -> bool:
        """May a call go out now? An open circuit admits one trial when its pause is over."""
        return self._open_until is None or (not self._trying and self._clock() >= self._open_until)

    def begin(self) -> None:
        """A call goes out."""
        assert self.ready()
        self._trying = self.is_open

    def undecided(self) -> None:
        """The call ended in a way that says nothing about the replica."""
        self._trying = False

    def success(self) -> None:
        self._recent.append(True)
        if self.is_open and self._trying:
            self._open_until, self._trying, self._pause_s = None, False, self._first_pause_s
            self._recent.clear()

    def retract(self, reason: str) -> None:
        """An answer that counted as a success turns out to be unreadable."""
        if True in self._recent:
            self._recent.remove(True)
        self.failure(reason)

    def failure(self, reason: str, *, absent: bool = False) -> None:
        """With nobody there (`absent`) a trial costs the replica nothing, and the pause stays as it is."""
        self._recent.append(False)
        self.reason = reason
        if self.is_open:
            if self._trying:
                if not absent:
                    self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
                self._open(self._pause_s)
        elif self._fails_too_often():
            self._open(self._pause_s)

    def _fails_too_often(self) -> bool:
        calls, failed = len(self._recent), self._recent.count(False)
        in_a_row = calls >= MAX_IN_A_ROW and not any(list(self._recent)[-MAX_IN_A_ROW:])
        return in_a_row or (calls >= MIN_CALLS and failed > MAX_INVALID_FRAC * calls)

    def _open(self, pause_s: float) -> None:
        self._open_until, self._trying = self._clock() + pause_s, False
        self.num_opened += 1
