"""Values of a row's columns as plain values that keep their type, and the text of a reference answer."""

from __future__ import annotations

import json
import math
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from cluster.errors import DataError

EXACT = 2**53
"""Up to here a float holds every integer."""


def find(row: Any, dotted: str) -> Any:
    """Return the value at `a.b.c`, or of a column whose name has these dots; None where there is nothing."""
    if isinstance(row, dict) and dotted in row:
        return row[dotted]
    for key in dotted.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def plain(value: Any, name: str) -> Any:
    """Return a value of a data file as MessagePack has it; dates, times, decimals and UUIDs become text.

    NaN, which is how tables write a missing value, becomes None.
    Raises DataError for binary and foreign values; `name` is the column, and the error adds the path within it.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): plain(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, f"{name}[{i}]") for i, inner in enumerate(value)]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta | Decimal | UUID):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raise DataError(
            f"column '{name}' holds binary data of {len(value)} bytes. Rewards and environments take text and "
            "numbers: write the file without that column, or with a path or a text in its place."
        )
    raise DataError(f"column '{name}' holds a {type(value).__name__}; text, numbers, lists and dicts are expected.")


def reference_text(value: Any) -> str | None:
    """Return the reference as text: `72.0` of a column of floats is "72", lists and dicts are JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        return str(int(value))
    return str(value)
