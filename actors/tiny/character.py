"""A character-level Llama of about a million parameters, made by supervised training on the spot."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeInt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from cluster.plugins import Plugin

ALPHABET = "".join(c for c in string.printable if c.isprintable()) + "\n"
PAD, BOS, EOS, UNKNOWN = range(4)
IGNORED = -100


class TinyModel(Plugin):
    """A recipe for a model: `make` writes its directory, `key` is what determines it beside the fields."""

    seed: NonNegativeInt = 0

    def key(self) -> dict[str, Any]:
        raise NotImplementedError

    def make(self, directory: Path) -> None:
        raise NotImplementedError

    def tokenizer(self) -> Any:
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

    words: ClassVar[tuple[str, ...]] = ()
    """Texts that are one token each, beside the characters."""
    template: ClassVar[str] = ""
    """Chat template of the tokenizer; without one, prompts are the texts of messages alone."""

    def make(self, directory: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self._model()
            self._warm_start(model)
        model.save_pretrained(directory)
        self.tokenizer().save_pretrained(directory)

    def tokenizer(self) -> Any:
        tokenizer = character_tokenizer()
        tokenizer.add_tokens(list(self.words))
        tokenizer.chat_template = self.template or None
        return tokenizer

    def _model(self) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=UNKNOWN + 1 + len(ALPHABET) + len(self.words),
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


Part = tuple[str, bool]
"""Text of a dialogue, and whether the policy says it; then an end of sequence follows."""


def dialogues(rows: list[list[Part]], words: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
    """[N, L] tokens, padded, and where the policy chose them. `words` are texts that are one token each."""
    tokens, chosen = [], []
    for parts in rows:
        ids = [encode(text, words) + [EOS] * ours for text, ours in parts]
        tokens.append([i for part in ids for i in part])
        chosen.append([ours for part, (_, ours) in zip(ids, parts, strict=True) for _ in part])
    width = max(map(len, tokens))
    padded = [row + [PAD] * (width - len(row)) for row in tokens]
    return torch.tensor(padded), torch.tensor([row + [False] * (width - len(row)) for row in chosen])


def logits_and_choices(model: Any, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return logits, tokens[:, 1:].masked_fill(~chosen[:, 1:], IGNORED)


def solved(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] 1 where every token of the answer is the most likely one: then, and only then, greedy sampling writes it."""
    return ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1).float()


def encode(text: str, words: Sequence[str] = ()) -> list[int]:
    known = (*ALPHABET, *words)
    pieces = re.findall("|".join([*map(re.escape, words), r"[\s\S]"]), text)
    return [UNKNOWN + 1 + known.index(piece) for piece in pieces]


def character_tokenizer() -> Any:
    """One id per printable ASCII character; no special token is added unasked, and there is no chat template."""
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
