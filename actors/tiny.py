"""Models of one or two million parameters, made in about a minute on a laptop: `tiny:addition`, `tiny:calculator`."""

from __future__ import annotations

import logging
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from actors.environments.calculator import said
from actors.tasks import Problem, addition_problems
from actors.tasks.calculator import Sum, sums_of_three
from cluster.plugins import Plugin

log = logging.getLogger(__name__)

ALPHABET = "".join(c for c in string.printable if c.isprintable()) + "\n"
PAD, BOS, EOS, UNKNOWN = range(4)
IGNORED = -100
LOW, HIGH = 0.49, 0.54
"""The warm start ends with a greedy held-out accuracy in this interval; 0.55 is what it may never exceed."""
ATTEMPTS = 12
CALCULATOR_ACCURACY = 0.25
CAREFUL = (0.05, 0.6)
"""How likely the demonstrator of `tiny:calculator` uses it for sums that begin with 10, and with 99."""
FORGETFUL = 0.2
STOPPED_BY = 300
"""Held-out sums that decide when the warm start of `tiny:calculator` ends, and nothing else."""
OFF_BY = 30


class TinyModel(Plugin):
    """A recipe for a model: `make` writes its directory, `key` is what determines it beside the fields."""

    seed: NonNegativeInt = 0

    def key(self) -> dict[str, Any]:
        raise NotImplementedError

    def make(self, directory: Path) -> None:
        raise NotImplementedError


class CharacterModel(TinyModel):
    """A character-level Llama, made by supervised training on the spot."""

    tie_word_embeddings: bool = False
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 2
    heads: int = 4
    lr: float = 1e-3
    batch_size: int = 128
    max_steps: int = 2000

    def make(self, directory: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self._model()
            self._warm_start(model)
        model.save_pretrained(directory)
        character_tokenizer().save_pretrained(directory)

    def _model(self) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=UNKNOWN + 1 + len(ALPHABET),
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.heads,
                max_position_embeddings=512,
                initializer_range=0.04,
                tie_word_embeddings=self.tie_word_embeddings,
                pad_token_id=PAD,
                bos_token_id=BOS,
                eos_token_id=EOS,
                dtype="float32",
            )
        )

    def _warm_start(self, model: Any) -> None:
        raise NotImplementedError

    def _step(self, model: Any, optimizer: torch.optim.Optimizer, logits: Tensor, labels: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss


class AdditionModel(CharacterModel):
    """Trained on 2,000 sums until it solves about half of those it has not seen."""

    def key(self) -> dict[str, Any]:
        warm, _, heldout = addition_problems()
        return {"format": 1, "warm": warm, "heldout": heldout, "accuracy": [LOW, HIGH]}

    def _warm_start(self, model: Any) -> None:
        """Supervised training on answers, until the held-out accuracy is where reinforcement is to begin.

        Held-out accuracy decides when to stop, and nothing else.
        """
        warm, _, heldout = addition_problems()
        tokens, heldout_tokens = sums(warm), sums(heldout)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.1, betas=(0.9, 0.95))
        before = _weights(model)
        for step in range(1, self.max_steps + 1):
            batch = tokens[torch.randint(len(tokens), (self.batch_size,))]
            logits, labels = _logits_and_labels(model, batch)
            loss = self._step(model, optimizer, logits, labels)
            if step % 10:
                continue
            seen, accuracy = float(_solved(logits, labels).mean()), 0.0
            if seen > LOW / 2:
                accuracy = greedy_accuracy(model, heldout_tokens)
            log.info("tiny:addition: step %d, loss %.2f, held-out accuracy %.2f", step, loss.item(), accuracy)
            if accuracy > HIGH:
                accuracy = _settle_between(model, before, _weights(model), heldout_tokens)
            if accuracy >= LOW:
                return
            before = _weights(model)
        raise AssertionError(f"the warm start of tiny:addition reached no accuracy of {LOW} in {self.max_steps} steps")


class CalculatorModel(CharacterModel):
    """Has watched somebody who uses a calculator for large sums, guesses small ones, and forgets the third number.

    The larger the first number, the likelier the calculator, so that greedy sampling, too, solves a part of the sums.
    """

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 2
    lr: float = 3e-3
    batch_size: int = 64

    def key(self) -> dict[str, Any]:
        warm, _, heldout = sums_of_three()
        habits = [CAREFUL, FORGETFUL, OFF_BY]
        return {"format": 1, "warm": warm, "heldout": heldout, "accuracy": CALCULATOR_ACCURACY, "habits": habits}

    def _warm_start(self, model: Any) -> None:
        """Supervised training on demonstrations until greedy sampling reaches CALCULATOR_ACCURACY on held-out sums."""
        warm, _, heldout = sums_of_three()
        rng = np.random.default_rng(self.seed)
        tokens, chosen = dialogues([demonstration(s, rng) for s in warm])
        right = dialogues([worked_out(s) for s in heldout[:STOPPED_BY]])
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.1, betas=(0.9, 0.95))
        for step in range(1, self.max_steps + 1):
            rows = torch.randint(len(tokens), (self.batch_size,))
            logits, labels = _logits_and_choices(model, tokens[rows], chosen[rows])
            loss = self._step(model, optimizer, logits, labels)
            if step % 10:
                continue
            with torch.no_grad():
                accuracy = float(_solved(*_logits_and_choices(model, *right)).mean())
            log.info("tiny:calculator: step %d, loss %.2f, held-out accuracy %.2f", step, loss.item(), accuracy)
            if accuracy >= CALCULATOR_ACCURACY:
                return
        raise AssertionError(f"tiny:calculator reached no accuracy of {CALCULATOR_ACCURACY} in {self.max_steps} steps")


Part = tuple[str, bool]
"""Text of a dialogue, and whether the policy says it; then an end of sequence follows."""


def worked_out(numbers: Sum) -> list[Part]:
    """`12+34+56=` `[12+34]` `=46;` `[46+56]` `=102;` `102`."""
    a, b, c = numbers
    calls = [(f"[{a}+{b}]", True), (said(a + b), False), (f"[{a + b}+{c}]", True), (said(a + b + c), False)]
    return [(f"{a}+{b}+{c}=", False), *calls, (str(a + b + c), True)]


def demonstration(numbers: Sum, rng: np.random.Generator) -> list[Part]:
    """What the demonstrator did: the above, a guess, or the sum of the first two."""
    a, b, _ = numbers
    low, high = CAREFUL
    question, *parts = worked_out(numbers)
    if rng.random() > low + (high - low) * (a - 10) / 89:
        return [question, (str(sum(numbers) + int(rng.integers(1, OFF_BY)) * int(rng.choice([-1, 1]))), True)]
    return [question, *parts[:2], (str(a + b), True)] if rng.random() < FORGETFUL else [question, *parts]


def dialogues(rows: list[list[Part]]) -> tuple[Tensor, Tensor]:
    """[N, L] tokens, padded, and where the policy chose them."""
    tokens, chosen = [], []
    for parts in rows:
        ids = [_ids(text) + [EOS] * ours for text, ours in parts]
        tokens.append([i for part in ids for i in part])
        chosen.append([ours for part, (_, ours) in zip(ids, parts, strict=True) for _ in part])
    width = max(map(len, tokens))
    padded = [row + [PAD] * (width - len(row)) for row in tokens]
    return torch.tensor(padded), torch.tensor([row + [False] * (width - len(row)) for row in chosen])


def _logits_and_choices(model: Any, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return logits, tokens[:, 1:].masked_fill(~chosen[:, 1:], IGNORED)


def _ids(text: str) -> list[int]:
    return [UNKNOWN + 1 + ALPHABET.index(c) for c in text]


def character_tokenizer() -> Any:
    """One id per printable ASCII character; no special token is added unasked, and there is no chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[BOS]", "[EOS]", "[UNK]", *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def sums(problems: tuple[Problem, ...]) -> Tensor:
    """[N, 10] tokens of `47+38=85` and the end of sequence, padded."""
    ids = {c: i for i, c in enumerate(ALPHABET, UNKNOWN + 1)}
    rows = [[ids[c] for c in f"{a}+{b}={a + b}"] + [EOS] for a, b in problems]
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def _logits_and_labels(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Of the answers only: what precedes `=` is given."""
    prompt = len("47+38=")
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[:, prompt - 1 :]
    labels = tokens[:, prompt:]
    return logits, labels.masked_fill(labels == PAD, IGNORED)


def _solved(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] 1 where every token of the answer is the most likely one: then, and only then, greedy sampling writes it."""
    return ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1).float()


@torch.no_grad()
def greedy_accuracy(model: Any, tokens: Tensor) -> float:
    return float(_solved(*_logits_and_labels(model, tokens)).mean())


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: w.detach().clone() for name, w in model.state_dict().items()}


def _settle_between(model: Any, below: dict[str, Tensor], above: dict[str, Tensor], heldout: Tensor) -> float:
    """Load the weights on the line between two checkpoints whose accuracy is in [LOW, HIGH]; returns it.

    Bisection; the last checkpoint below `HIGH` if the line has no such point.
    """
    low, high = 0.0, 1.0
    for _ in range(ATTEMPTS):
        middle = (low + high) / 2
        model.load_state_dict({name: torch.lerp(below[name], above[name], middle) for name in below})
        accuracy = greedy_accuracy(model, heldout)
        if accuracy > HIGH:
            high = middle
        elif accuracy < LOW:
            low = middle
        else:
            return accuracy
    model.load_state_dict(below)
    return LOW


MODELS: dict[str, type[TinyModel]] = {"addition": AdditionModel, "calculator": CalculatorModel}
