"""What a run shows while it runs: one live table, and the summary at its end."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

console = Console(stderr=False)


def number(value: Any, form: str = ".3g") -> str:
    return "–" if value is None or value != value else format(value, form)


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds; a dash for what is unknown."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def show_facts(title: str, facts: Mapping[str, Any]) -> None:
    """A line each."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    for key, value in facts.items():
        shown = number(value, ".4g") if isinstance(value, float) or value is None else str(value)
        table.add_row(key, "none" if value in ({}, "") else shown)
    console.print(table)


COLUMNS = ("step", "loss", "reward", "accuracy", "tokens/s", "staleness", "outstanding", "learner waited")
IMPORTANCE = (0, 2, 1, 3, 4, 7, 5, 6)
"""Places of the columns: the first stay where a terminal is narrow."""


def _is_open_file(stream: Any) -> bool:
    """Whether somebody may be waiting at its other end; a caller that keeps the output in memory is not."""
    try:
        return stream.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False


class LiveTable:
    """The last steps, and a line on what the learner waits for. On a pipe it prints lines of progress instead."""

    SHOWN = 12
    SHORT = 100
    """Steps of a run that prints each of them on a pipe; a longer one prints every tenth."""
    SILENT_S = 8.0
    """On a pipe, a line of progress is printed after so long without one."""

    def __init__(self, name: str, steps: int, enabled: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._steps, self._enabled, self._clock = name, steps, enabled, clock
        self._rows: list[tuple[str, ...]] = []
        self._state = "starting"
        self._begun = self._printed = clock()
        self._first: tuple[int, float] | None = None
        """The first step that was seen in this life, and when: the pace is measured from there."""
        self._left_s: float | None = None
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick_on, name="progress", daemon=True)
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._live = (
            Live(get_renderable=self._render, console=console, refresh_per_second=2)
            if enabled and console.is_terminal
            else None
        )

    def __enter__(self) -> LiveTable:
        if self._live:
            before = sys.stderr
            self._live.start(refresh=True)
            # Log lines go through the table's console: past it they would tear the header.
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                    self._handlers.append((handler, before))
                    handler.setStream(sys.stderr)
        elif self._enabled and _is_open_file(console.file):
            self._ticker.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the table as it is, and print no more lines. The second call has no effect."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._ticker.is_alive():
            self._ticker.join()
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers.clear()
        if self._live:
            self._live.transient = not self._rows  # without a step there is nothing to leave on the screen
            self._live.stop()

    def step(self, step: int, row: Mapping[str, float]) -> None:
        now = self._clock()
        if self._first is None or step <= self._first[0]:  # the first, or the run went back to a checkpoint
            self._first = (step, now)
            self._left_s = None
        else:
            first, since = self._first
            self._left_s = (now - since) / (step - first) * max(0, self._steps - step)
        self._rows.append(
            (
                f"{step}/{self._steps}",
                number(row.get("loss/total"), ".4f"),
                number(row.get("reward/mean"), ".3f"),
                number(row.get("eval/accuracy"), ".3f"),
                number(row.get("rollout/tokens_per_s"), ",.0f"),
                number(row.get("policy/staleness_steps"), ".2f"),
                number(row.get("buffer/outstanding_groups"), ".0f"),
                f"{number(row.get('learner/wait_s'), '.2f')} s",
            )
        )
        del self._rows[: -self.SHOWN]
        if self._live:
            self._live.refresh()
        elif self._enabled and (self._steps <= self.SHORT or step % 10 == 0 or step in (1, self._steps)):
            step_, loss, reward, accuracy, rate, stale, groups, wait = self._rows[-1]
            self._print(
                f"step {step_}  loss {loss}  reward {reward}  accuracy {accuracy}  {rate} tokens/s  staleness {stale}  "
                f"{groups} groups outstanding  waited {wait}  {self._times()}"
            )

    def waiting(self, text: str) -> None:
        """Set what the run is at, for the table and for the lines that appear when nothing else does."""
        self._state = text
        if self._live:
            self._live.refresh()

    def warning(self, text: str) -> None:
        """Print what is wrong, above the table where there is one."""
        console.print(f"[yellow]warning[/] {escape(text)}", highlight=False, soft_wrap=True)

    def state(self, text: str) -> None:
        """What the run as a whole is doing."""
        self.waiting(text)
        if self._enabled and not self._live:
            self._print(text, style="dim")

    def tick(self) -> None:
        """On a pipe, print where the run is if nothing was printed for `SILENT_S`."""
        if self._enabled and not self._live and self._clock() - self._printed >= self.SILENT_S:
            at = f"step {self._rows[-1][0]}  " if self._rows else ""
            self._print(f"{at}{self._state}  {self._times()}", style="dim")

    def _tick_on(self) -> None:
        while not self._closed.wait(1.0):
            self.tick()

    def _print(self, text: str, style: str | None = None) -> None:
        self._printed = self._clock()
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def _times(self) -> str:
        return f"elapsed {duration(self._clock() - self._begun)}, left {duration(self._left_s)}"

    def _render(self) -> Table | Text:
        title = f"kanabo · {self._name} · {self._times()}"
        if not self._rows:
            return Text(f"{title} · {self._state}", overflow="fold")
        table = Table(title=title, caption=self._state, title_justify="left", caption_justify="left")
        for at in self._columns():
            table.add_column(COLUMNS[at], justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*(row[at] for at in self._columns()))
        return table

    def _columns(self) -> list[int]:
        """The columns that fit beside one another, whole: a header that is cut says nothing."""
        left, fitting = console.width - 1, []
        for at in IMPORTANCE:
            left -= 3 + max(len(text) for text in (COLUMNS[at], *(row[at] for row in self._rows)))
            if left < 0:
                break
            fitting.append(at)
        return sorted(fitting)
