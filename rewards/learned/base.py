"""What rewards that score with a model learnt during the run have in common."""

from __future__ import annotations

from typing import ClassVar, Protocol

from pydantic import PrivateAttr

from cluster.config import RewardModelSection
from rewards.base import UNVERSIONED, Reward, Services
from rewards.learned.caption_labels import CaptionJudge, Complete
from rewards.learned.client import RewardModelClient
from rewards.learned.labeler import Judge


class Versioned(Judge, Protocol):
    """A labelling judge with a version, which changes with the question and with the model."""

    version: str


class RewardModelReward(Reward):
    """Scores with the version of `[reward_models.NAME]` that was published last, and says how its labels are made."""

    model: str
    """The section `[reward_models.NAME]`."""
    services: ClassVar = ("reward_model",)
    announced: ClassVar = True
    _follower: RewardModelClient | None = PrivateAttr(None)

    async def prepare(self, services: Services) -> None:
        self._follower = services.reward_model(self.model)
        await self._follower.refresh()

    async def refresh(self, services: Services) -> None:
        await services.reward_model(self.model).refresh()

    def version(self) -> str:
        return self._follower.version if self._follower else UNVERSIONED

    def labels_per_group(self, group_size: int) -> int | None:
        """How many it asks for at most; None where that depends on what happens."""
        return None

    def labels_by(self, section: RewardModelSection, complete: Complete | None, *, compares: bool) -> Versioned:
        """Return the judge of the keys that the reward submits; without `complete` it only knows its version."""
        return caption_judge(section, complete, compares=compares)


def caption_judge(section: RewardModelSection, complete: Complete | None, *, compares: bool) -> CaptionJudge:
    return CaptionJudge(complete, goal=section.goal, judge=section.judge, compares=compares)
