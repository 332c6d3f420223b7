"""Progress of a run, on a pipe and in a terminal."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cluster.observability import live_table

ROW = {"loss/total": 0.1234, "reward/mean": 0.5, "learner/wait_s": 1.0}


@pytest.fixture(autouse=True)
def terminal_that_moves_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _shown(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(live_table, "console", Console(file=out, force_terminal=terminal, width=160, color_system=None))
    return out


def _printed(out: io.StringIO, steps: int, clock: Clock) -> list[str]:
    live = live_table.LiveTable("a run", steps, True, clock)
    for step in range(1, steps + 1):
        live.step(step, ROW)
    return [line for line in out.getvalue().splitlines() if line.startswith("step ")]


def test_a_short_run_prints_every_step_on_a_pipe(monkeypatch: pytest.MonkeyPatch):
    assert len(_printed(_shown(monkeypatch, False), 7, Clock())) == 7


def test_a_long_run_prints_its_first_last_and_every_tenth_step(monkeypatch: pytest.MonkeyPatch):
    lines = _printed(_shown(monkeypatch, False), 205, Clock())
    assert [line.split()[1] for line in lines[:2]] == ["1/205", "10/205"]
    assert lines[-1].split()[1] == "205/205"
    assert len(lines) == 22


def test_a_run_without_steps_prints_where_it_is_within_ten_seconds(monkeypatch: pytest.MonkeyPatch):
    out, clock = _shown(monkeypatch, False), Clock()
    live = live_table.LiveTable("a run", 5, True, clock)
    live.waiting("groups: 3 being sampled")
    printed = []
    for _ in range(30):  # the ticker asks once a second
        clock.now += 1
        before = out.tell()
        live.tick()
        if out.tell() > before:
            printed.append(clock.now)
    assert max(b - a for a, b in zip([100.0, *printed], printed, strict=False)) <= 9
    assert "groups: 3 being sampled  elapsed 0:00:08, left –" in out.getvalue()


def test_every_figure_of_a_line_of_progress_is_a_documented_metric(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    class Row(dict[str, float]):
        def get(self, key: str, default: float | None = None) -> float | None:  # type: ignore[override]
            asked.append(key)
            return default

    _shown(monkeypatch, False)
    live_table.LiveTable("a run", 5, True, Clock()).step(1, Row())
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    assert asked
    assert [key for key in asked if f"`{key}`" not in documented] == []


def test_progress_that_is_switched_off_prints_nothing(monkeypatch: pytest.MonkeyPatch):
    out, clock = _shown(monkeypatch, False), Clock()
    with live_table.LiveTable("a run", 5, False, clock) as live:
        live.step(1, ROW)
        clock.now += 60
        live.tick()
    assert out.getvalue() == ""


def test_time_left_follows_the_pace_of_this_life(monkeypatch: pytest.MonkeyPatch):
    out, clock = _shown(monkeypatch, False), Clock()
    live = live_table.LiveTable("a run", 50, True, clock)
    clock.now += 30  # engines start
    live.step(41, ROW)
    clock.now += 10
    live.step(42, ROW)
    first, second = out.getvalue().splitlines()
    assert first.endswith("elapsed 0:00:30, left –")
    assert second.endswith("elapsed 0:00:40, left 0:01:20")
    assert "loss 0.1234" in second


def test_a_roll_back_starts_the_measure_of_the_pace_again(monkeypatch: pytest.MonkeyPatch):
    out, clock = _shown(monkeypatch, False), Clock()
    live = live_table.LiveTable("a run", 50, True, clock)
    for step in (8, 9, 5):
        clock.now += 10
        live.step(step, ROW)
    assert out.getvalue().splitlines()[-1].endswith("left –")


def test_a_terminal_shows_times_and_loss_and_takes_log_lines_in(monkeypatch: pytest.MonkeyPatch):
    out, clock = _shown(monkeypatch, True), Clock()
    past = io.StringIO()
    monkeypatch.setattr(sys, "stderr", past)
    handler = logging.StreamHandler(past)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with live_table.LiveTable("a run", 5, True, clock) as live:
            live.step(1, ROW)
            logging.getLogger("a.worker").warning("one more joins")
    finally:
        root.removeHandler(handler)
    assert "one more joins" in out.getvalue()
    assert past.getvalue() == ""
    assert handler.stream is past
    assert "elapsed 0:00:00" in out.getvalue()
    assert "loss" in out.getvalue()
    assert "0.1234" in out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_a_header_is_never_cut_however_narrow_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int):
    out, clock = io.StringIO(), Clock()
    monkeypatch.setattr(live_table, "console", Console(file=out, force_terminal=True, width=width, color_system=None))
    long_values = {
        **ROW,
        "rollout/tokens_per_s": 1234567.0,
        "learner/wait_s": 12345.67,
        "buffer/outstanding_groups": 99999,
    }
    with live_table.LiveTable("a run", 100_000, True, clock) as live:
        for step in range(1, 30):
            clock.now += 1
            live.step(step, long_values)
    shown = out.getvalue()
    headers = {tuple(re.split(r"\W*[┃│]\W*", line.strip("┃│ \r\n"))) for line in shown.splitlines() if "┃" in line}
    assert headers
    for header in headers:
        assert set(header) <= set(live_table.COLUMNS), header
        assert header[0] == "step"
    assert "…" not in shown
    assert "elapsed" in shown
    if width >= 60:
        assert all({"step", "loss", "reward"} <= set(header) for header in headers)
    if width >= 120:
        assert all(header == live_table.COLUMNS for header in headers)


def test_before_the_first_step_a_terminal_shows_one_line_that_goes(monkeypatch: pytest.MonkeyPatch):
    out, clock = _shown(monkeypatch, True), Clock()
    with live_table.LiveTable("a run", 5, True, clock) as live:
        live.state("starting Ray")
        clock.now += 12
        live.state("starting engines")
    assert "kanabo · a run · elapsed 0:00:12, left – · starting engines" in out.getvalue()
    assert "┃" not in out.getvalue()


def test_what_a_run_does_before_its_first_step_is_said_on_a_pipe(monkeypatch: pytest.MonkeyPatch):
    out, clock = _shown(monkeypatch, False), Clock()
    live = live_table.LiveTable("a run", 5, True, clock)
    for state in ("checking the recipe", "starting Ray"):
        live.state(state)
        for _ in range(9):
            clock.now += 1
            live.tick()
    assert out.getvalue().splitlines() == [
        "checking the recipe", "checking the recipe  elapsed 0:00:08, left –",
        "starting Ray", "starting Ray  elapsed 0:00:17, left –",
    ]  # fmt: skip
