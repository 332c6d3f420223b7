"""The recipe: one frozen tree (`models`, `learner`), read from TOML and `section.key=value` overrides (`reading`)."""

from cluster.config.base import Section, Use
from cluster.config.learner import CorrectionSection, LearnerSection, LoraSection, LossSection, ScheduleSection
from cluster.config.models import (
    BufferSection,
    ConsoleSection,
    EvaluationSection,
    ModelSection,
    RunConfig,
    TrackingSection,
)
from cluster.config.reading import dump, load, parse, without_password
from cluster.config.rewards import DistilledSection, JudgeSection, RewardSection

__all__ = [
    "BufferSection",
    "ConsoleSection",
    "CorrectionSection",
    "DistilledSection",
    "EvaluationSection",
    "JudgeSection",
    "LearnerSection",
    "LoraSection",
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
