"""Reward models of steps that learn from what whole episodes came to: no judge labels a step.

The key of a label is an episode, its steps joined by `episodes.STEP`; what is predicted is one step. Formulas by their
papers' released code, except where a docstring says otherwise.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, PrivateAttr
from torch import Tensor, nn

from rewards.learned.encoders import CharCNN, Encoder, LanguageModel
from rewards.learned.episodes import NAMED, STEP
from rewards.learned.network import LearnedNetwork, Model
from rewards.learned.publishing import State


class StepModel(LearnedNetwork):
    """Base of networks that give each step a number: a label is the outcome of an episode."""

    batch_size: PositiveInt = 16
    """Episodes of a gradient step."""
    early_steps: PositiveInt = 8
    lr: float = Field(default=1e-3, gt=0)
    num_outputs: ClassVar[int] = 1

    def _encoder(self) -> Encoder:
        return CharCNN(keep_end=True) if self.encoder == "char_cnn" else LanguageModel(self.encoder)

    def inputs(self, key: str) -> list[str]:
        """Return what the network reads for each step of an episode: all that has happened up to its end."""
        steps = key.split(STEP)
        return [STEP.join(steps[: k + 1]) for k in range(len(steps))]

    def _of_episodes(self, keys: Sequence[str]) -> list[Float[Tensor, " K"]]:
        """Return the numbers of all steps, episode by episode."""
        inputs = [self.inputs(key) for key in keys]
        flat = self._net([text for texts in inputs for text in texts])[:, 0]
        return list(flat.split([len(texts) for texts in inputs]))

    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        return self.outputs(captions)[:, 0].double().numpy()

    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        return outcome_agreement(np.array([self.predict(self.inputs(key)).sum() for key in keys]), values)


def outcome_agreement(predicted: Float[np.ndarray, " N"], outcomes: Float[np.ndarray, " N"]) -> float:
    """Share of the pairs of unequal outcomes that the predictions order alike, equal ones counting half; NaN without
    such a pair."""
    apart, wanted = np.subtract.outer(predicted, predicted), np.subtract.outer(outcomes, outcomes) > 0
    return float(np.where(apart == 0, 0.5, apart > 0)[wanted].mean()) if wanted.any() else float("nan")


class Progress(StepModel):
    """ĉ_t of each step with Σ_t ĉ_t ≈ R, the outcome: loss (Σ_t ĉ_t − R)² (SPA-RL, arXiv:2505.20732).

    The paper's estimator is the policy's language model with a linear layer on the last token of each turn:
    `encoder = "initial"` reads up to 512 tokens with one; `char_cnn` reads the last 231 bytes.
    """

    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        return progress_loss(self._of_episodes(keys), batch)


def progress_loss(steps: Sequence[Float[Tensor, " K"]], outcomes: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean of (Σ_t ĉ_t − R)² over episodes."""
    return ((torch.stack([s.sum() for s in steps]) - outcomes) ** 2).mean()


class ReturnDecomposition(StepModel):
    """r̂_t = f(z_t) of the factors z_t of a step, with Σ_t r̂_t ≈ R (LaRe, arXiv:2412.11120).

    f has three hidden layers of 256. Loss of an episode of T steps, of which K are drawn:

        (mean_K r̂ − R / T)² − (1 − K / T) · Var_K(r̂) / K,        Var with K − 1 in the denominator

    an unbiased estimate of (Σ_t r̂_t − R)² / T². A step's text is its factors as JSON, which the reward `lare` computes.
    """

    num_factors: PositiveInt = 4
    """Length of z_t."""
    sampled: PositiveInt = 64
    """K; a shorter episode is taken as a whole, which needs no correction."""

    def _network(self) -> Any:
        return FactorNet(self.num_factors)

    def inputs(self, key: str) -> list[str]:
        return key.rpartition(NAMED)[2].split(STEP)

    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        losses = []
        for key, outcome in zip(keys, batch, strict=True):
            steps = self.inputs(key)
            picked = torch.randperm(len(steps), generator=self._random)[: self.sampled].tolist()
            found = self._net([steps[i] for i in picked])[:, 0]
            losses.append(decomposition_loss(found, outcome, len(steps)))
        return torch.stack(losses).mean()


def decomposition_loss(sampled: Float[Tensor, " K"], outcome: Float[Tensor, ""], length: int) -> Float[Tensor, ""]:
    """Loss of one episode of `length` steps, of which K were drawn; see `ReturnDecomposition`."""
    k = len(sampled)
    loss = (sampled.mean() - outcome / length) ** 2
    return loss - (1 - k / length) * sampled.var() / k if k < length and k > 1 else loss


class FactorNet(nn.Module):
    """Steps as JSON lists of numbers → [N, 1], by three hidden layers of 256."""

    def __init__(self, num_factors: int) -> None:
        super().__init__()
        sizes = (num_factors, 256, 256, 256)
        hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(256, 1))

    def forward(self, captions: Sequence[str]) -> Float[Tensor, "N 1"]:
        return self.layers(torch.tensor([json.loads(text) for text in captions], dtype=torch.float32))


class Imitation(StepModel):
    """−log(1 − σ(D) + 10⁻⁸) of a step, D a discriminator of demonstrated (1) from own steps (0).

    Loss: binary cross-entropy + λ · `gradient_penalty` of D with respect to a step's features, at points x̂ between
    demonstrated and own ones, so that D is about k-Lipschitz (arXiv:2006.16785). The values of λ and k are the usual
    ones, unverified; the paper's pessimistic factor is left out. An episode's label is of each of its steps.
    """

    penalty: float = Field(default=10.0, ge=0)
    """λ."""
    lipschitz: float = Field(default=1.0, gt=0)
    """k."""
    one_sided: bool = False
    """Penalise only a norm above k."""

    def inputs(self, key: str) -> list[str]:
        return key.split(STEP)

    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        net = self._net
        texts = [self.inputs(key) for key in keys]
        labels = batch.repeat_interleave(torch.tensor([len(t) for t in texts]))
        features = net.encoder([text for one in texts for text in one])
        loss = nn.functional.binary_cross_entropy_with_logits(net.head(features)[:, 0], labels)
        shown, own = features[labels > 0.5].detach(), features[labels <= 0.5].detach()
        if not self.penalty or not len(shown) or not len(own):
            return loss
        n = max(len(shown), len(own))
        a, b = (x[torch.randint(len(x), (n,), generator=self._random)] for x in (shown, own))
        share = torch.rand(n, 1, generator=self._random)
        points = share * a + (1 - share) * b
        return loss + gradient_penalty(
            lambda x: net.head(x)[:, 0], points, weight=self.penalty, lipschitz=self.lipschitz, one_sided=self.one_sided
        )

    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        return outcome_agreement(np.array([self.predict(self.inputs(key)).mean() for key in keys]), values)

    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        return imitation_reward(self.outputs(captions)[:, 0]).double().numpy()


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor],
    points: Float[Tensor, "N D"],
    *,
    weight: float = 10.0,
    lipschitz: float = 1.0,
    one_sided: bool = False,
) -> Float[Tensor, ""]:
    """λ · mean (‖∇D‖ − k)², or of max(0, ‖∇D‖ − k)² if `one_sided`; differentiable (arXiv:2006.16785)."""
    x = points.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    beyond = gradient.norm(dim=1) - lipschitz
    return weight * ((beyond.clamp(min=0) if one_sided else beyond) ** 2).mean()


def imitation_reward(logits: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """−log(1 − σ(D) + 10⁻⁸)."""
    return -(1 - logits.sigmoid() + 1e-8).log()


class Segments(Model):
    """Index of the sub-step that a step looks like, over their number, learnt from successful episodes alone.

    Component for text of unsupervised perceptual rewards (arXiv:1612.06699), whose details we have not verified: ours
    are hashed words as the features of a step and a Gaussian classifier. Each successful episode is cut into `segments`
    of least variance by binary splits; the k-th segments of all are aligned; the classifier reads the `features` that
    best tell sub-step k from the others, by |μ_k − μ_rest| / (σ_k + σ_rest). There is no gradient.
    """

    segments: PositiveInt = 4
    """K."""
    features: PositiveInt = 16
    """Features that are read for each sub-step."""
    width: PositiveInt = 256
    """Hashed words."""
    success: float = 0.5
    """Outcomes above it are demonstrations."""
    _mean: np.ndarray | None = PrivateAttr(None)
    _std: np.ndarray | None = PrivateAttr(None)
    _kept: np.ndarray | None = PrivateAttr(None)

    def fit(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        shown = [key.split(STEP) for key, value in zip(keys, values, strict=True) if value > self.success]
        cut: list[list[np.ndarray]] = [[] for _ in range(self.segments)]
        cost = 0.0
        for steps in shown:
            if len(steps) < self.segments:
                continue
            rows = hashed_words(steps, self.width)
            bounds, one = split(rows, self.segments)
            cost += one
            for k, (begin, end) in enumerate(pairwise(bounds)):
                cut[k].append(rows[begin:end])
        if not cut[0]:
            return float("nan")
        parts = [np.concatenate(rows) for rows in cut]
        self._mean = np.stack([p.mean(0) for p in parts])
        self._std = np.stack([p.std(0) for p in parts]) + 0.1
        rest = [np.concatenate(parts[:k] + parts[k + 1 :]) if self.segments > 1 else p for k, p in enumerate(parts)]
        score = np.stack([
            np.abs(p.mean(0) - r.mean(0)) / (p.std(0) + r.std(0) + 1e-6) for p, r in zip(parts, rest, strict=True)
        ])  # fmt: skip
        self._kept = np.unique(np.argsort(-score, axis=1, kind="stable")[:, : self.features])
        return cost / len(cut[0])

    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        if self._mean is None or self._std is None or self._kept is None or not captions:
            return np.full(len(captions), np.nan)
        rows = hashed_words(captions, self.width)[:, None, self._kept]
        mean, std = self._mean[:, self._kept], self._std[:, self._kept]
        likelihood = -(((rows - mean) / std) ** 2 / 2 + np.log(std)).sum(2)
        return (likelihood.argmax(1) + 1.0) / self.segments

    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        """As for the other models of steps, by the farthest sub-step that an episode reaches."""
        return outcome_agreement(np.array([self.predict(key.split(STEP)).max() for key in keys]), values)

    def state(self, *, training: bool) -> State:
        if self._mean is None or self._std is None or self._kept is None:
            return {}
        return {"mean": self._mean, "std": self._std, "kept": self._kept}

    def load(self, state: State) -> None:
        self._mean, self._std, self._kept = (state.get(name) for name in ("mean", "std", "kept"))


def hashed_words(texts: Sequence[str], width: int) -> Float[np.ndarray, "N width"]:
    """Counts of words by a hash of each, the same in every process."""
    rows = np.zeros((len(texts), width))
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            row[zlib.crc32(word.strip(".,:").encode()) % width] += 1
    return rows


def split(rows: Float[np.ndarray, "N D"], segments: int, least: int = 1) -> tuple[list[int], float]:
    """Return the borders [segments + 1] of a sequence cut by binary splits, and Σ n_s · Var(segment s).

    Each split is the one that lowers the cost n₁ Var(x[:i]) + n₂ Var(x[i:]) of some segment most; no segment is shorter
    than `least`. Raises ValueError for a sequence that is too short.
    """
    if len(rows) < segments * least:
        raise ValueError(f"{len(rows)} steps cannot be cut into {segments} segments of at least {least}.")

    def cost(begin: int, end: int) -> float:
        return float(((rows[begin:end] - rows[begin:end].mean(0)) ** 2).sum())

    bounds = [0, len(rows)]
    while len(bounds) <= segments:
        gains = [
            (cost(a, b) - cost(a, i) - cost(i, b), -i)
            for a, b in pairwise(bounds)
            for i in range(a + least, b - least + 1)
        ]
        if not gains:
            raise ValueError(f"{len(rows)} steps cannot be cut into {segments} segments of at least {least}.")
        bounds = sorted([*bounds, -max(gains)[1]])
    return bounds, sum(cost(a, b) for a, b in pairwise(bounds))


def increments(recognised: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """What each step adds to the farthest sub-step so far."""
    farthest = np.maximum.accumulate(recognised) if len(recognised) else recognised
    return np.diff(farthest, prepend=0.0)
