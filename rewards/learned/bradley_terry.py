"""A Bradley-Terry reward model that learns during the run (options: Secrets of RLHF II, arXiv:2401.06080)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PrivateAttr, model_validator
from torch import Tensor

from rewards.learned.encoders import CharCNN, Encoder, LanguageModel, Transformer
from rewards.learned.labels import pair_of
from rewards.learned.network import LearnedNetwork, order_agreement
from rewards.learned.preferences import (
    Flip,
    Smooth,
    ascended,
    contrastive_loss,
    corrected_labels,
    preference_loss,
    spread,
    strengths,
)
from rewards.learned.publishing import State

SPREAD_GROUPS = 8
"""Groups without labels per inner step of MetaRM."""


class BradleyTerry(LearnedNetwork):
    """r(text) with P(first better) = σ(r(first) − r(second)), from labels of pairs; an unbounded score, a logit.

    loss = −q log σ(Δ − μ) − (1 − q) log σ(μ − Δ) + c (r₁ + r₂)² + β · SimCSE over the batch, q the label after flipping
    and smoothing, μ the ensemble's strength where `margin` says so. The ensemble are `members` models of the same kind,
    each with its own seed, hence its own start and order. With `meta_lr` the gradient is taken at θ + η ∇J, J the
    spread of scores within groups of the current policy that nobody has labelled (MetaRM), and applied at θ.
    Of texts beyond 231 bytes (`char_cnn`) or 512 tokens the end is read.
    The values of `smoothing`, `contrast` and its temperature are not in what we read of the paper.
    """

    frozen: bool = False
    """Train the head alone; the language model below it stays as it is."""
    centring: NonNegativeFloat = 0.0
    """c; 0.01 is usual. Pairs leave the score's level open; this puts 0 between the better and the worse."""
    members: NonNegativeInt = 0
    """M reward models that measure strengths; 10 in the paper. Each costs as much as the model itself."""
    flip: Flip = "never"
    smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """a."""
    smooth: Smooth = "all"
    margin: bool = False
    """μ of a pair is the ensemble's strength, else 0."""
    contrast: NonNegativeFloat = 0.0
    """β."""
    temperature: PositiveFloat = 0.05
    """τ of the contrastive term."""
    meta_lr: NonNegativeFloat = 0.0
    """η of MetaRM's inner step."""
    compares: ClassVar[bool] = True
    num_outputs: ClassVar[int] = 1
    _members: tuple[BradleyTerry, ...] = PrivateAttr(default=())
    _groups: tuple[tuple[str, ...], ...] = PrivateAttr(default=())

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        same = {"encoder", "frozen", "lr", "batch_size", "early_steps", "early_labels", "clip_grad_norm"}
        options = self.model_dump(include=same)
        self._members = tuple(BradleyTerry(**options, seed=self.seed + 1 + m) for m in range(self.members))

    @model_validator(mode="after")
    def _measured(self) -> BradleyTerry:
        if not self.members and (self.flip != "never" or self.margin or (self.smoothing and self.smooth != "all")):
            raise ValueError("flip, margin and smooth go by the strength of a preference: members = 10 measure it")
        return self

    def _encoder(self) -> Encoder:
        if self.encoder == "char_cnn":
            return CharCNN(keep_end=True)
        return Transformer(self.encoder, keep_end=True) if self.frozen else LanguageModel(self.encoder)

    @property
    def wants_groups(self) -> bool:
        return self.meta_lr > 0

    def see(self, groups: Sequence[Sequence[str]]) -> None:
        self._groups = tuple(tuple(texts) for texts in groups if len(texts) > 1)

    def fit(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        for member in self._members:
            member.fit(keys, values)
        return super().fit(keys, values)

    def _gradients(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        meta = self.meta_lr and self._groups
        with ascended(self._net.parameters(), self._spread, self.meta_lr) if meta else nullcontext():
            return super()._gradients(keys, batch, values)

    def _spread(self) -> Tensor:
        """Mean over some of the groups that were seen last."""
        count = min(SPREAD_GROUPS, len(self._groups))
        picked = torch.randperm(len(self._groups), generator=self._random)[:count].tolist()
        return torch.stack([spread(self._net(self._groups[i])[:, 0]) for i in picked]).mean()

    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        first, second = zip(*map(pair_of, keys), strict=True)
        better, margin = self._corrected(keys, batch)
        encoded, passes = self._net.encoder([*first, *second]), 2 if self.contrast else 1
        views = [self._net.features(encoded) for _ in range(passes)]
        losses = []
        for view in views:  # the contrastive term's second view is learnt from as well
            one, other = self._net.outputs(view)[:, 0].chunk(2)
            losses.append(preference_loss(one, other, better, margin, self.centring))
        loss = torch.stack(losses).mean()
        return loss + self.contrast * contrastive_loss(views[0], views[1], self.temperature) if self.contrast else loss

    def _corrected(self, keys: Sequence[str], batch: Float[Tensor, " B"]) -> tuple[Tensor, Tensor | float]:
        """Labels, and how far apart the first is to be from the second."""
        if not self._members:
            return corrected_labels(batch, batch, batch, smoothing=self.smoothing), 0.0
        side = (batch - 0.5).sign()
        apart = torch.tensor(np.stack([m.apart(keys) for m in self._members], 1)).float()
        mean, std = strengths(side[:, None] * apart)
        better = corrected_labels(batch, mean, std, flip=self.flip, smoothing=self.smoothing, smooth=self.smooth)
        return better, side * mean if self.margin else 0.0

    def apart(self, keys: Sequence[str]) -> Float[np.ndarray, " N"]:
        """r(first) − r(second) of pairs."""
        first, second = zip(*map(pair_of, keys), strict=True) if keys else ((), ())
        return self.predict(first) - self.predict(second)

    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        return self.outputs(captions)[:, 0].double().numpy()

    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        return order_agreement(self.apart(keys), np.zeros(len(keys)), values)

    def state(self, *, training: bool) -> State:
        arrays = super().state(training=training)
        for m, member in enumerate(self._members if training else ()):
            arrays |= {f"member/{m}/{name}": value for name, value in member.state(training=True).items()}
        return arrays

    def load(self, state: State) -> None:
        super().load({name: value for name, value in state.items() if not name.startswith("member/")})
        for m, member in enumerate(self._members):
            own = {n.removeprefix(f"member/{m}/"): v for n, v in state.items() if n.startswith(f"member/{m}/")}
            if own:
                member.load(own)
