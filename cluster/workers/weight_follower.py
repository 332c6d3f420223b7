"""A model behind an alias, for an actor that follows where the alias points."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from cluster.storage.model_aliases import Model, Registry
from cluster.workers.context import RunContext

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often to look whether the alias stands for other weights now."""


class WeightFollower:
    """Raises ConfigError for an alias that stands for nothing on disk."""

    def __init__(self, context: RunContext, alias: str) -> None:
        self._registry = Registry(context.config, Path(context.run_dir), context.model_dir)
        self.alias = self._registry.meant(alias)
        self.moves = self._registry.moves(alias)
        """Whether it comes to stand for other weights while a run goes on."""
        self.model = self._registry.directory(alias)

    async def follow(self, load: Callable[[Path, Model], Awaitable[object]]) -> None:
        """Have newer weights loaded, from the file given; until cancelled. Raises what `load` raises."""
        while True:
            await asyncio.sleep(LOOK_S)
            model = await asyncio.to_thread(self._registry.directory, self.alias)
            if model == self.model:
                continue
            path = Path(model.where) / "model.safetensors"
            try:
                await load(path, model)
            except FileNotFoundError:
                log.info("'%s' is gone again; there is, or will be, a newer one", path)
            else:
                self.model = model
