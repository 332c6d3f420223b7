"""The picture of a run's time: rows in which spans nest, and files that stay small."""

from __future__ import annotations

import json

import pytest

from cluster.observability.trace import FILE, OLDER, TraceWriter, chrome_trace, in_rows, read
from cluster.process.spans import SpanLog
from cluster.types.events import Span
from tests.trace_rows import complete_events, overlaps


def test_spans_about_one_group_share_a_row_and_overlapping_groups_do_not():
    spans = [
        Span("group", 0.0, 10.0, "a"), Span("sample", 0.1, 8.1, "a"), Span("put", 8.1, 9.2, "a"),
        Span("group", 1.0, 11.0, "b"), Span("sample", 1.1, 9.1, "b"),
        Span("group", 10.5, 11.5, "c"),
    ]  # fmt: skip
    rows = {(span.name, span.about): row for row, span in in_rows(reversed(spans))}
    assert rows[("sample", "a")] == rows[("put", "a")] == rows[("group", "a")] == 1
    assert rows[("sample", "b")] == rows[("group", "b")] == 2
    assert rows[("group", "c")] == 1, "a row that is free again is taken again"
    assert not overlaps(complete_events(chrome_trace(("worker", span) for span in spans)))


def test_a_child_never_leaves_its_parent_by_a_rounding():
    spans = [Span("group", 5.0, 6.0, "a"), Span("put", 5.9, 6.0000005, "a")]
    rows = list(in_rows(spans))
    assert [row for row, _ in rows] == [1, 1]
    assert rows[1][1].end_s <= 6.0


def test_only_the_last_seconds_are_shown_if_so_asked():
    found = [
        ("worker", Span("old", 0.0, 1.0)),
        ("worker", Span("long", 0.0, 99.0)),
        ("worker", Span("new", 100.0, 101.0)),
    ]
    shown = complete_events(chrome_trace(found, last_s=10.0))
    assert [event["name"] for event in shown] == ["long", "new"]


def test_two_files_at_most_are_kept_and_torn_lines_are_left_out(tmp_path):
    writer = TraceWriter(tmp_path, most_bytes=500)
    for i in range(100):
        writer.write("worker", [Span("group", float(i), i + 1.0, f"policy/1/{i}")])
    writer.close()
    sizes = [(tmp_path / name).stat().st_size for name in (FILE, OLDER)]
    assert all(size < 600 for size in sizes)
    with (tmp_path / FILE).open("a") as file:
        file.write('["worker",[["group",1')
    starts = [span.start_s for _, span in read(tmp_path)]
    assert starts == sorted(starts)
    assert starts[-1] == 99.0
    assert 5 < len(starts) < 30


def test_a_span_that_raises_is_noted_and_taken_once():
    log = SpanLog()
    with pytest.raises(ZeroDivisionError), log.span("group", "a"):
        _ = 1 / 0
    (span,) = log.take()
    assert (span.name, span.about) == ("group", "a")
    assert log.take() == ()


def test_the_command_writes_what_perfetto_opens(tmp_path, kanabo):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("")
    assert kanabo("trace", "run", "--dir", tmp_path).code == 2, "nothing was noted"
    writer = TraceWriter(run)
    writer.write("rollout-10", [Span("group", 1.0, 3.0, "a")])
    writer.write("rollout-9", [Span("group", 1.5, 3.5, "b")])
    writer.close()
    said = kanabo("trace", "run", "--dir", tmp_path, "--json")
    assert said.code == 0
    answer = json.loads(said.out)
    assert (answer["workers"], answer["spans"]) == (2, 2)
    picture = json.loads((run / "trace.json").read_text())
    names = [event["args"]["name"] for event in picture["traceEvents"] if event["name"] == "process_name"]
    assert names == ["rollout-9", "rollout-10"]
    first = complete_events(picture)
    assert {(event["ts"], event["dur"]) for event in first} == {(0, 2_000_000), (500_000, 2_000_000)}
