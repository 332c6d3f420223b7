"""The formulas of ONI (arXiv:2410.23022), with what its released code left out."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def class_weights(labels: Float[np.ndarray, " N"]) -> Float[np.ndarray, " 2"]:
    """Weights of bad and good under which both classes count the same; a class without labels weighs 0.

    N / (number of classes there are × labels of the class). A label between 0 and 1 belongs to both in its share.
    """
    mass = np.array([(1 - labels).sum(), labels.sum()])
    present = mass > 0
    return np.where(present, len(labels) / (np.maximum(present.sum(), 1) * np.where(present, mass, 1.0)), 0.0)


def classification_loss(
    logits: Float[Tensor, "N 2"], labels: Float[Tensor, " N"], weights: Float[Tensor, " 2"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy over (bad, good), weighted by class; labels in [0, 1]."""
    target = torch.stack([1 - labels, labels], 1) * weights
    return -(target * logits.log_softmax(1)).sum(1).mean()


def ranking_loss(
    first: Float[Tensor, " N"], second: Float[Tensor, " N"], better: Float[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Mean Bradley-Terry loss −Σ q log softmax(f₁, f₂), q = (better, 1 − better); `better` is ½ for a tie."""
    logs = torch.stack([first, second], 1).log_softmax(1)
    return -(better * logs[:, 0] + (1 - better) * logs[:, 1]).mean()


def above_threshold(logits: Float[Tensor, "N 2"], threshold: float) -> Float[np.ndarray, " N"]:
    """1 where the probability of good exceeds the threshold, else 0."""
    return (logits.softmax(1)[:, 1] > threshold).double().numpy()


def normalised(values: Float[np.ndarray, " N"], mean: float, std: float, *, cut: float) -> Float[np.ndarray, " N"]:
    """z·1[z > cut] with z = (f − μ)/σ. The released code computes z and goes on with f."""
    z = (values - mean) / std
    return np.where(z > cut, z, 0.0)


class Moments:
    """Running mean and variance, merged batch by batch; starts as 1e-4 samples of mean 0 and variance 1."""

    def __init__(self, mean: float = 0.0, variance: float = 1.0, count: float = 1e-4) -> None:
        self.mean, self.variance, self.count = mean, variance, count

    def add(self, values: Float[np.ndarray, " N"]) -> None:
        """Merge a batch; its variance has N − 1 in the denominator, and is 0 for a single value."""
        n = len(values)
        if not n:
            return
        variance = float(values.var(ddof=1)) if n > 1 else 0.0
        total, apart = self.count + n, float(values.mean()) - self.mean
        squares = self.variance * self.count + variance * n + apart**2 * self.count * n / total
        self.mean, self.variance, self.count = self.mean + apart * n / total, squares / total, total

    @property
    def std(self) -> float:
        return self.variance**0.5
