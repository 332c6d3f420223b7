"""Headers of safetensors files: what is in them, and whether they are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100 * 2**20


def header(file: Path) -> dict[str, dict[str, Any]]:
    """Name → dtype and shape of each tensor. Raises ValueError for a file that is cut short or is no such file."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            tensors = json.loads(opened.read(length)) if 0 < length <= MAX_HEADER_BYTES else None
        if not isinstance(tensors, dict):
            raise ValueError("is not whole")
        tensors.pop("__metadata__", None)
        ends = [tensor["data_offsets"][1] for tensor in tensors.values()]
        size = 8 + length + max(ends, default=0)
    except (
        OSError,
        UnicodeDecodeError,
        json.JSONDecodeError,
        RecursionError,
        TypeError,
        KeyError,
        IndexError,
    ) as error:
        raise ValueError("cannot be read") from error
    if file.stat().st_size != size:
        raise ValueError("is not whole")
    return tensors
