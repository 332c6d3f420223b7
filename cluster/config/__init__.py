"""The recipe: one frozen tree (`models`, `learner`), read from TOML and `section.key=value` overrides (`reading`)."""

from cluster.config.base import Section, Use
from cluster.config.learner import CorrectionSection, LearnerSection, LossSection, ScheduleSection
from cluster.config.models import (
    BufferSection,
    JudgeSection,
    ModelSection,
    RewardSection,
    RunConfig,
    TrackingSection,
)
from cluster.config.reading import dump, load, parse, without_password

__all__ = [
    "BufferSection",
    "CorrectionSection",
    "JudgeSection",
    "LearnerSection",
    "LossSection",
    "ModelSection",
    "RewardSection",
    "RunConfig",
    "ScheduleSection",
    "Section",
    "TrackingSection",
    "Use",
    "dump",
    "load",
    "parse",
    "without_password",
]
