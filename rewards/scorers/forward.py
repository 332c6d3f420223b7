"""A causal LM that reads: log-probs and statistics of whole distributions, without a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cluster.errors import DataError
from cluster.types import Message
from rewards.scorers.types import TokenSequence, TokenStats

CHUNK_NUMBERS = 2**24
"""Logits that are looked at together in fp32: 64 MiB."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Encode = Callable[[Sequence[Message]], list[int]]


class Forward:
    """A Hugging Face model in this process. Batches are padded on the right, where a causal model does not look."""

    def __init__(
        self, model_dir: str | Path, encode: Encode, *, dtype: str = "float32", batch_tokens: int = 4096, version: str
    ) -> None:
        from transformers import AutoModelForCausalLM

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=DTYPES[dtype])
        self._model.to(self._device).requires_grad_(False).eval()
        config = self._model.config
        self._longest: int = getattr(config, "max_position_embeddings", None) or 2**31
        self._first = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
        self._encode, self._batch_tokens = encode, batch_tokens
        self.version = version

    def load(self, tensors: Iterable[tuple[str, Tensor]], version: str) -> None:
        """Put published weights in: every parameter under its Hugging Face name."""
        own = self._model.state_dict()
        missing = {name for name, _ in self._model.named_parameters()}
        for name, tensor in tensors:
            own[name].copy_(tensor)
            missing.discard(name)
        assert not missing, f"the publication {version} lacks {sorted(missing)[:3]}"
        self.version = version

    def rows(self, passages: Sequence[TokenSequence]) -> list[tuple[list[int], int]]:
        """Return all tokens of each passage, and where the scored ones begin. Raises DataError."""
        return [self._row(passage) for passage in passages]

    def _row(self, passage: TokenSequence) -> tuple[list[int], int]:
        prompt = passage.prompt
        ids = prompt.tolist() if isinstance(prompt, np.ndarray) else self._encode(prompt)
        ids = ids or [int(self._first)]
        length = len(ids) + len(passage.tokens)
        if length > self._longest:
            raise DataError(f"a passage of {length} tokens is longer than the {self._longest} that the model reads.")
        return ids + passage.tokens.tolist(), len(ids)

    @torch.inference_mode()
    def read(self, passages: Sequence[TokenSequence], rows: Sequence[tuple[list[int], int]]) -> list[TokenStats]:
        """`rows` are those of `self.rows`; the longest go together."""
        readings: dict[int, TokenStats] = {}
        for batch in _batches([len(tokens) for tokens, _ in rows], self._batch_tokens):
            width, first = max(len(rows[i][0]) for i in batch), min(rows[i][1] for i in batch) - 1
            padded = torch.zeros(len(batch), width, dtype=torch.int64)
            for line, i in zip(padded, batch, strict=True):
                line[: len(rows[i][0])] = torch.tensor(rows[i][0])
            # No mask: nothing before the padding sees it.
            columns = torch.arange(first, width, device=self._device)
            logits = self._model(input_ids=padded.to(self._device), use_cache=False, logits_to_keep=columns).logits
            for line, i in zip(logits, batch, strict=True):
                tokens, start = rows[i]
                readings[i] = self._reading(line[start - 1 - first : len(tokens) - first], passages[i])
        return [readings[i] for i in range(len(rows))]

    def _reading(self, logits: Float[Tensor, "N+1 V"], passage: TokenSequence) -> TokenStats:
        # Read-only, as all that comes through Ray: hence the copy.
        tokens = torch.tensor(passage.tokens.astype(np.int64), device=logits.device)
        choices = torch.tensor(passage.choices, dtype=torch.int64, device=logits.device)
        found = statistics(logits, tokens, choices)
        arrays = {name: tensor.cpu().numpy() for name, tensor in found.items()}
        return TokenStats(**arrays, vocabulary=logits.shape[-1], version=self.version)


def _batches(lengths: Sequence[int], most: int) -> Iterable[list[int]]:
    """Places, the longest first, in batches whose padded size is at most `most` tokens, or of one."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def statistics(
    logits: Float[Tensor, "M V"],
    tokens: Int[Tensor, " N"],
    choices: Int[Tensor, " K"],
    *,
    chunk_numbers: int = CHUNK_NUMBERS,
) -> Mapping[str, Tensor]:
    """The arrays of a `Reading`: M = N + 1 places, of which the first N chose `tokens`.

    In fp32 and chunk by chunk of places, whatever the logits are; sums over the vocabulary are in fp64: of 150,000
    log-probs about −15 each fp32 would lose the second decimal.
    """
    kept: dict[str, list[Tensor]] = {"logprobs": [], "entropy": [], "sum_logprobs": [], "choices": []}
    rows = max(1, chunk_numbers // logits.shape[-1])
    for start in range(0, len(logits), rows):
        logprobs = logits[start : start + rows].float().log_softmax(-1)
        chosen = tokens[start : start + rows]
        kept["logprobs"].append(logprobs[: len(chosen)].gather(1, chosen[:, None]).squeeze(1))
        # A token that cannot come (−inf) adds 0 to an entropy, not 0 · inf.
        bounded = logprobs.clamp(min=torch.finfo(torch.float32).min)
        kept["entropy"].append(-(logprobs.exp() * bounded).sum(-1, dtype=torch.float64))
        kept["sum_logprobs"].append(logprobs.sum(-1, dtype=torch.float64))
        kept["choices"].append(logprobs[:, choices])
    return {name: torch.cat(parts).double() for name, parts in kept.items()}
