"""Published weights on their way to a worker: linked on the learner's node, else through Ray's object store."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.placement.ray_errors import INFRASTRUCTURE
from cluster.types import Publication
from cluster.workers.context import learner_name


def shared_memory() -> str | None:
    """Return a folder in memory for fetched files; None, the folder for temporary files, where there is none."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the two names are on different file systems."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)


class WeightFetcher:
    """Brings the published files of one policy into a folder of the worker's own, one at a time."""

    def __init__(self, run_id: str, policy: str, folder: Path) -> None:
        self._run_id, self._policy, self._folder = run_id, policy, folder

    async def fetch(self, publication: Publication) -> str:
        """Return the path of the file on this node. The file that was fetched before is removed.

        Raises FileNotFoundError if newer versions have pushed it out, if its learner has died, or if the learner
        pushes its weights and publishes no file.
        """
        if publication.file is None:
            raise FileNotFoundError(f"version {publication.version} of '{self._policy}' is published without a file")
        path = Path(publication.file.path)
        # Whatever tidies up /dev/shm may take the folder; what is missing then would pass for a version that is gone.
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.iterdir():
            old.unlink()
        fetched = self._folder / path.name
        if publication.file.host == socket.gethostname():
            # A link of our own: the publisher keeps few versions, and a file must not vanish while it is read.
            await asyncio.to_thread(link_or_copy, path, fetched)
            return str(fetched)
        try:
            learner: Any = ray.get_actor(learner_name(self._run_id, self._policy, 0))
            data: np.ndarray = await learner.blob.remote(str(path))
        except (ValueError, *INFRASTRUCTURE) as error:
            raise FileNotFoundError(f"'{path}' has died with the learner that published it") from error
        await asyncio.to_thread(fetched.write_bytes, data.data)
        return str(fetched)
