"""A reward model of judges: how likely a verdict is right, by what it says (meta RM of SPCT, arXiv:2504.02495)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from cluster.thoughts import whole_text
from cluster.types import Group, Provenance, Scores
from rewards.base import Services
from rewards.learned.encoders import CharCNN, Encoder, LanguageModel
from rewards.learned.network import LearnedNetwork
from rewards.learned.response_labels import written
from rewards.learned.reward_model import scores_of
from rewards.learned.step_rewards import OutcomeReward, Told


class Correctness(LearnedNetwork):
    """P(right) = σ(f(text)), with the binary cross-entropy of the label. Of long texts the end is read."""

    lr: float = Field(default=1e-3, gt=0)
    batch_size: PositiveInt = 64
    num_outputs: ClassVar[int] = 1

    def _encoder(self) -> Encoder:
        return CharCNN(keep_end=True) if self.encoder == "char_cnn" else LanguageModel(self.encoder)

    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self._net(keys)[:, 0], batch)

    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        return torch.sigmoid(self.outputs(captions)[:, 0]).double().numpy()

    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        """Mean of the shares that are right among right and among wrong verdicts; NaN unless there are both."""
        right, called = values > 0.5, self.predict(keys) > 0.5
        if right.all() or not right.any():
            return float("nan")
        return float((called[right].mean() + (~called)[~right].mean()) / 2)


class MetaRm(OutcomeReward):
    """P(right) of each rollout of a judge in training, by `[reward_models.NAME]` with `use = "correctness"`.

    Its labels are what `outcome` says: the reward `verdict` with the rule that the judge is trained by. The text is the
    judge's question with all that it wrote, principles and critique included. With weight 0 it is what a vote goes by:
    `vote = "weighted"`, `by = "meta_rm"`; the paper keeps the better half of the samples instead of weighing them. A
    lone rollout is an evaluation's, and teaches nothing. Until a first version is published it fails.
    """

    model: str = "meta_rm"
    """The section `[reward_models.NAME]`, with `use = "correctness"` and `judge = ""`."""
    outcome: str = "verdict"
    correct: float = 1.0
    """Outcomes from here on are right."""

    async def score(self, group: Group, services: Services) -> Scores:
        outcomes = (await self._verifier().score(group, services)).values
        texts = [written(group.task, whole_text(rollout)) for rollout in group.rollouts]
        client = services.reward_model(self.model)
        known = {t: float(o >= self.correct) for t, o in zip(texts, outcomes.tolist(), strict=True) if math.isfinite(o)}
        if len(group) > 1:
            await client.tell(known, version=Told.version)
        values, version = await scores_of(client, texts)
        return Scores.of(values, Provenance(model=self.model), version=version)
