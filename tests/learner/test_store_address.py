"""Where the ranks' store listens."""

import socket
from pathlib import Path

from learner.engine.deepspeed_engine import rendezvous_store


def listening(port: int) -> set[str]:
    """Addresses, in hexadecimal as the kernel writes them, at which something of this machine listens on a port."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    found = (line[1].split(":") for line in lines if line[3] == "0A")
    return {address for address, number in found if int(number, 16) == port}


def test_the_ranks_store_listens_at_the_masters_address_alone():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    leader = rendezvous_store(0, 2, ("127.0.0.1", port), 20.0)
    assert listening(port) == {"0100007F"}
    other = rendezvous_store(1, 2, ("127.0.0.1", port), 20.0)
    other.set("key", "value")
    assert leader.get("key") == b"value"
