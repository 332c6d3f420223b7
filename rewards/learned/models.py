"""What can be learned from labels: the table itself, a classifier, a ranking, a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PrivateAttr
from torch import Tensor

from cluster.config import RewardModelSection
from cluster.plugins import build
from rewards.learned.bradley_terry import BradleyTerry
from rewards.learned.features import FeatureModel
from rewards.learned.implicit_steps import ImplicitSteps
from rewards.learned.labels import pair_of
from rewards.learned.losses import (
    Moments,
    above_threshold,
    class_weights,
    classification_loss,
    normalised,
    ranking_loss,
)
from rewards.learned.meta_rm import Correctness
from rewards.learned.network import CHUNK, LearnedNetwork, Model, order_agreement
from rewards.learned.publishing import State
from rewards.learned.quality_values import QualityValue
from rewards.learned.step_models import Imitation, Progress, ReturnDecomposition, Segments


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


class Classification(LearnedNetwork):
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


class Ranking(LearnedNetwork):
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
        first, second = zip(*map(pair_of, keys), strict=True) if keys else ((), ())
        return order_agreement(self._scores(first), self._scores(second), values)

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
    "bradley_terry": BradleyTerry,
    "correctness": Correctness,
    "features": FeatureModel,
    "imitation": Imitation,
    "implicit_steps": ImplicitSteps,
    "progress": Progress,
    "quality_value": QualityValue,
    "return_decomposition": ReturnDecomposition,
    "segments": Segments,
}


def model_of(name: str, section: RewardModelSection) -> Model:
    """A new model as the recipe describes it. Raises ConfigError."""
    return build(MODELS, section.use, section.options, f"reward_models.{name}")


def _balanced(predicted: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"]) -> float:
    """Mean of the shares that are right among the good and among the bad: always saying 'bad' gets ½, however rare
    the good are. NaN unless there are both."""
    good = values > 0.5
    if good.all() or not good.any():
        return float("nan")
    right = (predicted > 0.5) == good
    return float((right[good].mean() + right[~good].mean()) / 2)
