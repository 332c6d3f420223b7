"""The spans of a run as a picture of time: `trace.jsonl` in the run's directory, and Chrome's trace format made of it.

    workers ─► spans, with the reports they send anyway ─► driver ─► trace.jsonl ─► kanabo trace ─► ui.perfetto.dev

A worker is a process of the trace. Its rows hold spans that nest: those about one group, step or version stand in one
row, a span that begins while every row is taken gets a row of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.process.disk import FULL
from cluster.types.events import Span

log = logging.getLogger(__name__)

FILE, OLDER = "trace.jsonl", "trace.1.jsonl"
MOST_BYTES = 64_000_000
"""Size at which `trace.jsonl` takes the place of `trace.1.jsonl`: a run keeps at most two such files."""
SLACK_S = 1e-6
"""Clocks are read to the microsecond: a span may seem to end so much later than the one that it is in."""


class TraceWriter:
    """Appends spans to `trace.jsonl` of one run directory."""

    def __init__(self, directory: Path, most_bytes: int = MOST_BYTES) -> None:
        self._path, self._older, self._most = directory / FILE, directory / OLDER, most_bytes
        self._file = self._path.open("ab", buffering=0)

    def write(self, worker: str, spans: Sequence[Span]) -> None:
        """Write the spans of a worker as one line: `[worker, [[name, start_s, end_s, about], …]]`."""
        if not spans:
            return
        rows = [[s.name, round(s.start_s, 6), round(s.end_s, 6), s.about] for s in spans]
        try:
            self._file.write(json.dumps([worker, rows], separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.warning("%s cannot be written (%s): a trace without these spans goes on.", self._path, error)
        if self._file.tell() > self._most:
            self._file.close()
            self._path.replace(self._older)
            self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()


def read(directory: Path) -> Iterator[tuple[str, Span]]:
    """Yield worker and span of what a run has noted; lines that a crash tore are left out."""
    for path in (directory / OLDER, directory / FILE):
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    worker, rows = json.loads(line)
                    spans = [Span(str(name), float(begin), float(end), str(about)) for name, begin, end, about in rows]
                except (ValueError, TypeError):
                    continue
                for span in spans:
                    yield str(worker), span


def chrome_trace(found: Iterable[tuple[str, Span]], last_s: float | None = None) -> dict[str, Any]:
    """Return spans as Chrome's trace events (JSON object format); of the last `last_s` seconds alone, where given.

    Times are microseconds since the first span. Complete events of one row nest.
    """
    spans = list(found)
    newest = max((span.end_s for _, span in spans), default=0.0)
    kept = [(worker, s) for worker, s in spans if last_s is None or s.end_s >= newest - last_s]
    first = min((span.start_s for _, span in kept), default=0.0)
    workers: dict[str, list[Span]] = {}
    for worker, span in kept:
        workers.setdefault(worker, []).append(span)
    events: list[dict[str, Any]] = []
    for pid, worker in enumerate(sorted(workers, key=_order), 1):
        events.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": worker}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}})
        for row, span in in_rows(workers[worker]):
            start, end = round((span.start_s - first) * 1e6), round((span.end_s - first) * 1e6)
            event = {"ph": "X", "name": span.name, "pid": pid, "tid": row, "ts": start, "dur": end - start}
            events.append(event | ({"args": {"about": span.about}} if span.about else {}))
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"began_unix_s": f"{first:.6f}"}}


def in_rows(spans: Iterable[Span]) -> Iterator[tuple[int, Span]]:
    """Yield each span of a worker with the row, from 1, in which it neither overlaps another nor leaves its parent."""
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: (s.start_s, -s.end_s)):
        place = None
        for number, open_spans in enumerate(rows, 1):
            while open_spans and open_spans[-1].end_s <= span.start_s:
                open_spans.pop()
            inside = open_spans and open_spans[-1].about == span.about and span.end_s <= open_spans[-1].end_s + SLACK_S
            if inside:
                place = number
                break
            if not open_spans and place is None:
                place = number
        if place is None:
            rows.append([])
            place = len(rows)
        parent = rows[place - 1][-1] if rows[place - 1] else None
        if parent is not None and span.end_s > parent.end_s:
            span = Span(span.name, span.start_s, parent.end_s, span.about)
        rows[place - 1].append(span)
        yield place, span


def _order(worker: str) -> tuple[str, int, str]:
    """Sort `rollout-10` behind `rollout-9`."""
    role, _, number = worker.rpartition("-")
    return (role, int(number), "") if number.isdigit() else (worker, -1, worker)
