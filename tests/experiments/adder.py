"""`tiny:addition` as a policy in a plain loop: sampled from and trained without engine, buffer or packing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.tasks.addition import Problem
from actors.tiny.addition import greedy_accuracy
from actors.tiny.character import EOS, PAD, encode
from learner.losses.policy_losses import Clipped
from learner.pack import TokenBatch
from rewards.monitors.overoptimisation import sampled_kl

NEW_TOKENS = 4
"""Three digits and the end."""
WARM_UP = 10
"""Steps until the learning rate is reached."""


class Policy:
    """The model, its optimiser, and answers sampled from it."""

    def __init__(self, directory: Path, seed: int, lr: float) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.initial = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._adam = torch.optim.AdamW(self._model.parameters(), lr=lr, weight_decay=0.0)
        self._warm_up = torch.optim.lr_scheduler.LinearLR(self._adam, 0.1, total_iters=WARM_UP)
        self._random = torch.Generator().manual_seed(seed)

    def answers(self, problems: Sequence[Problem], count: int, model: Any = None) -> Answers:
        """`count` per problem, sampled at temperature 1 from the policy, or from `model`."""
        model = model or self._model
        prompts = torch.tensor([encode(f"{a}+{b}=") for a, b in problems]).repeat_interleave(count, 0)
        tokens, alive, past = prompts, torch.ones(len(prompts), dtype=torch.bool), None
        with torch.no_grad():
            for i in range(NEW_TOKENS):
                found = model(input_ids=tokens[:, -1:] if i else tokens, past_key_values=past, use_cache=True)
                past = found.past_key_values
                drawn = torch.multinomial(found.logits[:, -1].softmax(-1), 1, generator=self._random)[:, 0]
                tokens = torch.cat([tokens, torch.where(alive, drawn, PAD)[:, None]], 1)
                alive &= drawn != EOS
        start = prompts.shape[1]
        texts = self._tokenizer.batch_decode(tokens[:, start:], skip_special_tokens=True)
        return Answers(tokens, start, texts)

    def logprobs(self, answers: Answers, model: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, NEW_TOKENS] of the answers' tokens in nats, and which of them were chosen."""
        logits = (model or self._model)(input_ids=answers.tokens[:, :-1], use_cache=False).logits
        chosen = answers.tokens[:, answers.start :]
        taken = logits[:, answers.start - 1 :].log_softmax(-1).gather(2, chosen[..., None])[..., 0]
        return taken, chosen != PAD

    def step(self, answers: Answers, advantages: np.ndarray) -> None:
        """One step on what was just sampled."""
        logprobs, mask = self.logprobs(answers)
        weights = mask.float()
        spread = torch.tensor(advantages, dtype=torch.float32)[:, None].expand_as(logprobs)
        index = torch.zeros_like(mask, dtype=torch.int64)
        loss, _ = Clipped().loss(logprobs, TokenBatch(mask, weights, logprobs.detach(), spread, index, index))
        self._adam.zero_grad()
        (loss / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._adam.step()
        self._warm_up.step()

    def kl(self, answers: Answers) -> float:
        """KL to the initial policy in nats per answer (k3)."""
        with torch.no_grad():
            ours, mask = self.logprobs(answers)
            theirs, _ = self.logprobs(answers, self.initial)
        return sampled_kl(((ours - theirs) * mask).sum(1).numpy())[1]

    def accuracy(self, evaluation: torch.Tensor) -> float:
        return greedy_accuracy(self._model, evaluation)


@dataclass(frozen=True, slots=True)
class Answers:
    tokens: torch.Tensor
    """[N, prompt + NEW_TOKENS]."""
    start: int
    texts: list[str]
