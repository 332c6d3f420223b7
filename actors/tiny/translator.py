"""`tiny:translator`: translates carelessly, and can tell a good translation from a bad one."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from actors.tasks.translation import LETTERS, sources, translated
from actors.tiny.character import CharacterModel, Part, dialogues, logits_and_choices, solved

log = logging.getLogger(__name__)

CARELESS = {"3": 0.65, "7": 0.35}
"""How often the demonstrator writes another letter for a digit: above a half, greedy sampling does it always."""
SLIP = 0.15
"""The share of wrong answers for all other digits."""
JUDGED = 0.9
"""Share of candidates of held-out texts that the judge must score exactly."""
CANDIDATES = 400


class TranslatorModel(CharacterModel):
    """Has watched somebody who translates carelessly and marks others' translations without a mistake.

    It is shown `473>` and writes three letters; it is shown `473>ehd`, a new line and `score: `, and writes the share
    of right letters: 0, 33, 67 or 100. What it knows as a judge it does not do as a translator: that is what a
    self-rewarded policy has to learn from.
    """

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 2
    heads: int = 4
    lr: float = 2e-3
    batch_size: int = 128

    def key(self) -> dict[str, Any]:
        return {"format": 1, "careless": CARELESS, "slip": SLIP, "judged": JUDGED, "sources": sources()}

    def _warm_start(self, model: Any) -> None:
        """Supervised training on both until the judge is right on held-out texts; that alone decides when to stop."""
        train, evaluation = sources()
        rng = np.random.default_rng(self.seed)
        written = dialogues([[(f"{s}>", False), (careless(s, rng), True)] for s in train for _ in range(8)])
        marked = dialogues([marking(s, candidate(s, rng)) for s in train for _ in range(16)])
        unseen = dialogues(
            [marking(s, candidate(s, rng)) for s in evaluation for _ in range(CANDIDATES // len(evaluation))]
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.1, betas=(0.9, 0.95))
        for step in range(1, self.max_steps + 1):
            loss = torch.zeros(())
            for tokens, chosen in (written, marked):
                rows = torch.randint(len(tokens), (self.batch_size // 2,))
                loss = self._step(model, optimizer, *logits_and_choices(model, tokens[rows], chosen[rows]))
            if step % 20:
                continue
            with torch.no_grad():
                accuracy = float(solved(*logits_and_choices(model, *unseen)).mean())
            log.info("tiny:translator: step %d, loss %.2f, judge's accuracy %.2f", step, loss.item(), accuracy)
            if accuracy >= JUDGED:
                return
        raise AssertionError(f"tiny:translator judged no {JUDGED} of candidates right in {self.max_steps} steps")


def careless(source: str, rng: np.random.Generator) -> str:
    """The demonstrator's translation: the letter before the right one where it slips."""
    slips = [rng.random() < CARELESS.get(digit, SLIP) for digit in source]
    return "".join(LETTERS[int(d) - 1] if s else LETTERS[int(d)] for d, s in zip(source, slips, strict=True))


def candidate(source: str, rng: np.random.Generator) -> str:
    """What the judge has seen: translations with no to three wrong letters, whichever, and the demonstrator's."""
    if rng.random() < 0.5:
        return careless(source, rng)
    wrong = rng.random(3) < rng.random()
    right = translated(source)
    return "".join(str(rng.choice([*LETTERS])) if w else r for r, w in zip(right, wrong, strict=True))


def marking(source: str, written: str) -> list[Part]:
    right = sum(a == b for a, b in zip(written, translated(source), strict=True))
    return [(f"{source}>{written}\nscore: ", False), (str(round(100 * right / 3)), True)]
