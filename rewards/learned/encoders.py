"""Captions → features that a small head learns from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

MAX_BYTES = 256
"""ONI's length of a NetHack message; what is longer is cut, what is shorter filled up with zeros."""


SEEN_BYTES = 231
"""Bytes that reach an output: pooling leaves out what does not fill a window."""


class CharCNN(nn.Module):
    """Convolutions over the bytes of a caption in UTF-8 (ONI, arXiv:2410.23022; sizes from its released code)."""

    width = 128

    def __init__(self, *, keep_end: bool = False) -> None:
        """`keep_end`: of what is longer the beginning is cut, as in a response behind its question."""
        super().__init__()
        self._keep_end = keep_end
        sizes = ((32, 7, True), (64, 7, True), (64, 3, False), (64, 3, False), (64, 3, False), (64, 3, True))
        layers: list[nn.Module] = []
        for channels, kernel, pooled in sizes:
            layers += [nn.Conv1d(channels, 64, kernel), nn.ReLU()] + [nn.MaxPool1d(3)] * pooled
        self.bytes = nn.Embedding(256, 32)
        self.convolutions = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(320, self.width), nn.ReLU())

    def forward(self, captions: Sequence[str]) -> Float[Tensor, "N D"]:
        kept = slice(-SEEN_BYTES, None) if self._keep_end else slice(MAX_BYTES)
        cut = [c.encode()[kept] for c in captions]
        rows = torch.tensor([[*c, *[0] * (MAX_BYTES - len(c))] for c in cut], dtype=torch.long)
        return self.out(self.convolutions(self.bytes(rows.reshape(-1, MAX_BYTES)).transpose(1, 2)))


class Transformer(nn.Module):
    """Mean of a frozen language model's last hidden states, for ordinary text; only the head on it learns.

    `path` is a Hugging Face directory: the policy's initial model, or one of its own. It is no part of what is
    trained, stored or published; features are kept, since captions repeat.
    """

    MAX_KEPT = 50_000

    def __init__(self, path: str, *, max_tokens: int = 512, keep_end: bool = False) -> None:
        from transformers import AutoModel, AutoTokenizer

        super().__init__()
        self._tokenizer = AutoTokenizer.from_pretrained(path, truncation_side="left" if keep_end else "right")
        # In a tuple, or its weights would be among the parameters.
        self._frozen = (AutoModel.from_pretrained(path, dtype=torch.float32).eval(),)
        self._max_tokens = max_tokens
        self._kept: dict[str, Tensor] = {}
        self.width: int = self._frozen[0].config.hidden_size

    def forward(self, captions: Sequence[str]) -> Float[Tensor, "N D"]:
        # One by one, and so the same whatever else is in the batch; each is computed once.
        rows = [self._features(caption) for caption in captions]
        return torch.stack(rows) if rows else torch.zeros(0, self.width)

    @torch.no_grad()
    def _features(self, caption: str) -> Float[Tensor, " D"]:
        if caption not in self._kept:
            if len(self._kept) >= self.MAX_KEPT:
                self._kept.clear()
            tokens = self._tokenizer(caption, truncation=True, max_length=self._max_tokens).input_ids
            if not tokens:  # an empty caption, by a tokenizer without a first token
                return torch.zeros(self.width)
            hidden = self._frozen[0](torch.tensor([tokens])).last_hidden_state[0]
            self._kept[caption] = hidden.mean(0)
        return self._kept[caption]


class LanguageModel(nn.Module):
    """The last hidden state of a language model at a text's last token; all of it is trained, stored and published.

    `path` is a Hugging Face directory, where training begins. Texts are cut at their beginning.
    """

    def __init__(self, path: str, *, max_tokens: int = 512) -> None:
        from transformers import AutoModel, AutoTokenizer

        super().__init__()
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._max_tokens = max_tokens
        self.model = AutoModel.from_pretrained(path, dtype=torch.float32)
        self.width: int = self.model.config.hidden_size

    def forward(self, captions: Sequence[str]) -> Float[Tensor, "N D"]:
        rows = [self._tokenizer(caption).input_ids[-self._max_tokens :] or [0] for caption in captions]
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        # Padding stands behind a text, and a causal model does not look ahead.
        hidden = self.model(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden[torch.arange(len(rows)), lengths - 1]


Encoder = CharCNN | Transformer | LanguageModel


class Net(nn.Module):
    """An encoder and ONI's head: two hidden layers of 512, dropout 0.1."""

    def __init__(self, encoder: Encoder, num_outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        layers = [nn.Linear(encoder.width, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.1)]
        self.head = nn.Sequential(*layers, nn.Linear(512, num_outputs))

    def forward(self, captions: Sequence[str]) -> Float[Tensor, "N out"]:
        return self.head(self.encoder(captions))

    def features(self, encoded: Float[Tensor, "N D"]) -> Float[Tensor, "N 512"]:
        """What the last layer sees of encoded captions, after dropout."""
        return self.head[:-1](encoded)

    def outputs(self, features: Float[Tensor, "N 512"]) -> Float[Tensor, "N out"]:
        return self.head[-1](features)
