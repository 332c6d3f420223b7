"""`tiny:player`: knows how a game of the environment `nethack` is talked about, and plays at random.

A model that has never seen the format answers nothing that means something, and no reward ever reaches it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt

from actors.environments.base import Observation
from actors.environments.nethack import NetHack
from actors.tiny.character import CharacterModel, Part, dialogues, logits_and_choices
from cluster.types import Task

log = logging.getLogger(__name__)

FIRST_WATCHED = 2**29
"""Seeds of the games that are watched: neither trained on nor held out."""


class PlayerModel(CharacterModel):
    """Has watched somebody press keys at random, each as often as the others, in games that it will not meet again.

    Knows the format and nothing of the game: sampled, it plays like its demonstrator.
    """

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 2
    heads: int = 2
    lr: float = 3e-3
    batch_size: int = 16
    max_steps: int = 40
    game: str = "MiniHack-Eat-Fixed-v0"
    keys: str = "hjklye"
    """What the demonstrator presses: keys of NetHack's keyboard, which answer its questions as well."""
    num_games: PositiveInt = 300
    turns: PositiveInt = 8
    radius: NonNegativeInt = 2
    message_chars: NonNegativeInt = 16

    def key(self) -> dict[str, Any]:
        return {"format": 1, "first_seed": FIRST_WATCHED}

    def _warm_start(self, model: Any) -> None:
        """Supervised training on what was pressed, for `max_steps`; the loss cannot fall below ln(keys) / 2."""
        # Its own event loop: a recipe's model is made before the run has one.
        tokens, chosen = dialogues(asyncio.run(self._watched()))
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.1, betas=(0.9, 0.95))
        for step in range(1, self.max_steps + 1):
            rows = torch.randint(len(tokens), (self.batch_size,))
            loss = self._step(model, optimizer, *logits_and_choices(model, tokens[rows], chosen[rows]))
            if step % 10 == 0:
                log.info("tiny:player: step %d, loss %.3f", step, loss.item())

    async def _watched(self) -> list[list[Part]]:
        shown = {"format": "compact", "radius": self.radius, "message_chars": self.message_chars}
        environment = NetHack.model_validate(shown)
        rng = np.random.default_rng(self.seed)
        return [await self._episode(environment, FIRST_WATCHED + i, rng) for i in range(self.num_games)]

    async def _episode(self, environment: Any, seed: int, rng: np.random.Generator) -> list[Part]:
        task, parts = Task.of(str(seed), "", game=self.game, seed=seed), []
        episode = environment.play(task, "orig")
        step = await anext(episode)
        for _ in range(self.turns):
            if not isinstance(step, Observation):
                break
            key = str(rng.choice([*self.keys]))
            parts += [(step.messages[-1].content, False), (key, True)]
            step = await episode.asend(key)
        await episode.aclose()
        return parts
