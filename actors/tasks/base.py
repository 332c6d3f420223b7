"""What a source of tasks is."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.plugins import Plugin
from cluster.types import Task


class TaskSource(Plugin):
    """Tasks to train on, and tasks never trained on."""

    def train(self) -> Sequence[Task]:
        raise NotImplementedError

    def heldout(self) -> Sequence[Task]:
        return ()
