"""What a trace must hold to be drawn: complete events of one row nest."""

from __future__ import annotations

from collections import defaultdict
from typing import Any


def complete_events(picture: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events with a duration."""
    return [event for event in picture["traceEvents"] if event["ph"] == "X"]


def overlaps(events: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return pairs of one row of which neither holds the other, though they overlap."""
    rows: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        rows[event["pid"], event["tid"]].append(event)
    found = []
    for row in rows.values():
        around: list[dict[str, Any]] = []
        for event in sorted(row, key=lambda e: (e["ts"], -e["dur"])):
            while around and around[-1]["ts"] + around[-1]["dur"] <= event["ts"]:
                around.pop()
            if around and event["ts"] + event["dur"] > around[-1]["ts"] + around[-1]["dur"]:
                found.append((around[-1], event))
            around.append(event)
    return found
