"""`tiny:gambler`: knows how the games of the environment `games` are talked about, and plays at random."""

from __future__ import annotations

import logging
from typing import Any

import torch
from pydantic import PositiveInt

from actors.environments.games import Table
from actors.tiny.character import CharacterModel, Part, dialogues, logits_and_choices

log = logging.getLogger(__name__)

FIRST_WATCHED = 2**29
"""Seeds of the games that are watched: neither trained on nor held out."""


class GamblerModel(CharacterModel):
    """Learns from both sides of games whose agents pick legal actions at random, and which it will not meet again."""

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 2
    heads: int = 2
    lr: float = 3e-3
    batch_size: int = 64
    max_steps: int = 150
    games: tuple[str, ...] = ("KuhnPoker-v0-short",)
    options: dict[str, dict[str, Any]] = {"KuhnPoker-v0-short": {"max_rounds": 1}}
    num_games: PositiveInt = 400

    def key(self) -> dict[str, Any]:
        return {"format": 1, "first_seed": FIRST_WATCHED}

    def _warm_start(self, model: Any) -> None:
        """Supervised training on what was played, for `max_steps`."""
        tokens, chosen = dialogues([side for i in range(self.num_games) for side in self._watched(i)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.1, betas=(0.9, 0.95))
        for step in range(1, self.max_steps + 1):
            rows = torch.randint(len(tokens), (self.batch_size,))
            loss = self._step(model, optimizer, *logits_and_choices(model, tokens[rows], chosen[rows]))
            if step % 10 == 0:
                log.info("tiny:gambler: step %d, loss %.3f", step, loss.item())

    def _watched(self, index: int) -> list[list[Part]]:
        """One game, from each agent that had a turn."""
        game = self.games[index % len(self.games)]
        table = Table(game, FIRST_WATCHED + index, self.options.get(game, {}), "compact")
        sides: dict[str, list[Part]] = {}
        while not table.over:
            action = table.random_action()
            sides.setdefault(table.agent, []).extend([(table.shown(), False), (action, True)])
            table.move(action)
        return list(sides.values())
