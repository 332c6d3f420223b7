"""Published weights reach an engine's node, also when somebody has tidied up behind it."""

from __future__ import annotations

import socket

import pytest

from cluster.types import Publication, WeightFile
from cluster.workers.weight_fetcher import WeightFetcher


async def test_a_directory_that_was_tidied_away_is_made_again(tmp_path):
    published = tmp_path / "1.3.safetensors"
    published.write_bytes(b"weights")
    fetcher = WeightFetcher("run", "policy", tmp_path / "tidied" / "away")
    file = WeightFile(str(published), socket.gethostname())
    fetched = await fetcher.fetch(Publication("policy", 1, 3, file))
    published.unlink()
    assert (tmp_path / "tidied" / "away" / "1.3.safetensors").read_bytes() == b"weights"
    assert fetched == str(tmp_path / "tidied" / "away" / "1.3.safetensors")


async def test_one_file_is_kept_at_a_time_and_one_that_is_gone_is_named(tmp_path):
    fetcher = WeightFetcher("run", "policy", tmp_path / "fetched")
    for step in range(2):
        path = tmp_path / f"1.{step}.safetensors"
        path.write_bytes(b"weights")
        await fetcher.fetch(Publication("policy", 1, step, WeightFile(str(path), socket.gethostname())))
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == ["1.1.safetensors"]
    gone = WeightFile(str(tmp_path / "1.2.safetensors"), socket.gethostname())
    with pytest.raises(FileNotFoundError):
        await fetcher.fetch(Publication("policy", 1, 2, gone))
    with pytest.raises(FileNotFoundError, match=r"version 1\.3 of 'policy' is published without a file"):
        await fetcher.fetch(Publication("policy", 1, 3))
