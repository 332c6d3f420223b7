"""What can be distilled from labels: the table itself, a classifier, a ranking.

A model's fields are its options. `state` is all of it as arrays: with the optimiser for a checkpoint, without for
publishing; a model that loads a checkpoint's goes on bit by bit where the other stood.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr
from torch import Tensor

from cluster.plugins import Plugin
from rewards.distilled.encoders import CharCNN, Net, Transformer
from rewards.distilled.losses import (
    Moments,
    above_threshold,
    class_weights,
    classification_loss,
    normalised,
    ranking_loss,
)
from rewards.distilled.publishing import State
from rewards.labels import pair_of

CHUNK = 256
"""Captions per forward pass outside training."""


class Model(Plugin):
    """Belongs to one thread at a time."""

    compares: ClassVar[bool] = False
    """Its keys are pairs of captions."""
    learns: ClassVar[bool] = True
    """It can be wrong about a label, and is compared with held-out ones before it is published."""

    @abstractmethod
    def fit(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        """Learn from all labels there are, once; mean loss, NaN if there is none."""

    @abstractmethod
    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        """r̂, NaN where it does not know."""

    @abstractmethod
    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        """With these labels, in [0, 1] where a coin gets ½; NaN if they cannot tell."""

    @abstractmethod
    def state(self, *, training: bool) -> State: ...

    @abstractmethod
    def load(self, state: State) -> None: ...


class Retrieval(Model):
    """The labels themselves; a caption without one is unknown."""

    learns: ClassVar[bool] = False
    _table: dict[str, float] = PrivateAttr(default_factory=dict)

    def fit(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        self._table = dict(zip(keys, map(float, values), strict=True))
        return float("nan")

    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        return np.array([self._table.get(c, np.nan) for c in captions], np.float64)

    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        return _balanced(self.predict(keys), values)

    def state(self, *, training: bool) -> State:
        texts = [key.encode() for key in self._table]
        lengths = np.array([len(t) for t in texts], np.int64)
        return {
            "texts": np.frombuffer(b"".join(texts), np.uint8),
            "lengths": lengths,
            "values": np.array([*self._table.values()], np.float64),
        }

    def load(self, state: State) -> None:
        joined, ends = state["texts"].tobytes(), np.cumsum(state["lengths"])
        starts = ends - state["lengths"]
        keys = [joined[a:b].decode() for a, b in zip(starts, ends, strict=True)]
        self._table = dict(zip(keys, state["values"].tolist(), strict=True))


class Learnt(Model):
    """A network on captions, trained by Adam. The defaults are those of ONI's code, except where noted."""

    encoder: str = "char_cnn"
    """Or the directory of a transformer, for captions that are ordinary text."""
    lr: PositiveFloat = 1e-4
    batch_size: PositiveInt = 256
    early_steps: PositiveInt = 32
    """Gradient steps whenever labels arrive, until there are `early_labels`; then one (ONI: one per policy update)."""
    early_labels: PositiveInt = 25_000
    clip_grad_norm: PositiveFloat = 10.0
    """In ONI's code for the ranking alone."""
    seed: int = Field(default=0, ge=0)
    num_outputs: ClassVar[int]
    _net: Net = PrivateAttr()
    _adam: torch.optim.Adam = PrivateAttr()
    _random: torch.Generator = PrivateAttr()

    def model_post_init(self, _: object) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoder = CharCNN() if self.encoder == "char_cnn" else Transformer(self.encoder)
            self._net = Net(encoder, self.num_outputs).eval()
        self._adam = torch.optim.Adam(self._net.parameters(), lr=self.lr)
        self._random = torch.Generator().manual_seed(self.seed)

    def fit(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        num_steps = self.early_steps if len(keys) < self.early_labels else 1
        losses = []
        # Dropout draws from torch's own generator: seeded from ours, a resumed training draws the same.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=self._random)))
            self._net.train()
            for _ in range(num_steps if len(keys) else 0):
                picked = torch.randint(len(keys), (min(self.batch_size, len(keys)),), generator=self._random).tolist()
                loss = self._loss([keys[int(i)] for i in picked], torch.tensor(values[picked]).float(), values)
                self._adam.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self._net.parameters(), self.clip_grad_norm)
                self._adam.step()
                losses.append(float(loss.detach()))
            self._net.eval()
        return float(np.mean(losses)) if losses else float("nan")

    @abstractmethod
    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        """Of a batch of labels; `values` are all of them."""

    @torch.no_grad()
    def outputs(self, captions: Sequence[str]) -> Float[Tensor, "N out"]:
        parts = [self._net(captions[i : i + CHUNK]) for i in range(0, len(captions), CHUNK)]
        return torch.cat(parts) if parts else torch.zeros(0, self.num_outputs)

    def state(self, *, training: bool) -> State:
        arrays = {f"net/{name}": value.numpy().copy() for name, value in self._net.state_dict().items()}
        if training:
            arrays["random"] = self._random.get_state().numpy()
            for i, moments in self._adam.state_dict()["state"].items():
                arrays |= {f"adam/{i}/{name}": value.numpy().copy() for name, value in moments.items()}
        return arrays

    def load(self, state: State) -> None:
        tensors = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
        self._net.load_state_dict({n.removeprefix("net/"): t for n, t in tensors.items() if n.startswith("net/")})
        if "random" in tensors:
            self._random.set_state(tensors["random"])
            moments: dict[int, dict[str, Tensor]] = {}
            for name in (n for n in tensors if n.startswith("adam/")):
                _, number, quantity = name.split("/")
                moments.setdefault(int(number), {})[quantity] = tensors[name]
            self._adam.load_state_dict({**self._adam.state_dict(), "state": moments})


class Classification(Learnt):
    """1 where a caption is probably good news, else 0."""

    threshold: float = Field(default=0.5, gt=0, lt=1)
    """η; exceeded, not reached. The classes are balanced in training, so ½ is the border between them."""
    num_outputs: ClassVar[int] = 2

    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        weights = torch.tensor(class_weights(values)).float()
        return classification_loss(self._net(keys), batch, weights)

    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        return above_threshold(self.outputs(captions), self.threshold)

    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        return _balanced(self.predict(keys), values)


class Ranking(Learnt):
    """How much better than usual a caption is: (f − μ)/σ of a Bradley-Terry score f, small ones cut off."""

    cut: float = -0.5
    """What is not above it becomes 0."""
    compares: ClassVar[bool] = True
    num_outputs: ClassVar[int] = 1
    _moments: Moments = PrivateAttr(default_factory=Moments)

    def fit(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        loss = super().fit(keys, values)
        # Of the present f over all captions that were compared: values of earlier weights have another scale, and a
        # published version must not drift.
        captions = list(dict.fromkeys(c for key in keys for c in pair_of(key)))
        self._moments = Moments()
        for i in range(0, len(captions), CHUNK):
            self._moments.add(self._scores(captions[i : i + CHUNK]))
        return loss

    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        first, second = zip(*map(pair_of, keys), strict=True)
        return ranking_loss(self._net(first)[:, 0], self._net(second)[:, 0], batch)

    def _scores(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        return self.outputs(captions)[:, 0].double().numpy()

    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        return normalised(self._scores(captions), self._moments.mean, self._moments.std, cut=self.cut)

    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        decided = np.flatnonzero(values != 0.5)
        if not len(decided):
            return float("nan")
        pairs = [pair_of(keys[int(i)]) for i in decided]
        apart = self._scores([first for first, _ in pairs]) - self._scores([second for _, second in pairs])
        right = np.where(apart == 0, 0.5, (apart > 0) == (values[decided] > 0.5))
        return float(right.mean())

    def state(self, *, training: bool) -> State:
        moments = np.array([self._moments.mean, self._moments.variance, self._moments.count])
        return {**super().state(training=training), "moments": moments}

    def load(self, state: State) -> None:
        super().load(state)
        self._moments = Moments(*state["moments"].tolist())


MODELS: dict[str, type[Model]] = {
    "retrieval": Retrieval,
    "classification": Classification,
    "ranking": Ranking,
}


def _balanced(predicted: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"]) -> float:
    """Mean of the shares that are right among the good and among the bad: always saying 'bad' gets ½, however rare
    the good are. NaN unless there are both."""
    good = values > 0.5
    if good.all() or not good.any():
        return float("nan")
    right = (predicted > 0.5) == good
    return float((right[good].mean() + right[~good].mean()) / 2)
