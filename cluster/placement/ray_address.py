"""Whether a Ray cluster answers at $RAY_ADDRESS, found out in seconds: Ray itself tries for minutes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from cluster.errors import ConfigError, one_line

ANSWER_S = 5.0
"""A cluster's head answers within this time, or it is not there."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""A client's first words in HTTP/2, which gRPC speaks (RFC 9113, section 3.4), with empty settings."""
SETTINGS = 4
"""Type of the frame that a server answers with."""


def check_address(address: str) -> None:
    """Raises ConfigError if nothing that speaks as Ray does answers at `address`."""
    host, port = _place_of(address)
    if port is None:
        return  # 'local', or a form that only Ray understands
    try:
        with socket.create_connection((host, port), timeout=ANSWER_S) as probe:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
                _greet(probe)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"RAY_ADDRESS = '{address}' cannot be joined: {one_line(error)} "
            "Start a cluster there, or unset RAY_ADDRESS to work on this machine alone."
        ) from error


def ray_folder() -> Path:
    """Where Ray keeps sockets and logs of its sessions on this machine."""
    return Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"


def _place_of(address: str) -> tuple[str, int | None]:
    if address == "auto":  # of the cluster that was last started on this machine
        note = ray_folder() / "ray_current_cluster"
        address = note.read_text().strip() if note.is_file() else ""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    return host.strip("[]"), int(port) if host and port.isdecimal() else None


def _greet(probe: socket.socket) -> None:
    """Raises ConnectionError if what listens does not answer in HTTP/2."""
    probe.sendall(HELLO)
    head = b""
    while len(head) < 9:
        more = probe.recv(9 - len(head))
        if not more:
            break
        head += more
    if len(head) < 9 or head[3] != SETTINGS:
        raise ConnectionError("what listens there is no Ray")
