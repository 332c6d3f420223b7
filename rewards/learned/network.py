"""What a reward model is, and a network that learns from labels.

A model's fields are its options. `state` is all of it as arrays: with the optimiser for a checkpoint, without for
publishing; a model that loads a checkpoint's goes on bit by bit where the other stood.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr
from torch import Tensor

from cluster.plugins import Plugin
from rewards.learned.encoders import CharCNN, Encoder, Net, Transformer
from rewards.learned.publishing import State

CHUNK = 256
"""Captions per forward pass outside training."""


class Model(Plugin):
    """Belongs to one thread at a time."""

    compares: ClassVar[bool] = False
    """Its keys are pairs of captions."""
    learns: ClassVar[bool] = True
    """It can be wrong about a label, and is compared with held-out ones before it is published."""

    @property
    def wants_groups(self) -> bool:
        """It learns from texts without a label too, and is shown them by `see`."""
        return False

    def see(self, groups: Sequence[Sequence[str]]) -> None:
        """Texts that belong together, such as the rollouts of a group; for the next `fit`."""

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


class LearnedNetwork(Model):
    """A network on captions, trained by Adam. The defaults are those of ONI's code, except where noted."""

    encoder: str = "char_cnn"
    """Or the directory of a transformer, for captions that are ordinary text."""
    lr: PositiveFloat = 1e-4
    batch_size: PositiveInt = 256
    early_steps: PositiveInt = 32
    """Gradient steps at a time, until there are `early_labels`; then one (ONI: one per policy update)."""
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
            self._net = self._network().eval()
        self._adam = torch.optim.Adam(self._net.parameters(), lr=self.lr)
        self._random = torch.Generator().manual_seed(self.seed)

    def _network(self) -> Any:
        return Net(self._encoder(), self.num_outputs)

    def _encoder(self) -> Encoder:
        return CharCNN() if self.encoder == "char_cnn" else Transformer(self.encoder)

    def fit(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        num_steps = self.early_steps if len(keys) < self.early_labels else 1
        losses = []
        # Dropout draws from torch's own generator: seeded from ours, a resumed training draws the same.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=self._random)))
            self._net.train()
            for _ in range(num_steps if len(keys) else 0):
                picked = torch.randint(len(keys), (min(self.batch_size, len(keys)),), generator=self._random).tolist()
                loss = self._gradients([keys[int(i)] for i in picked], torch.tensor(values[picked]).float(), values)
                norm = torch.nn.utils.clip_grad_norm_(self._net.parameters(), self.clip_grad_norm)
                if torch.isfinite(norm):
                    self._adam.step()
                losses.append(float(loss.detach()))
            self._net.eval()
        return float(np.mean(losses)) if losses else float("nan")

    def _gradients(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        """Leave those of a batch's loss with the parameters; the loss."""
        loss = self._loss(keys, batch, values)
        self._adam.zero_grad()
        loss.backward()
        return loss

    @abstractmethod
    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        """Return the loss of a batch of labels; `values` are all of them."""

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


def order_agreement(
    first: Float[np.ndarray, " N"], second: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"]
) -> float:
    """Share of the pairs that these scores order as their labels do, equal scores counting half; NaN without a
    decided label."""
    decided = values != 0.5
    if not decided.any():
        return float("nan")
    apart = (first - second)[decided]
    return float(np.where(apart == 0, 0.5, (apart > 0) == (values[decided] > 0.5)).mean())
