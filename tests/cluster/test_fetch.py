"""Published weights reach an engine's node, also when somebody has tidied up behind it."""

from __future__ import annotations

import socket

from cluster.types import Publication
from cluster.workers.rollout import RolloutActor


async def test_a_directory_that_was_tidied_away_is_made_again(tmp_path):
    published = tmp_path / "1.3.safetensors"
    published.write_bytes(b"weights")
    actor = RolloutActor.__new__(RolloutActor)  # without the engine, which fetching has no use for
    actor._fetched = tmp_path / "tidied" / "away"
    info = {"path": str(published), "host": socket.gethostname()}
    fetched = await actor._fetch(Publication("policy", 1, 3, info))
    published.unlink()
    assert (tmp_path / "tidied" / "away" / "1.3.safetensors").read_bytes() == b"weights"
    assert fetched == str(tmp_path / "tidied" / "away" / "1.3.safetensors")
