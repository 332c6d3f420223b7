"""`tiny:cook`: knows how the environment `text_world` is talked to, and finds the meal about every other time."""

from __future__ import annotations

import logging
import random
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt

from actors.environments.text_world import FOODS, KITCHEN, METHODS, MOVES, ROOMS, World
from actors.tiny.character import CharacterModel, Part, dialogues, logits_and_choices

log = logging.getLogger(__name__)

FIRST_WATCHED = 2**29
"""Seeds of the houses that are watched: neither trained on nor held out."""


class CookModel(CharacterModel):
    """Learns from walks: a step of the shortest way with probability `skill`, else any action that was shown.

    Words of the world are one token each, so that a turn and its prompt have about 30.
    """

    hidden_size: int = 64
    intermediate_size: int = 192
    layers: int = 2
    heads: int = 2
    lr: float = 5e-3
    batch_size: int = 64
    max_steps: int = 250
    rooms: PositiveInt = 3
    num_houses: PositiveInt = 400
    turns: PositiveInt = 12
    skill: float = Field(default=0.7, ge=0, le=1)
    memory: Literal["episode", "turn"] = "turn"
    """As in the environment: the model has watched conversations, or turns with a prompt each."""

    words: ClassVar[tuple[str, ...]] = (
        *ROOMS, KITCHEN, *FOODS, *METHODS, *MOVES, "key", "chest", "door", "take", "open", "go", "held", "can", "none",
        ": ", ". ", ", ",
    )  # fmt: skip

    def key(self) -> dict[str, Any]:
        return {"format": 1, "first_seed": FIRST_WATCHED, "words": self.words}

    def _warm_start(self, model: Any) -> None:
        """Supervised training on what was done, for `max_steps`; the loss cannot fall to 0, a part of it is chance."""
        rng = random.Random(self.seed)
        tokens, chosen = dialogues([row for i in range(self.num_houses) for row in self._watched(i, rng)], self.words)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.1, betas=(0.9, 0.95))
        for step in range(1, self.max_steps + 1):
            rows = torch.randint(len(tokens), (self.batch_size,))
            loss = self._step(model, optimizer, *logits_and_choices(model, tokens[rows], chosen[rows]))
            if step % 50 == 0:
                log.info("tiny:cook: step %d, loss %.3f", step, loss.item())

    def _watched(self, index: int, rng: random.Random) -> list[list[Part]]:
        """One episode: one conversation, or one for each turn."""
        world = World(FIRST_WATCHED + index, self.rooms)
        state, way, parts = world.start, world.solution(), []
        while not state.cooked and len(parts) < 2 * self.turns:
            goal = f"{world.goal}. " if self.memory == "turn" or not parts else ""
            action = way[0] if rng.random() < self.skill else rng.choice(world.actions(state))
            parts += [(goal + world.shown(state), False), (action, True)]
            state = world.after(state, action)
            way = way[1:] if action == way[0] else world.solution(state)
        return [parts[i : i + 2] for i in range(0, len(parts), 2)] if self.memory == "turn" else [parts]
